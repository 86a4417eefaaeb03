"""Ending a run: after a given time, or when the user asks for it."""

import contextlib
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any


class Pace:
    """The number of steps that fit into a time, measured over the second half of the first STEPS steps, then fixed.

    The learning rate follows the number of steps, so that a run with a time limit ends as one without.
    """

    STEPS = 60
    """Steps after which the number is fixed; the first half of them warms up."""
    RESERVE = 0.04
    """Share of the time that is left free, for steps that take longer later on."""

    def __init__(self, seconds: float, first: int) -> None:
        self.seconds, self._first, self._begun = seconds, first, time.monotonic()
        self._half: float | None = None

    def fitted(self, done: int, iterations: int) -> int:
        """Return the number of steps of the run, once `done` of them are measured; before, `iterations` unchanged."""
        now = time.monotonic()
        if done == self._first + self.STEPS // 2:
            self._half = now
        if done != self._first + self.STEPS or self._half is None:
            return iterations
        left_seconds = self.seconds * (1 - self.RESERVE) - (now - self._begun)
        return done + max(1, int(left_seconds * (self.STEPS // 2) / (now - self._half)))

    def is_over(self) -> bool:
        """Return whether the time is up."""
        return time.monotonic() - self._begun >= self.seconds


@contextlib.contextmanager
def stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether Ctrl-C or SIGTERM came; a second one ends the process at once."""
    asked = False

    def ask(number: int, _frame: Any) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        print(f"\n{signal.Signals(number).name}: ending after this step; once more ends at once", file=sys.stderr)

    previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
