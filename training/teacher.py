"""A frozen network in two sets of weights whose sharpened output is the target instead of the ground truth."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from training.losses.fine import sharpened_target
from training.losses.settings import LossSettings
from training.processes import TrainingError
from vsrealbasicvsr.model import RealBasicVSR
from vsrealbasicvsr.weights import load_model


@dataclass(frozen=True, slots=True)
class Teacher:
    """The two networks, and how their outputs are joined (see `sharpened_target`)."""

    faithful: RealBasicVSR
    sharp: RealBasicVSR
    mix: float
    fine: float

    @staticmethod
    def load(path: Path | str | None, losses: LossSettings, device: torch.device) -> "Teacher | None":
        """Load the teacher of a run, if its settings ask for one.

        Args:
            path: A file of two sets of weights, or "default".
            losses: How its outputs are joined.
            device: Where the networks go.

        Raises:
            TrainingError: The settings ask for a teacher and there is none, or the other way round.
            WeightsError: The file cannot be used, or holds one set.
        """
        asked = losses.teacher_mix > 0 or losses.teacher_fine > 0
        if asked and path is None:
            raise TrainingError("teacher_mix and teacher_fine need --teacher FILE, a file of two sets or default")
        if path is None:
            return None
        if not asked:
            raise TrainingError("--teacher needs --teacher-mix or --teacher-fine above 0: how sharp it is")
        faithful, sharp = (load_model(str(path), device, detail) for detail in (0.0, 1.0))
        return Teacher(faithful, sharp, losses.teacher_mix, losses.teacher_fine)

    @torch.no_grad()
    def target(self, lr: Tensor, dtype: torch.dtype | None) -> Tensor:
        """Return the target (N, T, 3, S*H, S*W) for a clip (N, T, 3, H, W).

        Args:
            lr: The input.
            dtype: Type of the convolutions; None: float32.
        """
        scale = self.sharp.sizes.scale
        with torch.autocast(lr.device.type, dtype, enabled=dtype is not None):
            cleaned = self.faithful.clean(lr).float()
            faithful, sharp = (network.super_resolve(cleaned) for network in (self.faithful, self.sharp))
        return sharpened_target(faithful.float(), sharp.float(), mix=self.mix, fine=self.fine, scale=scale)
