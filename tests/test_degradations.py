"""Properties of the degradations: replay, geometry, noise, colours, and a real codec underneath."""

from __future__ import annotations

import json

import numpy as np
import numpy.typing as npt
import pytest
import skimage.data

from training.degradations import (
    Blur,
    Downscale,
    GaussianNoise,
    Jpeg,
    Kernel,
    PoissonNoise,
    Recipe,
    Settings,
    Step,
    VideoCodec,
    apply,
    decode,
    gaussian_kernel,
    gaussian_line,
    moderate_recipe,
    resize,
    rgb_from_yuv,
    sample,
    yuv_from_rgb,
)

Bytes = npt.NDArray[np.uint8]
KERNELS: tuple[Kernel, ...] = ("area", "bilinear", "bicubic")

# What 8 bits of YUV and back cost a flat patch: half a level in Y, U and V, times up to 2.02 (U to blue).
FLAT_COLOUR_TOLERANCE = 2.0
# A shift of a thousandth of a low-resolution pixel; float32 sums of 384 weights are good for 1e-5 of a ramp.
SHIFT_TOLERANCE_PX = 1e-3


@pytest.fixture(scope="module")
def clip() -> Bytes:
    """Six frames (6, 128, 160, 3) of the astronaut, panned by 4 pixels a frame."""
    image = skimage.data.astronaut()
    return np.stack([image[80:208, 120 + 4 * t : 280 + 4 * t] for t in range(6)]).astype(np.uint8)


def flat(colour: tuple[int, int, int], *, num_frames: int = 3, side: int = 64) -> Bytes:
    return np.broadcast_to(np.array(colour, dtype=np.uint8), (num_frames, side, side, 3)).copy()


def recipes(num_recipes: int, settings: Settings | None = None) -> list[Recipe]:
    generator = np.random.default_rng(0)
    return [sample(settings or Settings(), generator) for _ in range(num_recipes)]


def psnr(first: Bytes, second: Bytes) -> float:
    return float(10 * np.log10(255**2 / np.mean((first.astype(np.float64) - second) ** 2)))


def test_a_recipe_replays_to_the_bit(clip: Bytes) -> None:
    for recipe in recipes(12):
        assert np.array_equal(apply(recipe, clip), apply(recipe, clip)), recipe


def test_a_recipe_survives_json_and_still_replays_to_the_bit(clip: Bytes) -> None:
    for recipe in recipes(40):
        assert Recipe.from_json(recipe.to_json()) == recipe
    assert np.array_equal(apply(Recipe.from_json(recipe.to_json()), clip), apply(recipe, clip))


def test_equal_seeds_draw_equal_recipes_and_others_draw_others() -> None:
    first, again, other = (sample(Settings(), np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_an_unknown_step_in_json_is_named() -> None:
    with pytest.raises(ValueError, match=r"unknown step.*sharpen"):
        Recipe.from_json(json.dumps([{"step": "sharpen"}]))


def test_applying_leaves_the_input_alone(clip: Bytes) -> None:
    before = clip.copy()
    apply(moderate_recipe(0), clip)
    assert np.array_equal(before, clip)


def test_the_result_is_four_times_smaller_whatever_the_size() -> None:
    for height, width in ((64, 64), (68, 100), (36, 132)):
        frames = np.random.default_rng(0).integers(0, 256, (3, height, width, 3), dtype=np.uint8)
        for recipe in recipes(6):
            out = apply(recipe, frames)
            assert out.shape == (3, height // 4, width // 4, 3)
            assert out.dtype == np.uint8


@pytest.mark.parametrize("shape", [(2, 66, 64, 3), (2, 64, 63, 3), (0, 64, 64, 3), (64, 64, 3)])
def test_wrong_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="apply:"):
        apply(moderate_recipe(0), np.zeros(shape, dtype=np.uint8))


def test_downscaling_shifts_no_pixel() -> None:
    """A ramp of 1 per pixel must read 4 i + 1.5 in the middle of the picture, whichever way it got small."""
    y, x = np.mgrid[0:96, 0:128].astype(np.float32)
    ramp = np.stack([x, y, x + y], axis=-1)[None] / 255
    inner = np.s_[6:-6]
    for kernel in KERNELS:
        for scale in (None, 0.2, 0.25, 0.371, 0.5, 0.793):
            small = Downscale(kernel=kernel, intermediate_scale=scale).apply(ramp)[0] * 255
            across = (small[inner, inner, 0] - (4 * np.arange(32) + 1.5)[inner]).mean() / 4
            down = (small[inner, inner, 1] - (4 * np.arange(24) + 1.5)[inner, None]).mean() / 4
            assert abs(across) < SHIFT_TOLERANCE_PX, (kernel, scale)
            assert abs(down) < SHIFT_TOLERANCE_PX, (kernel, scale)


def test_resizing_commutes_with_turning_the_picture_around(clip: Bytes) -> None:
    frames = clip[:1].astype(np.float32) / 255
    turned = np.ascontiguousarray(frames[:, ::-1, ::-1])
    for kernel in KERNELS:
        for height, width in ((32, 40), (51, 77), (128, 160), (200, 190)):
            straight = resize(frames, height, width, kernel)
            assert np.allclose(straight[:, ::-1, ::-1], resize(turned, height, width, kernel), atol=1e-5)


def test_blur_moves_no_pixel_and_has_the_sigma_that_was_asked_for() -> None:
    point = np.zeros((1, 65, 65, 3), dtype=np.float32)
    point[0, 32, 32] = 1
    offsets = np.arange(-32, 33)
    for major_px, minor_px, angle in ((1.2, 1.2, 0.0), (2.8, 2.8, 0.0), (2.5, 1.0, 0.7)):
        spread = Blur(sigma_major_px=major_px, sigma_minor_px=minor_px, angle_radians=angle).apply(point)[0, :, :, 0]
        assert spread.sum() == pytest.approx(1, abs=1e-4)
        assert abs((spread.sum(axis=0) * offsets).sum()) < 1e-3
        assert abs((spread.sum(axis=1) * offsets).sum()) < 1e-3
        total = np.sqrt((spread.sum(axis=0) * offsets**2).sum() + (spread.sum(axis=1) * offsets**2).sum())
        assert total == pytest.approx(np.hypot(major_px, minor_px), rel=0.03)  # the Gaussian is cut at 3 sigma


def test_a_turned_gaussian_with_equal_axes_is_the_separable_one() -> None:
    line = gaussian_line(1.7)
    assert np.allclose(gaussian_kernel(1.7, 1.7, 0.9), np.outer(line, line), atol=1e-6)


def test_the_blur_walks_a_little_and_the_same_way_each_time() -> None:
    frames = np.random.default_rng(0).random((5, 32, 32, 3), dtype=np.float32)
    frames[:] = frames[0]
    blur = Blur(sigma_major_px=1.0, sigma_minor_px=1.0, sigma_walk_px=0.05, seed=3)
    out = blur.apply(frames)
    assert not np.array_equal(out[0], out[1])
    assert np.abs(out[0] - out[4]).max() < 0.1
    assert np.array_equal(out, blur.apply(frames))


@pytest.mark.parametrize("grey", [True, False])
def test_gaussian_noise_has_the_sigma_that_was_asked_for(grey: bool) -> None:
    frames = flat((128, 128, 128), num_frames=4).astype(np.float32) / 255
    noise = (GaussianNoise(sigma_255=5.0, grey=grey, seed=1).apply(frames) - frames) * 255
    assert noise.std() == pytest.approx(5.0, rel=0.03)
    assert abs(noise.mean()) < 0.2
    assert np.allclose(noise[..., 0], noise[..., 2], atol=1e-3) == grey
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.03  # new in every frame


@pytest.mark.parametrize("grey", [True, False])
def test_poisson_noise_falls_with_the_root_of_the_light(grey: bool) -> None:
    for level, expected in ((255, 8.0), (64, 8.0 * np.sqrt(64 / 255)), (0, 0.0)):
        frames = flat((level, level, level)).astype(np.float32) / 255
        noise = (PoissonNoise(sigma_at_white_255=8.0, grey=grey, seed=2).apply(frames) - frames) * 255
        assert noise.std() == pytest.approx(expected, rel=0.05)
        assert abs(noise.mean()) < 0.3


def test_jpeg_keeps_red_red_and_blue_blue() -> None:
    for colour in ((200, 40, 40), (40, 40, 200)):
        out = apply(Recipe((Downscale(kernel="area"), Jpeg(quality=90))), flat(colour))
        assert np.abs(out.mean(axis=(0, 1, 2)) - colour).max() <= FLAT_COLOUR_TOLERANCE


@pytest.mark.parametrize("colour", [(220, 30, 30), (30, 220, 30), (30, 30, 220), (250, 240, 20), (0, 0, 0), (255,) * 3])
def test_the_codec_keeps_colours(colour: tuple[int, int, int]) -> None:
    codec = VideoCodec(encoder="libx264", preset="medium", crf=20)
    out = apply(Recipe((Downscale(kernel="area"), codec)), flat(colour))
    assert np.abs(out.mean(axis=(0, 1, 2)) - colour).max() <= FLAT_COLOUR_TOLERANCE


def test_the_colour_conversion_makes_nothing_darker_or_brighter() -> None:
    """On average, over greys and pale colours: swscale's way loses one level of 255 here."""
    frame = np.random.default_rng(0).integers(80, 176, (128, 128, 3), dtype=np.uint8)
    back = rgb_from_yuv(yuv_from_rgb(frame))
    assert np.abs((back.astype(np.float64) - frame).mean(axis=(0, 1))).max() < 0.1


def test_the_colour_conversion_moves_no_colour() -> None:
    """A ramp of colour comes back as it was, away from the borders."""
    ramp = np.zeros((32, 64, 3), dtype=np.uint8)
    ramp[:] = np.stack([60 + 2 * np.arange(64), np.full(64, 120), 188 - 2 * np.arange(64)], axis=-1)
    back = rgb_from_yuv(yuv_from_rgb(ramp)).astype(np.float64)
    assert np.abs((back - ramp)[:, 4:-4].mean(axis=(0, 1))).max() < 0.3


@pytest.mark.parametrize(("preset", "crf"), [("ultrafast", 35), ("veryfast", 17), ("medium", 28)])
def test_the_stream_names_the_encoder_and_its_setting(clip: Bytes, preset: str, crf: int) -> None:
    """x264 writes its name and settings into the stream; `subme` tells the presets apart."""
    stream = b"".join(VideoCodec(encoder="libx264", preset=preset, crf=crf).encode(clip))
    assert b"x264 - core" in stream
    assert f"crf={crf}.0".encode() in stream
    assert b"threads=1" in stream
    subme = {"ultrafast": b"subme=0", "veryfast": b"subme=2", "medium": b"subme=7"}[preset]
    assert subme in stream


def test_the_bitrate_mode_spends_what_was_asked_for() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (24, 96, 96, 3), dtype=np.uint8)
    sizes = []
    for bits_per_pixel in (0.2, 0.8):
        codec = VideoCodec(encoder="libx264", preset="veryfast", bits_per_pixel=bits_per_pixel)
        stream = b"".join(codec.encode(frames))
        assert b"rc=abr" in stream
        sizes.append(len(stream))
    assert sizes[0] < sizes[1] / 1.3


def test_a_codec_wants_either_crf_or_bitrate() -> None:
    for crf, bits_per_pixel in ((None, None), (28, 0.1)):
        with pytest.raises(ValueError, match="either crf or bits_per_pixel"):
            VideoCodec(encoder="libx264", preset="medium", crf=crf, bits_per_pixel=bits_per_pixel)


def test_more_crf_means_fewer_bytes_and_a_worse_picture(clip: Bytes) -> None:
    sizes, qualities = [], []
    for crf in (17, 26, 35):
        packets = VideoCodec(encoder="libx264", preset="medium", crf=crf).encode(clip)
        sizes.append(sum(map(len, packets)))
        qualities.append(psnr(decode(packets), clip))
    assert sizes == sorted(sizes, reverse=True)
    assert qualities == sorted(qualities, reverse=True)
    assert qualities[0] > 30


@pytest.mark.parametrize("preset", ["ultrafast", "veryfast", "medium"])
@pytest.mark.parametrize("num_frames", [1, 2, 10, 30])
def test_the_codec_gives_every_frame_back_in_order(preset: str, num_frames: int) -> None:
    """Each frame has a grey of its own; B frames are coded in another order than shown."""
    greys = (40 + 5 * (np.arange(num_frames) * 7 % 30)).astype(np.uint8)
    frames = np.broadcast_to(greys[:, None, None, None], (num_frames, 34, 47, 3)).copy()
    step = VideoCodec(encoder="libx264", preset=preset, crf=20)
    out = step.apply(frames.astype(np.float32) / 255) * 255
    assert out.shape == frames.shape
    assert np.abs(out.mean(axis=(1, 2, 3)) - greys).max() < 2


def test_odd_sizes_pass_through_the_codec_without_a_shift(clip: Bytes) -> None:
    frames = clip[:, :47, :61].astype(np.float32) / 255
    out = VideoCodec(encoder="libx264", preset="medium", crf=12).apply(frames)
    error = [
        np.abs(np.roll(out, shift, axis=(1, 2))[:, 4:-4, 4:-4] - frames[:, 4:-4, 4:-4]).mean()
        for shift in ((0, 0), (0, 1), (1, 0), (0, -1), (-1, 0))
    ]
    assert int(np.argmin(error)) == 0


def test_an_encoder_of_sound_is_refused_by_name(clip: Bytes) -> None:
    with pytest.raises(ValueError, match="aac is no video encoder"):
        VideoCodec(encoder="aac", preset="medium", crf=20).encode(clip)


def test_nothing_wraps_around_at_black_and_white() -> None:
    """Strong noise on black and on white, then an edge that overshoots: no bright speck in the dark half."""
    frames = flat((0, 0, 0), side=128)
    frames[:, :, 64:] = 255
    steps: tuple[Step, ...] = (Downscale(kernel="bicubic"), GaussianNoise(sigma_255=12.0, grey=False, seed=0))
    for tail in ((), (Jpeg(quality=55),), (VideoCodec(encoder="libx264", preset="medium", crf=30),)):
        out = apply(Recipe(steps + tail), frames)
        assert out[:, :, :14].max() < 110
        assert out[:, :, 18:].min() > 145


def test_the_moderate_recipe_is_as_documented(clip: Bytes) -> None:
    blur, downscale, noise, codec = moderate_recipe(7).steps
    assert blur == Blur(sigma_major_px=1.2, sigma_minor_px=1.2)
    assert downscale == Downscale(kernel="bicubic")
    assert noise == GaussianNoise(sigma_255=5.0, grey=False, seed=7)
    assert codec == VideoCodec(encoder="libx264", preset="medium", crf=28)
    clean = apply(Recipe((Downscale(kernel="area"),)), clip)
    assert 22 < psnr(apply(moderate_recipe(7), clip), clean) < 35


def test_recipes_stay_within_the_settings() -> None:
    settings = Settings()
    drawn = recipes(400)
    num_codecs = num_jpegs = 0
    for recipe in drawn:
        for step in recipe.steps:
            match step:
                case Blur():
                    for sigma_px in (step.sigma_major_px, step.sigma_minor_px):
                        assert settings.blur_sigma_px[0] <= sigma_px <= settings.blur_sigma_px[1]
                case Downscale():
                    assert step.intermediate_scale is None or 0.2 <= step.intermediate_scale <= 0.8
                case GaussianNoise():
                    assert 0 <= step.sigma_255 <= 12
                case PoissonNoise():
                    assert 0 < step.sigma_at_white_255 <= 12
                case Jpeg():
                    num_jpegs += 1
                    assert 55 <= step.quality <= 95
                case VideoCodec():
                    num_codecs += 1
                    assert step.crf is None or 17 <= step.crf <= 35
    assert 0.91 <= num_codecs / len(drawn) <= 0.99
    assert 0.18 <= num_jpegs / len(drawn) <= 0.32
