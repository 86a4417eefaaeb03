"""Losses of a generator and a discriminator against each other (paper, Eq. 3), by cross-entropy or by hinge."""

import torch
import torch.nn.functional as F
from torch import Tensor

from training.losses.kinds import Loss, Needs, Reach, ViewTensors


def generator_adversarial_loss(logits_fake: Tensor) -> Tensor:
    """Return the binary cross-entropy of the discriminator calling every pixel of the output real."""
    return F.binary_cross_entropy_with_logits(logits_fake, torch.ones_like(logits_fake))


def discriminator_loss(logits_real: Tensor, logits_fake: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cross-entropies of (real frames against 1, fake ones against 0); the published code adds them."""
    real = F.binary_cross_entropy_with_logits(logits_real, torch.ones_like(logits_real))
    fake = F.binary_cross_entropy_with_logits(logits_fake, torch.zeros_like(logits_fake))
    return real, fake


def hinge_generator_loss(logits_fake: Tensor) -> Tensor:
    """Return minus the mean logit of a discriminator that is trained with `hinge_discriminator_loss`."""
    return -logits_fake.mean()


def hinge_discriminator_loss(logits_real: Tensor, logits_fake: Tensor) -> tuple[Tensor, Tensor]:
    """Return the hinge losses of (real, fake): nothing is gained beyond 1 and -1 (Lim and Ye, 2017)."""
    return F.relu(1 - logits_real).mean(), F.relu(1 + logits_fake).mean()


def _of_views(seen: ViewTensors) -> Tensor:
    """Return the hinge loss for a discriminator with features (the patch discriminator), else the cross-entropy."""
    logits = seen.logits.float()
    return hinge_generator_loss(logits) if seen.features else generator_adversarial_loss(logits)


LOSS: Loss[ViewTensors] = Loss(
    compute=_of_views,
    reaches=Reach.BEHIND_CLEANING,
    needs=Needs.DISCRIMINATOR,
    rises=True,
)
