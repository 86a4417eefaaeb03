"""Distance of the colour differences of the output to those of a faithful network. Not in the paper."""

from torch import Tensor

from training.losses.kinds import ClipTensors, Loss, Needs, Reach
from vsrealbasicvsr.luma import luma


def chroma_loss(hr: Tensor, faithful: Tensor) -> Tensor:
    """Return the mean absolute difference of what is left of two clips when their luma is taken away.

    The discriminator and the texture loss see the luma alone, and most video stores colour at half the size, so nothing
    else decides the colour of the finest detail. Without this loss sharp networks draw dots of magenta and green in
    hair and metal (docs/decisions.md).

    Args:
        hr: Output (N, T, 3, S*H, S*W) in [0, 1].
        faithful: Output of the faithful network, of the same shape.
    """
    difference = hr - faithful
    return (difference - luma(difference).unsqueeze(2)).abs().mean()


def _of_clips(clips: ClipTensors) -> Tensor:
    assert clips.faithful is not None, "the chroma loss needs Needs.TEACHER"
    return chroma_loss(clips.hr, clips.faithful)


LOSS: Loss[ClipTensors] = Loss(compute=_of_clips, reaches=Reach.EVERYTHING, needs=Needs.TEACHER, is_for_mixtures=True)
