"""A command in a process of its own, its CPU time and its peak memory.

Linux starts a process's peak at what its parent used when it was started, so a child of a benchmark with torch in it
would be charged with torch. This file, run as a program, is the small process in between: it starts the command and
writes down both. It imports the standard library only.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SIGNAL = 128
"""An exit status above this is a signal, as in a shell."""
_REASONS = ("Python exception: ", "Error: ")


@dataclass(frozen=True, slots=True)
class Finished:
    """Result of a command.

    Attributes:
        returncode: Exit status.
        stdout: Its output.
        stderr: Its messages.
        peak_bytes: Peak resident set; None if the system does not tell.
        cpu_seconds: Of the command and of all that it started and waited for; None if the system does not tell.
    """

    returncode: int
    stdout: str
    stderr: str
    peak_bytes: int | None
    cpu_seconds: float | None = None

    def last_words(self) -> str:
        """Return the reason that a script in vspipe gives, or the signal that ended the command, or its last line."""
        lines = [line.strip() for line in self.stderr.splitlines() if line.strip()]
        for line in lines:
            if line.startswith(_REASONS) and not line.endswith("with error:"):  # a traceback follows
                return line
        if self.returncode - SIGNAL in set(signal.Signals):
            return f"ended by {signal.Signals(self.returncode - SIGNAL).name}"
        return lines[-1] if lines else f"exit status {self.returncode}, and no word"


def run(
    command: Sequence[str], *, environment: Mapping[str, str] | None = None, folder: Path | None = None
) -> Finished:
    """Run a command to its end.

    Args:
        command: The command.
        environment: All of its variables; None: those of this process.
        folder: Where it runs; None: where this process does.
    """
    with tempfile.TemporaryDirectory() as notes:
        note = Path(notes) / "usage"
        between = [sys.executable, "-I", "-S", str(Path(__file__).resolve()), str(note), *command]
        done = subprocess.run(
            between,
            env=environment,
            cwd=folder,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
        peak, _, seconds = note.read_text().partition(" ") if note.exists() else ("", "", "")
    return Finished(
        done.returncode,
        done.stdout,
        done.stderr,
        int(peak) if peak else None,
        float(seconds) if seconds else None,
    )


def peak_bytes_of_children() -> int | None:
    """Return the largest peak resident set of all children that have ended; None on Windows."""
    if sys.platform == "win32":
        return None
    import resource  # Windows has none

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit


def main(note: str, command: Sequence[str]) -> int:
    """Run a command and write its peak and CPU time to the file `note`. Return the command's exit status."""
    code = subprocess.run(command, check=False).returncode
    peak = peak_bytes_of_children()
    if peak is not None:
        usage = os.times()
        Path(note).write_text(f"{peak} {usage.children_user + usage.children_system}")
    return code if code >= 0 else SIGNAL - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
