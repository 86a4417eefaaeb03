"""What a run says while it works: a line that moves in a terminal, plain lines in a log file, or JSON for programs."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

PLAIN_INTERVAL_SECONDS = 30
"""Between two lines of a log that is no terminal."""


class Reporter(Protocol):
    """Takes what a run says."""

    def phase(self, name: str) -> None:
        """Say what is done now."""

    def start(self, done: int, total: int) -> None:
        """Say how many frames there are, and how many of them are done from before."""

    def frame(self) -> None:
        """Count one more frame."""

    def note(self, text: str) -> None:
        """Say something that the user should know."""

    def result(self, **facts: Any) -> None:
        """Say what came out."""


def memory_mib() -> float | None:
    """Return the largest memory that this process had so far, in MiB; None on Windows, where Python cannot tell."""
    if sys.platform == "win32":
        return None
    import resource  # Windows has none

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


class _Rate(ProgressColumn):
    """Frames per second since this run began: what was done before does not count."""

    def render(self, task: Any) -> Text:
        seconds = task.elapsed or 0
        done = task.completed - task.fields.get("before", 0)
        fps = f"{done / seconds:.2f} fps" if seconds and done else "- fps"
        peak = memory_mib()
        memory = "" if peak is None else f", {peak / 1024:.1f} GiB"
        return Text(fps + memory, style="progress.data.speed")


class TerminalReporter:
    """A line that moves."""

    def __init__(self, console: Console) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(),
            TimeRemainingColumn(compact=True),
        )
        self._progress = Progress(*columns, console=console, transient=False)
        self._task: TaskID = self._progress.add_task("starting", total=None, before=0)

    def __enter__(self) -> "TerminalReporter":
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def phase(self, name: str) -> None:
        """Show the phase at the beginning of the line."""
        self._progress.update(self._task, description=name)

    def start(self, done: int, total: int) -> None:
        """Begin to count frames."""
        self._progress.reset(self._task, total=total, completed=done, before=done)

    def frame(self) -> None:
        """Count one more frame."""
        self._progress.advance(self._task)

    def note(self, text: str) -> None:
        """Print a line above the moving one."""
        self._progress.console.print(text, style="yellow", highlight=False, markup=False)

    def result(self, **facts: Any) -> None:
        """Show that the run is at its end."""
        self._progress.update(self._task, description="done")


class PlainReporter:
    """Lines for a log that is no terminal, or JSON objects, one a line."""

    def __init__(self, *, as_json: bool) -> None:
        self._json = as_json
        self._done = self._before = self._total = 0
        self._began = self._last = time.monotonic()

    def __enter__(self) -> "PlainReporter":
        return self

    def __exit__(self, *exception: object) -> None:
        return

    def _say(self, event: str, line: str, /, **facts: Any) -> None:
        if self._json:
            print(json.dumps({"event": event, **facts}), flush=True)
        elif line:
            print(line, file=sys.stderr, flush=True)

    def phase(self, name: str) -> None:
        """Print the phase."""
        self._say("phase", name, phase=name)

    def start(self, done: int, total: int) -> None:
        """Begin to count frames."""
        self._done = self._before = done
        self._total = total
        self._began = time.monotonic()
        self._say("start", f"{done} of {total} frames are done", done=done, total=total)

    def frame(self) -> None:
        """Count one more frame; print it now and then, as JSON always."""
        self._done += 1
        now = time.monotonic()
        if not self._json and now - self._last < PLAIN_INTERVAL_SECONDS and self._done < self._total:
            return
        self._last = now
        fps = (self._done - self._before) / max(now - self._began, 1e-9)
        remaining = (self._total - self._done) / fps
        peak = memory_mib()
        text = f"{self._done} of {self._total} frames, {fps:.2f} fps, {remaining:.0f} s left"
        self._say(
            "progress",
            text,
            done=self._done,
            total=self._total,
            fps=round(fps, 3),
            eta_seconds=round(remaining, 1),
            memory_mib=None if peak is None else round(peak),
        )

    def note(self, text: str) -> None:
        """Print what the user should know."""
        self._say("note", text, text=text)

    def result(self, **facts: Any) -> None:
        """Print what came out."""
        self._say("result", "", **facts)


@contextmanager
def reporting(*, as_json: bool) -> Iterator[Reporter]:
    """Choose how to report: JSON where asked for, a moving line in a terminal, else plain lines."""
    console = Console(stderr=True)
    reporter = TerminalReporter(console) if console.is_terminal and not as_json else PlainReporter(as_json=as_json)
    with reporter:
        yield reporter
