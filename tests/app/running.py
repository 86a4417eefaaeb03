"""`rbvsr` as a process, and the frames that it leaves."""

import hashlib
import subprocess
import sys
from pathlib import Path

import av

from tests.forked import RBVSR, run_module


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "vsrealbasicvsr", *map(str, arguments)]


def run(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return run_module("vsrealbasicvsr", *arguments, loads=RBVSR, cwd=cwd, environment={"COLUMNS": "120"})


def frames_of(path: Path) -> str:
    digest = hashlib.sha256()
    with av.open(str(path)) as file:
        for frame in file.decode(video=0):
            digest.update(frame.to_ndarray().tobytes())
    return digest.hexdigest()
