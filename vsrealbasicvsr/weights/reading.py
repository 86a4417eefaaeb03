"""Models from files of weights: our safetensors and the published checkpoints. Nothing in a file is executed."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from torch import Tensor

from vsrealbasicvsr.errors import UserError
from vsrealbasicvsr.model import RealBasicVSR, StateDictError, first_names

from .mixing import SHARP, check_sets, mix, parse_default_detail, split_sets
from .pickles import MAX_TENSORS, read_pickled
from .refusing import WeightsError, reason_of, refused
from .sealing import is_intact
from .strangers import network_of

DEFAULT_WEIGHTS = Path(__file__).with_name("default.safetensors")

MAX_HEADER_BYTES = 2**22
"""Maximum size of the header of a safetensors file: names and places of its tensors, and metadata."""

Kind = Literal["safetensors", "zip", "pickle"]

# The published files hold several networks. The moving average, under one of the first two prefixes, takes precedence.
_EMA_PREFIXES = ("generator_ema.module.", "generator_ema.")
_OTHER_PREFIXES = ("generator.module.", "generator.", "module.", "")
_PARTS = ("image_cleaning.", "basicvsr.")
_SET_PARTS = (*_PARTS, SHARP)
_DISCRIMINATOR_PREFIXES = ("discriminator.module.", "discriminator.")

# Keys under which other programs store a state dict, and prefixes that they put before its keys.
_WRAPPERS = (
    *("state_dict", "params_ema", "ema", "model_ema", "params", "model_state_dict", "model"),
    *("net_g", "generator", "net", "network"),
)
MAX_WRAPPERS = 3
"""Maximum nesting of these keys."""
_PREFIX = r"(?:(?:generator|module|_orig_mod|model|net_g|net|network)\.){0,4}"
_EMA_PREFIX = re.compile(rf"{_PREFIX}generator_ema\.")
_PREFIXED_PART = re.compile(rf"({_PREFIX}(?:generator_ema\.)?{_PREFIX})(?:{'|'.join(map(re.escape, _PARTS))})")
_ANY_PREFIX = re.compile(rf"{_PREFIX}(?:generator_ema\.)?{_PREFIX}")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredNetwork:
    """A network as a file holds it, not checked yet.

    Attributes:
        tensors: By the published names, on the CPU.
        prefix: What preceded these names in the file.
        sharp: In a file with two sets, the sharp set's tensors that differ, by the same names; else empty.
        metadata: Of a safetensors file.
    """

    tensors: dict[str, Tensor]
    prefix: str
    sharp: dict[str, Tensor] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)


def load_model(
    model: str | Path = "default", device: str | torch.device = "cpu", detail: float | None = None
) -> RealBasicVSR:
    """Load the network of a file of weights: float32, in evaluation mode, without gradients.

    Args:
        model: "default" (the weights in this package), or the path of a .safetensors file or a published .pth
            checkpoint.
        device: Where the network goes.
        detail: Mixture in [0, 1] for a file with two sets of weights: 0 is the faithful set, 1 the sharp one. None for
            the mixture that the file names.

    Raises:
        WeightsError: The file cannot be used; the text names it and what was found in it.
        UserError: `detail` is not in [0, 1].
        RuntimeError: torch has no such device.
    """
    path = DEFAULT_WEIGHTS if model == "default" else Path(model)
    network = build_network(path, read_network(path), detail)
    try:
        return network.eval().requires_grad_(False).to(device)
    except (AssertionError, NotImplementedError) as error:  # how a torch without CUDA says it
        raise RuntimeError(reason_of(error)) from None


def build_network(path: Path, stored: StoredNetwork, detail: float | None = None) -> RealBasicVSR:
    """Build the network from the tensors of a file; of two sets their mixture, see `load_model`.

    Args:
        path: The file, for errors.
        stored: What it holds.
        detail: Mixture in [0, 1] for two sets; None for the file's own.

    Raises:
        WeightsError: The tensors are not those of one network or of two that match; or there is one set and a detail,
            or two sets and no detail anywhere.
        UserError: `detail` is not in [0, 1].
    """
    if detail is not None and not 0 <= detail <= 1:
        raise UserError(f"build_network: detail must be between 0 and 1, got {detail}")
    if detail is not None and not stored.sharp:
        raise refused(
            path,
            f"holds one set of weights, so detail has nothing to choose between (got {detail:g})",
            "Leave detail out, or use a file with two sets, which python -m training export --sharp makes",
        )
    try:
        if not stored.sharp:
            return RealBasicVSR.from_state_dict(stored.tensors)
        check_sets(stored.tensors, stored.sharp)
        RealBasicVSR.from_state_dict(stored.tensors)  # checks the faithful set even if the mixture does not use it
        chosen = default_detail(path, stored) if detail is None else detail
        return RealBasicVSR.from_state_dict(mix(stored.tensors, stored.sharp, chosen))
    except StateDictError as error:
        raise refused(path, f"is not usable: {_stranger(stored) or error}", "Use weights of RealBasicVSR") from None


def _stranger(stored: StoredNetwork) -> str | None:
    """Return in words which other known network a file holds; None if it is none or a RealBasicVSR."""
    names = [_ANY_PREFIX.sub("", key, count=1) for key in stored.tensors]
    if any(name.startswith("image_cleaning.") for name in names):
        return None
    name = network_of(names)
    return name and f"it holds {name}"


def default_detail(path: Path, stored: StoredNetwork) -> float:
    """Return the mixture that a file of two sets names. Raise WeightsError if it names none in [0, 1]."""
    try:
        return parse_default_detail(stored.metadata)
    except ValueError as error:
        raise refused(path, f"holds two sets of weights and {error}", "Give detail, from 0 to 1") from None


def read_network(path: Path) -> StoredNetwork:
    """Read the generator in a file of weights; its moving average if there is one.

    Raises:
        WeightsError: The file cannot be read, would run code, or holds something else than a tensor among the weights.
    """
    values, metadata = _read_values(path)
    prefix = _prefix_of_generator(values)
    tensors, sharp = split_sets(_without_counters(_only_tensors(path, _below(prefix, values), _SET_PARTS)))
    return StoredNetwork(tensors=tensors, prefix=prefix, sharp=sharp, metadata=metadata)


def read_discriminator(path: Path) -> dict[str, Tensor]:
    """Read the discriminator in a checkpoint of the published layout, on the CPU.

    Returns:
        Its tensors by their names without `discriminator.`.

    Raises:
        WeightsError: The file cannot be read, would run code, or holds no discriminator.
    """
    values, _ = _read_values(path)
    for prefix in _DISCRIMINATOR_PREFIXES:
        if chosen := _below(prefix, values):
            return _only_tensors(path, chosen, ("",))
    begin = first_names(sorted(values)) or "nothing"
    raise refused(
        path,
        f"holds no discriminator: none of its {len(values)} keys begins with 'discriminator.' (it holds {begin})",
        "Use a published checkpoint of the stage with GAN, whole",
    )


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read every tensor of a file by its own name, on the CPU, for networks that this package does not know.

    Raises:
        WeightsError: The file cannot be read or would run code.
    """
    values, _ = _read_values(path)
    return _only_tensors(path, values, ())


def _read_values(path: Path) -> tuple[Mapping[str, Any], dict[str, str]]:
    """Return the named values of a file, and its metadata. Raise WeightsError if it cannot be read."""
    try:
        path = path.expanduser()
    except RuntimeError as error:
        raise refused(path, f"is not a path here ({reason_of(error)})", "Write the path in full") from None
    if (kind := _kind_of(path)) == "safetensors":
        return _read_safetensors(path)
    content = _unwrapped(read_pickled(path, is_zip=kind == "zip"))
    if not isinstance(content, Mapping):
        raise refused(path, f"holds a {type(content).__name__}, not a dictionary of tensors", "Use a state dict")
    if len(content) > MAX_TENSORS:
        raise _too_many(path, len(content))
    return {str(key): value for key, value in content.items()}, {}


def read_checkpoint(path: Path) -> Any:
    """Read what torch.save wrote into a file, unchanged and on the CPU, for checkpoints of more than weights.

    Raises:
        WeightsError: The file is no such checkpoint, is damaged, or would run code.
    """
    if (kind := _kind_of(path)) == "safetensors":
        raise refused(path, "is a safetensors file, not a checkpoint of torch.save", "Use a .pt or .pth file")
    return read_pickled(path, is_zip=kind == "zip")


def _below(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}


def _kind_of(path: Path) -> Kind:
    """Return the kind of a file by its first bytes, as suffixes may be wrong. Raise WeightsError for any other kind."""
    try:
        if path.is_dir():
            raise refused(path, "is a folder", "Name a .safetensors or .pth file")
        if path.exists() and not path.is_file():
            raise refused(path, "is not a regular file", "Name a .safetensors or .pth file")
        with path.open("rb") as file:
            head = file.read(256)
    except FileNotFoundError:
        if str(path).strip().lower() == "default":
            raise refused(path, "does not exist as a file", 'Write "default" for the default weights') from None
        raise refused(path, "does not exist", 'Use "default" or the path of a .safetensors or .pth file') from None
    except OSError as error:
        raise refused(path, f"cannot be read ({error.strerror})", "Check the path and its permissions") from None
    except ValueError as error:
        if isinstance(error, WeightsError):
            raise
        raise refused(path, f"is not a path ({reason_of(error)})", "Check the path") from None
    if not head:
        raise refused(path, "is empty", "Download it again")
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    if head[8:9] == b"{":  # eight bytes of length, then JSON
        return "safetensors"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<body", b"<!--")):
        raise refused(path, "is a web page, not weights: the download went wrong", "Download the file itself")
    if text.startswith(b"version https://git-lfs"):
        raise refused(path, "is a Git LFS pointer, not weights", "Run git lfs pull, or download the file itself")
    if head.startswith(b"\x80"):
        return "pickle"
    raise refused(
        path,
        f"is neither safetensors nor a torch checkpoint (it begins with {head[:12]!r})",
        "Use a .safetensors or .pth file of RealBasicVSR",
    )


def _read_safetensors(path: Path) -> tuple[Mapping[str, Any], dict[str, str]]:
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
    if MAX_HEADER_BYTES < header_bytes < path.stat().st_size:
        raise refused(
            path, f"has a header of {header_bytes:,} bytes, larger than any file of weights", "Do not trust it"
        )
    try:
        with _opened(path) as file:
            keys = list(file.keys())
            # Copies: Windows lets nobody replace a file that is mapped, as safetensors' own tensors are.
            tensors = {key: file.get_tensor(key).clone() for key in keys[: MAX_TENSORS + 1]}
            metadata = dict(file.metadata() or {})
    except Exception as error:  # most are SafetensorError; a dtype that torch lacks raises others
        raise refused(
            path, f"is cut off or damaged: safetensors says {reason_of(error)}", "Download or copy it again"
        ) from None
    if len(keys) > MAX_TENSORS:
        raise _too_many(path, len(keys))
    if not is_intact(tensors, metadata):
        again = "Install vsrealbasicvsr again" if path == DEFAULT_WEIGHTS else "Download or copy it again"
        raise refused(path, "is damaged: the SHA-256 of its tensors is not the one that was written into it", again)
    return tensors, metadata


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a file with safetensors, which accepts UTF-8 names only; any other file is opened by its descriptor."""
    with path.open("rb") as file:
        name = str(path) if _is_utf8(path) else f"/dev/fd/{file.fileno()}"
        with safe_open(name, framework="pt") as opened:
            yield opened


def _is_utf8(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _too_many(path: Path, number: int) -> WeightsError:
    return refused(path, f"holds {number:,} tensors, more than any file of weights", "Do not trust it")


def _without_counters(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors without step counters: single numbers under names that no network has."""
    return {key: tensor for key, tensor in tensors.items() if key.startswith(_SET_PARTS) or tensor.numel() != 1}


def _unwrapped(content: Any) -> Any:
    """Return the state dict inside the dictionaries of other programs; a moving average takes precedence."""
    for _ in range(MAX_WRAPPERS):
        if not isinstance(content, Mapping):
            break
        inner = next((content[name] for name in _WRAPPERS if _holds_tensors(content.get(name))), None)
        if inner is None:  # not wrapped, or a wrapper without tensors
            named = (content[name] for name in _WRAPPERS if isinstance(content.get(name), Mapping))
            return content if _has_tensors(content) else next(named, content)
        content = inner
    return content


def _has_tensors(content: Mapping[Any, Any]) -> bool:
    return any(isinstance(value, Tensor) for value in content.values())


def _holds_tensors(content: Any, depth: int = 1) -> bool:
    """Return whether this is a dictionary of tensors, or one in which a wrapper's key leads to one."""
    if not isinstance(content, Mapping):
        return False
    if _has_tensors(content):
        return True
    return depth < MAX_WRAPPERS and any(_holds_tensors(content.get(name), depth + 1) for name in _WRAPPERS)


def _prefix_of_generator(values: Mapping[str, Any]) -> str:
    """Return the prefix of the generator's names; of its moving average if there is one."""
    found = {match.group(1) for key in values if (match := _PREFIXED_PART.match(key))}
    has_ema = any(_EMA_PREFIX.match(key) for key in values)
    if has_ema:
        found = {prefix for prefix in found if _EMA_PREFIX.match(prefix)}

    def rank(prefix: str) -> tuple[int, int, str]:
        known = (*_EMA_PREFIXES, *_OTHER_PREFIXES)
        return known.index(prefix) if prefix in known else len(known), len(prefix), prefix

    return min(found, key=rank, default="")


def _only_tensors(path: Path, values: Mapping[str, Any], parts: tuple[str, ...]) -> dict[str, Tensor]:
    """Return the tensors among these values. Raise WeightsError for anything else under a name that begins with a part.

    A tensor whose memory is smaller than its shape is refused too.
    """
    tensors = {}
    for key, value in values.items():
        if isinstance(value, Tensor):
            # A view that repeats its elements would let a file of a few bytes take any amount of memory.
            if value.untyped_storage().nbytes() < value.numel() * value.element_size():
                raise refused(
                    path,
                    f"holds a tensor with fewer values than its shape ({key!r} {tuple(value.shape)})",
                    "Do not trust it",
                )
            tensors[key] = value
        elif key.startswith(parts):
            raise refused(path, f"holds a {type(value).__name__} instead of a tensor at {key!r}", "Use a state dict")
    return tensors
