"""The table that is printed, and results.json."""

from __future__ import annotations

import dataclasses
import json
import platform
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from training.evaluation.metrics import Absent
from training.evaluation.scoring import BICUBIC, Record, Scores, means
from training.evaluation.visible import DISPLAY
from training.run_folder import whole_file

_COLUMNS: tuple[tuple[str, str, int], ...] = (
    ("psnr_db", "PSNR", 2),
    ("ssim", "SSIM", 3),
    ("haarpsi", "HaarPSI", 3),
    ("gmsd", "GMSD", 3),
    ("jod", "JOD", 2),
    ("lpips", "LPIPS", 3),
    ("dists", "DISTS", 3),
    ("niqe", "NIQE", 2),
    ("brisque", "BRISQUE", 1),
    ("sharpness", "sharp", 2),
    ("high_band_correlation", "HFcorr", 2),
    ("weave_255", "weave", 3),
    ("hatching_255", "hatch", 3),
    ("phase_255", "phase", 3),
    ("flicker_255", "flicker", 2),
    ("colour_shift_255", "shift", 2),
)
"""Field of Scores, heading, number of decimals."""

_LEGEND = (
    "PSNR and gain: dB of the luma; gain over bicubic."
    " Higher is better: PSNR, SSIM, HaarPSI, JOD (10: no visible difference; display " + DISPLAY + ")."
    " Lower is better: GMSD, LPIPS, DISTS, NIQE, BRISQUE, flicker (warping error along the truth's motion, of 255)."
    " sharp: mean length of the gradient, the truth's is 1. HFcorr: correlation of the fine detail with the truth's."
    " weave: pattern that repeats with each pixel of the input, of 255; the truth has what its edges make."
    " hatch: stripes and checks of alternate pixels of the input beyond the truth's, of 255."
    " phase: difference of the strength of fine detail between positions within a pixel of the input, beyond the"
    " truth's, of 255."
    " shift: largest difference of a colour's mean from bicubic's, of 255."
)


def by_chain(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Return the records of each chain, in the order of their first."""
    chains: dict[str, list[Record]] = {}
    for record in records:
        chains.setdefault(record.chain, []).append(record)
    return chains


def report(records: Sequence[Record], absent: Mapping[str, Absent]) -> str:
    """Return the report: a line for each chain and method, means over the clips; the worst clips; absent metrics."""
    averages = {chain: means(some) for chain, some in by_chain(records).items()}
    measured = {field for scores in averages.values() for one in scores.values() for field in _measured_fields(one)}
    columns = [column for column in _COLUMNS if column[0] in measured]
    rows = [["chain", "method", "PSNR", "gain", *(heading for _, heading, _ in columns[1:])]]
    for chain, methods in averages.items():
        base = methods[BICUBIC].psnr_db
        for name, scores in methods.items():
            gain = None if scores.psnr_db is None or base is None or name == BICUBIC else scores.psnr_db - base
            cells = [_cell(getattr(scores, field), f".{decimals}f") for field, _, decimals in columns]
            rows.append([chain, name, cells[0], _cell(gain, "+.2f"), *cells[1:]])
    notes = []
    for chain, some in by_chain(records).items():
        worst = min(some, key=lambda record: record.gain_db)
        notes.append(f"{chain}: worst of {len(some)} clips {worst.clip} ({worst.source}) {worst.gain_db:+.2f} dB")
    notes += [_LEGEND, *(f"{name.upper()} is absent: {reason}" for name, reason in absent.items())]
    return "\n".join([*_aligned(rows), *(line for note in notes for line in textwrap.wrap(note, 120))])


def write_results(
    path: Path, records: Sequence[Record], absent: Mapping[str, Absent], given: Mapping[str, Any]
) -> None:
    """Write results.json: what was asked for, versions, absent metrics, means and worst clips, all scores.

    Args:
        path: The file.
        records: Scores of all clips.
        absent: Metrics that are unavailable, and why.
        given: What was asked for, as plain JSON.
    """
    plain = {
        **given,
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "opencv": cv2.__version__},
        "jod_display": DISPLAY,
        "absent": {name: dataclasses.asdict(reason) for name, reason in absent.items()},
        "chains": {chain: _summary(some) for chain, some in by_chain(records).items()},
        "clips": [{**dataclasses.asdict(record), "gain_db": record.gain_db} for record in records],
    }
    with whole_file(path) as file:
        file.write((json.dumps(plain, indent=1, allow_nan=False) + "\n").encode())


def _summary(records: Sequence[Record]) -> dict[str, Any]:
    worst = min(records, key=lambda record: record.gain_db)
    return {
        "means": {name: dataclasses.asdict(scores) for name, scores in means(records).items()},
        "mean_gain_db": float(np.mean([record.gain_db for record in records])),
        "worst": {"clip": worst.clip, "gain_db": worst.gain_db},
    }


def _measured_fields(scores: Scores) -> set[str]:
    return {field.name for field in dataclasses.fields(scores) if getattr(scores, field.name) is not None}


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return lines of equal columns: the two names left-aligned, the numbers right-aligned; each chain named once."""
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    lines, last = [], ""
    for chain, method, *numbers in rows:
        words = [("" if chain == last else chain).ljust(widths[0]), method.ljust(widths[1])]
        lines.append("  ".join([*words, *(c.rjust(w) for c, w in zip(numbers, widths[2:], strict=True))]))
        last = chain
    return lines
