"""Weaves: patterns that repeat with each pixel of the input, whatever the picture. Not in the paper.

The last layers of an upscaler can draw them for nothing. No input can ask for one: their period, S pixels of the
output, is half of the shortest that the input can hold. They show as faint lines on plain walls.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from training.losses.kinds import ClipTensors, Loss, Reach

WINDOWS_PERIODS = (8, 24)
"""Sides of the windows in periods, over which a pattern must repeat. Small windows see one that changes with the
picture. Large ones see one that is fainter than grain: chance explains a third as much."""
_FLOOR = 1e-4
"""The least standard deviation, a fortieth of a step of 8 bits: the root's slope stays finite in flat areas."""
_CHANCE = 2
"""A pattern counts only where it is stronger than this many times what chance explains: the flat areas of a faithful
network come up to that."""


def weave_loss(hr: Tensor, gt: Tensor, scale: int) -> Tensor:
    """Return by how much the output's weave is above the ground truth's, mean over colours and overlapping windows.

    Grain hides no weave: on a wall, a third of a step of 8 bits is seen. Only what chance makes of the output's own
    detail is allowed, and what the ground truth's edges make. Each of R, G and B counts: held to the luma alone, a
    network draws its dots in magenta and green.

    Args:
        hr: output (N, T, 3, S*H, S*W) in [0, 1].
        gt: ground truth of the same shape.
        scale: S, the period of a weave in pixels.
    """
    return repetition_excess(hr, gt, scale, WINDOWS_PERIODS)


def weave_strength(clip: Tensor, scale: int) -> Tensor:
    """Return the strength of the weave of a clip (N, T, 3, S*H, S*W), mean over colours and overlapping windows.

    It is a standard deviation, less what chance explains.
    """
    phases = split_phases(clip, scale)
    return torch.stack([_repetition(phases, window, scale).mean() for window in WINDOWS_PERIODS]).mean()


def repetition_excess(hr: Tensor, gt: Tensor, period_px: int, windows_periods: Sequence[int]) -> Tensor:
    """Return by how much more the output repeats than the ground truth, mean over colours and overlapping windows.

    Args:
        hr: Output (N, T, 3, H, W) in [0, 1].
        gt: Ground truth of the same shape.
        period_px: Period on both axes; even. What H and W have beyond a multiple of it is left out.
        windows_periods: Sides of the windows in periods.
    """
    output, truth = (split_phases(clip, period_px) for clip in (hr, gt))
    excess = [
        F.relu(_repetition(output, window, period_px) - _repetition(truth, window, period_px)).mean()
        for window in windows_periods
    ]
    return torch.stack(excess).mean()


def split_phases(clip: Tensor, period_px: int) -> Tensor:
    """Return the detail of a clip (N, T, C, H, W), one channel for each pixel of a period.

    Returns:
        (N*T, C * period_px**2, H // period_px, W // period_px).
    """
    height, width = (size - size % period_px for size in clip.shape[-2:])
    return F.pixel_unshuffle(_detail(clip.flatten(0, 1).float(), period_px)[..., :height, :width], period_px)


def _repetition(phases: Tensor, window: int, period_px: int) -> Tensor:
    """Return the strength of patterns of this period in overlapping windows, (N*T, 3, h, w).

    The strength of a pattern is the standard deviation of the means of its pixels. What does not repeat averages out,
    but for chance: the deviation of a mean of that many pixels. To add detail instead is no way out for a network: that
    part has no gradient.

    Args:
        phases: The clip's, see `split_phases`.
        window: Side of a window in periods; at most the clip's.
        period_px: Of the patterns.
    """
    window = min(window, *phases.shape[-2:])
    stride = max(1, window // 2)
    means = F.avg_pool2d(phases, window, stride)
    squares = F.avg_pool2d(phases.detach().square(), window, stride)
    per_colour = (-1, period_px**2)
    strength = (torch.unflatten(means, 1, per_colour).var(dim=2, correction=0) + _FLOOR**2).sqrt()
    squares = torch.unflatten(squares, 1, per_colour).mean(dim=2)
    return F.relu(strength - _FLOOR - _CHANCE * squares.sqrt() / window)


def _detail(images: Tensor, period_px: int) -> Tensor:
    """Return images (B, C, h, w) less their mean over one period around each pixel.

    A pattern of that period stays as it is, but for the outer pixels. `period_px` must be even.
    """
    mean = F.avg_pool2d(images, period_px, stride=1, padding=period_px // 2, count_include_pad=False)
    return images - F.avg_pool2d(mean, 2, stride=1)


LOSS: Loss[ClipTensors] = Loss(
    compute=lambda clips: weave_loss(clips.hr, clips.gt, clips.hr.shape[-1] // clips.lr.shape[-1]),
    reaches=Reach.EVERYTHING,
    is_for_mixtures=True,
)
