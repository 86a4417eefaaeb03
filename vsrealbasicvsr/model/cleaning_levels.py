"""A cleaning pass that looks at a frame at several sizes. Not in the paper.

What a cleaning module sees around a pixel ends with its convolutions: 29 pixels for the default weights, less than two
of a codec's blocks of colour. In a frame of half the size the same convolutions see twice as far.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from .flow import resize


def residue_of_levels(frames: Tensor, num_levels: int, residue_of_size: Callable[[Tensor], Tensor]) -> Tensor:
    """Return what one cleaning pass adds to frames (B, 3, H, W), shaped like them, from the smallest size to their own.

    Each size is half of the one before, by means of 2 x 2 pixels; an odd side's last row or column counts twice. The
    smallest is cleaned first; what that adds is enlarged and added to the next size before that is cleaned.

    Args:
        frames: (B, 3, H, W).
        num_levels: Number of sizes. 1, as published: the frames alone.
        residue_of_size: Returns what the cleaning module adds to frames of any one size.
    """
    if num_levels == 1:
        return residue_of_size(frames)
    height, width = frames.shape[-2:]
    even = F.pad(frames, (0, width % 2, 0, height % 2), mode="replicate") if height % 2 or width % 2 else frames
    smaller = resize(even, even.shape[-2] // 2, even.shape[-1] // 2)
    residue = residue_of_levels(smaller, num_levels - 1, residue_of_size)
    coarse = resize(residue, *even.shape[-2:])[..., :height, :width]
    return coarse + residue_of_size(frames + coarse)
