"""The losses of stage 1 (paper, Eq. 1 and 2)."""

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
