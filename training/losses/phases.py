"""Fine detail that is stronger at some phases than at others. Not in the paper.

A phase is one of the S * S positions of the output's pixels within a pixel of the input. A network that is asked for
texture draws dots at a few phases. They are bright or dark as the picture wants, so that nothing repeats (weave.py does
not see them), but they show as a raster in grass and foliage. Real detail is as strong at each phase.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from training.losses.kinds import ClipTensors, Loss, Reach
from training.losses.weave import split_phases
from vsrealbasicvsr.luma import luma

WINDOWS_PERIODS = (8, 24)
"""Sides of the windows in pixels of the input. Large windows tell unevenness from chance, small ones locate it."""
_FLOOR = 1e-4
"""The least strength, a fortieth of a step of 8 bits: the root's slope stays finite in flat areas."""


def phase_loss(hr: Tensor, gt: Tensor, scale: int) -> Tensor:
    """Return by how much the strength of the output's detail differs more between phases than the ground truth's.

    The strength is the root mean square, in a window, of the luma less its mean over S x S pixels. Its standard
    deviation over the phases is what is minimised. As much as the ground truth has, relative to its strength, is free:
    that is chance and the picture's own patterns. Mean over overlapping windows.

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
    """Return the strength of the luma's detail at each phase, in overlapping windows: (N*T, scale**2, h, w)."""
    phases = split_phases(luma(clip.float()).unsqueeze(-3), scale)
    window = min(window, *phases.shape[-2:])
    return (F.avg_pool2d(phases.square(), window, max(1, window // 2)) + _FLOOR**2).sqrt()


def _unevenness(strengths: Tensor) -> Tensor:
    """Return the standard deviation over the phases, (N*T, h, w)."""
    return (strengths.var(dim=1, correction=0) + (_FLOOR / 10) ** 2).sqrt()


LOSS: Loss[ClipTensors] = Loss(
    compute=lambda clips: phase_loss(clips.hr, clips.gt, clips.hr.shape[-1] // clips.lr.shape[-1]),
    reaches=Reach.EVERYTHING,
    is_for_mixtures=True,
)
