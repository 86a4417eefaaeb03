"""Fine detail: how much of it a clip has, relative to the ground truth, and how much of it is right.

Clips are (T, 3, H, W) in [0, 1], RGB.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from torch import Tensor

from training.losses.hatching import LEAST_CROP_PX, hatching_loss
from training.losses.phases import phase_loss
from training.losses.weave import weave_strength
from vsrealbasicvsr.luma import luma

type Floats = npt.NDArray[np.float64]

HIGH_BAND_SIGMA_PX = 1.5
"""Width of the Gaussian blur that separates fine detail: structures of up to some 8 pixels, two pixels of the input."""


def sharpness(clip: Tensor, truth: Tensor) -> float:
    """Return the mean length of the luma's gradient relative to the ground truth's: 1 if equal, below 1 if softer.

    Noise counts as detail. The gradient is by central differences, the mean is over all pixels of all frames. There is
    no published definition: compare values of this function only.

    Args:
        clip: (T, 3, H, W).
        truth: The ground truth.

    Returns:
        nan if the ground truth has no gradient.

    Raises:
        ValueError: The shapes differ.
    """
    _check_same("sharpness", clip, truth)
    length = _gradient_length(luma(truth).double().cpu().numpy())
    return _gradient_length(luma(clip).double().cpu().numpy()) / length if length > 0 else math.nan


def high_band_correlation(clip: Tensor, truth: Tensor) -> float:
    """Return the correlation of fine detail with the ground truth's, in [-1, 1]: 1 if equal, 0 if invented.

    Fine detail is the luma less its Gaussian blur of 1.5 px (borders mirrored). Pearson's coefficient over all pixels
    of all frames does not depend on contrast: a faint copy of the right detail has 1. There is no published definition.

    Args:
        clip: (T, 3, H, W).
        truth: The ground truth.

    Returns:
        nan if either clip has no detail.

    Raises:
        ValueError: The shapes differ.
    """
    _check_same("high_band_correlation", clip, truth)
    a, b = (_high_band(luma(x).double().cpu().numpy()).ravel() for x in (clip, truth))
    a, b = a - a.mean(), b - b.mean()
    power = float(a @ a) * float(b @ b)
    return float(a @ b) / math.sqrt(power) if power > 1e-12 else math.nan


def weave_255(clip: Tensor, scale: int) -> float:
    """Return the strength of patterns that repeat with each pixel of the input, of 255; see the weave loss.

    The upscaler draws them, whatever the picture: a faint raster or diagonal lines on plain surfaces, which the other
    metrics do not see. They could be seen on asphalt at 0.02. There is no published definition.

    Args:
        clip: (T, 3, H, W).
        scale: Pixels of the clip per pixel of the input, on each axis.
    """
    return 255 * weave_strength(clip[None], scale).item()


def hatching_255(clip: Tensor, truth: Tensor, scale: int) -> float:
    """Return how much stronger patterns are that repeat with every second pixel of the input than the truth's, of 255.

    Lattices of dots and diagonal lines, in grass, in foliage, on asphalt; see the hatching loss.

    Args:
        clip: (T, 3, H, W).
        truth: The ground truth.
        scale: Pixels of the clip per pixel of the input, on each axis.

    Returns:
        nan if the input has fewer than LEAST_CROP_PX pixels on an axis.

    Raises:
        ValueError: The shapes differ.
    """
    _check_same("hatching_255", clip, truth)
    if min(clip.shape[-2:]) < LEAST_CROP_PX * scale:
        return math.nan
    return 255 * hatching_loss(clip[None], truth[None], scale).item()


def phase_255(clip: Tensor, truth: Tensor, scale: int) -> float:
    """Return how much the strength of fine detail differs between positions within an input pixel, of 255.

    What the truth's differs is subtracted. Networks that are asked for texture draw dots at a few of these positions,
    bright and dark, so that nothing repeats and neither weave nor hatching sees them; see the phase loss. There is no
    published definition.

    Args:
        clip: (T, 3, H, W).
        truth: The ground truth.
        scale: Pixels of the clip per pixel of the input, on each axis.

    Raises:
        ValueError: The shapes differ.
    """
    _check_same("phase_255", clip, truth)
    return 255 * phase_loss(clip[None], truth[None], scale).item()


def _gradient_length(frames: Floats) -> float:
    down, across = np.gradient(frames, axis=(-2, -1))
    return float(np.hypot(down, across).mean())


def _high_band(frames: Floats) -> Floats:
    """Return the frames (T, [1,] H, W) less their blur."""
    sigma = (0,) * (frames.ndim - 2) + (HIGH_BAND_SIGMA_PX,) * 2
    return frames - np.asarray(ndimage.gaussian_filter(frames, sigma, mode="reflect"))


def _check_same(who: str, a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape:
        raise ValueError(f"{who}: both clips must be of one shape, got {tuple(a.shape)} and {tuple(b.shape)}.")
