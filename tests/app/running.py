"""`rbvsr` as a process, and the frames that it leaves."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import av

from tests import TIMEOUT_SECONDS


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "vsrealbasicvsr", *map(str, arguments)]


def run(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=TIMEOUT_SECONDS, env=environment, **options
    )


def frames_of(path: Path) -> str:
    digest = hashlib.sha256()
    with av.open(str(path)) as file:
        for frame in file.decode(video=0):
            digest.update(frame.to_ndarray().tobytes())
    return digest.hexdigest()
