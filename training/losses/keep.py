"""Distance of the cleaned frames to those that a faithful network cleans, where nothing is plain. Not in the paper."""

import torch.nn.functional as F
from torch import Tensor

from training.losses.banding import plainness
from training.losses.distances import averaged, soft_absolute
from training.losses.kinds import CleaningTensors, Loss, Needs, Reach

_FREE = 2 / 255
"""Distances far below this count by their square, so that small changes cost next to nothing."""
_BLOCK_PX = 24
"""Side of the blocks whose means are kept everywhere, in pixels of the input."""


def keep_loss(cleaned: Tensor, faithful: Tensor, gt: Tensor) -> Tensor:
    """Return how far the cleaned frames are from those of a faithful network.

    For teaching the cleaning module alone: what comes after it was trained on the faithful network's frames and stays.
    Where the ground truth is plain only the means of blocks must stay, so that the banding loss can smooth them.

    Args:
        cleaned: The cleaned clip (N, T, 3, H, W) in [0, 1].
        faithful: The clip that the faithful network cleaned, of the same shape.
        gt: The ground truth (N, T, 3, S*H, S*W).
    """
    difference = (cleaned - faithful).flatten(0, 1)
    plain = plainness(averaged(gt, gt.shape[-1] // cleaned.shape[-1]))
    pixels = ((1 - plain) * soft_absolute(difference, _FREE)).mean()
    block_px = min(_BLOCK_PX, *difference.shape[-2:])
    return pixels + F.avg_pool2d(difference, block_px).abs().mean() / 4


def _of_cleaning(tensors: CleaningTensors) -> Tensor:
    assert tensors.faithful is not None, "the keep loss needs Needs.TEACHER_CLEANING"
    return keep_loss(tensors.cleaned, tensors.faithful, tensors.gt)


LOSS: Loss[CleaningTensors] = Loss(compute=_of_cleaning, reaches=Reach.CLEANING, needs=Needs.TEACHER_CLEANING)
