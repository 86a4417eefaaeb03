"""JOD, how visible the difference from the truth is to a viewer of the video, by ColorVideoVDP (PyPI cvvdp).

Mantiuk et al. 2024. Knows no files and no networks.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any

import torch
from torch import Tensor

from training.evaluation.metrics import Absent

DISPLAY = "standard_4k"
"""ColorVideoVDP's default: a 30-inch monitor of 3840x2160, 200 cd/m2 in an office of 250 lux, seen from 0.75 m, twice
its height: 75 pixels a degree. Values of other displays cannot be compared with these."""


class Jod:
    """Just-objectionable differences from the truth: 10 if nothing is to be seen, lower is worse; a pair of clips that
    differ by 1 is told apart, and the better one preferred, by three viewers of four.
    """

    def __init__(self, metric: Any) -> None:
        self._metric = metric

    def __call__(self, clip: Tensor, truth: Tensor, frames_per_second: float) -> float:
        """JOD of the whole clip as a video, (T, 3, H, W) in [0, 1], sRGB. Raises ValueError if the shapes differ.

        A single frame counts as a still picture. Costs 1.5 to 2.5 s of a CPU core for 10 frames of 384x384. This is the
        authors' program; the tests hold its properties and compare it with no other, for there is none.
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
    """Return the metric, or why there is none. The import leaves the search path and the warnings as they were."""
    path = list(sys.path)
    try:
        with warnings.catch_warnings():
            import pycvvdp  # only who asks for it needs it

            metric = pycvvdp.cvvdp(display_name=DISPLAY, quiet=True, device=torch.device(device))
    except ImportError as error:
        return Absent(f"{error.name} is not installed", "pip install cvvdp")
    finally:
        sys.path[:] = path
    return Jod(metric)
