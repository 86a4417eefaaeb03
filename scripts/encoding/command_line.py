"""The outer frame of a program that writes a video: signals, errors in one line, the exit status."""

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vsrealbasicvsr.errors import UserError, print_any_text, printable, shown_path

from .progress import print_above_bar

MAX_ERROR_LENGTH = 1000


def run_program(name: str, work: Callable[[], str], *, result: Path, check: str) -> int:
    """Run a program: print the line that `work` returns, or one line on standard error that says what is wrong.

    The first Ctrl-C or SIGTERM raises KeyboardInterrupt in `work`; later ones are ignored.

    Args:
        name: The program's name, which begins its lines.
        work: What the program does. UserError and OSError are the user's to mend; other exceptions are bugs.
        result: Where the result goes, named if an OSError names no file.
        check: What to check when a file cannot be written.

    Returns:
        The exit status: 0; 1 after an error; 130 after an interruption.
    """
    signal.signal(signal.SIGINT, interrupt_once)
    signal.signal(signal.SIGTERM, interrupt_once)
    print_any_text()
    try:
        print(work())
    except UserError as error:
        print(f"{name}: {printable(str(error), MAX_ERROR_LENGTH)}", file=sys.stderr)
        return 1
    except OSError as error:  # a full disk, a folder without permission, a result that is a folder
        where = shown_path(error.filename2 or error.filename or result)
        print(f"{name}: {where} cannot be written ({error.strerror}). {check}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{name}: interrupted; nothing half-written was left", file=sys.stderr)
        return 130
    return 0


def interrupt_once(number: int, frame: Any) -> None:
    """Handle the first Ctrl-C or SIGTERM by KeyboardInterrupt, and ignore those after it: cleaning up takes time."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def print_warning(program: str, text: str) -> None:
    """Print one line on standard error, above the progress bar."""
    print_above_bar(f"{program}: warning: {printable(text, MAX_ERROR_LENGTH)}")
