"""Change of cleaned frames by another cleaning pass, which should be 0. Not in the paper."""

from collections.abc import Callable

import torch
from torch import Tensor

from training.losses.distances import Distance, averaged, distance_of
from training.losses.kinds import CleaningTensors, Loss, Reach


def rest_loss(
    clean: Callable[[Tensor], Tensor], cleaned: Tensor, gt: Tensor, *, distance: Distance = "charbonnier"
) -> Tensor:
    """Return how far one more cleaning pass takes the cleaned clip and the averaged ground truth from that average.

    Not in the paper. Training uses one cleaning pass, core.rbvsr.Upscale up to three; a cleaning module trained for
    hours also sharpens, and sharpens again in the next pass.

    Args:
        clean: One cleaning pass, on (2N, T, 3, H, W).
        cleaned: The cleaned clip (N, T, 3, H, W); it gets no gradient.
        gt: The ground truth (N, T, 3, S*H, S*W).
        distance: "charbonnier" or "l1".
    """
    target = averaged(gt, gt.shape[-1] // cleaned.shape[-1])
    again = clean(torch.cat((cleaned.detach(), target)))
    return distance_of(distance)(again, torch.cat((target, target)))


def _of_cleaning(tensors: CleaningTensors) -> Tensor:
    one = slice(tensors.rest_frame, tensors.rest_frame + 1)
    return rest_loss(tensors.clean, tensors.cleaned[:, one], tensors.gt[:, one], distance=tensors.distance)


LOSS: Loss[CleaningTensors] = Loss(compute=_of_cleaning, reaches=Reach.CLEANING)
