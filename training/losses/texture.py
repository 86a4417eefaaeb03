"""Strength of the output's gradients in small windows against the ground truth's. Not in the paper."""

import torch
import torch.nn.functional as F
from torch import Tensor

from training.losses.distances import l1
from training.losses.filters import SMOOTH, filtered
from training.losses.kinds import ClipTensors, Loss, Reach
from vsrealbasicvsr.luma import luma

WINDOW_PX = 8
"""Side of a window in pixels of the output."""
LEAST_CROP_PX = 3
"""Side of the smallest input whose output holds a window of gradients."""
_FLOOR = 1e-3
"""The least standard deviation, so that the root's slope stays finite in flat areas: a quarter of a step of 8 bits."""
_WEAVE_FLOOR = 2.5e-4
"""The same for weaves, which are means of many pixels."""
_WEAVE_WEIGHT = 4
"""A weave is seen at a fraction of the strength that texture has, because it is regular."""
_SLOPE, _RASTER = (-0.5, 0.0, 0.5), (-0.25, 0.5, -0.25)


def texture_loss(hr: Tensor, gt: Tensor, scale: int) -> Tensor:
    """Return the mean L1 distance of the luma's gradients' standard deviations in windows, output to ground truth.

    After the gradient variance loss (Abrahamyan et al., "Gradient Variance Loss for Structure-Enhanced Image
    Super-Resolution", ICASSP 2022), with overlapping windows and the root of the variance, so that faint texture counts
    beside edges. A pixel loss alone ends in a blur, because detail in a wrong place costs it twice. This loss asks for
    as much detail as the ground truth has in each window; where in the window is left to the other losses.

    A raster of single pixels has the largest differences of neighbours, and a network soon learns to draw one. So the
    gradients are Sobel's, which do not see it, and rasters (rows, columns, checks) are penalised where the output has
    more of them than the ground truth. So is a weave: a pattern that repeats with each pixel of the input, whatever the
    picture, which the last layers of an upscaler can draw for nothing.

    Args:
        hr: output (N, T, 3, S*H, S*W) in [0, 1].
        gt: ground truth of the same shape.
        scale: S, the period of a weave in pixels.
    """
    gradients_hr, rasters_hr = _deviations(hr)
    gradients_gt, rasters_gt = _deviations(gt)
    rasters = F.relu(rasters_hr - rasters_gt).mean()
    return l1(gradients_hr, gradients_gt) + rasters + _WEAVE_WEIGHT * _excess_weave(hr, gt, scale).mean()


def _deviations(clip: Tensor) -> tuple[Tensor, Tensor]:
    """Return the standard deviations in windows of two gradients (N*T, 2, h, w) and of three rasters (N*T, 3, h, w)."""
    y = luma(clip.flatten(0, 1).float())
    smooth, slope, raster = (filtered(y, taps, -2) for taps in (SMOOTH, _SLOPE, _RASTER))
    pairs = ((smooth, _SLOPE), (slope, SMOOTH), (smooth, _RASTER), (raster, SMOOTH), (raster, _RASTER))
    bands = torch.stack([filtered(rows, taps, -1) for rows, taps in pairs], dim=1)
    mean = F.avg_pool2d(bands, WINDOW_PX, WINDOW_PX // 2)
    square = F.avg_pool2d(bands.square(), WINDOW_PX, WINDOW_PX // 2)
    deviations = ((square - mean.square()).clamp(min=0) + _FLOOR**2).sqrt()
    return deviations[:, :2], deviations[:, 2:]


def _excess_weave(hr: Tensor, gt: Tensor, period_px: int) -> Tensor:
    """Return by how much the output's weave is above what the ground truth's texture explains (N*T, 1, h, w)."""
    weave_hr, _ = _weave(hr, period_px)
    weave_gt, chance = _weave(gt, period_px)
    return F.relu(weave_hr - weave_gt - chance)


def _weave(clip: Tensor, period_px: int) -> tuple[Tensor, Tensor]:
    """Return the strength of the pattern of this period in overlapping windows, and that of chance (N*T, 1, h, w).

    A window holds WINDOW_PX periods in each direction. The strength is the standard deviation of the means of the
    pattern's pixels. What does not repeat averages out, but for chance: the deviation of a mean of that many pixels.
    """
    y = luma(clip.flatten(0, 1).float())[:, None]
    detail = y - F.avg_pool2d(y, 5, stride=1, padding=2, count_include_pad=False)
    phases = F.pixel_unshuffle(detail, period_px)
    window = min(WINDOW_PX, *phases.shape[-2:])
    stride = max(1, window // 2)
    means = F.avg_pool2d(phases, window, stride)
    squares = F.avg_pool2d(phases.square().mean(dim=1, keepdim=True), window, stride)
    strength = (means.var(dim=1, keepdim=True, correction=0) + _WEAVE_FLOOR**2).sqrt()
    return strength, squares.sqrt() / window


LOSS: Loss[ClipTensors] = Loss(
    compute=lambda clips: texture_loss(clips.hr, clips.gt, clips.hr.shape[-1] // clips.lr.shape[-1]),
    reaches=Reach.EVERYTHING,
)
