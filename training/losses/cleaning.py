"""Distance of the cleaned frames to the averaged ground truth (paper, Eq. 2)."""

from torch import Tensor

from training.losses.distances import Distance, averaged, distance_of
from training.losses.kinds import CleaningTensors, Loss, Reach


def cleaning_loss(cleaned: Tensor, gt: Tensor, *, distance: Distance = "charbonnier") -> Tensor:
    """Return the distance of the cleaned clip (N, T, 3, H, W) to `averaged` ground truth (N, T, 3, S*H, S*W)."""
    return distance_of(distance)(cleaned, averaged(gt, gt.shape[-1] // cleaned.shape[-1]))


LOSS: Loss[CleaningTensors] = Loss(
    compute=lambda tensors: cleaning_loss(tensors.cleaned, tensors.gt, distance=tensors.distance),
    reaches=Reach.CLEANING,
    is_always_logged=True,
)
