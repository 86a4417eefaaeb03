"""Stripes and checks of two pixels of the input, where the ground truth has fewer. Not in the paper."""

import torch
import torch.nn.functional as F
from torch import Tensor

from training.losses.filters import RASTER, SMOOTH, filtered
from training.losses.kinds import ClipTensors, Loss, Reach

WINDOW_PERIODS = 4
"""Side of a window in periods of 2 S pixels of the output."""
LEAST_CROP_PX = 4
"""Side of the smallest input that holds a window."""
_FLOOR = 1e-4
"""The least standard deviation, a fortieth of a step of 8 bits: the root's slope stays finite in flat areas."""
_PER_PIXEL = 2
"""Means of S x S pixels per pixel of the input, on each axis: between two, no phase of a wave is missed."""


def hatching_loss(hr: Tensor, gt: Tensor, scale: int) -> Tensor:
    """Return by how much the output's hatching is above the ground truth's, mean over windows, colours and directions.

    A network that is asked for texture amplifies what grain has near the finest detail that the input can hold:
    alternate pixels of the input. On asphalt that is seen as diagonal hatching. Real texture has its detail at all
    periods, and so little at this one. A weave is another pattern: it repeats with each pixel of the input.

    Args:
        hr: Output (N, T, 3, S*H, S*W) in [0, 1].
        gt: Ground truth of the same shape.
        scale: S, pixels of the output along a pixel of the input; even.
    """
    return F.relu(_strength(hr, scale) - _strength(gt, scale)).mean()


def _strength(clip: Tensor, scale: int) -> Tensor:
    """Return the root mean square of stripes and checks with a period of 2 S pixels, in overlapping windows.

    Args:
        clip: (N, T, 3, S*H, S*W).
        scale: S.

    Returns:
        (N*T, 9, h, w): columns, rows and checks of red, green and blue.
    """
    means = F.avg_pool2d(clip.flatten(0, 1).float(), scale, stride=scale // _PER_PIXEL)
    smooth, raster = (filtered(means, taps, -2, spacing_px=_PER_PIXEL) for taps in (SMOOTH, RASTER))
    pairs = ((smooth, RASTER), (raster, SMOOTH), (raster, RASTER))
    bands = torch.cat([filtered(rows, taps, -1, spacing_px=_PER_PIXEL) for rows, taps in pairs], dim=1)
    window = min(2 * _PER_PIXEL * WINDOW_PERIODS, *bands.shape[-2:])
    return (F.avg_pool2d(bands.square(), window, max(1, window // 2)) + _FLOOR**2).sqrt()


LOSS: Loss[ClipTensors] = Loss(
    compute=lambda clips: hatching_loss(clips.hr, clips.gt, clips.hr.shape[-1] // clips.lr.shape[-1]),
    reaches=Reach.EVERYTHING,
    is_for_mixtures=True,
)
