"""`rbvsr train`: the package `training`, started as `python -m training` starts it."""

import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from vsrealbasicvsr.errors import UserError

MODULE = "training"


def train_command(arguments: Sequence[str]) -> list[str]:
    """Return the command line that runs the training commands in a process of their own.

    Raises:
        UserError: The package is not installed.
    """
    spec = importlib.util.find_spec(MODULE)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    if not folders or not (Path(folders[0]) / "__main__.py").is_file():
        raise UserError(
            "the package training is not installed: install rbvsr again with its training extra,"
            " pip install 'vapoursynth-rbvsr[train]'"
        )
    # -P: a folder called training in the current folder is not taken for it.
    safe = [] if Path(folders[0]).resolve().parent == Path.cwd().resolve() else ["-P"]
    return [sys.executable, *safe, "-m", MODULE, *arguments]


def run_training(arguments: Sequence[str]) -> int:
    """Run the training commands; return their exit status. On POSIX the process becomes theirs, and nothing returns."""
    command = train_command(arguments)
    if os.name == "posix":
        sys.stdout.flush()
        sys.stderr.flush()
        os.execv(command[0], command)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both: the training ends after its step
    try:
        return subprocess.run(command, check=False).returncode
    finally:
        signal.signal(signal.SIGINT, before)
