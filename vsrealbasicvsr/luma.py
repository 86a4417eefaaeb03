"""Luma of BT.601, used everywhere but where a video names its own matrix."""

from torch import Tensor

RED, GREEN, BLUE = LUMA_WEIGHTS = (0.299, 0.587, 0.114)
"""Weights of gamma-encoded red, green and blue (ITU-R BT.601-7, 2.5.1)."""


def luma(rgb: Tensor) -> Tensor:
    """Return the luma of images, in the input's units and dtype.

    Args:
        rgb: (..., 3, H, W).

    Returns:
        (..., H, W). No tensor of weights is created, because a CUDA graph cannot copy one from the CPU.
    """
    red, green, blue = rgb.unbind(-3)
    return RED * red + GREEN * green + BLUE * blue


def lean_luma(rgb: Tensor) -> Tensor:
    """Return the luma of images, allocating no memory but the result; it differs from `luma` by rounding (1 ulp).

    Args:
        rgb: (..., 3, H, W); not modified.

    Returns:
        (..., H, W).
    """
    red, green, blue = rgb.unbind(-3)
    return red.mul(RED).add_(green, alpha=GREEN).add_(blue, alpha=BLUE)
