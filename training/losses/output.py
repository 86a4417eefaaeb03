"""Distance of the output to the ground truth (paper, Eq. 1)."""

from torch import Tensor

from training.losses.distances import Distance, distance_of
from training.losses.kinds import ClipTensors, Loss, Reach


def output_loss(hr: Tensor, gt: Tensor, *, distance: Distance = "charbonnier") -> Tensor:
    """Return the distance of the super-resolved clip to the ground truth, both (N, T, 3, S*H, S*W)."""
    return distance_of(distance)(hr, gt)


LOSS: Loss[ClipTensors] = Loss(
    compute=lambda clips: output_loss(clips.hr, clips.gt, distance=clips.distance),
    reaches=Reach.EVERYTHING,
    is_always_logged=True,
)
