"""Luma of BT.601, as everything here that is not a video's own matrix takes it. Knows pictures only."""

from torch import Tensor

RED, GREEN, BLUE = LUMA_WEIGHTS = (0.299, 0.587, 0.114)
"""Parts of gamma-encoded red, green and blue (ITU-R BT.601-7, 2.5.1)."""


def luma(rgb: Tensor) -> Tensor:
    """Return the luma of pictures, in the units and in the type that they have.

    Args:
        rgb: (..., 3, H, W).

    Returns:
        (..., H, W). No tensor of weights is made: a CUDA graph cannot copy one from the CPU.
    """
    red, green, blue = rgb.unbind(-3)
    return RED * red + GREEN * green + BLUE * blue


def lean_luma(rgb: Tensor) -> Tensor:
    """Return the same but for rounding (1 ulp), in the memory of one result.

    Args:
        rgb: (..., 3, H, W); it is left as it is.

    Returns:
        (..., H, W).
    """
    red, green, blue = rgb.unbind(-3)
    return red.mul(RED).add_(green, alpha=GREEN).add_(blue, alpha=BLUE)
