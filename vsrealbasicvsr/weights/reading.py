"""From a file of weights to a model: our safetensors and the published checkpoints. Nothing in a file is executed."""

import io
import pickletools
import re
import threading
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

import torch
from safetensors import safe_open
from torch import Tensor

from vsrealbasicvsr.model import RealBasicVSR, StateDictError

from .mixing import SHARP, check_sets, mix, parse_default_detail, split_sets

DEFAULT_WEIGHTS = Path(__file__).with_name("default.safetensors")

Kind = Literal["safetensors", "zip", "pickle"]

# The published files hold several networks; the one to use is the moving average, under one of the first two names.
_EMA_PREFIXES = ("generator_ema.module.", "generator_ema.")
_OTHER_PREFIXES = ("generator.module.", "generator.", "module.", "")
_PARTS = ("image_cleaning.", "basicvsr.")
_SET_PARTS = (*_PARTS, SHARP)
_DISCRIMINATOR_PREFIXES = ("discriminator.module.", "discriminator.")

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


class WeightsError(ValueError):
    """A file is not usable as weights; the text says which file, what was found in it, and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredNetwork:
    """A network as a file holds it, not yet checked.

    tensors: under the published names, on the CPU. prefix: what stood before these names in the file. sharp: where the
    file holds two sets, the tensors of the sharp one that differ, under the same names; else nothing. metadata: what a
    safetensors file says of itself.
    """

    tensors: dict[str, Tensor]
    prefix: str
    sharp: dict[str, Tensor] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)


def load_model(
    model: str | Path = "default", device: str | torch.device = "cpu", detail: float | None = None
) -> RealBasicVSR:
    """The network of a file of weights, float32, in evaluation mode, on `device`.

    model: "default" (the weights that this package carries) or the path of a .safetensors file or of a published .pth
    checkpoint. detail in [0, 1], for files that hold two sets of weights: 0 is the faithful set, 1 the sharp one, in
    between their mixture; None: the mixture that the file names. Raises WeightsError, which names the file and what was
    found in it, ValueError for a detail outside of [0, 1], and RuntimeError for a device that torch does not have.
    """
    path = DEFAULT_WEIGHTS if model == "default" else Path(model)
    network = build_network(path, read_network(path), detail)
    try:
        return network.eval().requires_grad_(False).to(device)
    except (AssertionError, NotImplementedError) as error:  # how a torch without CUDA says it
        raise RuntimeError(_one_line(error)) from None


def build_network(path: Path, stored: StoredNetwork, detail: float | None = None) -> RealBasicVSR:
    """The network of these tensors of `path`; of two sets the mixture, as `load_model` has it.

    Raises WeightsError if they are not those of one network, or of two that go together; if there is one set and a
    detail, or two and neither a detail nor one that the file names. ValueError for a detail outside of [0, 1].
    """
    if detail is not None and not 0 <= detail <= 1:
        raise ValueError(f"build_network: detail must be between 0 and 1, got {detail}")
    if detail is not None and not stored.sharp:
        raise _error(
            path,
            f"holds one set of weights, so detail has nothing to choose between (got {detail:g})",
            "Leave detail out, or use a file with two sets, which python -m training export --sharp makes",
        )
    try:
        if not stored.sharp:
            return RealBasicVSR.from_state_dict(stored.tensors)
        check_sets(stored.tensors, stored.sharp)
        RealBasicVSR.from_state_dict(stored.tensors)  # checked too where the mixture shows nothing of it
        chosen = default_detail(path, stored) if detail is None else detail
        return RealBasicVSR.from_state_dict(mix(stored.tensors, stored.sharp, chosen))
    except StateDictError as error:
        raise _error(path, f"is not usable: {error}", "Use weights of RealBasicVSR") from None


def default_detail(path: Path, stored: StoredNetwork) -> float:
    """The mixture that a file of two sets names. Raises WeightsError if it names none that can be."""
    try:
        return parse_default_detail(stored.metadata)
    except ValueError as error:
        raise _error(path, f"holds two sets of weights and {error}", "Give detail, from 0 to 1") from None


def read_network(path: Path) -> StoredNetwork:
    """The generator in a file of weights; its moving average wherever there is one.

    Raises WeightsError if the file cannot be read, would run code, or holds no tensors.
    """
    values, metadata = _read_values(path)
    prefix = _prefix_of_generator(values)
    tensors, sharp = split_sets(_only_tensors(path, _below(prefix, values), _SET_PARTS))
    return StoredNetwork(tensors=tensors, prefix=prefix, sharp=sharp, metadata=metadata)


def read_discriminator(path: Path) -> dict[str, Tensor]:
    """The discriminator in a checkpoint of the published layout, under its names without `discriminator.`, on the CPU.

    Raises WeightsError if the file cannot be read, would run code, or holds no discriminator.
    """
    values, _ = _read_values(path)
    for prefix in _DISCRIMINATOR_PREFIXES:
        if chosen := _below(prefix, values):
            return _only_tensors(path, chosen, ("",))
    begin = _first(sorted(values)) or "nothing"
    raise _error(
        path,
        f"holds no discriminator: none of its {len(values)} keys begins with 'discriminator.' (it holds {begin})",
        "Use a published checkpoint of the stage with GAN, whole",
    )


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a file under the name that it has there, on the CPU: for networks that this package knows not.

    Raises WeightsError if the file cannot be read or would run code.
    """
    values, _ = _read_values(path)
    return _only_tensors(path, values, ())


def _read_values(path: Path) -> tuple[Mapping[str, Any], dict[str, str]]:
    """Whatever a file holds under names, and what it says of itself. Raises WeightsError."""
    try:
        path = path.expanduser()
    except RuntimeError as error:
        raise _error(path, f"is not a path here ({_one_line(error)})", "Write the path in full") from None
    kind = _kind_of(path)
    if kind == "safetensors":
        return _read_safetensors(path)
    return _read_checkpoint(path, kind), {}


def _below(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}


def _kind_of(path: Path) -> Kind:
    """What sort of file this is, by its first bytes: a name may lie."""
    try:
        if path.is_dir():
            raise _error(path, "is a folder", "Name a .safetensors or .pth file")
        if path.exists() and not path.is_file():
            raise _error(path, "is not a regular file", "Name a .safetensors or .pth file")
        with path.open("rb") as file:
            head = file.read(256)
    except FileNotFoundError:
        raise _error(path, "does not exist", 'Use "default" or the path of a .safetensors or .pth file') from None
    except OSError as error:
        raise _error(path, f"cannot be read ({error.strerror})", "Check the path and its permissions") from None
    except ValueError as error:
        if isinstance(error, WeightsError):
            raise
        raise _error(path, f"is not a path ({_one_line(error)})", "Check the path") from None
    if not head:
        raise _error(path, "is empty", "Download it again")
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    if head[8:9] == b"{":  # eight bytes of length, then JSON
        return "safetensors"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<body", b"<!--")):
        raise _error(path, "is a web page, not weights: the download went wrong", "Download the file itself")
    if text.startswith(b"version https://git-lfs"):
        raise _error(path, "is a Git LFS pointer, not weights", "Run git lfs pull, or download the file itself")
    if head.startswith(b"\x80"):
        return "pickle"
    raise _error(
        path,
        f"is neither safetensors nor a torch checkpoint (it begins with {head[:12]!r})",
        "Use a .safetensors or .pth file of RealBasicVSR",
    )


def _read_safetensors(path: Path) -> tuple[Mapping[str, Any], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
            return tensors, dict(file.metadata() or {})
    except Exception as error:  # its own type for most, others for a type of number that torch does not have
        raise _error(
            path, f"is cut off or damaged: safetensors says {_one_line(error)}", "Download or copy it again"
        ) from None


def _read_checkpoint(path: Path, kind: Kind) -> Mapping[str, Any]:
    names = _names_in_zip(path) if kind == "zip" else _names_in_legacy_file(path)
    if unwanted := _unwanted(names):
        if all(name.startswith("torch._utils._rebuild_") for name in unwanted):
            raise _error(path, f"holds tensors that are not dense (it calls {_first(unwanted)})", "Use a state dict")
        raise _error(
            path,
            f"would run code when unpickled, so it was not loaded (it calls {_first(unwanted)})",
            "Use a file that holds tensors only, from a source that you trust",
        )
    try:
        # An open file, not its name: newer versions of torch choose the reader by the name.
        with _placeholders_for(names.intersection(_LOG_NAMES)), path.open("rb") as file:
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise anything
        raise _error(path, f"is cut off or damaged ({_one_line(error)})", "Download it again") from None
    if isinstance(content, Mapping):
        for wrapper in ("state_dict", "params_ema", "params"):
            if isinstance(content.get(wrapper), Mapping):
                content = content[wrapper]
                break
    if not isinstance(content, Mapping):
        raise _error(path, f"holds a {type(content).__name__}, not a dictionary of tensors", "Use a state dict")
    return {str(key): value for key, value in content.items()}


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


def _names_in_zip(path: Path) -> set[str]:
    """What the pickle in a zip checkpoint calls. Raises WeightsError unless torch.save may have written the file."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            # torch.save does not compress, so a file that grows is a bomb.
            if sum(entry.file_size for entry in entries) > path.stat().st_size:
                raise _error(path, "is a zip file that grows when unpacked, so it was not loaded", "Do not trust it")
            pickles = [entry for entry in entries if entry.filename.endswith("/data.pkl")]
            if len(pickles) != 1 or any(entry.filename.endswith("/constants.pkl") for entry in entries):
                found = _first(sorted(entry.filename for entry in entries)) or "nothing"
                raise _error(
                    path, f"is a zip file but not a checkpoint of torch.save (it holds {found})", "Use a .pth file"
                )
            return _names_in_pickle(io.BytesIO(archive.read(pickles[0])))[0]
    except WeightsError:
        raise
    except Exception as error:  # zipfile and pickletools raise many types for damaged files
        raise _error(
            path, f"is a torch checkpoint, cut off or damaged ({_one_line(error)})", "Download it again"
        ) from None


def _names_in_legacy_file(path: Path) -> set[str]:
    """What the pickles of a checkpoint of before torch 1.6 call."""
    try:
        with path.open("rb") as file:
            names, first_value = _names_in_pickle(file)
            if first_value == _LEGACY_MAGIC:
                for _ in range(1, _LEGACY_PICKLES):
                    names |= _names_in_pickle(file)[0]
    except Exception as error:  # pickletools raises many types for damaged files
        raise _error(path, f"is a pickle, cut off or damaged ({_one_line(error)})", "Download it again") from None
    if first_value != _LEGACY_MAGIC and not _unwanted(names):
        raise _error(path, "is a Python pickle, but not a checkpoint of torch.save", "Use a .pth file of RealBasicVSR")
    return names


def _names_in_pickle(file: BinaryIO) -> tuple[set[str], object]:
    """The functions and classes that one pickle calls, and its first value, without unpickling it.

    `file` is left behind the pickle's end. Raises ValueError and other types for what is no pickle.
    """
    names: set[str] = set()
    memo: dict[object, object] = {}
    below, top, first_value = None, None, None
    for opcode, argument, _ in pickletools.genops(file):
        match opcode.name:
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


def _unwanted(names: set[str]) -> list[str]:
    """Those of the names that neither tensors nor logs need."""
    return sorted(name for name in names if name not in _LOG_NAMES and not _TENSOR_NAMES.fullmatch(name))


def _modern(module: str, name: str) -> str:
    """Python 3's name for what pickles up to protocol 2 call by Python 2's."""
    if (module, name) in NAME_MAPPING:
        module, name = NAME_MAPPING[module, name]
    return f"{IMPORT_MAPPING.get(module, module)}.{name}"


def _prefix_of_generator(values: Mapping[str, Any]) -> str:
    """What stands before the names of the generator: of the moving average wherever there is one."""
    has_ema = any(key.startswith("generator_ema.") for key in values)
    for prefix in _EMA_PREFIXES if has_ema else _OTHER_PREFIXES:
        if any(key.startswith(tuple(prefix + part for part in _PARTS)) for key in values):
            return prefix
    return ""


def _only_tensors(path: Path, values: Mapping[str, Any], parts: tuple[str, ...]) -> dict[str, Tensor]:
    """The tensors among these values, each with memory of its own behind every element.

    Raises WeightsError if something else stands under a name that begins like one of `parts`.
    """
    tensors = {}
    for key, value in values.items():
        if isinstance(value, Tensor):
            # A view that repeats its elements lets a file of a few bytes ask for any amount of memory.
            if value.untyped_storage().nbytes() < value.numel() * value.element_size():
                raise _error(
                    path,
                    f"holds a tensor with fewer values than its shape ({key!r} {tuple(value.shape)})",
                    "Do not trust it",
                )
            tensors[key] = value
        elif key.startswith(parts):
            raise _error(path, f"holds a {type(value).__name__} instead of a tensor at {key!r}", "Use a state dict")
    return tensors


def _error(path: Path, found: str, advice: str) -> WeightsError:
    """One line that can be printed, whatever stands in the path and in the file."""
    name = str(path) if str(path).isprintable() else repr(str(path))
    return WeightsError(f"{name} {_printable(found, 500)}. {advice}.")


def _one_line(error: BaseException) -> str:
    """What went wrong, without the advice that follows: it is addressed to somebody who calls torch."""
    text = _printable(str(error) or type(error).__name__, 160)
    return text.rstrip(" .:")


def _printable(text: str, limit: int) -> str:
    text = "".join(character if character.isprintable() else "?" for character in " ".join(text.split()))
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _first(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
