"""Mixtures of a network's weights and its teacher's: their gradient, and which steps look at them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.func import functional_call

from tests.networks import TINY, random_network
from tests.reference_training import clips, learning
from training.gradients import generator_step
from training.losses.settings import LossSettings
from training.losses.weave import weave_loss
from training.mixture import SHARES, draw_share, mixed
from training.presets import PRESETS

SHARP = PRESETS["compact-gan"].losses
OF_MIXTURES = ("weave_weight", "hatching_weight", "phase_weight", "chroma_weight", "colour_weight")


def test_the_gradient_of_a_mixture_is_that_of_the_network_s_own_weights():
    """Against autograd through the mixture of the weights."""
    model, teacher = (learning(random_network(TINY)) for _ in range(2))
    with torch.no_grad():
        model.basicvsr.conv_last.weight.mul_(3)
        model.basicvsr.upsample2.upsample_conv.weight.add_(
            0.05 * torch.randn(model.basicvsr.upsample2.upsample_conv.weight.shape)
        )
    lr, gt = clips(1, 2, 16, 16)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    losses = LossSettings(output_weight=1.0, cleaning_weight=0.0, weave_weight=50.0).of_mixture(0.6)
    with mixed(model, teacher, 0.6):
        for (name, parameter), of_teacher in zip(model.named_parameters(), teacher.parameters(), strict=True):
            torch.testing.assert_close(parameter, 0.6 * before[name] + 0.4 * of_teacher)
        found, _ = generator_step(model, lr, gt, losses=losses)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])

    own = {name: parameter.clone().requires_grad_() for name, parameter in before.items()}
    mixture = {name: torch.lerp(of_teacher.detach(), own[name], 0.6) for name, of_teacher in teacher.named_parameters()}
    loss = weave_loss(functional_call(model, mixture, (lr,)), gt, 4)
    assert found["weave"] == pytest.approx(loss.item(), rel=1e-5)
    assert loss > 0
    (50 * loss).backward()
    for name, parameter in model.named_parameters():
        expected = own[name].grad
        assert expected is not None
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-3, atol=1e-6)


def test_a_mixture_is_undone_if_the_step_fails():
    model, teacher = (learning(random_network(TINY)) for _ in range(2))
    with torch.no_grad():
        teacher.basicvsr.conv_last.weight.mul_(3)
    before = model.basicvsr.conv_last.weight.detach().clone()
    with pytest.raises(RuntimeError), mixed(model, teacher, 0.5):
        raise RuntimeError
    assert torch.equal(model.basicvsr.conv_last.weight, before)


def test_of_a_mixture_only_what_nobody_wants_counts():
    """A discriminator or a texture loss would ask half of the way for all of its sharpness."""
    losses = SHARP.of_mixture(0.5)
    assert all(getattr(losses, name) == 0.5 * getattr(SHARP, name) > 0 for name in OF_MIXTURES)
    assert losses.output_weight == losses.texture_weight == losses.adversarial_weight == losses.coarse_weight == 0


def test_half_of_the_steps_look_at_mixtures_the_same_ones_every_time():
    settings = PRESETS["compact-gan"]
    settings = replace(settings, losses=replace(settings.losses, mixture_probability=0.5))
    shares = [draw_share(settings, iteration) for iteration in range(400)]
    assert shares == [draw_share(settings, iteration) for iteration in range(400)]
    drawn = [share for share in shares if share is not None]
    assert 150 < len(drawn) < 250
    assert SHARES[0] <= min(drawn) < max(drawn) <= SHARES[1]
    assert np.mean(drawn) == pytest.approx(np.mean(SHARES), abs=0.03)
    for off in ({"mixture_probability": 0.0}, dict.fromkeys(OF_MIXTURES, 0.0)):
        without = replace(settings, losses=replace(settings.losses, **off))
        assert {draw_share(without, iteration) for iteration in range(20)} == {None}
