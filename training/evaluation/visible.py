"""JOD, how visible the difference from the ground truth is to a viewer of the video, by ColorVideoVDP (PyPI cvvdp).

Mantiuk et al. 2024.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any

import torch
from torch import Tensor

from training.evaluation.metrics import Absent

DISPLAY = "standard_4k"
"""ColorVideoVDP's default: a 30-inch monitor of 3840x2160, 200 cd/m2 in an office of 250 lux, seen from 0.75 m,
twice its height: 75 pixels a degree. Values of other displays are not comparable."""


class Jod:
    """Quality in just-objectionable differences from the ground truth: 10 if no difference is visible, lower is worse.

    Of two clips that differ by 1, three viewers of four prefer the better one.
    """

    def __init__(self, metric: Any) -> None:
        self._metric = metric

    def __call__(self, clip: Tensor, truth: Tensor, frames_per_second: float) -> float:
        """Return the JOD of the whole clip as a video.

        A single frame counts as a still image. It takes 1.5 to 2.5 s of a CPU core for 10 frames of 384x384. This is
        the authors' program; the tests check its properties, as there is no other implementation to compare with.

        Args:
            clip: (T, 3, H, W) in [0, 1], sRGB.
            truth: The ground truth.
            frames_per_second: Of the video.

        Raises:
            ValueError: The shapes differ.
        """
        if clip.shape != truth.shape:
            raise ValueError(f"Jod: both clips must be of one shape, got {tuple(clip.shape)}, {tuple(truth.shape)}.")
        rate = frames_per_second if len(clip) > 1 else 0
        with torch.inference_mode():
            value, _ = self._metric.predict(
                clip.float().contiguous(), truth.float().contiguous(), dim_order="FCHW", frames_per_second=rate
            )
        return float(value)


def load_jod(device: str | torch.device = "cpu") -> Jod | Absent:
    """Load the metric, or return why it is unavailable. The import changes neither sys.path nor the warnings."""
    path = list(sys.path)
    try:
        with warnings.catch_warnings():
            import pycvvdp  # optional

            metric = pycvvdp.cvvdp(display_name=DISPLAY, quiet=True, device=torch.device(device))
    except ImportError as error:
        return Absent(f"{error.name} is not installed", "pip install cvvdp")
    finally:
        sys.path[:] = path
    return Jod(metric)
