"""Distances between two images or clips of one shape, and averaging."""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Distance = Literal["charbonnier", "l1"]


def charbonnier(a: Tensor, b: Tensor, *, epsilon: float = 1e-3) -> Tensor:
    """Return the mean of sqrt((a - b)^2 + epsilon^2): the paper's rho, an L1 that is smooth at zero."""
    return ((a - b).square() + epsilon**2).sqrt().mean()


def l1(a: Tensor, b: Tensor) -> Tensor:
    """Return the mean of |a - b|, which the published code uses for rho."""
    return F.l1_loss(a, b)


def soft_absolute(differences: Tensor, knee: float) -> Tensor:
    """Return sqrt(x^2 + knee^2) - knee of each x: about |x| far above the knee, x^2 / (2 knee) far below."""
    return (differences.square() + knee**2).sqrt() - knee


def quantile_distance(missing: Tensor, quantile: float) -> Tensor:
    """Return twice the mean quantile loss (Koenker and Bassett, "Regression Quantiles", Econometrica 1978).

    Args:
        missing: What is wanted, less what is there. Above 0 it costs `quantile`, below 0 it costs 1 - `quantile`.
        quantile: Above 0 and below 1; at 0.5 it is the L1 distance.
    """
    return 2 * torch.maximum(quantile * missing, (quantile - 1) * missing).mean()


def windowed_deviations(images: Tensor, side: int, least: float) -> Tensor:
    """Return the standard deviations in windows, which overlap by half, of each channel of images (B, C, H, W).

    Args:
        images: Float32.
        side: Of a window.
        least: Added in the square, so that the root's slope stays finite in flat areas.
    """
    mean = F.avg_pool2d(images, side, side // 2)
    square = F.avg_pool2d(images.square(), side, side // 2)
    return ((square - mean.square()).clamp(min=0) + least**2).sqrt()


DISTANCES: dict[Distance, Callable[[Tensor, Tensor], Tensor]] = {"charbonnier": charbonnier, "l1": l1}


def distance_of(name: Distance) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the distance of this name. Raises ValueError for another name."""
    if name not in DISTANCES:
        raise ValueError(f'losses: distance must be "charbonnier" or "l1", got {name!r}')
    return DISTANCES[name]


def averaged(gt: Tensor, scale: int) -> Tensor:
    """Return the ground truth (N, T, 3, S*H, S*W) at the input's size, (N, T, 3, H, W): means of S x S pixels."""
    small = F.avg_pool2d(gt.flatten(0, 1), scale)
    return small.view(*gt.shape[:2], *small.shape[1:])
