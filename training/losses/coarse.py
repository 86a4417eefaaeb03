"""Distance of all but the finest detail of the output to the output of a faithful network. Not in the paper."""

import torch.nn.functional as F
from torch import Tensor

from training.losses.contrast import SIGMA_8_PX, Band, with_contrast
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


def _coarse(clip: Tensor) -> Tensor:
    """Return the blurred frames (N*T, 3, H, W)."""
    padded = F.pad(clip.flatten(0, 1), (1, 1, 1, 1), mode="replicate")
    return filtered(filtered(padded, SMOOTH, -2), SMOOTH, -1)


def _lacking(limit: float) -> Band:
    """Return the band, periods of about 8 to 60 pixels, in which the faithful output gets missing contrast back.

    ColorVideoVDP prefers the contrast of the ground truth there, and no more than that (docs/decisions.md).
    """
    return Band(fine=(5,), wide=SIGMA_8_PX, share=1.0, limit=limit)


def _of_clips(clips: ClipTensors) -> Tensor:
    assert clips.faithful is not None, "the coarse loss needs Needs.TEACHER"
    return coarse_loss(clips.hr, with_contrast(clips.faithful, clips.gt, [_lacking(clips.coarse_contrast)]))


LOSS: Loss[ClipTensors] = Loss(compute=_of_clips, reaches=Reach.EVERYTHING, needs=Needs.TEACHER)
