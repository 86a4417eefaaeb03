"""The strength of VGG's features of the output in windows against those of the ground truth. Not in the paper."""

import torch
from torch import Tensor

from training.losses.distances import quantile_distance, windowed_deviations
from training.losses.kinds import FrameTensors, Loss, Needs, Reach

WINDOW_PX = 32
"""Side of a window in pixels of the output; windows overlap by half."""
LEAST_CROP_PX = WINDOW_PX // 4
"""Side of the smallest input whose output holds a window, at the scale of 4."""
_NUM_STAGES = 3
_FLOOR = 1e-2
"""The least standard deviation, so that the root's slope stays finite in flat areas."""


def style_loss(features: list[Tensor], features_gt: list[Tensor], *, quantile: float = 0.5) -> Tensor:
    """Return the distance of the standard deviations of features in windows, output to ground truth.

    The texture loss with VGG's features of the first three stages in the place of gradients: texture of the wrong kind,
    such as a mesh, excites features that the ground truth does not. Matching the statistics of each channel is a style
    loss (Li et al., "Demystifying Neural Style Transfer", IJCAI 2017).

    Args:
        features: Of the output (B, C, h, w), by stage: h and w are halved with each.
        features_gt: Of the ground truth.
        quantile: As in the texture loss.
    """
    loss = features[0].new_zeros((), dtype=torch.float32)
    for stage, (own, wanted) in enumerate(zip(features[:_NUM_STAGES], features_gt, strict=False)):
        side = WINDOW_PX >> stage
        deviations, deviations_gt = (windowed_deviations(x.float(), side, _FLOOR) for x in (own, wanted))
        loss = loss + quantile_distance(deviations_gt - deviations, quantile)
    return loss


LOSS: Loss[FrameTensors] = Loss(
    compute=lambda seen: style_loss(seen.features, seen.features_gt, quantile=seen.texture_quantile),
    reaches=Reach.BEHIND_CLEANING,
    needs=Needs.VGG,
)
