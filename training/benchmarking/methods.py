"""The rows of a benchmark: bicubic, networks and the ways to run them, models by spandrel, frames of other programs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from training.benchmarking.measured import Way, super_resolve_measured
from training.benchmarking.naturalness import INSTALL
from training.benchmarking.published import SCALE
from training.benchmarking.sequences import Clip, stamp
from training.data.sources import read_photograph
from training.evaluation.metrics import to_bytes
from vsrealbasicvsr.errors import UserError
from vsrealbasicvsr.model import RealBasicVSR


class Method(Protocol):
    """A row of the table."""

    @property
    def name(self) -> str:
        """The row's name in the table."""
        ...

    def identity(self, sequence: str) -> Mapping[str, Any]:
        """Return everything that the row's images of a sequence depend on, besides the sequence, as plain JSON.

        A finished score is used again if its identity is equal.
        """
        ...

    def enlarge(self, clip: Clip) -> Tensor:
        """Return the measured frames, (M, 3, S*H, S*W) in [0, 1], rounded to 8 bits, on the CPU."""
        ...


@dataclass(frozen=True, slots=True)
class Bicubic:
    """The input enlarged by Keys' cubic (a = -0.5), as MATLAB's imresize does: how the authors measure inputs.

    The outermost pixels differ: MATLAB mirrors the image there, torch cuts the kernel off.
    """

    name: str = "bicubic"

    def identity(self, sequence: str) -> Mapping[str, Any]:
        return {"method": "bicubic"}

    def enlarge(self, clip: Clip) -> Tensor:
        size = tuple(SCALE * side for side in clip.frames.shape[1:3])
        return to_bytes(F.interpolate(_measured(clip), size, mode="bicubic", align_corners=False, antialias=True))


@dataclass(frozen=True, slots=True)
class Network:
    """A RealBasicVSR network, run over the whole sequence.

    Attributes:
        name: The row's name.
        model: The network.
        digest: `digest_of` its weights.
        way: How it is run.
    """

    name: str
    model: RealBasicVSR
    digest: str
    way: Way

    def identity(self, sequence: str) -> Mapping[str, Any]:
        return {"method": "network", "weights": self.digest, **asdict(self.way)}

    def enlarge(self, clip: Clip) -> Tensor:
        # Reproducible on one GPU: no kernel is chosen by its speed, no sum depends on the order of threads.
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            return super_resolve_measured(self.model, clip, self.way)


def digest_of(model: RealBasicVSR) -> str:
    """Return a short text that identifies the weights as they are run, after `detail` has mixed two sets."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().float().numpy().tobytes())
    return digest.hexdigest()[:16]


class Results:
    """Frames of another program: FOLDER/SEQUENCE/FRAME.png, named as in the input. The measured ones suffice."""

    def __init__(self, name: str, folder: Path) -> None:
        if not folder.is_dir():
            raise UserError(f"--results {name}: there is no folder {folder}. It holds SEQUENCE/FRAME.png")
        self.name, self._folder = name, folder

    def identity(self, sequence: str) -> Mapping[str, Any]:
        """Return the row's identity. Raise UserError if the sequence is missing."""
        folder = self._folder / sequence
        if not folder.is_dir():
            raise UserError(f"--results {self.name}: {self._folder} holds no folder {sequence}. Name it as the input")
        return {"method": "results", "files": stamp(folder.glob("*.png"))}

    def enlarge(self, clip: Clip) -> Tensor:
        """Return the measured frames. Raise UserError if one is missing or is not 4 times as large as the input."""
        height, width = (SCALE * side for side in clip.frames.shape[1:3])
        pictures = []
        for number in clip.measured:
            path = self._folder / clip.name / f"{clip.stems[number]}.png"
            if not path.is_file():
                raise UserError(
                    f"--results {self.name}: there is no {path}. Its frames have the input's names, as PNG; the first,"
                    " the middle and the last of each sequence are needed"
                )
            picture = read_photograph(path)
            if picture.shape[:2] != (height, width):
                found = f"{picture.shape[1]}x{picture.shape[0]}"
                raise UserError(f"--results {self.name}: {path} is {found}, four times the input is {width}x{height}")
            pictures.append(torch.from_numpy(picture).permute(2, 0, 1).float() / 255)
        return torch.stack(pictures)


class SingleImage:
    """A x4 model of single RGB images that spandrel can load (ESRGAN, Real-ESRGAN, BSRGAN, SwinIR and others)."""

    def __init__(self, name: str, path: Path, device: torch.device) -> None:
        """Load the model.

        Raises:
            UserError: spandrel is missing or cannot use the file; the text says what to do.
        """
        self.name, self._device = name, device
        self._model = _load_by_spandrel(path, device)
        self._digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]

    def identity(self, sequence: str) -> Mapping[str, Any]:
        return {"method": "spandrel", "file": self._digest}

    def enlarge(self, clip: Clip) -> Tensor:
        """Return the measured frames, each processed by itself and as a whole."""
        flags = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
        with flags, torch.inference_mode():
            pictures = [self._model(frame[None].to(self._device)).float().cpu() for frame in _measured(clip)]
        return to_bytes(torch.cat(pictures))


def _load_by_spandrel(path: Path, device: torch.device) -> Any:
    try:
        import spandrel  # needed for this row only
    except ImportError as error:
        raise UserError(f"--model {path} needs {error.name or 'spandrel'}: {INSTALL}") from None
    if not path.is_file():
        raise UserError(f"--model {path}: there is no such file. Name a .pth or .safetensors file")
    try:
        model = spandrel.ModelLoader(device).load_from_file(path)
    except spandrel.UnsupportedModelError:
        raise UserError(
            f"--model {path}: spandrel knows no model with such tensors."
            " Give a network of RealBasicVSR by --weights, frames that another program made by --results"
        ) from None
    except Exception as error:  # a damaged file can raise anything
        cause = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"--model {path} cannot be read ({cause[:160]}). Name a .pth or .safetensors file") from None
    if not isinstance(model, spandrel.ImageModelDescriptor) or model.scale != SCALE or model.input_channels != 3:
        found = f"{model.architecture.name}, x{model.scale}, {model.input_channels} channels"
        raise UserError(f"--model {path} is {found}. Name a model x{SCALE} of single RGB pictures")
    return model.eval()


def _measured(clip: Clip) -> Tensor:
    """Return the low-resolution frames that are measured, (M, 3, H, W) float32 in [0, 1]."""
    frames = clip.frames[list(clip.measured)]
    return torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255


def named(texts: Sequence[str]) -> list[tuple[str, str]]:
    """Split arguments NAME=PATH into names and paths.

    Args:
        texts: NAME=PATH, or a path alone, whose name is its last part without suffix. A path that exists is never
            split.

    Raises:
        UserError: A name or a path is empty.
    """
    pairs = []
    for text in texts:
        name, separator, path = text.partition("=")
        if not separator or Path(text).exists():
            name, path = Path(text).name, text
            name = name if Path(text).is_dir() else Path(name).stem
        if not name or not path:
            raise UserError(f"{text!r} is neither a path nor NAME=PATH. Give both a name and a path")
        pairs.append((name, path))
    return pairs
