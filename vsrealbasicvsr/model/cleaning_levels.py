"""A cleaning pass that looks at a frame at several sizes. Not in the paper.

What a cleaning module sees around a pixel ends with its convolutions: 29 pixels for the default weights, less than two
of a codec's blocks of colour. In a frame of half the size the same convolutions see twice as far.
"""

from collections.abc import Callable

from torch import Tensor

from .flow import resize


def residue_of_levels(frames: Tensor, num_levels: int, residue_of_size: Callable[[Tensor], Tensor]) -> Tensor:
    """Return what one cleaning pass adds to frames (B, 3, H, W), shaped like them, from the smallest size to their own.

    Each size is half of the one before, rounded up. The smallest is cleaned first; what that adds is enlarged and added
    to the next size before that is cleaned.

    Args:
        frames: (B, 3, H, W).
        num_levels: Number of sizes. 1, as published: the frames alone.
        residue_of_size: Returns what the cleaning module adds to frames of any one size.
    """
    if num_levels == 1:
        return residue_of_size(frames)
    height, width = frames.shape[-2:]
    smaller = resize(frames, -(-height // 2), -(-width // 2))
    coarse = resize(residue_of_levels(smaller, num_levels - 1, residue_of_size), height, width)
    return coarse + residue_of_size(frames + coarse)
