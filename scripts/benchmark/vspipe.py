"""A script run by real vspipe, in a process of its own: vspipe's own clock, and its peak memory.

vspipe starts its clock when the script has been evaluated and stops it after the last frame, so that imports, weights
and the building of filters do not count (tested: a script that sleeps does not slow its frames down). Every user sees
this time. Nothing of ours runs between the filter and vspipe.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from . import process

_REPORT = re.compile(r"Output (\d+) frames in (\d+\.\d+) seconds \((\d+\.\d+) fps\)")


class VspipeError(OSError):
    """vspipe is missing or failed. The text says why."""


@dataclass(frozen=True, slots=True)
class Piped:
    """Result of a run of vspipe.

    Attributes:
        num_frames: Frames that it output.
        seconds: By its own clock.
        peak_bytes: Peak resident set.
    """

    num_frames: int
    seconds: float
    peak_bytes: int | None


@dataclass(frozen=True, slots=True)
class Vspipe:
    """vspipe of this Python, configured in a folder of its own; the user's configuration is not changed."""

    executable: Path
    environment: Mapping[str, str]
    folder: Path

    @staticmethod
    def configured_in(folder: Path) -> Vspipe:
        """Find the program, and put its configuration and scripts into `folder`. Raise VspipeError if that fails."""
        spec = importlib.util.find_spec("vapoursynth")
        place = Path(spec.origin).parent if spec and spec.origin else Path()
        found = shutil.which("vspipe", path=str(place))  # the program itself, not the launcher in bin/
        if spec is None or found is None:
            raise VspipeError("there is no vspipe beside this Python. Install it: pip install vapoursynth")
        environment = {**os.environ, "XDG_CONFIG_HOME": str(folder), "XDG_CACHE_HOME": str(folder)}
        python = Path(sys.executable)
        python = python.parent.resolve() / python.name  # vspipe looks itself up by its real path
        command = [str(python), "-m", "vapoursynth", "config"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise VspipeError(f"vspipe cannot be configured: {done.stderr.strip()}")
        return Vspipe(Path(found), environment, folder)

    def run(self, script: str, given: Mapping[str, str | int], *, output: Path | None = None) -> Piped:
        """Run a script to its last frame.

        Args:
            script: Its text.
            given: Variables of the script, which receives them as text.
            output: File for the frames; None: they are dropped.

        Raises:
            VspipeError: vspipe failed.
        """
        path = self.folder / "script.vpy"
        path.write_text(textwrap.dedent(script), encoding="utf-8")
        arguments = [text for name, value in given.items() for text in ("--arg", f"{name}={value}")]
        command = [str(self.executable), *arguments, str(path), str(output) if output else "--"]
        done = process.run(command, environment=self.environment)
        report = _REPORT.search(done.stderr)
        if done.returncode or report is None:
            raise VspipeError(f"vspipe failed: {done.last_words()}")
        num_frames = int(report[1])
        return Piped(num_frames, _exactly(num_frames, float(report[2]), float(report[3])), done.peak_bytes)


def _exactly(num_frames: int, seconds: float, frames_per_second: float) -> float:
    """Return the seconds from two numbers with two decimals each: the larger one is the more precise."""
    return seconds if seconds >= frames_per_second else num_frames / frames_per_second
