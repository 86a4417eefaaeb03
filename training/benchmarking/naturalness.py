"""NIQE, BRISQUE, NRQM and PI of single images, as VideoLQ is measured: by pyiqa if it is installed.

An image is (3, H, W) in [0, 1], RGB, of 8 bits. According to the paper all metrics are of the Y channel; NRQM, NIQE and
PI by the MATLAB code of the PIRM challenge (roimehrez/PIRM2018), BRISQUE by the authors' MATLAB code (mmagic's model
card of RealBasicVSR). PIRM's code takes Y of MATLAB's rgb2ycbcr, rounded to 8 bits, and crops 4 pixels at each border;
BRISQUE's own code takes rgb2gray and crops nothing. This module does the same.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from training.evaluation import libraries, metrics
from training.evaluation.metrics import Absent

SHAVED_PX = 4
METRICS = ("niqe", "brisque", "nrqm", "pi")
OURS = "this package"
INSTALL = "pip install -e '.[benchmark]'"
INSTALL_PYIQA = f"{INSTALL}; pip install --no-deps pyiqa"  # 50 packages less, one of which replaces OpenCV's

_PYIQA_OPTIONS: Mapping[str, Mapping[str, object]] = {
    "niqe": {"color_space": "ycbcr", "crop_border": SHAVED_PX},
    "brisque": {},
    "nrqm": {"color_space": "ycbcr", "crop_border": SHAVED_PX},
}


@dataclass(frozen=True, slots=True)
class Measure:
    """A metric of one image, and the program that computes it.

    Attributes:
        by: Name of the program.
        of: Returns the value of an image; nan if the image has none.
    """

    by: str
    of: Callable[[Tensor], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """The metrics that are available here. PI is (NIQE + 10 - NRQM) / 2, so it needs NRQM."""

    niqe: Measure | Absent
    brisque: Measure | Absent
    nrqm: Measure | Absent

    def of(self, picture: Tensor) -> dict[str, float | None]:
        """Return the values of an image by METRICS; None if a metric is unavailable or has no value for it."""
        values: dict[str, float | None] = {}
        for name in ("niqe", "brisque", "nrqm"):
            measure: Measure | Absent = getattr(self, name)
            value = math.nan if isinstance(measure, Absent) else measure.of(picture)
            values[name] = None if math.isnan(value) else value
        niqe, nrqm = values["niqe"], values["nrqm"]
        return {**values, "pi": None if niqe is None or nrqm is None else (niqe + 10 - nrqm) / 2}

    @property
    def by(self) -> dict[str, str]:
        """The program that computes each available metric."""
        found = {name: getattr(self, name) for name in ("niqe", "brisque", "nrqm")}
        return {name: measure.by for name, measure in found.items() if isinstance(measure, Measure)}

    @property
    def absent(self) -> dict[str, Absent]:
        """The metrics that are unavailable here, and why."""
        found = {"niqe": self.niqe, "brisque": self.brisque, "nrqm": self.nrqm, "pi": self.nrqm}
        return {name: value for name, value in found.items() if isinstance(value, Absent)}


def load_measures(device: torch.device) -> Measures:
    """Return the metrics that are available here.

    They are pyiqa's where it is installed and has its weights, which it downloads itself; else our NIQE and BRISQUE,
    and the reason why there is no NRQM.
    """
    niqe, brisque, nrqm = (load_pyiqa(name, device) for name in ("niqe", "brisque", "nrqm"))
    return Measures(
        niqe=Measure(OURS, niqe_of) if isinstance(niqe, Absent) else niqe,
        brisque=_own_brisque() if isinstance(brisque, Absent) else brisque,
        nrqm=nrqm,
    )


def load_pyiqa(name: str, device: torch.device) -> Measure | Absent:
    """Return pyiqa's metric, on the channel and with the border of VideoLQ; or why it is unavailable.

    Args:
        name: "niqe", "brisque" or "nrqm".
        device: Where it is computed.
    """
    try:
        import pyiqa  # optional
    except ImportError as error:
        return Absent(f"{error.name or 'pyiqa'} is not installed", INSTALL_PYIQA)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            metric: Any = pyiqa.create_metric(name, device=device, **_PYIQA_OPTIONS[name])
    except Exception as error:  # of a download: many types, by way of several libraries
        cause = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return Absent(
            f"pyiqa cannot load {name} ({cause[:120]})",
            "Let it download its weights, or put them into the folder hub/pyiqa of torch's cache",
        )

    def of(picture: Tensor) -> float:
        with torch.inference_mode():
            return float(metric(picture[None].float().to(device)))

    return Measure(f"pyiqa {pyiqa.__version__}", of)


def niqe_of(picture: Tensor) -> float:
    """Return our NIQE of MATLAB's Y without 4 pixels at each border; nan if less than one patch of 96x96 is left."""
    luma = matlab_luma(picture)[..., SHAVED_PX:-SHAVED_PX, SHAVED_PX:-SHAVED_PX]
    if min(luma.shape) < metrics.NIQE_PATCH_PX:
        return math.nan
    return metrics.niqe(luma.expand(1, 3, -1, -1))


def matlab_luma(picture: Tensor) -> Tensor:
    """Return Y of MATLAB's rgb2ycbcr, (3, H, W) to (H, W): 16 to 235 of 255, rounded to 8 bits, float64 in [0, 1]."""
    red, green, blue = picture.double()
    luma: Tensor = 16 + 65.481 * red + 128.553 * green + 24.966 * blue
    return luma.round() / 255


def _own_brisque() -> Measure | Absent:
    brisque = libraries.load_brisque()
    return brisque if isinstance(brisque, Absent) else Measure("piq", lambda picture: brisque(picture[None]))
