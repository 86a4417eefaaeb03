"""Filters of three taps for losses. No tensor of taps is created: a CUDA graph cannot copy one from the CPU."""

from torch import Tensor

type Taps = tuple[float, float, float]

SMOOTH: Taps = (0.25, 0.5, 0.25)
"""The binomial blur."""


def filtered(images: Tensor, taps: Taps, dim: int) -> Tensor:
    """Return images (..., H, W) filtered along one axis, two shorter there."""
    first, middle, last = (images.narrow(dim, start, images.shape[dim] - 2) for start in range(3))
    return taps[0] * first + taps[1] * middle + taps[2] * last
