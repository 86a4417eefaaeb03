"""CPU time by what it was spent on."""

from __future__ import annotations

import contextlib
import resource
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field


def cpu_seconds() -> float:
    """Return the CPU time of this process, all of its threads, and its children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


@dataclass(slots=True)
class Watch:
    """CPU seconds by what they were spent on, one sum for each repeat.

    Attributes:
        num_repeats: Number of repeats.
        repeat: Index of the current one.
        spent: Sums by name.
    """

    num_repeats: int
    repeat: int = 0
    spent: dict[str, list[float]] = field(default_factory=dict)

    @contextlib.contextmanager
    def on(self, name: str) -> Iterator[None]:
        """Count the CPU time of the block as `name`, in the current repeat."""
        before = cpu_seconds()
        yield
        self.add(name, cpu_seconds() - before)

    def add(self, name: str, seconds: float) -> None:
        """Add seconds to the sum of `name`, in the current repeat."""
        self.spent.setdefault(name, [0.0] * self.num_repeats)[self.repeat] += seconds

    def per_clip(self, names: Sequence[str], num_clips: int) -> list[float]:
        """Return the sum of these names divided by the number of clips, for each repeat."""
        nothing = [0.0] * self.num_repeats
        sums = zip(*(self.spent.get(name, nothing) for name in names), strict=True)
        return [sum(parts) / num_clips for parts in sums]
