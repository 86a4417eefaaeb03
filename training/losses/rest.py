"""What was cleaned stays as it is on the next pass. Not in the paper."""

from collections.abc import Callable

import torch
from torch import Tensor

from training.losses.distances import Distance, averaged, distance_of
from training.losses.kinds import ClipTensors, Loss, Reach


def rest_loss(
    clean: Callable[[Tensor], Tensor], cleaned: Tensor, gt: Tensor, *, distance: Distance = "charbonnier"
) -> Tensor:
    """Return the distance of one more cleaning pass to the averaged ground truth: of the cleaned clip, and of it.

    Not in the paper. Training sees one cleaning pass, core.rbvsr.Upscale up to three; a module trained for hours also
    sharpens, and sharpens again on the next pass. cleaned (N, T, 3, H, W) gets no gradient; `clean` is one pass on
    (2N, T, 3, H, W); gt (N, T, 3, S*H, S*W).
    """
    target = averaged(gt)
    again = clean(torch.cat((cleaned.detach(), target)))
    return distance_of(distance)(again, torch.cat((target, target)))


def _of_clips(clips: ClipTensors) -> Tensor:
    one = slice(clips.rest_frame, clips.rest_frame + 1)
    return rest_loss(clips.clean, clips.cleaned[:, one], clips.gt[:, one], distance=clips.distance)


LOSS: Loss[ClipTensors] = Loss(compute=_of_clips, reaches=Reach.CLEANING)
