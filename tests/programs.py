"""Programs given as text, each in a Python process of its own."""

import os
import subprocess
import sys
from pathlib import Path

from tests import ROOT, TIMEOUT_SECONDS


def run_program(
    program: str, *words: object, cwd: Path = ROOT, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program, and fail with what it says if it fails."""
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, words)],
        env={**os.environ, **(environment or {})},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done
