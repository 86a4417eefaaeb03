"""Edges of the output's error where the ground truth is plain: codec blocks and bands. Not in the paper."""

import torch
import torch.nn.functional as F
from torch import Tensor

from training.losses.kinds import ClipTensors, Loss, Reach
from vsrealbasicvsr.luma import luma

PLAIN = 2 / 255
"""Change of the ground truth around a pixel at which that pixel counts half: two steps of 8 bits."""
_REACH_PX = 3
"""How far around a pixel the ground truth must be plain, in pixels of the input."""
LEAST_CROP_PX = 2
"""Side of the smallest input that has a change between neighbours."""


def banding_loss(hr: Tensor, gt: Tensor, scale: int) -> Tensor:
    """Return the mean absolute change of the output's error between neighbouring pixels of the input, in plain areas.

    On walls and in skies, codecs leave blocks and bands whose edges are one or two steps of 8 bits high. They are seen,
    but to a pixel loss they are nothing beside the errors in textures. So the error is averaged over S x S pixels, and
    its changes to the right and downwards are taken, in the luma and in both colour differences. A pixel counts by
    1 / (1 + (g / PLAIN)^4), where g is the largest change of the ground truth nearby.

    Args:
        hr: Output (N, T, 3, S*H, S*W) in [0, 1].
        gt: Ground truth of the same shape.
        scale: S, pixels of the output along a pixel of the input.
    """
    truth = _planes(gt, scale)
    error = _planes(hr, scale) - truth
    largest = _changes(truth).amax(dim=1, keepdim=True)
    nearby = F.max_pool2d(largest, 2 * _REACH_PX + 1, stride=1, padding=_REACH_PX)
    return (_changes(error) * (1 / (1 + (nearby / PLAIN) ** 4))).mean()


def _planes(clip: Tensor, scale: int) -> Tensor:
    """Return the means of S x S pixels of the luma, and of red and blue less the luma: (N*T, 3, H, W)."""
    rgb = F.avg_pool2d(clip.flatten(0, 1).float(), scale)
    y = luma(rgb).unsqueeze(1)
    return torch.cat([y, rgb[:, :1] - y, rgb[:, 2:] - y], dim=1)


def _changes(planes: Tensor) -> Tensor:
    """Return the absolute differences of planes (N*T, C, H, W) to the right and downwards: (N*T, 2 * C, H-1, W-1)."""
    here = planes[..., :-1, :-1]
    return torch.cat([planes[..., :-1, 1:] - here, planes[..., 1:, :-1] - here], dim=1).abs()


LOSS: Loss[ClipTensors] = Loss(
    compute=lambda clips: banding_loss(clips.hr, clips.gt, clips.hr.shape[-1] // clips.lr.shape[-1]),
    reaches=Reach.EVERYTHING,
)
