"""The finest detail of images, and the output's against the ground truth's. Not in the paper."""

import torch
import torch.nn.functional as F
from torch import Tensor

from training.losses.distances import l1
from training.losses.filters import SMOOTH, filtered
from training.losses.kinds import ClipTensors, Loss, Reach
from training.losses.weave import without_weave


def finest_detail(frames: Tensor) -> Tensor:
    """Return what the binomial blur (1, 2, 1)/4 in both directions takes away: periods of some four pixels and less.

    Args:
        frames: (..., 3, H, W).

    Returns:
        The same shape and type.
    """
    padded = F.pad(frames.flatten(0, -4), (1, 1, 1, 1), mode="replicate")
    return frames - filtered(filtered(padded, SMOOTH, -2), SMOOTH, -1).view_as(frames)


def fine_loss(hr: Tensor, gt: Tensor) -> Tensor:
    """Return the L1 distance of the finest detail of the output to the ground truth's, both (N, T, 3, S*H, S*W)."""
    return l1(finest_detail(hr), finest_detail(gt))


def sharpened_target(faithful: Tensor, sharp: Tensor, *, mix: float, fine: float, scale: int) -> Tensor:
    """Return faithful + mix * (sharp - faithful) + fine * finest_detail(sharp), both sharp parts without weave.

    ColorVideoVDP finds errors at periods of 4 to 16 pixels; the mean gradient and NIQE improve with finer detail, which
    it hardly sees (docs/decisions.md). So most of the sharpness is taken from there. The factor would amplify the faint
    weave that a sharp network draws, too.

    Args:
        faithful: Output of a faithful network (..., 3, H, W).
        sharp: Output of a sharp one, of the same shape.
        mix: Share of the sharp picture as it is.
        fine: Factor of the sharp picture's finest detail.
        scale: Output pixels per input pixel, the period of a weave.
    """
    finest = without_weave(finest_detail(sharp), scale)
    return torch.lerp(faithful, without_weave(sharp, scale), mix) + fine * finest


LOSS: Loss[ClipTensors] = Loss(
    compute=lambda clips: fine_loss(clips.hr, clips.target),
    reaches=Reach.EVERYTHING,
)
