"""Distance of all but the finest detail of the output to the output of a faithful network. Not in the paper."""

import torch.nn.functional as F
from torch import Tensor

from training.losses.distances import l1
from training.losses.filters import SMOOTH, filtered
from training.losses.kinds import ClipTensors, Loss, Needs, Reach


def coarse_loss(hr: Tensor, faithful: Tensor) -> Tensor:
    """Return the L1 distance of two clips (N, T, 3, H, W) after the binomial blur (1, 2, 1)/4 in both directions.

    ColorVideoVDP finds errors at periods of 4 to 16 pixels, and a discriminator makes them; sharpness and naturalness
    improve with finer detail, too, which is hardly seen to be wrong (docs/decisions.md). So a sharp network may leave
    the faithful one there alone.
    """
    return l1(_coarse(hr), _coarse(faithful))


def _coarse(clip: Tensor) -> Tensor:
    """Return the blurred frames (N*T, 3, H, W)."""
    padded = F.pad(clip.flatten(0, 1), (1, 1, 1, 1), mode="replicate")
    return filtered(filtered(padded, SMOOTH, -2), SMOOTH, -1)


def _of_clips(clips: ClipTensors) -> Tensor:
    assert clips.faithful is not None, "the coarse loss needs Needs.TEACHER"
    return coarse_loss(clips.hr, clips.faithful)


LOSS: Loss[ClipTensors] = Loss(compute=_of_clips, reaches=Reach.EVERYTHING, needs=Needs.TEACHER)
