"""Quality of clips: PSNR and SSIM against ground truth, NIQE without it, flicker along the motion.

Clips are float tensors (T, 3, H, W), RGB, gamma-encoded, in [0, 1], rounded to 8 bits with `to_bytes` first: a metric
sees what a viewer sees. Flow is in pixels, channel 0 to the right, channel 1 down. Every number is a pure function of
its arguments.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage, special
from skimage.metrics import structural_similarity
from torch import Tensor

from vsrealbasicvsr.luma import luma

type Floats = npt.NDArray[np.float64]

EQUAL_DB = 120.0
"""PSNR of two equal images, whose error is 0."""


@dataclass(frozen=True, slots=True)
class Absent:
    """Why a metric is unavailable here, and what to do about it."""

    reason: str
    cure: str

    def __str__(self) -> str:
        return f"{self.reason}. {self.cure}."


def to_bytes(rgb: Tensor) -> Tensor:
    """Clip and round to the 256 values of 8 bits, still in [0, 1]."""
    return (rgb.clamp(0, 1) * 255).round() / 255


# ---- against ground truth --------------------------------------------------------------------------------------------


def psnr_db(a: Tensor, b: Tensor) -> float:
    """Return the peak signal-to-noise ratio of two clips in [0, 1], over all their values; 120 dB if equal.

    Args:
        a: A clip, or the `luma` of one.
        b: The other one, of the same shape.

    Raises:
        ValueError: The shapes differ.
    """
    check_same("psnr_db", a, b)
    error = (a.double() - b.double()).square().mean().item()
    return EQUAL_DB if error == 0 else min(EQUAL_DB, float(-10 * math.log10(error)))


def ssim(a: Tensor, b: Tensor) -> float:
    """Return the structural similarity of the lumas of two clips, mean over frames: 1 if equal (Wang et al. 2004).

    Gaussian window of sigma 1.5 in 11x11, K1 = 0.01, K2 = 0.03, as in the paper.

    Args:
        a: A clip.
        b: The other one.

    Raises:
        ValueError: The shapes differ, or frames are smaller than the window.
    """
    check_same("ssim", a, b)
    check_clip("ssim", a)
    if min(a.shape[-2:]) < 11:
        raise ValueError(f"ssim: frames must be at least 11x11, got {tuple(a.shape)}. Give larger crops.")
    similarity = functools.partial(
        structural_similarity, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    lumas = (luma(clip).double().cpu().numpy() for clip in (a, b))
    return float(np.mean([similarity(x, y) for x, y in zip(*lumas, strict=True)]))


def colour_shift_255(a: Tensor, b: Tensor) -> float:
    """Return the largest difference between two clips of one colour channel's mean, in steps of 255."""
    check_same("colour_shift_255", a, b)
    return float((a.double().mean((0, 2, 3)) - b.double().mean((0, 2, 3))).abs().max()) * 255


# ---- NIQE ------------------------------------------------------------------------------------------------------------

NIQE_PATCH_PX = 96
_NIQE_SIGMA_PX, _NIQE_RADIUS_PX = 7 / 6, 3
_NIQE_NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))
_HALVING = np.array([-3, -9, 29, 111, 111, 29, -9, -3]) / 256
"""Keys' cubic (a = -0.5), stretched to twice its width and sampled for a scale of 1/2: MATLAB's imresize."""


def niqe(clip: Tensor) -> float:
    """Return NIQE (Mittal et al. 2013): naturalness without ground truth, mean over frames; lower is more natural.

    Luma in 0..255 is rounded; the frame is cut to whole patches of 96x96 from its upper left corner. The 36 features of
    each patch, 18 of it and 18 of it at half the size, are fitted by a Gaussian, which is compared with that of
    pristine photographs. All patches count: the paper's sharpness threshold selects patches of the pristine photographs
    only. The pristine model is the authors' published one, niqe_pristine.npz (mu_pris_param (1, 36), cov_pris_param
    (36, 36), as the common Python ports carry it). Small frames have few patches, and the value then depends on the
    size: compare values of one size only.

    Args:
        clip: (T, 3, H, W) in [0, 1].

    Returns:
        nan if no frame has two patches with texture.

    Raises:
        ValueError: A frame is smaller than one patch.
    """
    check_clip("niqe", clip)
    if min(clip.shape[-2:]) < NIQE_PATCH_PX:
        raise ValueError(
            f"niqe: frames must be at least {NIQE_PATCH_PX}x{NIQE_PATCH_PX}, got {tuple(clip.shape)}. Give larger ones."
        )
    frames = (luma(to_bytes(clip).double()) * 255).round().cpu().numpy()
    values = [value for frame in frames if not math.isnan(value := _niqe_of(frame))]
    return float(np.mean(values)) if values else math.nan


def _niqe_of(grey: Floats) -> float:
    """Return NIQE of one frame (H, W) in 0..255, or nan."""
    rows, columns = (size // NIQE_PATCH_PX for size in grey.shape)
    picture = grey[: rows * NIQE_PATCH_PX, : columns * NIQE_PATCH_PX]
    scales = [_niqe_features(picture, NIQE_PATCH_PX), _niqe_features(_halved(picture), NIQE_PATCH_PX // 2)]
    features = np.concatenate(scales, axis=1)  # (patches, 36)
    complete = features[~np.isnan(features).any(axis=1)]
    if len(complete) < 2:
        return math.nan
    pristine_mean, pristine_covariance = _niqe_pristine()
    difference = pristine_mean - np.nanmean(features, axis=0)
    pooled = (pristine_covariance + np.cov(complete, rowvar=False)) / 2
    return math.sqrt(float(difference @ np.linalg.pinv(pooled) @ difference))


@functools.cache
def _niqe_pristine() -> tuple[Floats, Floats]:
    """Return mean (36) and covariance (36, 36) of the features of pristine photographs."""
    with np.load(Path(__file__).with_name("niqe_pristine.npz"), allow_pickle=False) as model:
        return model["mu_pris_param"].reshape(-1), model["cov_pris_param"]


def _halved(grey: Floats) -> Floats:
    """Return half the size (both even), bicubic with antialiasing, borders mirrored."""
    for axis in (0, 1):
        # output i lies between 2 i and 2 i + 1: eight taps from 2 i - 3 to 2 i + 4
        grey = ndimage.correlate1d(grey, _HALVING, axis=axis, mode="reflect", origin=-1)
        grey = grey[::2] if axis == 0 else grey[:, ::2]
    return grey


def _niqe_features(grey: Floats, patch_px: int) -> Floats:
    """Return 18 features of each patch, (patches, 18), row by row; nan for a patch without texture."""
    smooth = functools.partial(
        ndimage.gaussian_filter, sigma=_NIQE_SIGMA_PX, radius=_NIQE_RADIUS_PX, mode="nearest", output=np.float64
    )
    mean = smooth(grey)
    contrast = np.sqrt(np.abs(smooth(grey**2) - mean**2))
    normalised = (grey - mean) / (contrast + 1)
    normalised[contrast < 1e-4] = 0.0  # in flat areas only the filter's rounding errors are left
    height, width = normalised.shape
    patches = normalised.reshape(height // patch_px, patch_px, width // patch_px, patch_px).swapaxes(1, 2)
    return np.array([_patch_features(patch) for patch in patches.reshape(-1, patch_px, patch_px)])


def _patch_features(patch: Floats) -> list[float]:
    """Return shape and scale of the coefficients, then shape, mean and both scales of products with four neighbours."""
    shape, left, right = _fit_aggd(patch)
    features = [shape, (left + right) / 2]
    for shift in _NIQE_NEIGHBOURS:
        shape, left, right = _fit_aggd(patch * np.roll(patch, shift, axis=(0, 1)))
        mean = (right - left) * math.exp(math.lgamma(2 / shape) - math.lgamma(1 / shape))
        features += [shape, mean, left, right]
    return features


def _fit_aggd(values: Floats) -> tuple[float, float, float]:
    """Return shape, left and right scale of an asymmetric generalised Gaussian by moments (Lasmar et al. 2009).

    All three are nan if the values have one sign.
    """
    negative, positive = values[values < 0], values[values > 0]
    if not len(negative) or not len(positive):
        return math.nan, math.nan, math.nan
    left, right = math.sqrt(np.square(negative).mean()), math.sqrt(np.square(positive).mean())
    ratio = left / right
    moments = float(np.abs(values).mean() ** 2 / np.square(values).mean())
    wanted = moments * (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1) ** 2
    shapes, ratios = _aggd_table()
    shape = float(shapes[np.argmin(np.square(ratios - wanted))])
    scale = math.exp((math.lgamma(1 / shape) - math.lgamma(3 / shape)) / 2)
    return shape, left * scale, right * scale


@functools.cache
def _aggd_table() -> tuple[Floats, Floats]:
    """Return shapes 0.2..10 in steps of 0.001, and the ratio of moments of each."""
    shapes = np.arange(0.2, 10.001, 0.001)
    log_ratio = 2 * special.gammaln(2 / shapes) - special.gammaln(1 / shapes) - special.gammaln(3 / shapes)
    return shapes, np.exp(log_ratio)


# ---- flicker ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Motion:
    """Motion between neighbouring frames: a visible pixel p of frame t lies at p + flow_px[t](p) in frame t + 1.

    Pixels that are not visible are shown by one of the two frames only: they were covered, uncovered, or left the view.

    Attributes:
        flow_px: (T - 1, 2, H, W) float32.
        visible: (T - 1, H, W) bool.
    """

    flow_px: Tensor
    visible: Tensor


def estimated_motion(truth: Tensor) -> Motion:
    """Return the motion between the frames of a clean clip (T, 3, H, W), by DIS optical flow (Kroeger et al. 2016).

    A pixel is visible if the backward flow b from frame t + 1 undoes the flow f: |f + b|^2 < 0.01 (|f|^2 + |b|^2) + 0.5
    (Sundaram et al. 2010, as Lai et al. 2018 use it for their warping error).
    """
    check_clip("estimated_motion", truth)
    height, width = truth.shape[-2:]
    greys = (luma(to_bytes(truth)) * 255).round().byte().cpu().numpy()
    flow_px = np.zeros((len(greys) - 1, 2, height, width), dtype=np.float32)
    visible = np.zeros((len(greys) - 1, height, width), dtype=bool)
    with _one_thread():  # the result depends on the number of threads, which divide the search into stripes
        dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        dis.setFinestScale(0)
        for t, (before, after) in enumerate(itertools.pairwise(greys)):
            forward = dis.calc(before, after, None).transpose(2, 0, 1)  # type: ignore[call-overload]  # none to begin with
            backward = dis.calc(after, before, None).transpose(2, 0, 1)  # type: ignore[call-overload]
            backward = _sampled(backward, forward)
            tolerance = 0.01 * (np.square(forward).sum(0) + np.square(backward).sum(0)) + 0.5
            flow_px[t], visible[t] = forward, np.square(forward + backward).sum(0) < tolerance
    visible &= _lands_inside(flow_px)
    return Motion(flow_px=torch.from_numpy(flow_px), visible=torch.from_numpy(visible))


def flicker_255(clip: Tensor, motion: Motion) -> float:
    """Return the warping error: mean absolute difference of frame t and frame t + 1 warped back, in steps of 255.

    Only pixels visible in both frames count. Sampling is bicubic: even the ground truth has an error above 0
    (interpolation, noise, shadows), so compare with its value. A still, smooth clip has a small error whatever it
    shows. Checked by known motions and known errors, not against another implementation.

    Args:
        clip: (T, 3, H, W).
        motion: Of the ground truth.

    Returns:
        nan if no pixel is visible in two frames.

    Raises:
        ValueError: The motion is of another size.
    """
    check_clip("flicker_255", clip)
    if motion.visible.shape != (len(clip) - 1, *clip.shape[-2:]):
        raise ValueError(
            f"flicker_255: the motion is of {tuple(motion.visible.shape)} (T - 1, H, W), the clip {tuple(clip.shape)}."
        )
    frames = to_bytes(clip).float().cpu().numpy() * np.float32(255)
    visible = motion.visible.numpy()
    if not visible.any():
        return math.nan
    total = 0.0
    with _one_thread():
        for t, flow_px in enumerate(motion.flow_px.numpy()):
            difference = np.abs(frames[t] - _sampled(frames[t + 1], flow_px)).mean(axis=0)
            total += float(difference[visible[t]].sum(dtype=np.float64))
    return total / int(visible.sum())


def _sampled(planes: npt.NDArray[np.float32], flow_px: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return out(p) = planes(p + flow(p)), bicubic, of planes (C, H, W); borders are repeated."""
    height, width = planes.shape[1:]
    x = np.arange(width, dtype=np.float32) + flow_px[0]
    y = np.arange(height, dtype=np.float32)[:, None] + flow_px[1]
    channels = [cv2.remap(plane, x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE) for plane in planes]
    return np.stack(channels).astype(np.float32)


def _lands_inside(flow_px: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Return whether p + flow(p) is in the frame, two pixels from its edge, where bicubic sampling has all pixels."""
    height, width = flow_px.shape[-2:]
    x = np.arange(width) + flow_px[:, 0]
    y = np.arange(height)[:, None] + flow_px[:, 1]
    return np.asarray((x >= 1) & (x <= width - 3) & (y >= 1) & (y <= height - 3), dtype=bool)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    num_threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(num_threads)


def check_clip(who: str, clip: Tensor) -> None:
    """Raise ValueError, in the name of `who`, for what is no clip."""
    if clip.ndim != 4 or clip.shape[1] != 3 or not len(clip):
        raise ValueError(f"{who}: a clip must be (T, 3, H, W) with T > 0, got {tuple(clip.shape)}.")


def check_same(who: str, a: Tensor, b: Tensor) -> None:
    """Raise ValueError, in the name of `who`, for two shapes."""
    if a.shape != b.shape:
        raise ValueError(f"{who}: both clips must be of one shape, got {tuple(a.shape)} and {tuple(b.shape)}.")
