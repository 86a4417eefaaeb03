"""Which loss reaches which weight, seen on real backward passes; and that every gradient has the right value."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.reference_network import clean, formula_network, reference_sizes, super_resolve, weights_of
from tests.reference_training import (
    GRADIENT,
    clips,
    discriminator_tensors,
    doubles,
    gradients,
    learning,
    stage_1,
    vgg_tensors,
)
from tests.tolerances import REGROUPED
from training.discriminator_gradients import discriminator_step
from training.discriminators.patch import PatchDiscriminator
from training.discriminators.unet import UNetDiscriminator
from training.gradients import cleaning_step, generator_step
from training.losses.distances import averaged
from training.losses.flicker import flicker_loss
from training.losses.flow_rest import flow_rest_loss
from training.losses.perceptual import PerceptualLoss
from training.losses.settings import LossSettings
from vsrealbasicvsr.model import RealBasicVSR, RunStep, SPyNet, flow_warp

SIZES = replace(reference_sizes(6, 2), hr_channels=5, hr_out_channels=7, num_flow_levels=2, flow_channels=(4, 5, 6, 4))
PAPER = LossSettings(perceptual_weight=1.0, adversarial_weight=0.05)
NO_PIXELS = replace(PAPER, output_weight=0.0, cleaning_weight=0.0)
RECOMPUTED = 1e-6


def network() -> RealBasicVSR:
    return learning(formula_network(SIZES))


@pytest.fixture(scope="module")
def perceptual() -> PerceptualLoss:
    return PerceptualLoss(vgg_tensors())


@pytest.fixture
def discriminator() -> UNetDiscriminator:
    return UNetDiscriminator.from_state_dict(discriminator_tensors(4))


@pytest.fixture(scope="module")
def batch() -> tuple[Tensor, Tensor]:
    return clips(2, 3, 8, 6)


@pytest.fixture(scope="module")
def square_batch() -> tuple[Tensor, Tensor]:
    """Large enough for VGG19, and of sides that the discriminator takes."""
    return clips(1, 3, 8, 8)


def reached(model: torch.nn.Module) -> set[str]:
    return {name for name, gradient in gradients(model).items() if gradient.abs().max() > 0}


def parts(model: RealBasicVSR) -> tuple[set[str], set[str]]:
    """(the cleaning module's parameters, all others)."""
    names = {name for name, _ in model.named_parameters()}
    cleaning = {name for name in names if name.startswith("image_cleaning.")}
    return cleaning, names - cleaning


def largest_difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest difference, relative to the largest entry of the same tensor."""
    assert found.keys() == expected.keys()
    return max(float((found[key] - expected[key]).abs().max() / expected[key].abs().max()) for key in expected)


# ---- values ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("distance", ["charbonnier", "l1"])
def test_losses_of_stage_1_and_all_gradients_agree_with_an_independent_computation(batch, distance):
    model = network()
    losses, _ = generator_step(model, *batch, losses=replace(PAPER, distance=distance))
    tensors = doubles(model.state_dict())
    expected = stage_1(*batch, tensors, distance)
    (expected["output"] + expected["cleaning"]).backward()
    assert losses == pytest.approx({name: loss.item() for name, loss in expected.items()}, rel=GRADIENT)
    assert reached(model) == tensors.keys()
    assert largest_difference(gradients(model), {key: tensor.grad for key, tensor in tensors.items()}) < GRADIENT


PROBED = [
    "image_cleaning.0.main.0.weight",
    "image_cleaning.1.bias",
    "basicvsr.spynet.basic_module.0.basic_module.4.conv.bias",
    "basicvsr.spynet.basic_module.1.basic_module.0.conv.weight",
    "basicvsr.backward_resblocks.main.0.weight",
    "basicvsr.forward_resblocks.main.2.1.conv2.weight",
    "basicvsr.upsample1.upsample_conv.weight",
    "basicvsr.conv_last.weight",
]


@pytest.mark.long
def test_the_independent_gradients_are_those_of_finite_differences_of_a_third_implementation(batch):
    """The network of reference_network.py: numpy, no autograd, no line in common."""
    lr, truth = (clip[0].double().numpy() for clip in batch)

    def loss(weights: dict[str, np.ndarray]) -> float:
        cleaned = clean(lr, weights)
        hr = super_resolve(cleaned, weights)
        small = truth.reshape(*lr.shape[:3], 4, lr.shape[3], 4).mean(axis=(3, 5))
        return sum(float(np.sqrt((a - b) ** 2 + 1e-6).mean()) for a, b in ((hr, truth), (cleaned, small)))

    weights = weights_of(formula_network(SIZES))
    tensors = doubles({key: torch.from_numpy(weight) for key, weight in weights.items()})
    sum(stage_1(batch[0][:1], batch[1][:1], tensors).values()).backward()
    step = 1e-6
    for key in PROBED:
        place = np.unravel_index(int(tensors[key].grad.abs().argmax()), weights[key].shape)
        value, ends = weights[key][place], []
        for sign in (1, -1):
            weights[key][place] = value + sign * step
            ends.append(loss(weights))
        weights[key][place] = value
        assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(float(tensors[key].grad[place]), rel=1e-5), key


# ---- ways -----------------------------------------------------------------------------------------------------------


def test_the_cleaning_loss_reaches_only_the_cleaning_module(batch):
    model = network()
    generator_step(model, *batch, losses=replace(PAPER, output_weight=0.0))
    assert reached(model) == parts(model)[0]


def test_the_rest_loss_reaches_only_the_cleaning_module(batch):
    model = network()
    losses, _ = generator_step(
        model, *batch, losses=replace(PAPER, output_weight=0.0, cleaning_weight=0.0, rest_weight=0.25), rest_frame=2
    )
    assert losses["rest"] > 0
    assert reached(model) == parts(model)[0]


@pytest.mark.parametrize("name", ["banding", "keep"])
def test_the_banding_and_the_keep_loss_reach_only_the_cleaning_module(name):
    lr, gt = clips(1, 2, 16, 16)
    gt = 0.5 + 0.02 * (gt - 0.5)  # plain enough
    model = network()
    weights = replace(NO_PIXELS, **{f"{name}_weight": 1.0})
    losses, _ = generator_step(model, lr, gt, losses=weights, faithful_cleaned=lr)
    assert losses[name] > 0
    assert reached(model) == parts(model)[0]


def test_the_keep_loss_compares_with_what_the_faithful_network_cleans():
    lr, gt = clips(1, 2, 16, 16)
    weights = replace(NO_PIXELS, keep_weight=1.0)
    model = network()
    cleaned = model.clean(lr).detach()
    losses, _ = generator_step(model, lr, gt, losses=weights, faithful_cleaned=cleaned)
    assert losses["keep"] < 1e-6
    losses, _ = generator_step(model, lr, gt, losses=weights, faithful_cleaned=cleaned + 0.1)
    assert losses["keep"] > 0.05
    assert "keep" not in generator_step(model, lr, gt, losses=weights)[0]


def test_a_step_of_the_cleaning_module_alone_gives_the_gradients_of_a_whole_step():
    lr, gt = clips(1, 3, 16, 16)
    weights = replace(
        NO_PIXELS, cleaning_weight=0.7, rest_weight=0.25, banding_weight=12.0, keep_weight=4.0, perceptual_weight=0.0
    )
    options = {"losses": weights, "faithful_cleaned": lr, "rest_frame": 1}
    whole, alone = network(), network()
    expected, _ = generator_step(whole, lr, gt, **options)
    found = cleaning_step(alone, lr, gt, **options)
    assert found == {name: pytest.approx(expected[name], rel=1e-6) for name in ("cleaning", "rest", "banding", "keep")}
    names = parts(whole)[0]
    assert reached(alone) == names
    of_whole = {name: gradient for name, gradient in gradients(whole).items() if name in names}
    of_alone = {name: gradient for name, gradient in gradients(alone).items() if name in names}
    assert largest_difference(of_alone, of_whole) < GRADIENT


@pytest.mark.parametrize(
    "weights",
    [
        replace(PAPER, cleaning_weight=0.0),
        replace(NO_PIXELS, colour_weight=1.0),
        replace(NO_PIXELS, flicker_weight=1.0),
        replace(NO_PIXELS, texture_weight=1.0),
        replace(NO_PIXELS, weave_weight=1.0),
        replace(NO_PIXELS, hatching_weight=1.0),
        replace(NO_PIXELS, phase_weight=1.0),
    ],
)
def test_the_losses_of_the_output_reach_everything(weights):
    model = network()
    generator_step(model, *clips(1, 2, 16, 16), losses=weights)
    assert reached(model) == set.union(*parts(model))


def test_the_coarse_loss_compares_with_the_faithful_network_and_not_with_the_ground_truth():
    lr, gt = clips(1, 2, 16, 16)
    weights = replace(NO_PIXELS, coarse_weight=1.0)
    model = network()
    faithful = model(lr).detach()
    losses, _ = generator_step(model, lr, gt, losses=weights, faithful=faithful)
    assert losses["coarse"] < 1e-6
    losses, _ = generator_step(model, lr, gt, losses=weights, faithful=faithful + 0.1)
    assert losses["coarse"] == pytest.approx(0.1, rel=1e-3)
    assert reached(model) == set.union(*parts(model))
    losses, _ = generator_step(model, lr, gt, losses=replace(weights, output_weight=1.0))
    assert "coarse" not in losses


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("losses", ["perceptual", "adversarial", "both"])
@pytest.mark.long
def test_perceptual_and_adversarial_loss_reach_everything_but_the_cleaning_module(
    square_batch, perceptual, discriminator, losses, checkpointing
):
    looks = {
        "perceptual": {"perceptual": perceptual},
        "adversarial": {"discriminator": discriminator},
        "both": {"perceptual": perceptual, "discriminator": discriminator},
    }[losses]
    model = network()
    generator_step(model, *square_batch, losses=NO_PIXELS, checkpointing=checkpointing, **looks)
    assert reached(model) == parts(model)[1]
    as_published = network()
    generator_step(
        as_published,
        *square_batch,
        losses=replace(NO_PIXELS, cleaning_gets_perceptual=True),
        checkpointing=checkpointing,
        **looks,
    )
    assert reached(as_published) == set.union(*parts(model))


@pytest.mark.long
def test_the_perceptual_loss_sees_the_picture_also_beside_a_discriminator_of_the_luma(square_batch, perceptual):
    """Its gradient and the patch discriminator's are those of two steps with either one."""
    patch = PatchDiscriminator(num_frames=3, width=8)
    both = {"perceptual": {"perceptual": perceptual}, "patch": {"discriminator": patch}}
    found = {}
    for name, looks in (both | {"both": both["perceptual"] | both["patch"]}).items():
        model = network()
        losses, _ = generator_step(model, *square_batch, losses=NO_PIXELS, **looks)
        found[name] = losses, gradients(model)
    expected, values = found["perceptual"][0] | found["patch"][0], found["both"][0]
    assert values == pytest.approx({name: expected[name] for name in values})
    summed = {name: found["perceptual"][1][name] + found["patch"][1][name] for name in parts(model)[1]}
    assert largest_difference({name: found["both"][1][name] for name in summed}, summed) < GRADIENT


@pytest.mark.parametrize(("iteration", "frames"), [(0, [0, 2]), (1, [1]), (2, [0, 2])])
@pytest.mark.long
def test_the_perceptual_loss_may_look_at_every_second_frame_from_another_one_in_each_step(
    square_batch, perceptual, iteration, frames
):
    lr, truth = square_batch
    losses, hr = generator_step(
        network(),
        lr,
        truth,
        losses=replace(NO_PIXELS, perceptual_every=2),
        perceptual=perceptual,
        rest_frame=iteration,
    )
    assert losses["perceptual"] == pytest.approx(perceptual(hr[0, frames], truth[0, frames]).item(), rel=1e-5)


@pytest.mark.long
def test_the_setting_changes_the_gradients_of_the_cleaning_module_and_no_others(
    square_batch, perceptual, discriminator
):
    found = {}
    for setting in (False, True):
        model = network()
        generator_step(
            model,
            *square_batch,
            losses=replace(PAPER, cleaning_gets_perceptual=setting),
            perceptual=perceptual,
            discriminator=discriminator,
        )
        found[setting] = gradients(model)
    alone = network()
    generator_step(alone, *square_batch, losses=PAPER)
    cleaning, others = parts(alone)
    for name in others:
        torch.testing.assert_close(found[False][name], found[True][name], atol=RECOMPUTED, rtol=0)
    for name in cleaning:
        torch.testing.assert_close(found[False][name], gradients(alone)[name], atol=RECOMPUTED, rtol=0)
    assert largest_difference(*({name: found[s][name] for name in cleaning} for s in (True, False))) > 0.01


@pytest.mark.long
def test_with_the_published_setting_the_gradients_are_those_of_one_sum_of_all_losses(
    square_batch, perceptual, discriminator
):
    lr, truth = square_batch
    weights = replace(PAPER, output_weight=0.7, cleaning_weight=0.5, perceptual_weight=0.3, adversarial_weight=0.2)
    model = network()
    losses, hr = generator_step(
        model,
        lr,
        truth,
        losses=replace(weights, cleaning_gets_perceptual=True),
        perceptual=perceptual,
        discriminator=discriminator,
    )
    plain = network()
    cleaned = plain.clean(lr)
    output = plain.super_resolve(cleaned)
    small = truth.view(1, 3, 3, 8, 4, 8, 4).mean(dim=(4, 6))
    logits = discriminator(output[0])
    terms = {
        "output": ((output - truth) ** 2 + 1e-6).sqrt().mean(),
        "cleaning": ((cleaned - small) ** 2 + 1e-6).sqrt().mean(),
        "perceptual": perceptual(output[0], truth[0]),
        "adversarial": torch.log1p(torch.exp(-logits)).mean(),
    }
    sum(weights.weight(name) * term for name, term in terms.items()).backward()
    assert losses == pytest.approx({name: term.item() for name, term in terms.items()}, rel=1e-5)
    assert largest_difference(gradients(model), gradients(plain)) < GRADIENT
    torch.testing.assert_close(hr, output.detach(), atol=REGROUPED, rtol=0)


def test_the_losses_of_ours_are_added_with_their_weights(square_batch):
    lr, truth = square_batch
    weights = replace(PAPER, output_weight=0.5, cleaning_weight=0.0, squared_error_weight=3.0, psnr_weight=0.7)
    model, plain = network(), network()
    losses, _ = generator_step(model, lr, truth, losses=weights)
    error = plain(lr) - truth
    luma = (error * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(dim=2)
    terms = {
        "output": (error**2 + 1e-6).sqrt().mean(),
        "squared_error": (error**2).mean(),
        "psnr": torch.log10((luma**2).mean(dim=(2, 3)) + 1e-6).mean(),
    }
    sum(weights.weight(name) * term for name, term in terms.items()).backward()
    assert {name: losses[name] for name in terms} == pytest.approx({n: t.item() for n, t in terms.items()}, rel=1e-5)
    assert largest_difference(gradients(model), gradients(plain)) < GRADIENT


def test_the_flicker_loss_follows_the_truths_motion_and_teaches_the_motion_nothing(batch):
    lr, truth = batch
    model, plain = network(), network()
    losses, _ = generator_step(model, lr, truth, losses=replace(NO_PIXELS, flicker_weight=2.0))
    small = averaged(truth, 4)
    with torch.no_grad():
        flow_px = torch.stack([plain.basicvsr.spynet(small[:, t + 1], small[:, t]) for t in (0, 1)], dim=1)
    loss = flicker_loss(plain(lr), truth, flow_px)
    (2.0 * loss).backward()
    assert losses["flicker"] == pytest.approx(loss.item(), rel=1e-5)
    assert largest_difference(gradients(model), gradients(plain)) < GRADIENT
    still, _ = generator_step(network(), lr[:, :1], truth[:, :1], losses=replace(NO_PIXELS, flicker_weight=2.0))
    assert "flicker" not in still


@pytest.mark.long
def test_frozen_flow_gets_no_gradient_and_lets_the_others_pass(square_batch, perceptual):
    whole, frozen = network(), network()
    frozen.basicvsr.spynet.requires_grad_(False)
    for model in (whole, frozen):
        generator_step(model, *square_batch, losses=PAPER, perceptual=perceptual)
    assert all(parameter.grad is None for parameter in frozen.basicvsr.spynet.parameters())
    expected = gradients(whole)
    for name, gradient in gradients(frozen).items():
        if "spynet" not in name:
            torch.testing.assert_close(gradient, expected[name], atol=RECOMPUTED, rtol=0)


def test_a_frozen_cleaning_module_stays_as_it_is(square_batch, perceptual):
    model = network()
    model.image_cleaning.requires_grad_(False)
    generator_step(model, *square_batch, losses=PAPER, perceptual=perceptual)
    assert reached(model) == parts(model)[1]
    assert all(parameter.grad is None for parameter in model.image_cleaning.parameters())


def test_gradients_add_up_over_batches(batch):
    lr, truth = batch
    both, apart = network(), network()
    generator_step(both, lr, truth, losses=PAPER)
    for n in (0, 1):
        generator_step(apart, lr[n : n + 1], truth[n : n + 1], losses=PAPER)
    halves = {name: gradient / 2 for name, gradient in gradients(apart).items()}
    assert largest_difference(halves, gradients(both)) < GRADIENT


def test_the_generators_step_leaves_the_discriminator_and_the_perceptual_network_alone(
    square_batch, perceptual, discriminator
):
    before = {name: tensor.clone() for name, tensor in discriminator.state_dict().items()}
    generator_step(network(), *square_batch, losses=PAPER, perceptual=perceptual, discriminator=discriminator)
    assert all(parameter.grad is None for looks in (discriminator, perceptual) for parameter in looks.parameters())
    for name, tensor in discriminator.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_the_discriminators_step_reaches_all_of_it_and_not_the_generator(square_batch, discriminator):
    model = network()
    _, hr = generator_step(model, *square_batch, losses=PAPER, discriminator=discriminator)
    before = gradients(model)
    losses = discriminator_step(discriminator, hr, square_batch[1], frames_at_once=2)
    assert losses.keys() == {"discriminator_real", "discriminator_fake"}
    assert reached(discriminator) == {name for name, _ in discriminator.named_parameters()}
    for name, gradient in gradients(model).items():
        assert torch.equal(gradient, before[name])


# ---- memory and speed -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_looks", [False, True])
@pytest.mark.long
def test_checkpointing_gives_the_same_gradients(square_batch, perceptual, with_looks):
    found = []
    for checkpointing in (False, True):
        model = network()
        losses, hr = generator_step(
            model,
            *square_batch,
            losses=PAPER,
            perceptual=perceptual if with_looks else None,
            checkpointing=checkpointing,
        )
        found.append((losses, hr, gradients(model)))
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])
    assert largest_difference(found[1][2], found[0][2]) < RECOMPUTED


def saved_bytes(model: RealBasicVSR, batch: tuple[Tensor, Tensor], *, checkpointing: bool) -> int:
    """What a step keeps for the way back: weights apart, and with checkpointing the arguments of the parts apart."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        generator_step(model, *batch, losses=PAPER, checkpointing=checkpointing)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def test_checkpointing_keeps_no_activations(batch):
    kept = {choice: saved_bytes(network(), batch, checkpointing=choice) for choice in (False, True)}
    assert kept[True] < kept[False] / 5


@pytest.mark.long
def test_how_many_frames_are_looked_at_at_once_changes_no_result(square_batch):
    """Without VGG19: its pooling chooses between two values, and where they are nearly equal rounding may decide."""
    found = []
    for frames_at_once in (1, 2, 100):
        model, discriminator = network(), UNetDiscriminator.from_state_dict(discriminator_tensors(4))
        losses, hr = generator_step(
            model,
            *square_batch,
            losses=replace(PAPER, adversarial_weight=1.0),
            discriminator=discriminator,
            frames_at_once=frames_at_once,
        )
        losses |= discriminator_step(discriminator, hr, square_batch[1], frames_at_once=frames_at_once)
        found.append((losses, gradients(model), gradients(discriminator)))
    for losses, of_generator, of_discriminator in found[1:]:
        assert losses == pytest.approx(found[0][0], rel=1e-5)
        assert largest_difference(of_generator, found[0][1]) < GRADIENT
        assert largest_difference(of_discriminator, found[0][2]) < GRADIENT


def test_every_step_of_the_network_goes_through_run():
    seen = []

    class Counting:
        def __call__(self, step, /, *arguments):
            seen.append(step.__name__)
            return step(*arguments)

    run: RunStep = Counting()
    model = network()
    lr, _ = clips(1, 3, 8, 6)
    with torch.inference_mode():
        assert torch.equal(model.super_resolve(lr, run=run), model.super_resolve(lr))
    assert seen == ["flows", *["propagate_backward"] * 3, *["propagate_forward", "reconstruct"] * 3]


def test_channels_last_changes_the_order_of_memory_only(square_batch, discriminator):
    found = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        model = network().to(memory_format=memory_format)
        losses, hr = generator_step(
            model,
            *square_batch,
            losses=replace(PAPER, adversarial_weight=1.0),
            discriminator=discriminator.to(memory_format=memory_format),
        )
        found.append((losses, hr, gradients(model)))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-5)
    torch.testing.assert_close(found[1][1], found[0][1], atol=REGROUPED, rtol=0)
    assert largest_difference(found[1][2], found[0][2]) < GRADIENT


# ---- autocast -------------------------------------------------------------------------------------------------------


def test_flow_is_float32_to_the_bit_under_autocast(batch):
    spynet: SPyNet = formula_network(SIZES).basicvsr.spynet
    first, second = batch[0][0, :2], batch[0][0, 1:]
    flow = spynet(first, second)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(spynet(first, second), flow)
        assert all(level.dtype == torch.float32 for level in spynet.coarse_to_fine(first, second))
        warped = flow_warp(first, flow)
        assert torch.is_autocast_enabled("cpu")
    assert warped.dtype == torch.float32
    assert torch.equal(warped, flow_warp(first, flow))


@pytest.mark.long
def test_under_autocast_pictures_losses_and_gradients_are_float32_and_near(square_batch, perceptual, discriminator):
    found = []
    for dtype in (None, torch.bfloat16):
        model = network()
        losses, hr = generator_step(
            model,
            *square_batch,
            losses=replace(PAPER, rest_weight=0.25),
            perceptual=perceptual,
            discriminator=discriminator,
            autocast_dtype=dtype,
            checkpointing=True,
        )
        assert hr.dtype == torch.float32
        assert {gradient.dtype for gradient in gradients(model).values()} == {torch.float32}
        found.append((losses, hr, gradients(model)))
        discriminator_step(discriminator, hr, square_batch[1], autocast_dtype=dtype)
    assert found[1][0] == pytest.approx(found[0][0], rel=0.02)
    assert not torch.equal(found[0][1], found[1][1])  # the convolutions are not float32
    torch.testing.assert_close(found[1][1], found[0][1], atol=0.02, rtol=0)
    flat = [torch.cat([gradient.flatten() for gradient in entry[2].values()]) for entry in found]
    assert torch.cosine_similarity(*flat, dim=0) > 0.99


# ---- clips that do not fit ------------------------------------------------------------------------------------------


def test_only_the_flow_network_learns_to_rest(batch):
    """Its loss goes down along its gradient, and no other part moves."""
    model = network()
    weights = replace(NO_PIXELS, flow_rest_weight=1.0)
    losses, _ = generator_step(model, *batch, losses=weights)
    assert {name.split(".")[1] for name in reached(model)} == {"spynet"}
    with torch.no_grad():
        for parameter in model.basicvsr.spynet.parameters():
            parameter -= 1e-3 * parameter.grad.sign()
    frames = model.clean(batch[0])[:, 0]
    assert flow_rest_loss(model.basicvsr.spynet, frames) < losses["flow_rest"]
    model.basicvsr.spynet.requires_grad_(False)
    assert "flow_rest" not in generator_step(model, *batch, losses=weights)[0], "a frozen flow network rests as it is"


def test_clips_that_do_not_fit_are_refused_by_name(batch, discriminator):
    lr, truth = batch
    with pytest.raises(ValueError, match=r"generator_step: expected float32 clips .* 4 times as large, got"):
        generator_step(network(), lr, truth[:, :2], losses=PAPER)
    with pytest.raises(ValueError, match=r"generator_step: .* of torch.uint8"):
        generator_step(network(), lr, (truth * 255).byte(), losses=PAPER)
    with pytest.raises(ValueError, match=r"discriminator_step: .* 1 times as large"):
        discriminator_step(discriminator, truth, lr)
    with pytest.raises(ValueError, match="frames_at_once must be at least 1, got 0"):
        discriminator_step(discriminator, truth, truth, frames_at_once=0)
