"""Distance of the cleaned frames to those that a faithful network cleans. Not in the paper."""

import torch.nn.functional as F
from torch import Tensor

from training.losses.banding import plainness
from training.losses.distances import averaged, soft_absolute
from training.losses.kinds import CleaningTensors, Loss, Needs, Reach

_FREE = 2 / 255
"""Distances far below this count by their square, so that small changes cost next to nothing."""
_FREE_EVERYWHERE = 0.5 / 255
"""The same, where plain areas are held too."""
_BLOCK_PX = 24
"""Side of the blocks whose means are kept everywhere, in pixels of the input."""
_NEARER_PX = 25
"""Side of the squares in which two cleaned clips are compared with the ground truth, in pixels of the input."""
_BLEND_PX = 5
"""Over how many pixels one clip passes into the other."""
_FARTHER_IN_PLAIN = 0.3 / 255
_NEARER_IN_TEXTURE = 0.5 / 255
"""How much farther from the ground truth the smoother one of two clips may be in a plain area, and how much nearer it
must be in texture, which it would otherwise wipe where both are as near."""


def keep_loss(cleaned: Tensor, faithful: Tensor, gt: Tensor, *, everywhere: bool = False) -> Tensor:
    """Return how far the cleaned frames are from those of a faithful network.

    For teaching the cleaning module alone: what comes after it was trained on the faithful network's frames and stays.
    Where the ground truth is plain only the means of blocks must stay, so that the banding loss can smooth them.

    Args:
        cleaned: The cleaned clip (N, T, 3, H, W) in [0, 1].
        faithful: The clip that the faithful network cleaned, of the same shape.
        gt: The ground truth (N, T, 3, S*H, S*W).
        everywhere: Hold plain areas like all others, for a faithful network that leaves no blocks there.
    """
    difference = (cleaned - faithful).flatten(0, 1)
    if everywhere:
        return soft_absolute(difference, _FREE_EVERYWHERE).mean()
    plain = plainness(averaged(gt, gt.shape[-1] // cleaned.shape[-1]))
    pixels = ((1 - plain) * soft_absolute(difference, _FREE)).mean()
    block_px = min(_BLOCK_PX, *difference.shape[-2:])
    return pixels + F.avg_pool2d(difference, block_px).abs().mean() / 4


def nearer_cleaned(cleaned: Tensor, smoother: Tensor, gt: Tensor) -> Tensor:
    """Return, around each pixel, the one of two cleaned clips that is nearer to the averaged ground truth, blended.

    A module that cleans at several sizes removes more than at one: what is left of heavy damage and of a codec's blocks
    on walls, but also texture of good input. The result has the better of both, for a network to learn.

    Args:
        cleaned: A clip (N, T, 3, H, W) in [0, 1].
        smoother: The same clip, cleaned at more sizes. In plain areas it may be a little farther, in texture it must be
            clearly nearer.
        gt: The ground truth (N, T, 3, S*H, S*W).
    """
    target = averaged(gt, gt.shape[-1] // cleaned.shape[-1])
    first, second = _error_around(cleaned, target), _error_around(smoother, target)
    plain = plainness(target)
    is_second = (second < first + _FARTHER_IN_PLAIN * plain - _NEARER_IN_TEXTURE * (1 - plain)).float()
    share = F.avg_pool2d(is_second, _BLEND_PX, 1, _BLEND_PX // 2, count_include_pad=False)
    return cleaned.flatten(0, 1).lerp(smoother.flatten(0, 1), share).view_as(cleaned)


def _error_around(clip: Tensor, target: Tensor) -> Tensor:
    """Return the mean absolute error around each pixel, (N*T, 1, H, W)."""
    error = (clip - target).flatten(0, 1).abs().mean(dim=1, keepdim=True)
    return F.avg_pool2d(error, _NEARER_PX, 1, _NEARER_PX // 2, count_include_pad=False)


def _of_cleaning(tensors: CleaningTensors) -> Tensor:
    assert tensors.faithful is not None, "the keep loss needs Needs.TEACHER_CLEANING"
    return keep_loss(tensors.cleaned, tensors.faithful, tensors.gt, everywhere=tensors.keep_everywhere)


LOSS: Loss[CleaningTensors] = Loss(compute=_of_cleaning, reaches=Reach.CLEANING, needs=Needs.TEACHER_CLEANING)
