"""Mean squared error of the output. Not in the paper."""

import torch.nn.functional as F
from torch import Tensor

from training.losses.kinds import ClipTensors, Loss, Reach


def squared_error_loss(hr: Tensor, gt: Tensor) -> Tensor:
    """Return the mean squared error of the output; both (N, T, 3, S*H, S*W)."""
    return F.mse_loss(hr, gt)


LOSS: Loss[ClipTensors] = Loss(
    compute=lambda clips: squared_error_loss(clips.hr, clips.gt),
    reaches=Reach.EVERYTHING,
)
