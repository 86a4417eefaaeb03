"""Medians with their spread, tables, and the machine that they belong to, for every part of the benchmark."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "torchvision", "numpy", "opencv-python-headless", "av", "vapoursynth")


@dataclass(frozen=True, slots=True)
class Spread:
    """Seconds: median over repeats, lowest and highest."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(seconds: Sequence[float]) -> Spread:
        """Return the spread of these repeats."""
        return Spread(statistics.median(seconds), min(seconds), max(seconds))

    def __str__(self) -> str:
        """Return the spread in milliseconds."""
        if not self.high:
            return "-"
        return f"{1000 * self.median:.1f} ({1000 * self.low:.1f}-{1000 * self.high:.1f})"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return lines of columns, the first left-aligned, the others right-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [[cell.rjust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    return ["  ".join([row[0].ljust(widths[0]), *line[1:]]).rstrip() for row, line in zip(rows, lines, strict=True)]


def write_json(path: Path | None, report: Mapping[str, Any]) -> None:
    """Write a report to a file, if one is given."""
    if path is not None:
        path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def print_machine(about: Mapping[str, Any]) -> None:
    """Print the result of `machine` in one line."""
    print(", ".join(f"{name} {value}" for name, value in about.items() if isinstance(value, str | int)))


def machine() -> dict[str, Any]:
    """Return the machine, the versions and the commit that the numbers belong to."""
    return {
        "processor": _processor(),
        "num_cores": os.cpu_count(),
        "load": [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else [],
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%d"),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "-"


def _commit() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
