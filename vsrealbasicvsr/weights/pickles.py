"""torch's checkpoints: what is in one, once it is known that nothing in it would be executed. Knows no networks.

A file is looked at before it is read: what its pickle calls, how large it would become, and whether its checksums hold.
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

from .refusing import WeightsError, reason_of, refused

MAX_TENSORS = 20_000
"""Of a file, with those of optimisers; the published checkpoints hold some 2,000."""
MAX_OPERATIONS = 1_000_000
"""Of a pickle; the published ones take 60,000, a million a second or two."""
MAX_STACK = 10_000
"""Values that a pickle holds ready at once: Python's own writes dictionaries in pieces of 1000 entries."""
MAX_PICKLE_BYTES = 2**26
MAX_DIRECTORY_BYTES = 2**22
"""Of the table of contents of a zip file."""

# What a pickle of tensors calls. Narrower than what torch allows: weights are dense, and nothing else is wanted.
_TENSOR_NAMES = re.compile(
    r"collections\.(OrderedDict|Counter)|torch\._utils\._rebuild_(tensor|tensor_v2|tensor_v3|parameter)"
    r"|torch\.(cuda\.)?\w+Storage|torch\.storage\.(Typed|Untyped)Storage|torch\.(Size|device|bool|[a-z]+\d+\w*)"
    r"|_codecs\.encode|builtins\.set"
)
# What OpenMMLab's training tools leave beside the weights: numpy's scalars and arrays in logs of losses.
_LOG_NAMES = (
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    "numpy.dtype",
    "numpy.ndarray",
    "mmengine.logging.history_buffer.HistoryBuffer",
)
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the first of the five pickles that torch.save wrote before it wrote zip files
_LEGACY_PICKLES = 5

_placeholder_lock = threading.Lock()  # torch keeps its list of allowed names for the whole process


class _SizeError(ValueError):
    """A pickle is larger than any that holds weights."""


def read_pickled(path: Path, *, is_zip: bool) -> Any:
    """What torch.save wrote into a file, on the CPU: a zip file, or the pickles of before torch 1.6.

    Raises WeightsError if the file is damaged, would run code, or is larger than any that holds weights.
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
        # An open file, not its name: newer versions of torch choose the reader by the name.
        with _placeholders_for(names.intersection(_LOG_NAMES)), path.open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise anything
        raise refused(path, f"is cut off or damaged ({reason_of(error)})", "Download it again") from None


@contextmanager
def _placeholders_for(names: set[str]) -> Iterator[None]:
    """While this lasts, torch makes placeholders where a pickle calls these names."""
    if not names:
        yield
        return
    with _placeholder_lock, torch.serialization.safe_globals([(_Placeholder, name) for name in names]):
        yield


class _Placeholder:
    """Stands for a value that no network needs, made from anything, keeping nothing: numpy is never called."""

    def __new__(cls, *args: object) -> "_Placeholder":
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        """Forget it."""


# ---- zip files -------------------------------------------------------------------------------------------------------


def _names_in_zip(path: Path) -> set[str]:
    """What the pickle in a zip checkpoint calls. Raises WeightsError unless torch.save wrote the file as it is."""
    try:
        if _directory_bytes(path) > MAX_DIRECTORY_BYTES:
            raise _too_large(path, "its table of contents")
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            _check_entries(path, entries)
            (pickled,) = (entry for entry in entries if entry.filename.endswith("/data.pkl"))
            if not any(entry.CRC for entry in entries):  # torch can be told to write no checksums: all are 0 then
                del pickled.CRC  # zipfile compares none
            elif damaged := archive.testzip():  # torch reads without a look at them
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
    """Raise WeightsError unless these may be the entries of a checkpoint."""
    # torch.save does not compress, so a file that grows is a bomb.
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
    """How large a zip file says that its table of contents is; 0 if it says nothing."""
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
    """What the pickles of a checkpoint of before torch 1.6 call."""
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
    """The functions and classes that one pickle calls, and its first value, without unpickling it.

    `file` is left behind the pickle's end. Raises _SizeError for what is beyond all bounds, ValueError and other types
    for what is no pickle.
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
    """The operations of a pickle, names and arguments, as long as they stay within the bounds."""
    height, marks = 0, []
    for number, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if number >= MAX_OPERATIONS:
            raise _SizeError(f"a pickle of more than {MAX_OPERATIONS:,} operations")
        if opcode.name == "MARK":
            marks.append(height)
        elif pickletools.markobject in opcode.stack_before:  # it takes all that lies above the mark, and some below
            height = marks.pop() - opcode.stack_before.index(pickletools.markobject) + len(opcode.stack_after)
        else:
            height += len(opcode.stack_after) - len(opcode.stack_before)
        if height + len(marks) > MAX_STACK:
            raise _SizeError(f"more than {MAX_STACK:,} values inside each other")
        yield opcode.name, argument


def _unwanted(names: set[str]) -> list[str]:
    """Those of the names that neither tensors nor logs need."""
    return sorted(name for name in names if name not in _LOG_NAMES and not _TENSOR_NAMES.fullmatch(name))


def _modern(module: str, name: str) -> str:
    """Python 3's name for what pickles up to protocol 2 call by Python 2's."""
    if (module, name) in NAME_MAPPING:
        module, name = NAME_MAPPING[module, name]
    return f"{IMPORT_MAPPING.get(module, module)}.{name}"
