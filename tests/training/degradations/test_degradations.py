"""Properties of the degradations: kernels, noise, colours, walks, replay, and the real encoders underneath."""

import argparse
import dataclasses
import itertools
import json
import math
import os
import subprocess
from collections.abc import Callable

import cv2
import numpy as np
import pytest
import skimage.data
import torch
from torch import Tensor

from training.commands import degrade
from training.degradations import (
    MIXABLE,
    MODERATE,
    PUBLISHED,
    Blur,
    ChromaNoise,
    DegradationSettings,
    GaussianNoise,
    Jpeg,
    PoissonNoise,
    Recipe,
    Resize,
    SincBlur,
    Step,
    VideoCodec,
    apply,
    apply_steps,
    codecs,
    draw_settings,
    evaluation_recipe,
    kernels,
    mixture,
    sample,
    sharpened,
    sharpening,
    unsharp,
)
from training.degradations.applying import blur_kernels
from training.degradations.colour import planes_from_rgb, rgb_from_planes
from training.degradations.noise import EXACT_BELOW, counted
from training.degradations.recipe import CODECS, FAMILIES, PRESETS, WITHOUT_CRF, walks_of
from training.degradations.resizing import FILTERS, area_weights, resized, resized_by_torch
from training.degradations.walks import walk

SIZES = (7, 9, 11, 13, 15, 17, 19, 21)

# Another order of float32 sums over at most 441 weights that sum to 1.
ROUNDING = 1e-5
# What 8 bits of YUV and back cost a flat patch: half a level in Y, U and V, times up to 2.02 (U to blue).
FLAT_COLOUR_LEVELS = 2.0
# How far an encoder's rate may lie from the one that was asked for, in 30 frames of noise, which fill any rate.
# Measured: h264 1.03..1.05, mpeg4 0.96..1.01, h265 1.04..1.09, vp9 0.96..1.0, av1 1.45..1.96: SVT-AV1 has nothing to
# hold it to a rate in so few frames.
RATE_FACTOR = {"h264": 1.2, "mpeg2": 1.4, "mpeg4": 1.2, "h265": 1.2, "vp9": 1.3, "av1": 2.2}


def still(value: float, num_frames: int = 4) -> tuple[float, ...]:
    return (value,) * num_frames


def blur(family: str = "iso", *, size: int = 21, x: float = 1.5, y: float | None = None, angle=0.0, beta=1.0, n=4):
    y = x if y is None else y
    return Blur(
        family=family,
        size_px=size,
        sigma_x_px=still(x, n),
        sigma_y_px=still(y, n),
        angle_radians=still(angle, n),
        beta=still(beta, n),
    )


def two_dimensional(weights: Tensor) -> Tensor:
    return weights if weights.ndim == 3 else weights[:, :, None] * weights[:, None]


def moments(kernel: Tensor) -> tuple[float, float, float]:
    """Variance along x, along y, and covariance of a centred kernel."""
    offsets = torch.arange(len(kernel)).double() - len(kernel) // 2
    x, y = offsets, offsets[:, None]
    return float((kernel * x * x).sum()), float((kernel * y * y).sum()), float((kernel * x * y).sum())


def flat(colour: tuple[int, int, int], *, num_frames: int = 4, side: int = 64) -> Tensor:
    return torch.tensor(colour, dtype=torch.uint8)[None, :, None, None].expand(num_frames, 3, side, side).clone()


@pytest.fixture(scope="module")
def clip() -> Tensor:
    """Six frames (6, 3, 96, 128) of the astronaut, panned by 4 pixels a frame."""
    image = torch.from_numpy(skimage.data.astronaut()).permute(2, 0, 1)
    return torch.stack([image[:, 80:176, 120 + 4 * t : 248 + 4 * t] for t in range(6)])


def run_step(step: Step, x: Tensor) -> Tensor:
    """The frames after one step, as float32 in [0, 1]."""
    *_, (_, pieces) = apply_steps(Recipe((step,)), x)
    return torch.cat([piece.float() / 255 if piece.dtype == torch.uint8 else piece for piece in pieces])


def drawn(settings: DegradationSettings, count: int, num_frames: int = 4) -> list[Recipe]:
    return [sample(settings, np.random.default_rng(seed), num_frames=num_frames) for seed in range(count)]


def psnr(first: Tensor, second: Tensor) -> float:
    return float(-10 * (first - second).square().mean().log10())


# ---- kernels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("family", [*FAMILIES, "sinc"])
def test_every_kernel_sums_to_one_and_is_centred(family: str, size: int):
    generator = np.random.default_rng(size)
    n = 5
    if family == "sinc":
        step: Blur | SincBlur = SincBlur(size_px=size, cutoff_radians=tuple(generator.uniform(math.pi / 5, math.pi, n)))
    else:
        x, y = generator.uniform(0.2, 3, (2, n))
        step = Blur(
            family=family,
            size_px=size,
            sigma_x_px=tuple(x),
            sigma_y_px=tuple(x if family.endswith("iso") and not family.endswith("aniso") else y),
            angle_radians=tuple(generator.uniform(-math.pi, math.pi, n)),
            beta=tuple(generator.uniform(0.5, 4, n)),
        )
    weights = two_dimensional(blur_kernels(step))
    assert weights.shape == (n, size, size)
    assert torch.allclose(weights.sum(dim=(1, 2)), torch.ones(n).double())
    assert torch.allclose(weights, weights.flip(1, 2))  # hence centred
    short = two_dimensional(kernels.trimmed(blur_kernels(step)))
    assert short.shape[1] % 2 == 1
    assert torch.allclose(short.sum(dim=(1, 2)), torch.ones(n).double())
    cut = (size - short.shape[1]) // 2
    padded = torch.nn.functional.pad(short, (cut,) * 4)
    assert float((padded - weights).abs().sum(dim=(1, 2)).max()) < 5 * kernels.NEGLIGIBLE


@pytest.mark.parametrize(("x", "y", "angle"), [(1.2, 1.2, 0.0), (2.0, 0.8, 0.0), (2.0, 0.8, 0.6), (1.0, 2.0, -2.5)])
def test_a_gaussian_has_the_widths_and_the_angle_that_were_asked_for(x: float, y: float, angle: float):
    """At 21 taps a sigma of 2 is cut at 5 sigma: the second moments are those of the whole one."""
    across, down, both = moments(two_dimensional(blur_kernels(blur("aniso", x=x, y=y, angle=angle)))[0])
    cos, sin = math.cos(angle), math.sin(angle)
    assert across == pytest.approx((x * cos) ** 2 + (y * sin) ** 2, rel=1e-3)
    assert down == pytest.approx((x * sin) ** 2 + (y * cos) ** 2, rel=1e-3)
    assert both == pytest.approx((x**2 - y**2) * sin * cos, abs=1e-3)


def test_families_agree_where_they_meet():
    gaussian = two_dimensional(blur_kernels(blur("iso", x=1.7)))
    assert torch.allclose(gaussian, blur_kernels(blur("aniso", x=1.7, angle=0.9)))
    assert torch.allclose(gaussian, blur_kernels(blur("generalized_iso", x=1.7, beta=1.0)))


def test_beta_flattens_the_middle():
    for family in ("generalized_iso", "plateau_iso"):
        soft, hard = (blur_kernels(blur(family, x=2.5, beta=beta))[0] for beta in (1.0, 4.0))
        assert hard[10, 11] / hard[10, 10] > soft[10, 11] / soft[10, 10]


def test_a_sinc_lets_low_frequencies_through_and_stops_high_ones():
    kernel = kernels.sinc_kernels(torch.tensor([math.pi / 3]), 21)[0]
    response = torch.fft.fft2(kernel, s=(64, 64)).abs()
    assert response[0, 4] == pytest.approx(1, abs=0.15)  # a third of the cutoff
    assert response[0, 24:32].max() < 0.1
    assert kernel.min() < 0  # it rings


@pytest.mark.parametrize("family", ["iso", "aniso", "generalized_iso", "plateau_aniso", "sinc"])
def test_blurring_agrees_with_opencv(family: str, clip: Tensor):
    """From bytes and from floats, at the borders too, with tiny frames that the kernel sticks out of."""
    if family == "sinc":
        step: Blur | SincBlur = SincBlur(size_px=21, cutoff_radians=still(1.0, 6))
    else:
        step = blur(family, x=2.0, y=2.0 if family.endswith("_iso") or family == "iso" else 0.7, angle=0.5, n=6)
    weights = two_dimensional(blur_kernels(step)).numpy()
    for x in (clip, clip[:, :, :8, :12]):
        expected = np.stack(
            [
                cv2.filter2D(frame.permute(1, 2, 0).numpy().astype(np.float64) / 255, -1, weight)
                for frame, weight in zip(x, weights, strict=True)
            ]
        ).transpose(0, 3, 1, 2)
        for given in (x, x.float() / 255):
            out = torch.cat(kernels.blurred(given, blur_kernels(step)))
            assert np.abs(out.numpy() - expected).max() < 5 * kernels.NEGLIGIBLE


def test_each_frame_gets_its_own_kernel(clip: Tensor):
    frames = clip[:1].repeat(4, 1, 1, 1)
    walked = dataclasses.replace(blur(x=1.0), sigma_x_px=(0.5, 1.0, 1.5, 2.0), sigma_y_px=(0.5, 1.0, 1.5, 2.0))
    detail = run_step(walked, frames).diff(dim=3).abs().mean(dim=(1, 2, 3))
    assert bool((detail.diff() < 0).all())


# ---- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("filter_name", FILTERS)
def test_torch_and_opencv_resize_alike(filter_name: str, clip: Tensor):
    x = clip.float() / 255
    for height, width in ((24, 32), (50, 70), (96, 127), (131, 179)):
        by_opencv = resized(x, height, width, filter_name=filter_name, antialias=False)
        by_torch = resized_by_torch(x, height, width, filter_name=filter_name, antialias=False)
        assert by_opencv.shape == (6, 3, height, width)
        # OpenCV keeps its bilinear and bicubic weights in float32, computed from a rounded position. (Sizes without a
        # common factor: where the borders of a small and a large pixel meet, its area takes the wrong one of the two.)
        assert float((by_opencv - by_torch).abs().max()) < 1e-4


def test_area_weights_cover_everything_once():
    for old, new in ((256, 64), (96, 37), (10, 10), (30, 44)):
        weights = area_weights(old, new, torch.device("cpu"))
        assert torch.allclose(weights.sum(dim=1), torch.ones(new), atol=ROUNDING)
        assert torch.allclose(weights.sum(dim=0), torch.full((old,), new / old), atol=ROUNDING)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("filter_name", FILTERS)
def test_resizing_shifts_no_pixel(filter_name: str, antialias: bool):
    """A ramp of 1/255 a pixel reads 4 i + 1.5 in the small frame."""
    ramp = (torch.arange(96.0) / 255).expand(1, 3, 96, 96).contiguous()
    small = resized(ramp, 24, 24, filter_name=filter_name, antialias=antialias)
    assert torch.allclose(small[0, 0, 12, 4:-4] * 255, 4 * torch.arange(24.0)[4:-4] + 1.5, atol=0.01)


def test_sizes_follow_the_scale_and_are_even(clip: Tensor):
    step = Resize(filter="area", scale=(0.5, 0.52, 0.52, 0.97, 1.2, 0.01))
    *_, (_, pieces) = apply_steps(Recipe((step,)), clip)
    sizes = [tuple(piece.shape[2:]) for piece in pieces for _ in piece]
    assert sizes == [(48, 64), (48, 66), (48, 66), (92, 124), (114, 152), (2, 2)]  # down to even


@pytest.mark.parametrize("shape", [(4, 3, 64, 64), (1, 3, 64, 64), (3, 3, 68, 100), (2, 3, 36, 132), (5, 3, 16, 16)])
def test_a_quarter_of_the_size_comes_out_in_bytes(shape: tuple[int, ...]):
    frames = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    before = frames.clone()
    for settings in (PUBLISHED, MODERATE):
        for recipe in drawn(settings, 3, shape[0]):
            out = apply(recipe, frames)
            assert out.shape == (shape[0], 3, shape[2] // 4, shape[3] // 4)
            assert out.dtype == torch.uint8
    assert torch.equal(frames, before)


# ---- noise -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grey", [True, False])
def test_gaussian_noise_has_the_sigma_that_was_asked_for_in_every_frame(grey: bool):
    step = GaussianNoise(sigma_255=(1.0, 5.0, 10.0, 30.0), grey=grey, seed=1)
    noise = run_step(step, flat((128, 128, 128))) * 255 - 128
    for frame, sigma in zip(noise, step.sigma_255, strict=True):
        assert float(frame.std()) == pytest.approx(sigma, rel=0.04)
        assert abs(float(frame.mean())) < 0.06 * sigma
    assert torch.equal(noise[:, 0], noise[:, 2]) == grey
    assert abs(np.corrcoef(noise[2].flatten(), noise[3].flatten())[0, 1]) < 0.05


@pytest.mark.parametrize("grey", [True, False])
@pytest.mark.parametrize("level", [0, 2, 5, 6, 20, 128, 255])
def test_poisson_noise_has_the_variance_of_counted_photons(level: int, grey: bool):
    step = PoissonNoise(scale=still(0.5), grey=grey, seed=2)
    noise = run_step(step, flat((level, level, level))) - level / 255
    assert float(noise.var()) == pytest.approx(0.25 * (level / 255) / 256, rel=0.07, abs=1e-12)
    assert abs(float(noise.mean())) < 0.03 * math.sqrt(level / 255 / 256) + 1e-7
    assert torch.equal(noise[:, 0], noise[:, 1]) == (grey or level == 0)


@pytest.mark.parametrize("mean", [1.0, 4.0, EXACT_BELOW, 8.0, 25.0, 256.0])
def test_counts_cannot_be_told_from_poisson_numbers(mean: float):
    """Mean, variance, third moment and the whole distribution, of a million of them."""
    generator = torch.Generator().manual_seed(3)
    count = 1_000_000
    ours = counted(torch.full((count,), mean), generator).double()
    theirs = torch.poisson(torch.full((count,), mean), generator=generator).double()
    assert float(ours.mean()) == pytest.approx(mean, abs=4 * math.sqrt(mean / count))
    assert float(ours.var()) == pytest.approx(mean, rel=0.01)
    skew = ((ours - mean) ** 3).mean() / mean**1.5
    assert float(skew) == pytest.approx(mean**-0.5, abs=0.02)
    assert bool((ours == ours.round()).all())
    assert float(ours.min()) >= 0
    steps = torch.arange(0, mean + 10 * math.sqrt(mean))
    below = [torch.searchsorted(values.sort().values, steps, right=True) / count for values in (ours, theirs)]
    assert float((below[0] - below[1]).abs().max()) < 0.003  # Kolmogorov-Smirnov: 0.0019 in 20 of two equal ones


# ---- compression -----------------------------------------------------------------------------------------------------

COLOURS = [(220, 30, 30), (30, 220, 30), (30, 30, 220), (250, 240, 20), (0, 0, 0), (255, 255, 255)]


@pytest.mark.parametrize("colour", COLOURS)
def test_jpeg_keeps_colours(colour: tuple[int, int, int]):
    mean = run_step(Jpeg(quality=still(90.0)), flat(colour)).mean(dim=(0, 2, 3)) * 255
    assert float((mean - torch.tensor(colour)).abs().max()) <= FLAT_COLOUR_LEVELS


def test_quality_orders_the_error_of_jpeg_frame_by_frame(clip: Tensor):
    frames = clip[:1].repeat(4, 1, 1, 1)
    out = run_step(Jpeg(quality=(30.0, 50.0, 75.0, 95.0)), frames)
    qualities = [psnr(one, other / 255) for one, other in zip(out, frames, strict=True)]
    assert qualities == sorted(qualities)
    assert qualities[-1] > qualities[0] + 4


def codec_step(
    codec: str, *, preset: str = "ultrafast", bits: int | None = 40_000, crf: int | None = None
) -> VideoCodec:
    return VideoCodec(codec=codec, preset=None if codec in WITHOUT_CRF else preset, bits_per_frame=bits, crf=crf)


@pytest.mark.skipif(not hasattr(os, "sched_getscheduler"), reason="asks Linux for the policy of a thread")
@pytest.mark.parametrize("codec", CODECS)
def test_an_encoder_leaves_the_priority_of_its_caller_alone(codec: str):
    """Seen as root: SVT-AV1 made its caller a real-time thread for the rest of the process."""
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    run_step(codec_step(codec), flat(COLOURS[0]))
    assert (os.sched_getscheduler(0), os.sched_getparam(0)) == before


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("colour", COLOURS[:4])
def test_the_codec_keeps_colours(codec: str, colour: tuple[int, int, int]):
    mean = run_step(codec_step(codec), flat(colour)).mean(dim=(0, 2, 3)) * 255
    assert float((mean - torch.tensor(colour)).abs().max()) <= FLAT_COLOUR_LEVELS


def test_the_colour_conversion_makes_nothing_darker_or_brighter():
    """On average, over greys and pale colours: swscale's way loses one level of 255 here."""
    frame = torch.randint(80, 176, (1, 3, 128, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for given in (frame, frame.float() / 255):
        back = rgb_from_planes(planes_from_rgb(given)) * 255
        assert float((back - frame).mean(dim=(0, 2, 3)).abs().max()) < 0.1


def test_the_colour_conversion_moves_no_colour():
    x = torch.arange(64.0)
    ramp = torch.stack([60 + 2 * x, torch.full_like(x, 120), 188 - 2 * x])[None, :, None].repeat(1, 1, 32, 1)
    back = rgb_from_planes(planes_from_rgb(ramp.to(torch.uint8))) * 255
    assert float((back - ramp)[..., 4:-4].mean(dim=2).abs().max()) < 1.5
    assert float((back - ramp)[..., 4:-4].mean(dim=(2, 3)).abs().max()) < 0.3


SIGNATURES: dict[str, Callable[[bytes], bool]] = {
    "h264": lambda stream: b"x264 - core" in stream,
    "h265": lambda stream: b"x265 (build" in stream,
    "mpeg2": lambda stream: stream.startswith(b"\0\0\1\xb3"),  # sequence header
    "mpeg4": lambda stream: stream.startswith(b"\0\0\1\xb0") and b"Lavc" in stream,  # visual object sequence
    "vp9": lambda stream: stream[0] >> 6 == 0b10 and stream[1:4] == b"\x49\x83\x42",  # frame marker, sync code
    "av1": lambda stream: stream[:2] == b"\x12\x00",  # temporal delimiter
}


@pytest.mark.parametrize("codec", CODECS)
def test_the_named_encoder_ran_at_about_the_named_rate(codec: str):
    planes = np.random.default_rng(0).normal(128, 25, (30, 144, 96)).clip(0, 255).astype(np.uint8)
    for bits in (20_000, 40_000):
        step = codec_step(codec, bits=bits)
        encoded = codecs.encode(step, planes)
        assert encoded.encoder == codecs.IMPLEMENTATIONS[step.codec].encoder
        assert SIGNATURES[codec](bytes(encoded))
        assert encoded.num_bits == 8 * len(bytes(encoded))
        ratio = encoded.num_bits / len(planes) / bits
        assert 1 / RATE_FACTOR[codec] < ratio < RATE_FACTOR[codec], (bits, ratio)


@pytest.mark.parametrize("preset", PRESETS)
def test_x264_tells_its_preset_and_its_one_thread(preset: str):
    planes = np.full((2, 48, 32), 128, dtype=np.uint8)
    stream = bytes(codecs.encode(codec_step("h264", preset=preset, bits=None, crf=30), planes))
    assert {"ultrafast": b"subme=0", "veryfast": b"subme=2", "medium": b"subme=7"}[preset] in stream
    assert b"crf=30.0" in stream
    assert b"threads=1" in stream


@pytest.mark.parametrize("preset", PRESETS)
def test_a_crf_keeps_what_it_keeps_in_a_video_of_25_frames_a_second(preset: str, clip: Tensor, ffmpeg):
    """Checked against the ffmpeg program: at one frame a second x264 spends 3 to 5 times as much."""
    noise = torch.randn(clip.shape, generator=torch.Generator().manual_seed(0)) * 5
    planes = planes_from_rgb((clip.float() + noise).round().clamp(0, 255).to(torch.uint8)).numpy()
    ours = codecs.encode(codec_step("h264", preset=preset, bits=None, crf=28), planes).num_bits / 8
    size = f"{planes.shape[2]}x{planes.shape[1] * 2 // 3}"
    given = ["-f", "rawvideo", "-pix_fmt", "yuv420p", "-s", size, "-r", "25", "-i", "-"]
    wanted = ["-c:v", "libx264", "-preset", preset, "-crf", "28", "-threads", "1", "-f", "h264", "-"]
    done = subprocess.run(
        [ffmpeg, "-v", "error", *given, *wanted], input=planes.tobytes(), capture_output=True, check=True
    )
    assert ours == pytest.approx(len(done.stdout), rel=0.1)


@pytest.mark.parametrize("codec", [codec for codec in CODECS if codec not in WITHOUT_CRF])
def test_more_crf_means_fewer_bits_and_a_worse_picture(codec: str, clip: Tensor):
    planes = planes_from_rgb(clip).numpy()
    bits, errors = [], []
    for crf in (15, 30, 45):
        step = codec_step(codec, bits=None, crf=crf)
        encoded = codecs.encode(step, planes)
        bits.append(encoded.num_bits)
        decoded = codecs.decode(step, encoded, shape=planes.shape)
        errors.append(float(np.abs(decoded.astype(float) - planes).mean()))
    assert bits == sorted(bits, reverse=True)
    assert errors == sorted(errors)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("codec", CODECS)
def test_the_codec_gives_every_frame_back_in_order_whatever_the_size(codec: str, preset: str):
    """Each frame has a grey of its own; B frames are coded in another order than shown. Tiny and odd sizes pass."""
    for num_frames, height, width in ((1, 10, 12), (7, 33, 47)):
        greys = 60 + 25 * (torch.arange(num_frames) * 3 % 7)
        x = greys.to(torch.uint8)[:, None, None, None].expand(num_frames, 3, 4 * height, 4 * width)
        out = apply(Recipe((Resize(filter="area", scale=None), codec_step(codec, preset=preset))), x)
        assert out.shape == (num_frames, 3, height, width)
        assert float((out.float().mean(dim=(1, 2, 3)) - greys).abs().max()) < 3


@pytest.mark.parametrize(("height", "width"), [(96, 128), (38, 44)])
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.long
def test_codecs_give_equal_bits_every_time(codec: str, height: int, width: int, clip: Tensor):
    """Whatever memory holds: left alone, MPEG-4's decoder, x264 and x265 read what nobody wrote."""
    generator = torch.Generator().manual_seed(0)
    noisy = (clip.float() / 255 + 0.2 * torch.rand(clip.shape, generator=generator)).clamp(0, 1)
    planes = planes_from_rgb(noisy[:, :, :height, :width]).numpy()
    step = codec_step(codec, preset="veryfast", bits=40_000)
    results = []
    for number in range(4):
        dirty = [np.full(size, 50 * number + 7, dtype=np.uint8) for size in range(1000, 300_000, 7001)]
        del dirty
        results.append(codecs.run(step, planes))
    assert all(np.array_equal(results[0], result) for result in results)
    assert np.abs(results[0].astype(float) - planes).mean() < 12


def test_frames_of_several_sizes_enter_the_codec_in_the_first_ones(clip: Tensor):
    steps = (Resize(filter="area", scale=(0.5, 0.6, 0.4, 0.5, 0.7, 0.5)), codec_step("h264"))
    *_, (_, pieces) = apply_steps(Recipe(steps), clip)
    assert {tuple(piece.shape[2:]) for piece in pieces} == {(48, 64)}
    *_, (_, alone) = apply_steps(Recipe((Resize(filter="area", scale=still(0.5, 6)),)), clip)
    assert psnr(torch.cat(pieces), torch.cat(alone)) > 24


def test_another_way_to_run_codecs_can_be_given(clip: Tensor):
    seen = []

    def run_codec(step: VideoCodec | Jpeg, planes: codecs.Planes) -> codecs.Planes:
        seen.append((step.name, planes.shape, planes.dtype))
        return planes

    apply(evaluation_recipe(0, 6), clip, run_codec=run_codec)
    assert seen == [("video_codec", (6, 36, 32), np.dtype(np.uint8))]


def test_jpeg_is_run_with_the_codecs_too_each_frame_with_its_own_quality(clip: Tensor):
    """So that a GPU's frames are compressed by the processes that run video codecs, as on a CPU."""
    step, seen = Jpeg(quality=(90, 70, 50, 30, 20, 10)), []

    def run_codec(step: VideoCodec | Jpeg, frames: codecs.Planes) -> codecs.Planes:
        seen.append((frames.shape[1:], len(frames), step.quality))
        return codecs.run(step, frames)

    *_, (_, pieces) = apply_steps(Recipe((step,)), clip, run_codec=run_codec)
    assert {shape for shape, _, _ in seen} == {tuple(clip.shape[1:])}
    assert [number for _, number, _ in seen] == [len(quality) for _, _, quality in seen]
    assert tuple(itertools.chain.from_iterable(quality for _, _, quality in seen)) == step.quality
    expected = codecs.run(step, clip.numpy())
    assert torch.equal(torch.cat(pieces), torch.from_numpy(expected))
    errors = [psnr(a / 255, b / 255) for a, b in zip(torch.cat(pieces), clip, strict=True)]
    assert errors == sorted(errors, reverse=True)


def test_an_encoder_that_this_build_lacks_is_an_error_of_the_settings(monkeypatch):
    lacking = {**codecs.IMPLEMENTATIONS, "av1": codecs.Implementation(encoder="libnowhere", decoder="libdav1d")}
    monkeypatch.setattr(codecs, "IMPLEMENTATIONS", lacking)
    DegradationSettings()
    with pytest.raises(ValueError, match=r"av1 needs FFmpeg's libnowhere.*Choose other codecs"):
        DegradationSettings(codecs=("h264", "av1"), codec_probabilities=(0.5, 0.5))


def test_sharpening_adds_the_named_share_of_fine_detail_and_leaves_areas_alone():
    x = torch.arange(96).float()
    stripes = 0.5 + 0.2 * torch.cos(2 * math.pi * x / 6)  # a Gaussian of 2 px leaves exp(-2 (pi sigma / 6)^2) of them
    frames = stripes.expand(2, 2, 3, 40, 96).clone()
    left = math.exp(-2 * (math.pi * 2 / 6) ** 2)
    out = sharpened(frames, 0.5)
    inside = (..., slice(8, -8))
    gain = (out[inside] - 0.5).std() / (frames[inside] - 0.5).std()
    assert float(gain) == pytest.approx(1 + 0.5 * (1 - left), rel=0.01)
    plain = torch.full((1, 3, 20, 20), 0.3)
    assert torch.allclose(sharpened(plain, 2.0), plain, atol=1e-6)
    assert torch.allclose(sharpened(frames, 0.0), frames, atol=1e-6)


def test_chroma_noise_is_blotches_of_colour_that_leave_the_luma_alone():
    grey = flat((128, 128, 128), side=128, num_frames=6)
    step = ChromaNoise(sigma_255=(6.0,) * 6, cell_px=8, persistence=0.8, seed=3)
    out = run_step(step, grey) * 255
    moved = out - 128
    light = (moved * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1)
    assert float(light.abs().max()) < 0.6, "the luma stays, but for rounding of the channels"
    blue = moved[:, 2] / 1.772
    assert 5 < float(blue.std()) < 7, "the deviation is the one asked for"
    neighbours = torch.corrcoef(torch.stack([blue[..., 1:].flatten(), blue[..., :-1].flatten()]))[0, 1]
    frames = torch.corrcoef(torch.stack([blue[1:].flatten(), blue[:-1].flatten()]))[0, 1]
    assert float(neighbours) > 0.9, "cells of 8 pixels are smooth"
    assert 0.7 < float(frames) < 0.9, "it persists from frame to frame"


@pytest.mark.long
def test_degradations_get_harsher_from_clean_to_harsh(clip: Tensor):
    """By the mean error of what a mixture draws, against the same clip shrunk."""
    small = apply(Recipe((Resize(filter="bicubic", scale=None, antialias=True),)), clip) / 255
    errors = {
        name: np.mean(
            [float((apply(recipe, clip) / 255 - small).abs().mean()) for recipe in drawn(MIXABLE[name], 12, len(clip))]
        )
        for name in ("clean", "mild", "usual", "harsh")
    }
    assert list(errors) == sorted(errors, key=lambda name: errors[name]), errors


def test_a_mixture_draws_each_part_as_often_as_its_share():
    parts = ("clean:1", "harsh:3")
    generator = np.random.default_rng(0)
    found = [draw_settings(parts, PUBLISHED, generator) for _ in range(400)]
    assert 0.2 < sum(one is MIXABLE["clean"] for one in found) / 400 < 0.3
    assert all(one in (MIXABLE["clean"], MIXABLE["harsh"]) for one in found)
    assert draw_settings((), PUBLISHED, generator) is PUBLISHED
    for wrong in (("foggy:1",), ("clean:0",), ("clean:x",)):
        with pytest.raises(ValueError, match=r"degradation_mix: write NAME:SHARE .* one of clean, mild"):
            mixture(wrong)


# ---- the whole -------------------------------------------------------------------------------------------------------


def test_nothing_wraps_around_at_black_and_white():
    """Noise on black and on white, an edge that overshoots: no bright speck in the dark half, nor the reverse."""
    frames = flat((0, 0, 0), side=128)
    frames[:, :, :, 64:] = 255
    before = (
        SincBlur(size_px=21, cutoff_radians=still(1.0)),
        GaussianNoise(sigma_255=still(12.0), grey=False, seed=0),
    )
    end: tuple[Step, ...] = (Resize(filter="bicubic", scale=None), SincBlur(size_px=7, cutoff_radians=still(1.5)))
    jpeg = Jpeg(quality=still(60.0))
    tails = [(), (jpeg,), *((codec_step(codec),) for codec in CODECS)]
    for tail in tails:
        for steps in ((*before, *tail, *end), (*before, *end, *tail)):
            out = apply(Recipe(steps), frames)
            assert int(out[..., :12].max()) < 128, tail
            assert int(out[..., 20:].min()) > 127, tail


@pytest.mark.parametrize("settings", list(MIXABLE.values()), ids=list(MIXABLE))
@pytest.mark.long
def test_a_recipe_replays_to_the_bit_and_so_does_its_json(settings: DegradationSettings, clip: Tensor):
    for recipe in drawn(settings, 6, len(clip)):
        again = Recipe.from_json(recipe.to_json())
        assert again == recipe
        assert torch.equal(apply(recipe, clip), apply(again, clip))


def test_equal_seeds_draw_equal_recipes_and_others_draw_others():
    first, again, other = (sample(PUBLISHED, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_walks_stay_in_range_and_step_uniformly():
    values = np.array(walk(np.random.default_rng(0), start=50.0, step=0.5, bounds=(0.0, 100.0), num_frames=5000))
    inside = (values > 1) & (values < 99)
    steps = np.diff(values)[inside[:-1] & inside[1:]]
    assert len(steps) > 1000
    assert values.min() >= 0
    assert values.max() <= 100
    assert np.abs(steps).max() <= 0.5
    uniform = np.linspace(0, 1, len(steps))
    assert np.abs((np.sort(steps) + 0.5) - uniform).max() < 1.63 / math.sqrt(len(steps))  # Kolmogorov-Smirnov, 1 %
    assert abs(np.corrcoef(steps[:-1], steps[1:])[0, 1]) < 0.1
    narrow = walk(np.random.default_rng(0), start=1.0, step=0.5, bounds=(0.9, 1.1), num_frames=200)
    assert {0.9, 1.1} <= set(narrow)  # it is clipped, not reflected


RANGES = {
    "sigma_x_px": (0.2, 3.0, 0.02),
    "sigma_y_px": (0.2, 3.0, 0.02),
    "angle_radians": (-math.pi, math.pi, 0.314),
    "beta": (0.5, 4.0, 0.1),
    "cutoff_radians": (math.pi / 5, math.pi, 0.0628),
    "scale": (0.05, 3.0, 0.03),
    "sigma_255": (1.0, 30.0, 0.1),
    "quality": (30.0, 95.0, 3.0),
}


def test_all_published_walks_stay_in_range_and_move():
    moved = set()
    for recipe in drawn(PUBLISHED, 150, 12):
        for step in recipe.steps:
            for name, values in walks_of(step).items():
                low, high, largest = RANGES[name]
                assert low <= min(values) <= max(values) <= high, step
                assert np.abs(np.diff(values)).max() <= largest * (1 + 1e-12), step
                if len(set(values)) > 1:
                    moved.add((type(step).__name__, getattr(step, "family", ""), name))
    for family in FAMILIES:
        assert ("Blur", family, "sigma_x_px") in moved
        assert (("Blur", family, "beta") in moved) == ("generalized" in family or "plateau" in family)
        assert (("Blur", family, "angle_radians") in moved) == family.endswith("aniso")


def test_without_the_stochastic_scheme_everything_is_constant_and_starts_alike():
    for seed in range(30):
        moving = sample(PUBLISHED, np.random.default_rng(seed), num_frames=5)
        constant = sample(dataclasses.replace(PUBLISHED, stochastic=False), np.random.default_rng(seed), num_frames=5)
        assert all(len(set(values)) == 1 for step in constant.steps for values in walks_of(step).values())
        kept = [step for step in moving.steps if not (isinstance(step, Resize) and step.scale and step.scale[0] == 1)]
        assert [step.name for step in constant.steps] == [step.name for step in kept]
        assert [[v[0] for v in walks_of(s).values()] for s in constant.steps] == [
            [v[0] for v in walks_of(s).values()] for s in kept
        ]


@pytest.mark.long
def test_sample_frequencies_match_the_probabilities():
    count = 1500
    recipes = drawn(PUBLISHED, count, 1)
    first_blurs = [recipe.steps[0] for recipe in recipes]

    def share(events: list[bool], probability: float) -> None:
        deviation = math.sqrt(probability * (1 - probability) / len(events))
        assert abs(sum(events) / len(events) - probability) < 4 * deviation

    published = dict(zip(PUBLISHED.blur_families, PUBLISHED.blur_family_probabilities, strict=True))
    families = [step.family if isinstance(step, Blur) else "sinc" for step in first_blurs]
    for family, probability in published.items():
        share([name == family for name in families], probability)
    for size in SIZES:
        share([step.size_px == size for step in first_blurs], 1 / 8)
    noises = [next(s for s in r.steps if isinstance(s, GaussianNoise | PoissonNoise)) for r in recipes]
    share([isinstance(noise, GaussianNoise) for noise in noises], 0.5)
    share([noise.grey for noise in noises], 0.4)
    first_scales = [r.steps[1].scale[0] if isinstance(r.steps[1], Resize) else 1.0 for r in recipes]
    share([scale > 1 for scale in first_scales], 0.2)
    share([scale < 1 for scale in first_scales], 0.7)
    video = [[s for s in recipe.steps if isinstance(s, VideoCodec)] for recipe in recipes]
    assert all(len(both) == 2 for both in video)
    share([both[0].codec == "h264" for both in video], 2 / 3)
    bits = [both[0].bits_per_frame for both in video]
    assert 10_000 <= min(bits) < 11_000
    assert 99_000 < max(bits) <= 100_000
    share([isinstance(recipe.steps[-1], VideoCodec) for recipe in recipes], 0.5)
    output = [max(i for i, s in enumerate(r.steps) if isinstance(s, Resize)) for r in recipes]
    share([any(isinstance(s, SincBlur) for s in r.steps[i:]) for r, i in zip(recipes, output, strict=True)], 0.8)
    for filter_name in FILTERS:
        share([r.steps[i].filter == filter_name for r, i in zip(recipes, output, strict=True)], 1 / 3)
    second = [
        next((s for s in r.steps[i + 1 :] if isinstance(s, Blur | SincBlur | Resize)), None)
        for r, i in ((r, r.steps.index(both[0])) for r, both in zip(recipes, video, strict=True))
    ]
    share([isinstance(step, Blur | SincBlur) for step in second], 0.8)


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_resizes_are_antialiased_as_often_as_asked(probability):
    recipes = drawn(dataclasses.replace(PUBLISHED, resize_antialias_probability=probability), 400, 2)
    antialiased = [step.antialias for recipe in recipes for step in recipe.steps if isinstance(step, Resize)]
    deviation = math.sqrt(probability * (1 - probability) / len(antialiased))
    assert abs(sum(antialiased) / len(antialiased) - probability) <= 4 * deviation


def test_sizes_of_a_sinc_decide_its_cutoffs():
    sincs = [r.steps[0] for r in drawn(PUBLISHED, 1500, 1) if isinstance(r.steps[0], SincBlur)]
    small = [step.cutoff_radians[0] for step in sincs if step.size_px < 13]
    large = [step.cutoff_radians[0] for step in sincs if step.size_px >= 13]
    assert min(small) >= math.pi / 3 > min(large) >= math.pi / 5


def test_codecs_can_be_chosen_and_given_a_crf(clip: Tensor):
    settings = dataclasses.replace(
        PUBLISHED,
        codecs=CODECS,
        codec_probabilities=(1 / len(CODECS),) * len(CODECS),
        codec_presets=PRESETS,
        codec_crf_probability=0.5,
        codec_crf=(20, 40),
    )
    steps = [s for recipe in drawn(settings, 100, 6) for s in recipe.steps if isinstance(s, VideoCodec)]
    assert {step.codec for step in steps} == set(CODECS)
    assert {step.preset for step in steps} == {*PRESETS, None}
    assert {step.crf is None for step in steps if step.codec not in WITHOUT_CRF} == {True, False}
    assert all(20 <= step.crf <= 40 for step in steps if step.crf is not None)


def test_the_evaluation_recipe_is_as_documented(clip: Tensor):
    first, second, noise, codec = evaluation_recipe(7, 6).steps
    assert isinstance(first, Blur)
    assert set(first.sigma_x_px) == {1.2}
    assert second == Resize(filter="bicubic", scale=None, antialias=True)
    assert noise == GaussianNoise(sigma_255=still(5.0, 6), grey=False, seed=7)
    assert codec == VideoCodec(codec="h264", preset="medium", crf=28)
    clean = apply(Recipe((Resize(filter="area", scale=None),)), clip)
    assert 20 < psnr(apply(evaluation_recipe(7, 6), clip) / 255, clean / 255) < 35


def test_the_unsharp_mask_is_the_published_one(clip: Tensor):
    """Against two filterings with the 51 x 51 kernel, frame by frame. A pixel may round the other way."""
    line = cv2.getGaussianKernel(51, sharpening.SIGMA_PX)
    for frame, ours in zip(clip[:2], unsharp(clip[:2]), strict=True):
        image = frame.permute(1, 2, 0).numpy().astype(np.float64) / 255
        residual = image - cv2.filter2D(image, -1, line @ line.T)
        edges = cv2.filter2D((np.abs(residual) * 255 > 10).astype(np.float64), -1, line @ line.T)
        sharp = np.clip(image + 0.5 * residual, 0, 1)
        expected = np.rint((edges * sharp + (1 - edges) * image) * 255)
        difference = np.abs(ours.permute(1, 2, 0).numpy() - expected)
        assert difference.max() <= 1
        assert difference.mean() < 0.01


def test_sharpening_before_mirroring_gives_the_same_frames(clip: Tensor):
    mirrored = torch.cat([clip, clip.flip(0)])
    assert torch.equal(unsharp(mirrored), torch.cat([unsharp(clip), unsharp(clip).flip(0)]))


@pytest.mark.needs_cuda
def test_a_gpu_gives_frames_like_a_cpu_and_jpeg_its_colours(clip: Tensor):
    """Its noise is another one and its JPEG may keep more colour: only what has no noise in it is compared."""
    steps = (blur("aniso", x=1.5, y=0.8, angle=0.4, n=6), Resize(filter="area", scale=None))
    recipe = Recipe((*steps, Jpeg(quality=still(80.0, 6)), codec_step("h264")))
    assert psnr(apply(recipe, clip.cuda()).cpu() / 255, apply(recipe, clip) / 255) > 30
    for recipe in drawn(PUBLISHED, 3, 6):
        out = apply(recipe, clip.cuda())
        assert out.is_cuda
        assert torch.equal(out, apply(recipe, clip.cuda()))
    for colour in COLOURS:
        mean = run_step(Jpeg(quality=still(90.0)), flat(colour).cuda()).mean(dim=(0, 2, 3)).cpu() * 255
        assert float((mean - torch.tensor(colour)).abs().max()) <= FLAT_COLOUR_LEVELS


# ---- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 3, 66, 64), (2, 3, 64, 63), (0, 3, 64, 64), (3, 64, 64), (2, 64, 64, 3)])
def test_wrong_shapes_are_refused(shape: tuple[int, ...]):
    with pytest.raises(ValueError, match=r"apply: (clip|height)"):
        apply(evaluation_recipe(0, 2), torch.zeros(shape, dtype=torch.uint8))


def test_a_recipe_for_another_number_of_frames_is_refused(clip: Tensor):
    with pytest.raises(ValueError, match="for 5 frames, the clip has 6"):
        apply(evaluation_recipe(0, 5), clip)


def test_a_recipe_that_ends_at_another_size_is_refused(clip: Tensor):
    with pytest.raises(ValueError, match="needs a Resize with scale=None"):
        apply(Recipe((Resize(filter="area", scale=still(0.5, 6)),)), clip)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "no JSON"),
        ("{}", "list of steps"),
        (json.dumps([{"step": "sharpen"}]), "unknown step 'sharpen'"),
        (json.dumps([{"step": "jpeg", "quality": [50.0], "colour": 1}]), "jpeg.*colour"),
        (json.dumps([{"step": "jpeg", "quality": [500.0]}]), "Jpeg: qualities lie in 1..100"),
        (json.dumps([{"step": "jpeg", "quality": []}]), "one value for each frame"),
    ],
)
def test_json_that_is_no_recipe_is_refused_with_the_reason(text: str, message: str):
    with pytest.raises(ValueError, match=message):
        Recipe.from_json(text)


@pytest.mark.parametrize(
    "wrong",
    [
        {"jpeg_quality": (50.0, 101.0)},
        {"blur1_sigma_px": (2.0, 1.0)},
        {"blur2_probability": 1.5},
        {"blur_sizes_px": (8,)},
        {"blur_families": ("iso", "box"), "blur_family_probabilities": (0.5, 0.5)},
        {"blur_family_probabilities": (1.0,)},
        {"codecs": ("divx",), "codec_probabilities": (1.0,)},
        {"resize2_probabilities": (0.5, 0.5, 0.5)},
        {"codec_presets": ("fastest",)},
        {"noise_sigma_step_255": -1.0},
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(wrong: dict):
    with pytest.raises(ValueError, match=f"DegradationSettings: {next(iter(wrong))[:6]}"):
        DegradationSettings(**wrong)


def test_a_codec_wants_either_crf_or_bits():
    for crf, bits in ((None, None), (28, 20_000)):
        with pytest.raises(ValueError, match="either crf or bits_per_frame"):
            VideoCodec(codec="h264", preset="medium", crf=crf, bits_per_frame=bits)


# ---- the command -----------------------------------------------------------------------------------------------------


def degrade_arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    degrade.add_arguments(parser)
    return parser.parse_args(words)


def test_the_command_writes_a_sheet_with_a_row_for_each_step_and_the_recipe(small_clip_file, tmp_path, capsys):
    words = (str(small_clip_file), "--seed", "3", "--frames", "5", "--out", str(tmp_path))
    assert degrade.run(degrade_arguments(*words)) == 0
    recipe = Recipe.from_json((tmp_path / "recipe.json").read_text())
    assert recipe == sample(PUBLISHED, np.random.default_rng(3), num_frames=5)
    assert str(recipe) in capsys.readouterr().out
    sheet = cv2.imread(str(tmp_path / "degraded.png"))
    assert sheet.shape[0] == (len(recipe.steps) + 2) * (48 + 22)
    again = degrade_arguments(*words[:1], "--recipe", str(tmp_path / "recipe.json"), *words[3:-1], str(tmp_path / "b"))
    assert degrade.run(again) == 0
    assert (tmp_path / "b" / "degraded.png").read_bytes() == (tmp_path / "degraded.png").read_bytes()


def test_the_command_says_what_is_wrong(small_clip_file, make_clip, tmp_path):
    tiny = make_clip(tmp_path / "tiny.mp4", num_frames=2, width=10, height=10)
    for path, frames in ((tmp_path / "none.mp4", "3"), (small_clip_file, "0"), (tiny, "2")):
        with pytest.raises((ValueError, OSError), match=r"read_clip|none\.mp4"):
            degrade.run(degrade_arguments(str(path), "--frames", frames, "--out", str(tmp_path)))


def test_threads_on_different_streams_share_no_cached_tensor(monkeypatch):
    """What is evicted on one stream may still be read on another."""
    made = []
    for stream in (1, 2, 1):
        monkeypatch.setattr("training.degradations.resizing.stream_of", lambda device, stream=stream: stream)
        made.append(area_weights(8, 4, torch.device("cpu")))
    assert made[0] is made[2]
    assert made[0] is not made[1]
    assert torch.equal(made[0], made[1])
