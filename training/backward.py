"""Backward passes into chosen parameters, and what steps of both networks share."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


def backward(
    roots: Sequence[tuple[Tensor, Tensor | None]], parameters: list[nn.Parameter], *, again: bool = False
) -> None:
    """Add to `.grad` of these parameters, and no others, the gradients that come from the roots.

    Args:
        roots: Pairs (tensor, its gradient); None for the gradient of a scalar.
        parameters: Where gradients are added.
        again: Keep the graph for another backward pass.
    """
    roots = [root for root in roots if root[0].requires_grad]
    if roots and parameters:  # everything may be frozen, and autograd accepts no empty list
        tensors, gradients = zip(*roots, strict=True)
        torch.autograd.backward(tensors, gradients, retain_graph=again, inputs=parameters)


def learning(module: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that are trained."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def numbers(losses: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the losses as numbers, read together: each reading waits for the GPU."""
    values = torch.stack([loss.detach() for loss in losses.values()]).tolist()
    return dict(zip(losses, values, strict=True))


def check_pair(function: str, clip: Tensor, gt: Tensor, scale: int) -> None:
    """Raise ValueError unless both are float32 clips and gt has `scale` times the size of clip."""
    expected = (*clip.shape[:3], *(scale * size for size in clip.shape[3:]))
    if clip.ndim != 5 or gt.shape != expected or clip.dtype != torch.float32 or gt.dtype != torch.float32:
        raise ValueError(
            f"{function}: expected float32 clips (N, T, 3, H, W) and a ground truth {scale} times as large, got"
            f" {tuple(clip.shape)} of {clip.dtype} and {tuple(gt.shape)} of {gt.dtype}"
        )
