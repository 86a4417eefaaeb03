"""How large a study is: minutes on a CPU, hours, or the paper's."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from training.degradations import MODERATE
from training.presets import COMPACT_ARCHITECTURE, STAGE_1, STAGE_2
from training.settings import Settings, changed
from vsrealbasicvsr.model import Architecture

type Start = Literal["default", "flow"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Settings of both stages of training, and the clips that are measured.

    start: what networks begin with: all of the default weights, or only the flow network (theirs, or --spynet's).
    Of the held-out clips num_clips are measured, num_frames of each (long_num_frames where a study is about length),
    a square of crop_px low-resolution pixels (74: nine patches of NIQE). pairs: batch and frames of the study
    batch-length, of one product.
    num_timed: samples whose making is timed, of timed_num_frames frames of timed_crop_px low-resolution pixels.
    """

    name: str
    stage_1: Settings
    stage_2: Settings
    start: Start
    num_clips: int | None
    num_frames: int
    long_num_frames: int
    crop_px: int
    pairs: str
    num_timed: int
    timed_num_frames: int = STAGE_1.data.num_frames
    timed_crop_px: int = STAGE_1.data.crop_px

    def with_changes(self, changes: Mapping[str, Any]) -> Scale:
        """Return the scale with settings of both stages changed. Raises SettingsError for values that do not fit."""
        return dataclasses.replace(self, stage_1=changed(self.stage_1, changes), stage_2=changed(self.stage_2, changes))


def _stages(
    architecture: Architecture, data: Mapping[str, Any], training: Mapping[str, Any], second: Mapping[str, Any]
) -> tuple[Settings, Settings]:
    """Return stage 1 and stage 2 of a network smaller than the paper's.

    The second stage has the small conditional discriminator, which needs no weights that must be downloaded.
    """
    base = dataclasses.replace(STAGE_1, architecture=architecture)
    first = changed(base, {"unsharp": False, **data, **training})
    losses = {
        "discriminator": "patch",
        "discriminator_width": 16,
        "adversarial_weight": 0.05,
        "feature_matching_weight": 1.0,
    }
    return first, changed(first, {**losses, **second})


_PAPERS_CLEANING = dataclasses.replace(COMPACT_ARCHITECTURE, num_cleaning_levels=1)
"""The default weights' sizes with the paper's cleaning module, which sees a frame at its own size alone."""

_SMOKE = _stages(
    _PAPERS_CLEANING,
    {"num_frames": 6, "crop_px": 24, "degradations": dataclasses.asdict(MODERATE)},
    {
        "iterations": 24,
        "batch": 1,
        "learning_rate": 1e-4,
        "final_learning_rate": 1e-5,
        "warm_up_iterations": 3,
        "max_gradient_norm": 0.5,
        "ema_decay": 0.9,
        "checkpoint_every": 8,
        "keep_checkpoints": 1,
        "log_every": 8,
        "images_every": 10_000,
    },
    {"learning_rate": 2e-4},
)

_SMALL = _stages(
    dataclasses.replace(_PAPERS_CLEANING, start_passes=0),
    {"num_frames": 14, "crop_px": 48},
    {
        "iterations": 1500,
        "batch": 4,
        "learning_rate": 6e-4,
        "final_learning_rate": 1e-5,
        "warm_up_iterations": 50,
        "max_gradient_norm": 0.5,
        "ema_decay": 0.995,
        "checkpoint_every": 50,
        "keep_checkpoints": 1,
        "log_every": 50,
        "images_every": 500,
    },
    {"iterations": 750, "learning_rate": 2e-4},
)

SCALES: Mapping[str, Scale] = {
    "smoke": Scale(
        name="smoke",
        stage_1=_SMOKE[0],
        stage_2=_SMOKE[1],
        start="default",
        num_clips=5,
        num_frames=6,
        long_num_frames=30,
        crop_px=74,
        pairs="4x2,2x4,1x8",
        num_timed=12,
    ),
    "small": Scale(
        name="small",
        stage_1=_SMALL[0],
        stage_2=_SMALL[1],
        start="flow",
        num_clips=8,
        num_frames=15,
        long_num_frames=60,
        crop_px=96,
        pairs="14x4,8x7,4x14",
        num_timed=24,
    ),
    "paper": Scale(
        name="paper",
        stage_1=STAGE_1,
        stage_2=STAGE_2,
        start="flow",
        num_clips=None,
        num_frames=30,
        long_num_frames=100,
        crop_px=160,
        pairs="48x10,24x20,16x30",
        num_timed=48,
    ),
}


@dataclass(frozen=True, slots=True)
class Pair:
    """`batch` clips of `num_frames` frames in each step."""

    batch: int
    num_frames: int

    def __str__(self) -> str:
        return f"{self.batch}x{self.num_frames}"


def frames_of(pairs: Sequence[Pair]) -> list[int]:
    """Return the lengths of the pairs, each once, the shortest first."""
    return sorted({pair.num_frames for pair in pairs})
