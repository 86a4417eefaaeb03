"""Filters of three taps for losses. No tensor of taps is created: a CUDA graph cannot copy one from the CPU."""

from torch import Tensor

type Taps = tuple[float, float, float]

SMOOTH: Taps = (0.25, 0.5, 0.25)
"""The binomial blur."""
RASTER: Taps = (-0.25, 0.5, -0.25)
"""What alternates from tap to tap, as it is; nothing of a plain area or a slope."""


def filtered(images: Tensor, taps: Taps, dim: int) -> Tensor:
    """Return images (..., H, W) filtered along one axis, which is shorter by 2 then."""
    size = images.shape[dim] - 2
    first, middle, last = (images.narrow(dim, tap, size) for tap in range(3))
    return taps[0] * first + taps[1] * middle + taps[2] * last
