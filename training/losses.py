"""The losses of stage 1 (paper, Eq. 1 and 2), and one of ours for short trainings."""

import torch.nn.functional as F
from torch import Tensor

from vsrealbasicvsr.model import SCALE


def charbonnier(a: Tensor, b: Tensor, *, epsilon: float = 1e-3) -> Tensor:
    """The mean of sqrt((a - b)^2 + epsilon^2): the paper's rho, an L1 that is smooth at zero."""
    return ((a - b).square() + epsilon**2).sqrt().mean()


def output_loss(hr: Tensor, truth: Tensor) -> Tensor:
    """Distance of the super-resolved clip to the ground truth, both (N, T, 3, S*H, S*W)."""
    return charbonnier(hr, truth)


def cleaning_loss(cleaned: Tensor, truth: Tensor) -> Tensor:
    """Distance of the cleaned clip (N, T, 3, H, W) to the ground truth (N, T, 3, S*H, S*W), averaged by S x S."""
    return charbonnier(cleaned, F.avg_pool2d(truth.flatten(0, 1), SCALE).view_as(cleaned))


def colour_loss(hr: Tensor, lr: Tensor, *, block_px: int = 16) -> Tensor:
    """Distance of the block means of the output (N, T, 3, S*H, S*W) to those of the input (N, T, 3, H, W).

    Not in the paper. A network trained for hours keeps a shift of about 1/255 in flat areas, small for the other losses
    and visible to the eye. Compared with the input, since a degradation's own shift cannot be known from one clip.
    block_px is the side of a block in pixels of the input.
    """
    means_hr = F.avg_pool2d(hr.flatten(0, 1), block_px * SCALE)
    return charbonnier(means_hr, F.avg_pool2d(lr.flatten(0, 1), block_px), epsilon=1e-4)
