"""How strong the output's gradients are, place by place, against the ground truth's. Not in the paper."""

import torch
import torch.nn.functional as F
from torch import Tensor

from training.losses.distances import l1
from training.losses.kinds import ClipTensors, Loss, Reach

WINDOW_PX = 8
"""Side of a window in pixels of the output."""
_FLOOR = 1e-3
"""Added under the root, squared, so that its slope stays finite in flat areas: a quarter of one step of 8 bits."""


def texture_loss(hr: Tensor, gt: Tensor) -> Tensor:
    """Return the mean L1 distance of the luma's gradients' standard deviations in windows, output to ground truth.

    After the gradient variance loss (Abrahamyan et al., ICASSP 2022), with overlapping windows and the root of the
    variance, so that faint texture counts beside edges. A pixel loss alone ends in a blur, for a fine detail in a wrong
    place costs it twice; this one asks for as much detail as the truth has there, and leaves its place to the others.
    hr and gt (N, T, 3, S*H, S*W).
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
