"""A frozen network whose output another one keeps, but for its finest detail: see losses/coarse.py."""

from pathlib import Path

import torch
from torch import Tensor

from training.networks import faithful_weights
from training.processes import TrainingError
from training.run_folder import find_weights
from training.settings import Settings
from vsrealbasicvsr.model import RealBasicVSR


class Teacher:
    """The network.

    Args:
        network: A faithful one, without gradients.
    """

    def __init__(self, network: RealBasicVSR) -> None:
        self._network = network

    @staticmethod
    def load(path: Path | None, settings: Settings, device: torch.device) -> "Teacher | None":
        """Load the teacher of a run, if its losses need one.

        Args:
            path: A run's folder, a file of weights (of two sets the faithful one), or "default".
            settings: The settings of the run.
            device: Where the network goes.

        Raises:
            UserError: The losses need a teacher and there is none, or the other way round.
            WeightsError: The file cannot be used.
        """
        if settings.losses.coarse_weight == 0:
            if path is not None:
                raise TrainingError("--teacher needs a --coarse-weight above 0")
            return None
        if path is None:
            raise TrainingError("the coarse loss needs a faithful network: --teacher or --from names one")
        tensors = faithful_weights(Path(find_weights(str(path))), settings.architecture.start_passes)
        network = RealBasicVSR.from_state_dict(tensors).eval().requires_grad_(False)
        return Teacher(network.to(device))

    @torch.no_grad()
    def output(self, lr: Tensor, dtype: torch.dtype | None) -> Tensor:
        """Return the output (N, T, 3, S*H, S*W) for a clip (N, T, 3, H, W).

        Args:
            lr: The input.
            dtype: Type of the convolutions; None: float32.
        """
        with torch.autocast(lr.device.type, dtype, enabled=dtype is not None):
            cleaned = self._network.clean(lr).float()
            return self._network.super_resolve(cleaned).float()
