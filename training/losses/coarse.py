"""Distance of all but the finest detail of the output to the output of a faithful network. Not in the paper."""

import torch.nn.functional as F
from torch import Tensor

from training.losses.distances import l1
from training.losses.filters import SMOOTH, filtered
from training.losses.kinds import ClipTensors, Loss, Needs, Reach
from vsrealbasicvsr.luma import luma

MIN_CONTRAST = 1 / 255
"""Contrast below which clips count as plain: they gain little."""


def coarse_loss(hr: Tensor, faithful: Tensor) -> Tensor:
    """Return the L1 distance of two clips after the binomial blur (1, 2, 1)/4 in both directions.

    The blur removes the finest detail: of a wave with a period of 2 pixels it leaves nothing, of 4 pixels half, of 8
    pixels 85 %. A sharp network may differ from the faithful one in that detail only. ColorVideoVDP finds the errors
    that a discriminator makes at periods of 4 to 16 pixels (docs/decisions.md).

    Args:
        hr: Output (N, T, 3, S*H, S*W) in [0, 1].
        faithful: Output of the faithful network, of the same shape.
    """
    return l1(_coarse(hr), _coarse(faithful))


def with_contrast(clip: Tensor, gt: Tensor, limit: float) -> Tensor:
    """Raise the contrast of clips' luma to that of the ground truth, at periods of about 8 to 60 pixels.

    Output by a network that minimises an error has less contrast than the ground truth where it is unsure: less, the
    more the input was damaged. ColorVideoVDP prefers the contrast back, and no more than that (docs/decisions.md).
    What a blur takes away (three box filters, almost a Gaussian of 8 pixels) is multiplied by one factor for each clip.

    Args:
        clip: Output of a faithful network (N, T, 3, H, W).
        gt: Ground truth, of the same shape.
        limit: The factor is at most 1 + limit, and at least 1. 0 changes nothing.
    """
    if limit == 0:
        return clip
    plane, real = luma(clip), luma(gt)
    blurred = _wide(plane)
    ratio = (_contrast(real, _wide(real)) + MIN_CONTRAST) / (_contrast(plane, blurred) + MIN_CONTRAST)
    gain = ratio.clamp(1, 1 + limit) - 1
    return clip + (gain.view(-1, 1, 1, 1) * (plane - blurred)).unsqueeze(2)


def _contrast(plane: Tensor, blurred: Tensor) -> Tensor:
    """Return the standard deviation of each clip (N, T, H, W) between a blur of 5 pixels and `blurred`, (N,)."""
    smooth = F.avg_pool2d(F.pad(plane, (2, 2, 2, 2), mode="replicate"), 5, stride=1)
    return (smooth - blurred).square().mean(dim=(1, 2, 3)).sqrt()


def _wide(plane: Tensor) -> Tensor:
    """Return clips (N, T, H, W) blurred by boxes of 17, 17 and 15 pixels."""
    blurred = F.pad(plane, (23, 23, 23, 23), mode="replicate")
    for size in (17, 17, 15):  # rows and columns in turn: torch adds up a whole box anew for each pixel
        blurred = F.avg_pool2d(F.avg_pool2d(blurred, (size, 1), stride=1), (1, size), stride=1)
    return blurred


def _coarse(clip: Tensor) -> Tensor:
    """Return the blurred frames (N*T, 3, H, W)."""
    padded = F.pad(clip.flatten(0, 1), (1, 1, 1, 1), mode="replicate")
    return filtered(filtered(padded, SMOOTH, -2), SMOOTH, -1)


def _of_clips(clips: ClipTensors) -> Tensor:
    assert clips.faithful is not None, "the coarse loss needs Needs.TEACHER"
    return coarse_loss(clips.hr, with_contrast(clips.faithful, clips.gt, clips.coarse_contrast))


LOSS: Loss[ClipTensors] = Loss(compute=_of_clips, reaches=Reach.EVERYTHING, needs=Needs.TEACHER)
