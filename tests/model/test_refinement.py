"""Dynamic refinement: how often a frame is cleaned, and that nothing but the frame decides it."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.reference_network import formula_network, reference_sizes
from tests.tolerances import REGROUPED
from vsrealbasicvsr.model import MAX_CLEANING_PASSES, RealBasicVSR, refine


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.inference_mode():
        yield


SMALL = replace(reference_sizes(8, 2), hr_channels=8, hr_out_channels=8, flow_channels=(4, 4, 4, 4))


def network_that_adds(step: float, *, num_cleaning_levels: int = 1) -> RealBasicVSR:
    """A network whose every cleaning pass adds `step` to every value at each size, whatever the frame."""
    network = formula_network(replace(SMALL, num_cleaning_levels=num_cleaning_levels))
    network.image_cleaning[1].weight.zero_()
    network.image_cleaning[1].bias.fill_(step)
    return network


def network_that_halves() -> RealBasicVSR:
    """A network whose every cleaning pass halves a positive frame, but for rounding: 1, 0.5, 0.25, 0.125."""
    network = formula_network(replace(SMALL, num_cleaning_blocks=0))
    for layer in (network.image_cleaning[0].main[0], network.image_cleaning[1]):
        layer.weight.zero_()
        layer.bias.zero_()
        for channel in range(3):
            layer.weight[channel, channel, 1, 1] = 1.0
    network.image_cleaning[1].weight.mul_(-0.5)
    return network


def grey_frames(*levels: float) -> Tensor:
    """One clip; each frame of one grey level."""
    return torch.tensor(levels).view(1, -1, 1, 1, 1).expand(1, len(levels), 3, 4, 5).contiguous()


def noisy_clip(*shape: int) -> Tensor:
    contrast = torch.linspace(0.1, 2.0, shape[0] * shape[1]).view(shape[0], shape[1], 1, 1, 1)
    return torch.rand(shape, generator=torch.Generator().manual_seed(5)) * contrast


@pytest.mark.parametrize("decide_per", ["frame", "sequence"])
@pytest.mark.parametrize(("theta", "num_expected"), [(0.0, 3), (255.0, 1), (float("inf"), 1)])
def test_theta_0_cleans_three_times_and_theta_255_once(theta, num_expected, decide_per):
    network = formula_network(SMALL)
    lr = noisy_clip(2, 3, 3, 7, 9)
    cleaned, num_passes = refine(network, lr, theta=theta, decide_per=decide_per)
    assert num_passes.tolist() == [[num_expected] * 3] * 2
    expected = lr
    for _ in range(num_expected):
        expected = network.clean(expected)
    torch.testing.assert_close(cleaned, expected, atol=REGROUPED, rtol=0)


@pytest.mark.parametrize("decide_per", ["frame", "sequence"])
@pytest.mark.parametrize(("theta", "num_expected"), [(255 / 64, 3), (255 / 64 + 1e-3, 1), (255 / 64 - 1e-3, 3)])
def test_a_change_of_exactly_theta_is_cleaned_again(theta, num_expected, decide_per):
    step = 1 / 64  # a power of two: its mean is exact
    cleaned, num_passes = refine(network_that_adds(-step), grey_frames(0.5, 0.75), theta=theta, decide_per=decide_per)
    assert num_passes.tolist() == [[num_expected] * 2]
    assert torch.equal(cleaned, grey_frames(0.5, 0.75) - num_expected * step)


@pytest.mark.parametrize("size", [(4, 5), (1, 1), (9, 2)])
def test_what_each_size_of_a_frame_gets_is_added_up(size):
    step = 1 / 64
    frames = torch.full((2, 3, *size), 0.5)
    for num_levels in (1, 2, 4):
        residue = network_that_adds(step, num_cleaning_levels=num_levels).cleaning_residue(frames)
        assert torch.equal(residue, torch.full_like(frames, num_levels * step))


def test_at_half_the_size_a_cleaning_pass_sees_twice_as_far():
    lr = noisy_clip(1, 1, 3, 96, 1)[0]
    changed = lr.clone()
    changed[:, :, 0] += 1
    reached = {}
    for num_levels in (1, 2, 3):
        network = formula_network(replace(SMALL, num_cleaning_levels=num_levels))
        difference = network.cleaning_residue(changed) - network.cleaning_residue(lr)
        reached[num_levels] = int(difference.abs().amax(dim=(0, 1, 3)).nonzero().max())
        halo = network.cleaning_halo_rows
    assert reached[1] == halo
    assert 2 * halo <= reached[2] <= 2 * (halo + 2)
    assert 4 * halo <= reached[3] <= 4 * (halo + 4)


@pytest.mark.parametrize("axis", [2, 3])
def test_a_side_that_does_not_halve_is_cleaned_like_one_that_does(axis):
    network = formula_network(replace(SMALL, num_cleaning_levels=3))
    frames = noisy_clip(1, 1, 3, 100, 100)[0]
    whole = network.cleaning_residue(frames).narrow(axis, 0, 40)  # as far from the last row as a pass sees
    for side in (97, 98, 99):
        part = network.cleaning_residue(frames.narrow(axis, 0, side)).narrow(axis, 0, 40)
        torch.testing.assert_close(part, whole, atol=REGROUPED, rtol=0)


def test_each_frame_is_cleaned_until_its_own_change_is_below_theta():
    # The changes of the passes over a frame of level x are x/2, x/4, x/8.
    cleaned, num_passes = refine(network_that_halves(), grey_frames(0.1, 0.3, 0.7, 1.0), theta=255 * 0.1)
    assert num_passes.tolist() == [[1, 2, 3, 3]]
    torch.testing.assert_close(cleaned, grey_frames(0.05, 0.075, 0.0875, 0.125), atol=REGROUPED, rtol=0)


def test_the_sequence_is_cleaned_until_the_mean_change_is_below_theta():
    # The mean level is 0.525, so the changes are 0.2625, 0.131, 0.066.
    network, lr = network_that_halves(), grey_frames(0.1, 0.3, 0.7, 1.0)
    for theta, num_expected in ((255 * 0.3, 1), (255 * 0.2, 2), (255 * 0.1, 3)):
        cleaned, num_passes = refine(network, lr, theta=theta, decide_per="sequence")
        assert num_passes.tolist() == [[num_expected] * 4]
        torch.testing.assert_close(cleaned, lr * 0.5**num_expected, atol=REGROUPED, rtol=0)


def test_a_sequence_of_several_clips_is_decided_as_one():
    network = network_that_halves()
    lr = torch.cat((grey_frames(0.1, 0.1), grey_frames(1.0, 1.0)))
    assert refine(network, lr, theta=255 * 0.2, decide_per="sequence")[1].tolist() == [[2, 2], [2, 2]]
    assert refine(network, lr, theta=255 * 0.2, decide_per="frame")[1].tolist() == [[1, 1], [3, 3]]


@pytest.mark.parametrize("theta", [1.0, 2.0, 3.0, 5.0])
def test_a_frame_is_what_it_is_alone(theta):
    network = formula_network(SMALL, "alone")
    lr = noisy_clip(2, 3, 3, 9, 8)
    cleaned, num_passes = refine(network, lr, theta=theta, decide_per="frame")
    for clip in range(2):
        for frame in range(3):
            alone, num_alone = refine(network, lr[clip : clip + 1, frame : frame + 1], theta=theta)
            assert num_alone.item() == num_passes[clip, frame]
            torch.testing.assert_close(alone[0, 0], cleaned[clip, frame], atol=REGROUPED, rtol=0)


# ---- cleaning less ---------------------------------------------------------------------------------------------------


def test_a_pass_adds_so_much_of_the_residue_and_what_was_added_decides():
    # Half of the halving: the changes of the passes over a frame of level x are x/4, 3x/16, 9x/64.
    lr = grey_frames(0.1, 0.3, 0.45, 1.0)
    cleaned, num_passes = refine(network_that_halves(), lr, theta=255 * 0.1, cleaning=0.5)
    assert num_passes.tolist() == [[1, 1, 2, 3]]  # by the whole residues, 1, 2, 2, 3
    torch.testing.assert_close(cleaned, lr * 0.75 ** num_passes.view(1, 4, 1, 1, 1), atol=REGROUPED, rtol=0)


@pytest.mark.parametrize("decide_per", ["frame", "sequence"])
@pytest.mark.parametrize(("theta", "num_expected"), [(255 / 256, 3), (255 / 256 + 1e-3, 1), (255 / 256 - 1e-3, 3)])
def test_an_addition_of_exactly_theta_is_cleaned_again(theta, num_expected, decide_per):
    network, lr = network_that_adds(-1 / 64), grey_frames(0.5, 0.75)
    cleaned, num_passes = refine(network, lr, theta=theta, cleaning=0.25, decide_per=decide_per)
    assert num_passes.tolist() == [[num_expected] * 2]
    assert torch.equal(cleaned, lr - num_expected / 256)


def test_without_cleaning_no_pass_is_computed():
    class Never:
        def cleaning_residue(self, frames: Tensor) -> Tensor:
            raise AssertionError("a pass was computed")

    for lr in (noisy_clip(2, 3, 3, 7, 9), noisy_clip(2, 4, 3, 12, 7)[:, ::2, :, ::2].transpose(3, 4)):
        cleaned, num_passes = refine(Never(), lr, theta=0, cleaning=0)
        assert torch.equal(cleaned, lr)
        assert cleaned.data_ptr() != lr.data_ptr()
        assert torch.equal(num_passes, torch.zeros(lr.shape[:2], dtype=torch.int64))


def test_all_of_the_cleaning_is_the_published_way_to_the_bit():
    network, lr = formula_network(SMALL), noisy_clip(2, 3, 3, 7, 9)
    once, _ = refine(network, lr, theta=255, cleaning=1)
    assert torch.equal(once, network.clean(lr))
    for theta in (0.0, 2.0):
        expected = refine(network, lr, theta=theta)
        assert all(map(torch.equal, refine(network, lr, theta=theta, cleaning=1), expected))
        assert not torch.equal(refine(network, lr, theta=theta, cleaning=0.999)[0], expected[0])


@pytest.mark.parametrize("cleaning", [-0.1, 1.1, float("nan"), float("inf")])
def test_a_cleaning_outside_of_0_to_1_is_refused(cleaning):
    with pytest.raises(ValueError, match=rf"refine: cleaning must be between 0 and 1, got {cleaning}"):
        refine(network_that_halves(), grey_frames(0.5), cleaning=cleaning)


# ---- what it is called with ------------------------------------------------------------------------------------------


def test_the_frames_of_one_call_differ_in_passes():
    network = formula_network(SMALL, "alone")
    _, num_passes = refine(network, noisy_clip(2, 3, 3, 9, 8), theta=3.0)
    assert num_passes.unique().numel() > 1
    assert num_passes.dtype == torch.int64
    assert num_passes.shape == (2, 3)
    assert num_passes.max() <= MAX_CLEANING_PASSES == 3


@pytest.mark.parametrize("decide_per", ["frame", "sequence"])
def test_the_argument_is_not_changed_and_not_returned(decide_per):
    network = formula_network(SMALL)
    for lr in (noisy_clip(1, 2, 3, 6, 7), noisy_clip(2, 4, 3, 12, 7)[:, ::2, :, ::2].transpose(3, 4)):
        before = lr.clone()
        cleaned, _ = refine(network, lr, theta=1.0, decide_per=decide_per)
        assert torch.equal(lr, before)
        assert cleaned.data_ptr() != lr.data_ptr()
        assert cleaned.shape == lr.shape


def test_a_single_pixel_can_be_refined():
    cleaned, num_passes = refine(network_that_halves(), torch.full((1, 1, 3, 1, 1), 0.5), theta=0)
    assert cleaned.flatten().tolist() == pytest.approx([0.0625] * 3)
    assert num_passes.tolist() == [[3]]


def test_the_mean_of_a_half_precision_frame_does_not_overflow():
    # 3 * 200 * 200 changes of 1 add up to more than float16 can hold.
    network = network_that_adds(-1.0).half()
    _, num_passes = refine(network, torch.full((1, 1, 3, 200, 200), 3.0).half(), theta=255 * 1.5)
    assert num_passes.item() == 1


@pytest.fixture
def number_of_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.long
def test_the_number_of_threads_does_not_decide_how_often_a_frame_is_cleaned(number_of_threads):
    network, lr = network_that_halves(), torch.rand(1, 1, 3, 480, 853, generator=torch.Generator().manual_seed(2))
    residue = network.cleaning_residue(lr[0])
    means = []
    for number in (1, 2):
        torch.set_num_threads(number)
        means.append(residue.abs().mean().item())
    theta = 255 * sum(means) / 2  # between the means that torch finds with one and with two threads
    passes = set()
    for number in (1, 2, 3):
        torch.set_num_threads(number)
        passes.add(refine(network, lr, theta=theta)[1].item())
    assert len(passes) == 1


def test_the_change_of_a_frame_is_its_mean_whatever_its_values():
    for values, mean in (([0.25, -0.5], 0.375), ([1e9, 0.0], 32.0), ([float("-inf"), float("nan")], 32.0)):
        network = network_that_adds(0.0)
        network.cleaning_residue = lambda frames, values=values: torch.tensor(values).expand(1, 3, 1, 2)
        for theta, num_expected in ((mean, 3), (mean + 1e-6, 1)):
            assert refine(network, torch.zeros(1, 1, 3, 1, 2), theta=theta * 255)[1].item() == num_expected


def test_gradients_pass_through_refinement():
    with torch.inference_mode(False):
        network = formula_network(SMALL).requires_grad_(True)
        cleaned, _ = refine(network, torch.rand(1, 2, 3, 5, 5), theta=1.0)
        cleaned.mean().backward()
        assert all(parameter.grad is not None for parameter in network.image_cleaning.parameters())


@pytest.mark.parametrize("theta", [-1.0, float("nan")])
def test_a_theta_below_zero_is_refused(theta):
    with pytest.raises(ValueError, match=rf"refine: theta must be at least 0, got {theta}"):
        refine(network_that_halves(), grey_frames(0.5), theta=theta)


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match=r"""refine: decide_per must be "frame" or "sequence", got 'clip'"""):
        refine(network_that_halves(), grey_frames(0.5), decide_per="clip")


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 4, 8, 8), (1, 2, 1, 8, 8), (1, 0, 3, 8, 8)])
def test_a_clip_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"refine: expected a clip of shape \(N, T, 3, H, W\), got \("):
        refine(network_that_halves(), torch.zeros(shape))
