"""Gradients of one training step of the discriminator."""

from typing import Any

import torch
from torch import Tensor

from training.backward import backward, check_pair, learning, numbers
from training.discriminators.patch import PatchDiscriminator
from training.losses.adversarial import discriminator_loss, hinge_discriminator_loss
from training.losses.kinds import Flows
from training.views import Discriminator, frames_at_once_on, judged, parts_of, views_of


def discriminator_step(discriminator: Discriminator, hr: Tensor, real: Tensor, **options: Any) -> dict[str, float]:
    """Return what `discriminator_gradients` returns, as numbers. Reading them waits for the device."""
    return numbers(discriminator_gradients(discriminator, hr, real, **options))


def discriminator_gradients(
    discriminator: Discriminator,
    hr: Tensor,
    real: Tensor,
    *,
    lr: Tensor | None = None,
    flows_px: Flows | None = None,
    autocast_dtype: torch.dtype | None = None,
    frames_at_once: int | None = None,
) -> dict[str, Tensor]:
    """Add the gradients of one batch to `.grad` of the discriminator's parameters.

    The two losses are added, as published. The estimates of the spectral norms advance by one power iteration, here
    only: the published code advances three times in a step (generator, real, fake).

    Args:
        discriminator: The network.
        hr: The output of `generator_step`, (N, T, 3, H, W).
        real: The ground truth *before* sharpening, (N, T, 3, H, W).
        lr: The input, for a patch discriminator.
        flows_px: Motion of the ground truth, for a patch discriminator; see `motion_of`.
        autocast_dtype: Type of the convolutions; None: as stored.
        frames_at_once: Number of frames seen at a time; changes memory, not results.

    Returns:
        The losses on real and fake frames: "discriminator_real", "discriminator_fake".

    Raises:
        ValueError: The clips' shapes or dtypes do not match.
    """
    check_pair("discriminator_step", hr, real, 1)
    discriminator.advance_spectral_norms()
    with torch.no_grad():
        views_fake, views_real = (views_of(discriminator, clip, lr, flows_px) for clip in (hr.detach(), real))
    frames_at_once = frames_at_once_on(hr.device) if frames_at_once is None else frames_at_once
    sums = {"discriminator_real": hr.new_zeros(()), "discriminator_fake": hr.new_zeros(())}
    for part in parts_of(len(views_fake), frames_at_once):
        share = len(views_fake[part]) / len(views_fake)
        with torch.autocast(hr.device.type, autocast_dtype, enabled=autocast_dtype is not None):
            logits_real, logits_fake = (
                judged(discriminator, views[part])[0].float() for views in (views_real, views_fake)
            )
        distance = hinge_discriminator_loss if isinstance(discriminator, PatchDiscriminator) else discriminator_loss
        loss_real, loss_fake = distance(logits_real, logits_fake)
        backward([(share * (loss_real + loss_fake), None)], learning(discriminator))
        sums["discriminator_real"] += share * loss_real.detach()
        sums["discriminator_fake"] += share * loss_fake.detach()
    return sums
