"""Block means of the output against those of the input. Not in the paper."""

import torch.nn.functional as F
from torch import Tensor

from training.losses.distances import charbonnier
from training.losses.kinds import ClipTensors, Loss, Reach
from vsrealbasicvsr.model import SCALE

COLOUR_BLOCK_PX = 16
"""Side of the blocks in pixels of the input: that of the blocks whose colour codecs change."""


def colour_loss(hr: Tensor, lr: Tensor, *, block_px: int = COLOUR_BLOCK_PX) -> Tensor:
    """Return the distance of the block means of the output (N, T, 3, S*H, S*W) to those of the input (N, T, 3, H, W).

    Not in the paper. A network trained for hours keeps a shift of about 1/255 in flat areas, small for the other losses
    and visible to the eye. Compared with the input, since a degradation's own shift cannot be known from one clip.
    block_px is the side of a block in pixels of the input.
    """
    means_hr = F.avg_pool2d(hr.flatten(0, 1), block_px * SCALE)
    return charbonnier(means_hr, F.avg_pool2d(lr.flatten(0, 1), block_px))


LOSS: Loss[ClipTensors] = Loss(
    compute=lambda clips: colour_loss(clips.hr, clips.lr, block_px=clips.colour_block_px),
    reaches=Reach.EVERYTHING,
)
