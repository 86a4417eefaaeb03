"""The small conditional discriminator and its losses: what it sees, and which weights learn from it."""

import dataclasses
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.reference_network import formula_network, reference_sizes
from tests.reference_training import clips, gradients, learning
from training.discriminator_gradients import discriminator_step
from training.discriminators.patch import PatchDiscriminator
from training.gradients import generator_step
from training.losses.adversarial import hinge_discriminator_loss, hinge_generator_loss
from training.losses.feature_matching import feature_matching_loss
from training.losses.settings import LossSettings
from training.networks import Networks, faithful_weights, load_optimizer
from training.presets import PRESETS, SMOKE_ARCHITECTURE
from training.processes import Processes
from training.settings import Settings, SettingsError, changed
from training.steps import Steps, StepTensors
from training.teacher import Teacher
from training.views import motion_of
from vsrealbasicvsr import load_model
from vsrealbasicvsr.luma import luma
from vsrealbasicvsr.model import RealBasicVSR

SIZES = replace(
    reference_sizes(6, 2),
    hr_channels=5,
    hr_out_channels=7,
    num_flow_levels=2,
    flow_channels=(4, 5, 6, 4),
    start_passes=1,
)
ONLY_LOOKS = LossSettings(
    discriminator="patch",
    output_weight=0.0,
    cleaning_weight=0.0,
    perceptual_weight=0.0,
    adversarial_weight=1.0,
    feature_matching_weight=0.5,
)
CPU = torch.device("cpu")


@pytest.fixture
def discriminator() -> PatchDiscriminator:
    torch.manual_seed(0)
    return PatchDiscriminator(3, width=4)


@pytest.fixture(scope="module")
def batch() -> tuple[Tensor, Tensor]:
    return clips(2, 3, 8, 12)


def network() -> RealBasicVSR:
    return learning(formula_network(SIZES))


# ---- what it sees ----------------------------------------------------------------------------------------------------


def test_it_sees_each_frame_between_its_warped_neighbours_and_beside_the_input(discriminator, batch):
    lr, _ = batch
    generator = torch.Generator().manual_seed(1)
    start = torch.rand(2, 1, 3, 32, 48, generator=generator)
    moving = torch.cat([torch.roll(start, 4 * t, dims=-1) for t in range(3)], dim=1)  # 4 pixels to the right a frame
    onto_next = torch.zeros(2, 2, 2, 8, 12)
    onto_next[:, :, 0] = -1.0  # frame t + 1 shows at x what frame t shows one low-resolution pixel to the left
    views = discriminator.views(moving, lr, (onto_next, -onto_next))
    assert views.shape == (6, 4, 32, 48)
    before, frame, after, base = views.view(2, 3, 4, 32, 48).unbind(2)
    assert torch.equal(frame, luma(moving))
    inside = (..., slice(8, 40))
    assert torch.allclose(before[:, 1:][inside], frame[:, 1:][inside], atol=1e-5)
    assert torch.allclose(after[:, :-1][inside], frame[:, :-1][inside], atol=1e-5)
    assert torch.equal(before[:, 0], frame[:, 0]), "where the clip begins, the frame stands for its neighbour"
    assert torch.equal(after[:, -1], frame[:, -1])
    enlarged = torch.nn.functional.interpolate(luma(lr), scale_factor=4, mode="bicubic")
    assert torch.allclose(base, enlarged, atol=1e-6)


def test_colours_alone_do_not_change_its_answer(discriminator, batch):
    lr, truth = batch
    tint = torch.tensor([0.114, 0.0, -0.299]).view(3, 1, 1)  # no luma
    answers = [discriminator(discriminator.views(clip, lr, None))[0] for clip in (truth, truth + tint)]
    assert torch.allclose(*answers, atol=1e-5)


@pytest.mark.parametrize(("num_frames", "width"), [(2, 8), (3, 0)])
def test_sizes_that_it_cannot_have_are_refused(num_frames, width):
    with pytest.raises(ValueError, match="num_frames must be 1 or 3 and width at least 1"):
        PatchDiscriminator(num_frames, width)


# ---- losses ----------------------------------------------------------------------------------------------------------


def test_the_hinge_gives_nothing_for_what_is_told_apart_by_a_margin():
    real, fake = torch.tensor([3.0, 0.5]), torch.tensor([-2.0, 0.0])
    assert [loss.item() for loss in hinge_discriminator_loss(real, fake)] == [0.25, 0.5]
    assert hinge_generator_loss(fake).item() == 1.0


def test_feature_matching_is_the_mean_distance_over_the_layers():
    fake, real = [torch.zeros(1, 2, 4, 4), torch.ones(1, 3, 2, 2)], [torch.ones(1, 2, 4, 4), torch.ones(1, 3, 2, 2)]
    assert feature_matching_loss(fake, real).item() == 0.5


# ---- gradients -------------------------------------------------------------------------------------------------------


def test_the_cleaning_module_learns_nothing_from_it(discriminator, batch):
    model = network()
    losses, _ = generator_step(model, *batch, losses=ONLY_LOOKS, discriminator=discriminator)
    reached = {name for name, gradient in gradients(model).items() if gradient.abs().max() > 0}
    names = {name for name, _ in model.named_parameters()}
    assert reached == {name for name in names if not name.startswith("image_cleaning.")}
    assert losses["feature_matching"] > 0
    assert all(parameter.grad is None for parameter in discriminator.parameters()), "it is only looked through"


def test_the_generator_s_gradient_is_that_of_finite_differences(discriminator, batch):
    """Through views, warps and features; the flows are the truth's and held."""
    lr, truth = batch
    flows_px = motion_of(network(), truth)
    probes = ["basicvsr.conv_last.weight", "basicvsr.forward_resblocks.main.2.1.conv2.weight", "basicvsr.fusion.bias"]

    def loss(model: RealBasicVSR) -> float:
        """Plainly, in double precision, without the step."""
        model.double()
        with torch.no_grad():
            cleaned = model.clean(lr.double())
            own = discriminator.double()
            views = own.views(model.super_resolve(cleaned), lr.double(), tuple(f.double() for f in flows_px))
            logits, features = own(views)
            _, wanted = own(own.views(truth.double(), lr.double(), tuple(f.double() for f in flows_px)))
            distance = sum((a - b).abs().mean() for a, b in zip(features, wanted, strict=True)) / len(features)
        discriminator.float()
        return float(-logits.mean() + 0.5 * distance)

    model = network()
    generator_step(model, lr, truth, losses=ONLY_LOOKS, discriminator=discriminator, flows_px=flows_px)
    found = gradients(model)
    step = 1e-4
    for key in probes:
        place = int(found[key].abs().argmax())
        ends = []
        for sign in (1, -1):
            moved = network().double()
            dict(moved.named_parameters())[key].data.view(-1)[place] += sign * step
            ends.append(loss(moved))
        assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(float(found[key].view(-1)[place]), rel=0.02)


def test_frames_at_a_time_change_nothing(discriminator, batch):
    results = []
    for frames_at_once in (1, 4, 100):
        model = network()
        options = {"discriminator": discriminator, "frames_at_once": frames_at_once}
        losses, hr = generator_step(model, *batch, losses=ONLY_LOOKS, **options)
        discriminator.zero_grad()
        state = {name: tensor.clone() for name, tensor in discriminator.state_dict().items()}
        losses |= discriminator_step(discriminator, hr, batch[1], lr=batch[0], frames_at_once=frames_at_once)
        results.append((losses, gradients(model)["basicvsr.conv_last.weight"], gradients(discriminator)))
        discriminator.load_state_dict(state)
    for losses, last, own in results[1:]:
        assert losses == pytest.approx(results[0][0], rel=1e-4)
        assert torch.allclose(last, results[0][1], rtol=1e-3, atol=1e-7)
        for name, gradient in own.items():
            assert torch.allclose(gradient, results[0][2][name], rtol=1e-3, atol=1e-7)


def test_it_must_be_given_the_input(discriminator, batch):
    with pytest.raises(ValueError, match="give lr"):
        discriminator_step(discriminator, batch[1], batch[1])


# ---- steps -----------------------------------------------------------------------------------------------------------


def tiny_settings(preset: str) -> Settings:
    architecture = dataclasses.asdict(dataclasses.replace(SMOKE_ARCHITECTURE, start_passes=1))
    changes = {
        "architecture": architecture,
        "num_frames": 3,
        "crop_px": 16,
        "colour_block_px": 16,
        "adversarial_warm_up_iterations": 0,
        "flow_from_share": 0.0,
        "discriminator_width": 4,
        "mixture_probability": 0.0,  # a step that looks at a mixture is never captured
    }
    return changed(PRESETS[preset], changes)


@pytest.mark.parametrize("preset", ["compact", "compact-gan"])
@pytest.mark.long
def test_the_step_that_is_captured_on_a_gpu_trains_as_the_plain_one(preset):
    settings, generator = tiny_settings(preset), torch.Generator().manual_seed(0)
    shapes = ((2, 3, 3, 16, 16), (2, 3, 3, 64, 64))
    batches = [tuple(torch.rand(shape, generator=generator) for shape in shapes)]
    batches += [tuple(clip.flip(0) for clip in batches[0])]
    networks = [Networks(settings, CPU) for _ in range(2)]
    losses: list[list[float]] = []
    for one, is_captured in zip(networks, (False, True), strict=True):
        one.prepare()
        teacher = None if preset == "compact" else Teacher(one.ema_model())
        steps = Steps(one, Processes(num=1, rank=0, device=CPU), teacher=teacher)
        losses.append([])
        for iteration, (lr, truth) in zip((1, 4), batches, strict=True):  # the rest loss looks at the middle frame
            if is_captured:
                one.set_learning_rates(iteration)
                losses[-1] += [loss.item() for loss in steps.captured(lr, truth, truth).values()]
            else:
                assert steps.take(StepTensors(lr, truth, truth), iteration).stepped
                losses[-1] += steps.read_losses().values()
    assert losses[0] == losses[1]
    for name, tensor in networks[0].model.state_dict().items():
        assert torch.equal(tensor, networks[1].model.state_dict()[name]), name


@pytest.mark.long
def test_a_step_that_is_captured_again_because_the_flow_learns_now_may_have_other_losses(monkeypatch):
    """The first step is captured while the flow network is frozen, the second with it, and with its rest loss."""
    settings = changed(tiny_settings("compact"), {"flow_from_share": 0.5, "iterations": 2, "flow_rest_weight": 0.1})
    networks = Networks(settings, CPU)
    networks.prepare()
    steps = Steps(networks, Processes(num=1, rank=0, device=CPU))
    monkeypatch.setattr(steps, "_is_graphed", lambda iteration: True)
    captured: list[set[str]] = []

    def capture(step):
        def run(*batch):
            losses = step(*batch)
            captured.append(set(losses))
            return list(losses), torch.stack([loss.detach() for loss in losses.values()])

        return run

    monkeypatch.setattr("training.steps.GraphedStep", capture)
    lr, truth = torch.rand(2, 3, 3, 16, 16), torch.rand(2, 3, 3, 64, 64)
    for iteration in range(2):
        steps.take(StepTensors(lr, truth, truth), iteration)
    assert captured[1] - captured[0] == {"flow_rest"}
    assert steps.read_losses().keys() == captured[1]
    assert steps.read_losses() == {}


def test_adams_count_of_steps_goes_where_the_optimiser_that_resumes_needs_it():
    """A run that went on on a CPU comes back to a GPU, where a captured step reads the count on the device."""
    left, back = (torch.nn.Parameter(torch.ones(3, device=device)) for device in ("cpu", "meta"))
    left.grad = torch.ones(3)
    on_cpu = torch.optim.Adam([left])
    on_cpu.step()
    resumed = torch.optim.Adam([back])
    resumed.param_groups[0] |= {"capturable": True, "fused": True, "lr": torch.tensor(1e-3, device="meta")}
    rate = resumed.param_groups[0]["lr"]
    load_optimizer(resumed, on_cpu.state_dict())
    assert resumed.state[back]["step"].device.type == "meta"
    assert resumed.param_groups[0]["lr"] is rate


def test_the_discriminator_s_losses_rise_while_it_is_new():
    losses = LossSettings(
        discriminator="patch",
        adversarial_weight=0.1,
        feature_matching_weight=1.0,
        flicker_weight=2.0,
        adversarial_warm_up_iterations=10,
    )
    assert math.isclose(losses.at(4).adversarial_weight, 0.05)
    assert math.isclose(losses.at(4).feature_matching_weight, 0.5)
    assert losses.at(4).flicker_weight == 2.0
    assert losses.at(9) == losses.at(1000) == losses


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"feature_matching_weight": 1.0, "discriminator": "unet"}, "needs --discriminator patch"),
        ({"discriminator_num_frames": 2}, "discriminator_num_frames must be 1 or 3"),
        ({"perceptual_network": "vgg11"}, "perceptual_network must be one of vgg19, vgg16"),
        ({"degradation_mix": ("nosuch:1",)}, "NAME one of clean, mild"),
        ({"hold_probability": 1.5}, "hold_probability must be from 0 to 1"),
        ({"discriminator": "vgg"}, "discriminator must be one of unet, patch"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(change, text):
    with pytest.raises(SettingsError, match=text):
        changed(PRESETS["compact-gan"], change)


def test_a_run_from_a_file_of_two_sets_begins_with_the_faithful_one():
    faithful, mixed = load_model("default", detail=0).state_dict(), load_model("default").state_dict()
    begun = faithful_weights(Path("default"))
    assert all(torch.equal(begun[name], tensor) for name, tensor in faithful.items())
    assert not all(torch.equal(begun[name], tensor) for name, tensor in mixed.items())
