"""The benchmark's table, printed and written, and results.json."""

from __future__ import annotations

import dataclasses
import itertools
import json
import platform
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from training.benchmarking.kept import Scores, means
from training.benchmarking.naturalness import METRICS, Measures
from training.benchmarking.published import FRAMES_EACH, NUM_SEQUENCES, PUBLISHED
from training.run_folder import whole_file

_DECIMALS = {"niqe": 4, "brisque": 2, "nrqm": 4, "pi": 4}


def table(scores: Scores, measures: Measures) -> str:
    """Return the table as text: a line for each row, means over the measured frames; the paper's rows; notes."""
    head = ["method", *(name.upper() for name in METRICS), "frames"]
    rows, num_frames = [], []
    for name, sequences in scores.items():
        frames = list(itertools.chain.from_iterable(sequences.values()))
        num_frames.append(len(frames))
        rows.append([name, *_cells(means(frames)), str(len(frames))])
    full = NUM_SEQUENCES * FRAMES_EACH
    published = [[f"paper: {name}", *_cells(values), str(full)] for name, values in PUBLISHED.items()]
    lines = _aligned([head, *rows, *published])
    lines.insert(1 + len(rows), "-" * len(lines[0]))
    notes = ["Lower is better: NIQE, BRISQUE, PI. Higher is better: NRQM. PI = (NIQE + 10 - NRQM) / 2."]
    if any(number != full for number in num_frames):
        notes.append(
            f"The paper's rows are VideoLQ's {NUM_SEQUENCES} sequences; other frames cannot stand beside them."
        )
    by = ", ".join(f"{name.upper()} by {program}" for name, program in measures.by.items())
    notes.append(f"Measured: {by or 'nothing'}. The paper's by MATLAB: see README, Benchmark.")
    notes += [f"{name.upper()} is absent: {reason}" for name, reason in measures.absent.items()]
    return "\n".join([*lines, *(line for note in notes for line in textwrap.wrap(note, 120))])


def write_results(out: Path, scores: Scores, measures: Measures, given: Mapping[str, Any]) -> None:
    """Write OUT/results.json and OUT/table.txt.

    results.json holds what was asked for, versions, the programs of the metrics, which are absent and why, means, and
    the values of every frame.
    """
    plain = {
        **given,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "metrics_by": measures.by,
        "absent": {name: dataclasses.asdict(reason) for name, reason in measures.absent.items()},
        "means": {
            row: means(list(itertools.chain.from_iterable(sequences.values()))) for row, sequences in scores.items()
        },
        "published": {name: dict(values) for name, values in PUBLISHED.items()},
        "frames": {
            row: {name: [dataclasses.asdict(frame) for frame in frames] for name, frames in sequences.items()}
            for row, sequences in scores.items()
        },
    }
    with whole_file(out / "results.json") as file:
        file.write((json.dumps(plain, indent=1, allow_nan=False) + "\n").encode())
    with whole_file(out / "table.txt") as file:
        file.write((table(scores, measures) + "\n").encode())


def _cells(values: Mapping[str, float | None]) -> list[str]:
    return ["-" if (value := values[name]) is None else f"{value:.{_DECIMALS[name]}f}" for name in METRICS]


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
