"""PSNR of the output, in bels and negated. Not in the paper."""

from torch import Tensor

from training.losses.kinds import ClipTensors, Loss, Reach
from vsrealbasicvsr.luma import luma

MIN_SQUARED_ERROR = 1e-6
"""Squared error (60 dB) below which a frame has little effect."""


def psnr_loss(hr: Tensor, gt: Tensor) -> Tensor:
    """Return minus the mean PSNR of the frames' luma (BT.601), in bels: the mean of log10 of their mean squared errors.

    A plain mean squared error is dominated by the worst frames. Here a frame that is nearly right counts as much, so
    that a network learns not to harm it.

    Args:
        hr: The output (N, T, 3, S*H, S*W), in [0, 1].
        gt: The ground truth, of the same shape.
    """
    error = luma(hr - gt).square().mean(dim=(2, 3))
    return (error + MIN_SQUARED_ERROR).log10().mean()


LOSS: Loss[ClipTensors] = Loss(
    compute=lambda clips: psnr_loss(clips.hr, clips.gt),
    reaches=Reach.EVERYTHING,
)
