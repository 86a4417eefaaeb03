"""Strength of the output's gradients in small windows against the ground truth's. Not in the paper."""

import torch
import torch.nn.functional as F
from torch import Tensor

from training.losses.distances import quantile_distance, windowed_deviations
from training.losses.filters import SMOOTH, filtered
from training.losses.kinds import ClipTensors, Loss, Reach
from vsrealbasicvsr.luma import luma

WINDOW_PX = 8
"""Side of a window in pixels of the output."""
LEAST_CROP_PX = 3
"""Side of the smallest input whose output holds a window of gradients."""
_FLOOR = 1e-3
"""The least standard deviation, so that the root's slope stays finite in flat areas: a quarter of a step of 8 bits."""
_SLOPE, _RASTER = (-0.5, 0.0, 0.5), (-0.25, 0.5, -0.25)


def texture_loss(hr: Tensor, gt: Tensor, *, quantile: float = 0.5) -> Tensor:
    """Return the mean distance of the luma's gradients' standard deviations in windows, output to ground truth.

    After the gradient variance loss (Abrahamyan et al., "Gradient Variance Loss for Structure-Enhanced Image
    Super-Resolution", ICASSP 2022), with overlapping windows and the root of the variance, so that faint texture counts
    beside edges. A pixel loss alone ends in a blur, because detail in a wrong place costs it twice. This loss asks for
    as much detail as the ground truth has in each window; where in the window is left to the other losses.

    A raster of single pixels has the largest differences of neighbours, and a network soon learns to draw one. So the
    gradients are Sobel's, which do not see it, and rasters (rows, columns, checks) are penalised where the output has
    more of them than the ground truth.

    The distance is the quantile loss, doubled (see `quantile_distance`): a deviation that is too small costs
    `quantile`, one that is too large 1 - `quantile`. At 0.5 it is the L1 distance, whose minimum is the median of what
    the ground truth may have. Few windows have most of the detail, so the median is less than the mean, and the output
    softer than the ground truth. Where nothing is in doubt, quantiles agree.

    Args:
        hr: Output (N, T, 3, S*H, S*W) in [0, 1].
        gt: Ground truth of the same shape.
        quantile: Above 0 and below 1.
    """
    gradients_hr, rasters_hr = _deviations(hr)
    gradients_gt, rasters_gt = _deviations(gt)
    rasters = F.relu(rasters_hr - rasters_gt).mean()
    return quantile_distance(gradients_gt - gradients_hr, quantile) + rasters


def _deviations(clip: Tensor) -> tuple[Tensor, Tensor]:
    """Return the standard deviations in windows of two gradients (N*T, 2, h, w) and of three rasters (N*T, 3, h, w)."""
    y = luma(clip.flatten(0, 1).float())
    smooth, slope, raster = (filtered(y, taps, -2) for taps in (SMOOTH, _SLOPE, _RASTER))
    pairs = ((smooth, _SLOPE), (slope, SMOOTH), (smooth, _RASTER), (raster, SMOOTH), (raster, _RASTER))
    bands = torch.stack([filtered(rows, taps, -1) for rows, taps in pairs], dim=1)
    deviations = windowed_deviations(bands, WINDOW_PX, _FLOOR)
    return deviations[:, :2], deviations[:, 2:]


LOSS: Loss[ClipTensors] = Loss(
    compute=lambda clips: texture_loss(clips.hr, clips.gt, quantile=clips.texture_quantile),
    reaches=Reach.EVERYTHING,
)
