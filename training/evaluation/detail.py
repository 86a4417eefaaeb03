"""Detail: how much of it there is beside the truth's, and how much of it is really there.

Clips are (T, 3, H, W) in [0, 1], RGB. Knows no files and no networks.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from torch import Tensor

from vsrealbasicvsr.luma import luma

type Floats = npt.NDArray[np.float64]

HIGH_BAND_SIGMA_PX = 1.5
"""What a Gaussian blur of this width takes away: structures of up to some 8 pixels, two pixels of the input."""


def sharpness(clip: Tensor, truth: Tensor) -> float:
    """Return mean length of the luma's gradient, divided by the truth's: 1 if equal, below 1 if softer.

    Noise counts as detail. The gradient is by central differences, the mean is over all pixels of all frames. nan
    if the truth has none. No published definition: compare values of this function only. Raises ValueError if the
    shapes differ.
    """
    _check_same("sharpness", clip, truth)
    length = _gradient_length(luma(truth).double().cpu().numpy())
    return _gradient_length(luma(clip).double().cpu().numpy()) / length if length > 0 else math.nan


def high_band_correlation(clip: Tensor, truth: Tensor) -> float:
    """Correlation of the clip's fine detail with the truth's, in [-1, 1]: 1 if it is the same detail, 0 if invented.

    Fine detail is the luma less its Gaussian blur of 1.5 px (borders mirrored); Pearson's coefficient over all pixels
    of all frames, which knows nothing of contrast: a faint copy of the right detail has 1. nan if either clip has no
    detail. No published definition. Raises ValueError if the shapes differ.
    """
    _check_same("high_band_correlation", clip, truth)
    a, b = (_high_band(luma(x).double().cpu().numpy()).ravel() for x in (clip, truth))
    a, b = a - a.mean(), b - b.mean()
    power = float(a @ a) * float(b @ b)
    return float(a @ b) / math.sqrt(power) if power > 1e-12 else math.nan


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
