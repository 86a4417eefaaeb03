"""Gaussian noise and photon noise, added in place.

x (T, 3, H, W) float32, in [0, 1] with overshoot, is overwritten. Strengths are one value for each frame.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vsrealbasicvsr.luma import lean_luma

PHOTONS_AT_WHITE = 256
"""Photons counted at white. The published code takes the number of different levels in the frame, rounded up to a
power of two, which is this but for frames of few colours."""

EXACT_BELOW = 6.0
"""Mean photon count below which torch's Poisson generator is used; it is six times as slow, but only the darkest 2 % of
the range need it. Above, counts come from normal values by the Cornish-Fisher expansion to second order. At 6 the two
distributions differ by 0.0012 (total variation), their means by 0.0002 photons, their variances by 0.03 %, and at 16 by
0.0003; a plain normal approximation would be off by 0.05 and 0.03, and would have no skew."""


def add_gaussian(x: Tensor, sigma: Tensor, *, grey: bool, generator: torch.Generator) -> None:
    """Add normal noise to x.

    Args:
        x: Frames, overwritten.
        sigma: Standard deviation (T), in units of x.
        grey: Add the same values to the three channels.
        generator: Source of random numbers.
    """
    shape = (len(x), 1 if grey else x.shape[1], *x.shape[2:])
    normal = torch.empty(shape, dtype=x.dtype, device=x.device).normal_(generator=generator)
    x.addcmul_(normal, sigma[:, None, None, None])


def add_chroma(
    x: Tensor, sigma: Tensor, *, cell_px: int, before: Tensor | None, persistence: float, generator: torch.Generator
) -> Tensor:
    """Add smooth noise to the colour differences Cb and Cr; the luma does not change.

    Args:
        x: Frames, overwritten.
        sigma: Standard deviation (T), in units of x.
        cell_px: Distance of independent values.
        before: What the call for the frames before returned; None for the first frames.
        persistence: Correlation of a frame's noise with that of the frame before.
        generator: Source of random numbers.

    Returns:
        The last frame's cells, (1, 2, h, w).
    """
    num_frames, _, height, width = x.shape
    cells = torch.empty(num_frames, 2, height // cell_px + 2, width // cell_px + 2, device=x.device)
    cells.normal_(generator=generator)
    fresh = (1 - persistence**2) ** 0.5
    for number, cell in enumerate(cells):
        last = cells[number - 1] if number else None if before is None else before[0]
        if last is not None:
            cell.mul_(fresh).add_(last, alpha=persistence)
    # Bilinear enlargement averages neighbours, which leaves 2 / 3 of the deviation on average.
    smooth = F.interpolate(cells, size=(height, width), mode="bilinear", align_corners=False).mul_(1.5)
    blue, red = smooth.mul_(sigma[:, None, None, None]).unbind(1)
    x[:, 0].add_(red, alpha=1.402)
    x[:, 1].add_(blue, alpha=-0.344136).add_(red, alpha=-0.714136)
    x[:, 2].add_(blue, alpha=1.772)
    return cells[-1:]


def add_poisson(x: Tensor, scale: Tensor, *, grey: bool, generator: torch.Generator) -> None:
    """Add `scale` times the noise of counting photons, PHOTONS_AT_WHITE of them at 1.

    Args:
        x: Frames, overwritten.
        scale: (T).
        grey: Add the luma's noise to the three channels.
        generator: Source of random numbers.
    """
    light = lean_luma(x)[:, None] if grey else x.clone()
    expected = light.mul_(255).round_().clamp_(0, 255).mul_(PHOTONS_AT_WHITE / 255)
    surplus = counted(expected, generator).sub_(expected)
    x.addcmul_(surplus, scale[:, None, None, None], value=1 / PHOTONS_AT_WHITE)


def counted(expected: Tensor, generator: torch.Generator) -> Tensor:
    """Return Poisson samples with the means `expected` (0 or more), float32."""
    normal = torch.empty_like(expected).normal_(generator=generator)
    # Cornish-Fisher: m + s z + (z^2 - 1) / 6 + (z - z^3) / (72 s), s^2 = m less the 1/12 that rounding adds.
    # Near m = 0 this is NaN: those values are replaced below.
    deviation = (expected - 1 / 12).sqrt_()
    bend = normal.square().sub_(1)
    counts = normal.mul_(deviation.addcdiv_(bend, deviation, value=-1 / 72))
    counts.add_(bend, alpha=1 / 6).add_(expected).round_().clamp_(min=0)
    dark = (expected.flatten() < EXACT_BELOW).nonzero()[:, 0]
    if len(dark):
        counts.flatten()[dark] = torch.poisson(expected.flatten()[dark], generator=generator)
    return counts
