"""Patterns that repeat with every second pixel of the input, whatever the picture. Not in the paper.

A network that is asked for texture draws lattices of dots and fine diagonal lines of this period, the finest that its
input can hold: on asphalt, in grass, in foliage. Texture repeats nowhere so exactly.
"""

from torch import Tensor

from training.losses.kinds import ClipTensors, Loss, Reach
from training.losses.weave import repetition_excess

WINDOWS_PERIODS = (4, 8)
"""Sides of the windows in periods: lattices cover areas of some 40 pixels of the output and more."""
_PERIOD_PX = 2
"""Period of the patterns in pixels of the input."""
LEAST_CROP_PX = _PERIOD_PX
"""Side of the smallest input that holds a period."""


def hatching_loss(hr: Tensor, gt: Tensor, scale: int) -> Tensor:
    """Return by how much the output's hatching is above the ground truth's, mean over colours and overlapping windows.

    Only what repeats counts, as in the weave loss. The energy of that period is no measure: real grass has more of it
    than a lattice of dots in its place.

    Args:
        hr: Output (N, T, 3, S*H, S*W) in [0, 1].
        gt: Ground truth of the same shape.
        scale: S, pixels of the output along a pixel of the input.
    """
    return repetition_excess(hr, gt, _PERIOD_PX * scale, WINDOWS_PERIODS)


LOSS: Loss[ClipTensors] = Loss(
    compute=lambda clips: hatching_loss(clips.hr, clips.gt, clips.hr.shape[-1] // clips.lr.shape[-1]),
    reaches=Reach.EVERYTHING,
    is_for_mixtures=True,
)
