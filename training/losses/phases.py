"""Detail that prefers places of the input's pixel grid. Not in the paper.

A network that is asked for texture draws dots at the centres or corners of the input's pixels: bright or dark as the
picture wants, so that they do not repeat (see weave.py), but always at the same few of the S * S places of a pixel.
Real detail does not know where the grid lies: it is as strong at each of these places.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from training.losses.kinds import ClipTensors, Loss, Reach
from training.losses.weave import less_mean
from vsrealbasicvsr.luma import luma

WINDOWS_PERIODS = (8, 24)
"""Sides of the windows in pixels of the input. Large windows tell a preference from chance, small ones find places."""
_FLOOR = 1e-4
"""The least strength, a fortieth of a step of 8 bits: the root's slope stays finite in flat areas."""


def phase_loss(hr: Tensor, gt: Tensor, scale: int) -> Tensor:
    """Return by how much more unevenly the output's detail lies on the input's grid than the ground truth's.

    The unevenness is the standard deviation, over the S * S places, of the root mean square of the luma's detail (what
    is finer than S pixels) in a window. The ground truth's, relative to its strength, is allowed: chance and the
    picture's own patterns. Mean over overlapping windows.

    Args:
        hr: Output (N, T, 3, S*H, S*W) in [0, 1].
        gt: Ground truth of the same shape.
        scale: S, pixels of the output along a pixel of the input.
    """
    losses = []
    for window in WINDOWS_PERIODS:
        strengths, strengths_gt = (_strengths(clip, scale, window) for clip in (hr, gt))
        allowed = _unevenness(strengths_gt) / strengths_gt.mean(dim=1)
        losses.append(F.relu(_unevenness(strengths) - allowed * strengths.mean(dim=1)).mean())
    return torch.stack(losses).mean()


def _strengths(clip: Tensor, scale: int, window: int) -> Tensor:
    """Return the root mean square of the luma's detail at each place of the grid, (N*T, scale**2, h, w)."""
    height, width = (size - size % scale for size in clip.shape[-2:])
    y = luma(clip.flatten(0, 1).float()).unsqueeze(1)
    phases = F.pixel_unshuffle(less_mean(y, scale)[..., :height, :width], scale)
    window = min(window, *phases.shape[-2:])
    return (F.avg_pool2d(phases.square(), window, max(1, window // 2)) + _FLOOR**2).sqrt()


def _unevenness(strengths: Tensor) -> Tensor:
    """Return the standard deviation over the places of the grid, (N*T, h, w)."""
    return (strengths.var(dim=1, correction=0) + (_FLOOR / 10) ** 2).sqrt()


LOSS: Loss[ClipTensors] = Loss(
    compute=lambda clips: phase_loss(clips.hr, clips.gt, clips.hr.shape[-1] // clips.lr.shape[-1]),
    reaches=Reach.EVERYTHING,
    is_for_mixtures=True,
)
