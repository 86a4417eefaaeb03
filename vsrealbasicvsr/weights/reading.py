"""From a file of weights to a model: our safetensors and the published checkpoints. Nothing in a file is ever executed."""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vsrealbasicvsr.model import RealBasicVSR, StateDictError

DEFAULT_WEIGHTS = Path(__file__).with_name("default.safetensors")

Kind = Literal["safetensors", "zip", "pickle"]

# The published files hold several networks; the one to use is the moving average, under one of the first two names.
_PREFIXES = ("generator_ema.module.", "generator_ema.", "generator.module.", "generator.", "module.", "")


class WeightsError(ValueError):
    """A file is not usable as weights; the text says which file, what was found in it, and what to do."""


def load_model(model: str | Path = "default", device: str | torch.device = "cpu") -> RealBasicVSR:
    """The network of a file of weights, float32, in evaluation mode, on `device`.

    model: "default" (the weights that this package carries) or the path of a .safetensors file or of a published .pth
    checkpoint. Raises WeightsError, which names the file and what was found in it, and RuntimeError for a device that
    torch does not have.
    """
    path = DEFAULT_WEIGHTS if model == "default" else Path(model).expanduser()
    try:
        network = RealBasicVSR.from_state_dict(read_state_dict(path))
    except StateDictError as error:
        raise WeightsError(f"{path} holds {error}. Use weights of RealBasicVSR.") from None
    return network.eval().requires_grad_(False).to(device)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The generator's tensors of a weights file, under the published names without a prefix, on the CPU.

    Raises WeightsError if the file cannot be read or holds no tensors.
    """
    kind = _kind_of(path)
    tensors = _read_safetensors(path) if kind == "safetensors" else _read_checkpoint(path, kind)
    return _generator_of(tensors)


def read_metadata(path: Path) -> dict[str, str]:
    """What a .safetensors file says of itself: architecture, training, licence. Raises WeightsError if it is none."""
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is not a readable safetensors file ({_one_line(error)}).") from None


def _kind_of(path: Path) -> Kind:
    """What sort of file this is, by its first bytes: a name may lie."""
    try:
        if path.is_dir():
            raise WeightsError(f"{path} is a folder. Name a .safetensors or .pth file.")
        with path.open("rb") as file:
            head = file.read(256)
    except FileNotFoundError:
        raise WeightsError(f'{path} does not exist. Use "default" or the path of a .safetensors or .pth file.') from None
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror}). Check the path and its permissions.") from None
    if not head:
        raise WeightsError(f"{path} is empty. Download it again.")
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    if head[8:9] == b"{":  # eight bytes of length, then JSON
        return "safetensors"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<body")):
        raise WeightsError(f"{path} is a web page, not weights: the download went wrong. Download the file itself.")
    if text.startswith(b"version https://git-lfs"):
        raise WeightsError(f"{path} is a Git LFS pointer, not weights. Run git lfs pull, or download the file itself.")
    if head.startswith(b"\x80"):
        return "pickle"
    raise WeightsError(
        f"{path} is neither safetensors nor a torch checkpoint (it begins with {head[:12]!r}). "
        "Use a .safetensors or .pth file of RealBasicVSR."
    )


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{path} is cut off or damaged: safetensors says {_one_line(error)}. Download or copy it again."
        ) from None


def _read_checkpoint(path: Path, kind: Kind) -> Mapping[str, Any]:
    if kind == "zip" and not zipfile.is_zipfile(path):
        raise WeightsError(f"{path} is a cut off torch checkpoint (its zip directory is missing). Download it again.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        text = _one_line(error)
        if "weights only" in text.lower() or "unsupported" in text.lower() or "global" in text.lower():
            found = text.split("WeightsUnpickler error:")[-1].split("Please")[0].split(", but got")[0].strip(" .:")
            raise WeightsError(
                f"{path} would run code when unpickled, so it was not loaded ({found[:200]}). "
                "Use a file that holds tensors only, from a source that you trust."
            ) from None
        raise WeightsError(f"{path} is cut off or damaged ({text}). Download it again.") from None
    except (RuntimeError, EOFError, ValueError, KeyError, OSError, AttributeError, IndexError, TypeError) as error:
        raise WeightsError(f"{path} is cut off or damaged ({_one_line(error)}). Download it again.") from None
    if isinstance(content, Mapping):
        for wrapper in ("state_dict", "params_ema", "params"):
            if isinstance(content.get(wrapper), Mapping):
                content = content[wrapper]
                break
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path} holds a {type(content).__name__}, not a dictionary of tensors. Use a state dict.")
    return {str(key): value for key, value in content.items()}


def _generator_of(tensors: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of the first prefix that names a generator: the moving average wherever there is one."""
    if any(key.startswith("generator_ema.") for key in tensors):
        prefixes = _PREFIXES[:2]
    else:
        prefixes = _PREFIXES[2:]
    for prefix in prefixes:
        chosen = {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}
        if prefix != "" and not any(key.startswith(("image_cleaning.", "basicvsr.")) for key in chosen):
            continue
        return {key: value for key, value in chosen.items() if isinstance(value, Tensor)}
    return {key: value for key, value in tensors.items() if isinstance(value, Tensor)}


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
