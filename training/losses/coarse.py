"""Distance of all but the finest detail of the output to the output of a faithful network. Not in the paper."""

import torch
import torch.nn.functional as F
from torch import Tensor

from training.losses.distances import l1
from training.losses.filters import SMOOTH, filtered
from training.losses.kinds import ClipTensors, Loss, Needs, Reach


def coarse_loss(hr: Tensor, faithful: Tensor) -> Tensor:
    """Return the L1 distance of two clips after the binomial blur (1, 2, 1)/4 in both directions.

    The blur removes the finest detail: of a wave with a period of 2 pixels it leaves nothing, of 4 pixels half, of 8
    pixels 85 %. A sharp network may differ from the faithful one in that detail only. ColorVideoVDP finds the errors
    that a discriminator makes at periods of 4 to 16 pixels (docs/decisions.md).

    Args:
        hr: Output (N, T, 3, S*H, S*W) in [0, 1].
        faithful: Output of the faithful network, of the same shape.
    """
    return l1(_coarse(hr), _coarse(faithful))


def with_contrast(clip: Tensor, amount: float) -> Tensor:
    """Add `amount` times what a blur takes away from the frames: three box filters, almost a Gaussian of 3.2 pixels.

    Output by a network that minimises an error has less contrast than the ground truth where it is unsure, and
    ColorVideoVDP prefers some of it back: 0.2 of it raised JOD by 0.03 (docs/decisions.md).

    Args:
        clip: (N, T, 3, H, W).
        amount: 0 changes nothing.
    """
    if amount == 0:
        return clip
    frames = clip.flatten(0, 1)
    blurred = F.pad(frames, (8, 8, 8, 8), mode="replicate")
    for size in (7, 7, 5):
        blurred = F.avg_pool2d(blurred, size, stride=1)
    return torch.lerp(blurred, frames, 1 + amount).view_as(clip)


def _coarse(clip: Tensor) -> Tensor:
    """Return the blurred frames (N*T, 3, H, W)."""
    padded = F.pad(clip.flatten(0, 1), (1, 1, 1, 1), mode="replicate")
    return filtered(filtered(padded, SMOOTH, -2), SMOOTH, -1)


def _of_clips(clips: ClipTensors) -> Tensor:
    assert clips.faithful is not None, "the coarse loss needs Needs.TEACHER"
    return coarse_loss(clips.hr, with_contrast(clips.faithful, clips.coarse_contrast))


LOSS: Loss[ClipTensors] = Loss(compute=_of_clips, reaches=Reach.EVERYTHING, needs=Needs.TEACHER)
