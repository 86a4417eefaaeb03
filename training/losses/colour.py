"""Block means of the output against those of the input. Not in the paper."""

import torch.nn.functional as F
from torch import Tensor

from training.losses.distances import charbonnier
from training.losses.kinds import ClipTensors, Loss, Reach

COLOUR_BLOCK_PX = 16
"""Side of the blocks in pixels of the input; codecs change the colour of blocks of this size."""


def colour_loss(hr: Tensor, lr: Tensor, *, block_px: int = COLOUR_BLOCK_PX) -> Tensor:
    """Return the distance of the block means of the output to those of the input.

    Not in the paper. A network trained for hours keeps a shift of about 1/255 in flat areas, small for the other losses
    and visible to the eye. The output is compared with the input because a degradation's own shift cannot be known from
    one clip.

    Args:
        hr: The output (N, T, 3, S*H, S*W).
        lr: The input (N, T, 3, H, W).
        block_px: Side of a block in pixels of the input.
    """
    means_hr = F.avg_pool2d(hr.flatten(0, 1), block_px * (hr.shape[-1] // lr.shape[-1]))
    return charbonnier(means_hr, F.avg_pool2d(lr.flatten(0, 1), block_px))


LOSS: Loss[ClipTensors] = Loss(
    compute=lambda clips: colour_loss(clips.hr, clips.lr, block_px=clips.colour_block_px),
    reaches=Reach.EVERYTHING,
    is_for_mixtures=True,
)
