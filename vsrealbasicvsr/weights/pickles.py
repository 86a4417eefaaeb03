"""torch's checkpoints, read without executing anything in them.

A file is inspected before it is read: which functions its pickle calls, how large its contents are, and whether its
checksums match.
"""

import io
import pickletools
import re
import threading
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch

from .claims import check_claims
from .refusing import WeightsError, reason_of, refused

MAX_TENSORS = 20_000
"""Maximum number of tensors in a file, those of optimisers included; the published checkpoints hold some 2,000."""
MAX_OPERATIONS = 1_000_000
"""Maximum number of operations in a pickle; the published ones have 60,000. A million takes a second or two."""
MAX_STACK = 10_000
"""Maximum number of values on a pickle's stack; Python's own pickles write dictionaries in pieces of 1000 entries."""
MAX_PICKLE_BYTES = 2**26
MAX_DIRECTORY_BYTES = 2**22
"""Maximum size of the table of contents of a zip file."""

# Names that a pickle of dense tensors calls: fewer than torch allows.
_TENSOR_NAMES = re.compile(
    r"collections\.(OrderedDict|Counter)|torch\._utils\._rebuild_(tensor|tensor_v2|tensor_v3|parameter)"
    r"|torch\.(cuda\.)?\w+Storage|torch\.storage\.(Typed|Untyped)Storage|torch\.(Size|device|bool|[a-z]+\d+\w*)"
    r"|_codecs\.encode|builtins\.set"
)
# Names in checkpoints of OpenMMLab's training tools: numpy's scalars and arrays in logs of losses.
_LOG_NAMES = (
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    "numpy.dtype",
    "numpy.ndarray",
    "mmengine.logging.history_buffer.HistoryBuffer",
)
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the first of the five pickles in a checkpoint of torch.save before torch 1.6
_LEGACY_PICKLES = 5

_placeholder_lock = threading.Lock()  # torch's list of allowed names belongs to the whole process


class _SizeError(ValueError):
    """A pickle exceeds a limit."""


def read_pickled(path: Path, *, is_zip: bool) -> Any:
    """Return what torch.save wrote into a file, on the CPU.

    Args:
        path: The file.
        is_zip: Whether it is a zip file; otherwise it is a series of pickles, as before torch 1.6.

    Raises:
        WeightsError: The file is damaged, would run code, or exceeds a limit.
    """
    names = _names_in_zip(path) if is_zip else _names_in_legacy_file(path)
    if unwanted := _unwanted(names):
        found = ", ".join(unwanted[:3]) + (", ..." if len(unwanted) > 3 else "")
        if all(name.startswith("torch._utils._rebuild_") for name in unwanted):
            raise refused(path, f"holds tensors that are not dense (it calls {found})", "Use a state dict")
        raise refused(
            path,
            f"would run code when unpickled, so it was not loaded (it calls {found})",
            "Use a file that holds tensors only, from a source that you trust",
        )
    try:
        if is_zip:
            check_claims(path)
        # An open file, not its name: newer versions of torch choose the reader by the name.
        with _placeholders_for(names.intersection(_LOG_NAMES)), path.open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise anything
        raise refused(path, f"is cut off or damaged ({reason_of(error)})", "Download it again") from None


@contextmanager
def _placeholders_for(names: set[str]) -> Iterator[None]:
    """Let torch create placeholders for these names while the block runs."""
    if not names:
        yield
        return
    with _placeholder_lock, torch.serialization.safe_globals([(_Placeholder, name) for name in names]):
        yield


class _Placeholder:
    """Stands for a value that no network needs; numpy itself is never called."""

    def __new__(cls, *args: object) -> "_Placeholder":
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        """Discard the value's state."""


# ---- zip files -------------------------------------------------------------------------------------------------------


def _names_in_zip(path: Path) -> set[str]:
    """Return the names that the pickle in a zip checkpoint calls.

    Raises WeightsError unless torch.save wrote the file.
    """
    try:
        if _directory_bytes(path) > MAX_DIRECTORY_BYTES:
            raise _too_large(path, "its table of contents")
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            _check_entries(path, entries)
            (pickled,) = (entry for entry in entries if entry.filename.endswith("/data.pkl"))
            if not any(entry.CRC for entry in entries):  # torch can be told to write no checksums; all are 0 then
                del pickled.CRC  # zipfile then compares none
            elif damaged := archive.testzip():  # torch itself does not check them
                raise refused(path, f"is damaged: the checksum of {damaged!r} is wrong", "Download or copy it again")
            return _names_in_pickle(io.BytesIO(archive.read(pickled)))[0]
    except WeightsError:
        raise
    except _SizeError as error:
        raise _too_large(path, str(error)) from None
    except Exception as error:  # zipfile and pickletools raise many types for damaged files
        raise refused(
            path, f"is a torch checkpoint, cut off or damaged ({reason_of(error)})", "Download it again"
        ) from None


def _check_entries(path: Path, entries: list[zipfile.ZipInfo]) -> None:
    """Raise WeightsError unless these can be the entries of a checkpoint."""
    # torch.save does not compress, so a file that grows is a zip bomb.
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise refused(path, "is a zip file that grows when unpacked, so it was not loaded", "Do not trust it")
    pickles = [entry for entry in entries if entry.filename.endswith("/data.pkl")]
    if len(pickles) != 1 or any(entry.filename.endswith("/constants.pkl") for entry in entries):
        names = sorted(entry.filename for entry in entries)
        found = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "") or "nothing"
        raise refused(path, f"is a zip file but not a checkpoint of torch.save (it holds {found})", "Use a .pth file")
    if len(entries) > MAX_TENSORS:
        raise _too_large(path, f"{len(entries):,} tensors")
    if pickles[0].file_size > MAX_PICKLE_BYTES:
        raise _too_large(path, f"a pickle of {pickles[0].file_size:,} bytes")


def _directory_bytes(path: Path) -> int:
    """Return the size of a zip file's table of contents, as the file states it; 0 if it states none."""
    with path.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(max(0, size - 2**16 - 128))
        tail = file.read()
    end = tail.rfind(b"PK\5\6")
    number = tail[end + 12 : end + 16] if end >= 0 else b""
    if number == b"\xff\xff\xff\xff" and (end := tail.rfind(b"PK\6\6")) >= 0:  # of a file beyond 4 GiB
        number = tail[end + 40 : end + 48]
    return int.from_bytes(number, "little")


def _too_large(path: Path, what: str) -> WeightsError:
    return refused(path, f"holds more than any file of weights does ({what}), so it was not loaded", "Do not trust it")


# ---- pickles ---------------------------------------------------------------------------------------------------------


def _names_in_legacy_file(path: Path) -> set[str]:
    """Return the names that the pickles of a checkpoint from before torch 1.6 call."""
    try:
        with path.open("rb") as file:
            names, first_value = _names_in_pickle(file)
            if first_value == _LEGACY_MAGIC:
                for _ in range(1, _LEGACY_PICKLES):
                    names |= _names_in_pickle(file)[0]
    except _SizeError as error:
        raise _too_large(path, str(error)) from None
    except Exception as error:  # pickletools raises many types for damaged files
        raise refused(path, f"is a pickle, cut off or damaged ({reason_of(error)})", "Download it again") from None
    if first_value != _LEGACY_MAGIC and not _unwanted(names):
        raise refused(path, "is a Python pickle, but not a checkpoint of torch.save", "Use a .pth file of RealBasicVSR")
    return names


def _names_in_pickle(file: BinaryIO) -> tuple[set[str], object]:
    """Return the functions and classes that one pickle calls, and its first value, without unpickling it.

    `file` is then positioned after the pickle. Raises _SizeError beyond a limit, and ValueError and other types for
    what is no pickle.
    """
    names: set[str] = set()
    memo: dict[object, object] = {}
    below, top, first_value = None, None, None
    for opcode, argument in _bounded(file):
        match opcode:
            case "GLOBAL" | "INST":
                names.add(_modern(*str(argument).split(" ", 1)))
            case "STACK_GLOBAL":
                names.add(f"{below}.{top}")
            case "MEMOIZE":
                memo[len(memo)] = top
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                memo[argument] = top
            case "GET" | "BINGET" | "LONG_BINGET":
                below, top = top, memo.get(argument)
            case "PROTO" | "FRAME":
                pass
            case _:
                first_value = argument if first_value is None else first_value
                below, top = top, argument
    return names, first_value


def _bounded(file: BinaryIO) -> Iterator[tuple[str, object]]:
    """Yield the operations of a pickle, name and argument, as long as no limit is exceeded."""
    height, marks = 0, []
    for number, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if number >= MAX_OPERATIONS:
            raise _SizeError(f"a pickle of more than {MAX_OPERATIONS:,} operations")
        if opcode.name == "MARK":
            marks.append(height)
        elif pickletools.markobject in opcode.stack_before:  # it pops everything above the mark, and some values below
            height = marks.pop() - opcode.stack_before.index(pickletools.markobject) + len(opcode.stack_after)
        else:
            height += len(opcode.stack_after) - len(opcode.stack_before)
        if height + len(marks) > MAX_STACK:
            raise _SizeError(f"more than {MAX_STACK:,} values inside each other")
        yield opcode.name, argument


def _unwanted(names: set[str]) -> list[str]:
    """Return the names that neither tensors nor logs need."""
    return sorted(name for name in names if name not in _LOG_NAMES and not _TENSOR_NAMES.fullmatch(name))


def _modern(module: str, name: str) -> str:
    """Return Python 3's name for one in Python 2's spelling, as pickles up to protocol 2 have it."""
    if (module, name) in NAME_MAPPING:
        module, name = NAME_MAPPING[module, name]
    return f"{IMPORT_MAPPING.get(module, module)}.{name}"
