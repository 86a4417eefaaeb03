"""Finished scores on disk, a small file for each row and sequence, so that an interrupted run can be resumed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from training.benchmarking.naturalness import METRICS
from training.run_folder import whole_file


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameScores:
    """Values of one measured frame; None: the metric is unavailable, or has no value for this frame."""

    frame: str
    niqe: float | None
    brisque: float | None
    nrqm: float | None
    pi: float | None


type Scores = Mapping[str, Mapping[str, Sequence[FrameScores]]]
"""Scores by row, then by sequence."""


class Kept:
    """Scores in OUT/scores/ROW/SEQUENCE.json, each with everything that it depends on.

    OUT/frames/ROW/SEQUENCE.json says the same of the frames beside it.
    """

    def __init__(self, out: Path) -> None:
        self._folder, self._frames_folder = out / "scores", out / "frames"

    def read(self, row: str, sequence: str, asked: Mapping[str, Any]) -> list[FrameScores] | None:
        """Return the scores of a sequence, or None if they are missing, damaged, or of other inputs.

        Args:
            row: Name of the row.
            sequence: Name of the sequence.
            asked: Everything that the scores depend on, as plain JSON.
        """
        try:
            stored = json.loads(self._path(row, sequence).read_text(encoding="utf-8"))
            if stored["asked"] != json.loads(json.dumps(asked)):
                return None
            return [FrameScores(**scores) for scores in stored["frames"]]
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, row: str, sequence: str, asked: Mapping[str, Any], frames: Sequence[FrameScores]) -> None:
        """Write the scores of a sequence, atomically."""
        plain = {"asked": asked, "frames": [asdict(frame) for frame in frames]}
        with whole_file(self._path(row, sequence)) as file:
            file.write((json.dumps(plain, indent=1, allow_nan=False) + "\n").encode())

    def has_frames(self, row: str, sequence: str, asked: Mapping[str, Any]) -> bool:
        """Return whether all frames of a sequence are written, and of the same inputs as `asked`."""
        try:
            stored = json.loads(self._frames_path(row, sequence).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return bool(stored == json.loads(json.dumps(asked)))

    def forget_frames(self, row: str, sequence: str) -> None:
        """Forget the frames of a sequence, which are about to be written again."""
        self._frames_path(row, sequence).unlink(missing_ok=True)

    def note_frames(self, row: str, sequence: str, asked: Mapping[str, Any]) -> None:
        """Note that all frames of a sequence are written."""
        with whole_file(self._frames_path(row, sequence)) as file:
            file.write((json.dumps(asked, indent=1) + "\n").encode())

    def _frames_path(self, row: str, sequence: str) -> Path:
        return self._frames_folder / file_name(row) / f"{sequence}.json"

    def _path(self, row: str, sequence: str) -> Path:
        return self._folder / file_name(row) / f"{sequence}.json"


def file_name(row: str) -> str:
    """Return the name of a row's folder."""
    return re.sub(r"[^\w.+-]+", "_", row)


def means(frames: Sequence[FrameScores]) -> dict[str, float | None]:
    """Return the mean of each metric over the frames that have it; every frame counts the same, as in PIRM's code."""
    found = {name: [getattr(frame, name) for frame in frames if getattr(frame, name) is not None] for name in METRICS}
    return {name: float(np.mean(values)) if values else None for name, values in found.items()}
