"""Features of the output in the discriminator against those of the ground truth. Not in the paper."""

import torch
from torch import Tensor

from training.losses.distances import l1
from training.losses.kinds import Loss, Needs, Reach, ViewTensors


def feature_matching_loss(fake: list[Tensor], real: list[Tensor]) -> Tensor:
    """Return the mean L1 distance of the discriminator's features, output to real frames (Wang et al., CVPR 2018)."""
    return torch.stack([l1(a.float(), b.float()) for a, b in zip(fake, real, strict=True)]).mean()


LOSS: Loss[ViewTensors] = Loss(
    compute=lambda seen: feature_matching_loss(seen.features, seen.features_gt),
    reaches=Reach.BEHIND_CLEANING,
    needs=Needs.DISCRIMINATOR | Needs.FEATURES,
    rises=True,
)
