"""Strength of the output's gradients in small windows against the ground truth's. Not in the paper."""

import torch
import torch.nn.functional as F
from torch import Tensor

from training.losses.distances import l1
from training.losses.kinds import ClipTensors, Loss, Reach

WINDOW_PX = 8
"""Side of a window in pixels of the output."""
LEAST_CROP_PX = 3
"""Side of the smallest input whose output holds a window of differences."""
_FLOOR = 1e-3
"""The least standard deviation, so that the root's slope stays finite in flat areas: a quarter of a step of 8 bits."""


def texture_loss(hr: Tensor, gt: Tensor) -> Tensor:
    """Return the mean L1 distance of the luma's gradients' standard deviations in windows, output to ground truth.

    After the gradient variance loss (Abrahamyan et al., "Gradient Variance Loss for Structure-Enhanced Image
    Super-Resolution", ICASSP 2022), with overlapping windows and the root of the variance, so that faint texture counts
    beside edges. A pixel loss alone ends in a blur, because detail in a wrong place costs it twice. This loss asks for
    as much detail as the ground truth has in each window; where in the window is left to the other losses.

    Args:
        hr: output (N, T, 3, S*H, S*W) in [0, 1].
        gt: ground truth of the same shape.
    """
    return l1(_deviations(hr), _deviations(gt))


def _deviations(clip: Tensor) -> Tensor:
    """Return the standard deviations (2, N*T, h, w) of the horizontal and the vertical differences in each window."""
    luma = (clip.flatten(0, 1) * clip.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
    differences = (luma[..., :-1, 1:] - luma[..., :-1, :-1], luma[..., 1:, :-1] - luma[..., :-1, :-1])
    return torch.stack([_deviation(d.float()) for d in differences])


def _deviation(d: Tensor) -> Tensor:
    mean = F.avg_pool2d(d, WINDOW_PX, WINDOW_PX // 2)
    square = F.avg_pool2d(d.square(), WINDOW_PX, WINDOW_PX // 2)
    return ((square - mean.square()).clamp(min=0) + _FLOOR**2).sqrt()


LOSS: Loss[ClipTensors] = Loss(
    compute=lambda clips: texture_loss(clips.hr, clips.gt),
    reaches=Reach.EVERYTHING,
)
