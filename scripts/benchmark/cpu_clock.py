"""CPU time by what it was spent on. Knows the standard library only."""

from __future__ import annotations

import contextlib
import resource
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field


def cpu_seconds() -> float:
    """CPU time of this process, all of its threads, and of its children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


@dataclass(slots=True)
class Watch:
    """CPU seconds by what they were spent on, one sum for each repeat."""

    num_repeats: int
    repeat: int = 0
    spent: dict[str, list[float]] = field(default_factory=dict)

    @contextlib.contextmanager
    def on(self, name: str) -> Iterator[None]:
        """What happens inside counts as `name`, in the repeat that `repeat` says."""
        before = cpu_seconds()
        yield
        self.add(name, cpu_seconds() - before)

    def add(self, name: str, seconds: float) -> None:
        """So much more was spent on `name`."""
        self.spent.setdefault(name, [0.0] * self.num_repeats)[self.repeat] += seconds

    def per_clip(self, names: Sequence[str], num_clips: int) -> list[float]:
        """What all of these cost together for one clip, repeat by repeat."""
        nothing = [0.0] * self.num_repeats
        sums = zip(*(self.spent.get(name, nothing) for name in names), strict=True)
        return [sum(parts) / num_clips for parts in sums]
