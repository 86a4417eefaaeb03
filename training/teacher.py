"""The network that the coarse, contrast, chroma and keep losses compare with, and of mixtures, see mixture.py."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.losses.keep import nearer_cleaned
from training.networks import faithful_weights
from training.processes import TrainingError
from training.run_folder import ORIGIN, find_weights
from training.settings import Settings
from vsrealbasicvsr.errors import UserError
from vsrealbasicvsr.model import RealBasicVSR
from vsrealbasicvsr.weights import tensors_sha256
from vsrealbasicvsr.weights.mixing import differences


class Teacher:
    """A frozen network, usually a faithful one.

    Attributes:
        network: Of a file with two sets, the faithful one.
    """

    def __init__(self, network: RealBasicVSR) -> None:
        self.network = network

    @staticmethod
    def load(path: Path | None, settings: Settings, device: torch.device) -> "Teacher | None":
        """Load the teacher of a run, if its losses need one.

        Args:
            path: A run's folder (its moving average), a file of weights (of two sets the faithful one), or "default".
            settings: The settings of the run.
            device: Where the network goes.

        Raises:
            TrainingError: The losses need a teacher and none is named, or one is named and none is needed; or it cannot
                be read.
        """
        if not settings.losses.needs_teacher:
            if path is not None:
                raise TrainingError(
                    "--teacher needs a --coarse-weight, --contrast-weight, --chroma-weight, --keep-weight or"
                    " --mixture-probability above 0"
                )
            return None
        if path is None:
            raise TrainingError(
                "the coarse, contrast, chroma and keep losses and mixtures need a teacher: --teacher or --from names"
                " one"
            )
        try:
            tensors = faithful_weights(Path(find_weights(str(path))), settings.architecture.start_passes)
        except UserError as error:
            raise TrainingError(f"the teacher: {error} If it has moved, name it with --teacher.") from None
        network = RealBasicVSR.from_state_dict(tensors).eval().requires_grad_(False)
        different = differences(network.sizes, settings.architecture)
        if settings.losses.looks_at_mixtures and different:
            raise TrainingError(
                f"mixture_probability needs a teacher of the trained network's sizes, not {path} ({different}). Name"
                " another one with --teacher, or give the --architecture.* options that it was trained with."
            )
        return Teacher(network.to(device).to(memory_format=torch.channels_last))

    def identity(self) -> str:
        """Return the SHA-256 of the network's tensors, for a resumed run to tell whether it is the same."""
        return tensors_sha256({name: tensor.cpu() for name, tensor in self.network.state_dict().items()}, {})

    @torch.no_grad()
    def output(self, lr: Tensor, dtype: torch.dtype | None) -> Tensor:
        """Return the output (N, T, 3, S*H, S*W) for a clip (N, T, 3, H, W).

        Args:
            lr: The input.
            dtype: Type of the convolutions; None: float32.
        """
        cleaned = self.cleaned(lr, dtype)
        with torch.autocast(lr.device.type, dtype, enabled=dtype is not None):
            return self.network.super_resolve(cleaned).float()

    @torch.no_grad()
    def cleaned(self, lr: Tensor, dtype: torch.dtype | None, *, num_levels: int | None = None) -> Tensor:
        """Return a clip (N, T, 3, H, W) after one cleaning pass; arguments as for `output` and RealBasicVSR.clean."""
        with torch.autocast(lr.device.type, dtype, enabled=dtype is not None):
            return self.network.clean(lr, num_levels=num_levels).float()

    @torch.no_grad()
    def nearest_cleaned(self, lr: Tensor, gt: Tensor, dtype: torch.dtype | None, *, num_levels: int) -> Tensor:
        """Return a clip after one cleaning pass, at its own or at more sizes, see `nearer_cleaned`.

        Args:
            lr: The input (N, T, 3, H, W).
            gt: The ground truth (N, T, 3, S*H, S*W).
            dtype: Type of the convolutions; None: float32.
            num_levels: The number of sizes to compare with its own; if it is not larger there is no choice.
        """
        cleaned = self.cleaned(lr, dtype)
        if num_levels <= self.network.sizes.num_cleaning_levels:
            return cleaned
        return nearer_cleaned(cleaned, self.cleaned(lr, dtype, num_levels=num_levels), gt)


def usual_teacher(start: Path | None, settings: Settings) -> Path | None:
    """Return the faithful network of a run that names none: the teacher of the run that it begins from, or `start`.

    None if the run needs none.
    """
    if start is None or not settings.losses.needs_teacher:
        return None
    try:
        before = json.loads((start / ORIGIN).read_text(encoding="utf-8")).get("teacher")
    except (OSError, ValueError):
        before = None
    return start if before is None else Path(before)


def load_teacher(folder: Path, origin: dict[str, Any], settings: Settings, device: torch.device) -> Teacher | None:
    """Load the faithful network, if a loss compares with it. Raise TrainingError if it is another one now."""
    path = origin.get("teacher")
    teacher = Teacher.load(None if path is None else Path(path), settings, device)
    identity = None if teacher is None else teacher.identity()
    if origin.setdefault("teacher_sha256", identity) != identity:
        raise TrainingError(
            f"the teacher {path} is not the network that {folder} began with: name that one with --teacher, or begin a"
            f" new run with --from {folder}"
        )
    return teacher
