"""Hands out segments to workers that come, go, and die. Knows nothing of how they are reached."""

from collections import deque
from collections.abc import Hashable, Iterable

from vsrealbasicvsr.errors import UserError

from .plan import Segment

MAX_LOSSES = 5
"""Workers that may die at one segment before it is given up: then it is the segment that kills them."""


class Dispatcher:
    """Which segment comes next, and which are under way.

    Every segment is with at most one worker at a time, and is handed out until it is done. Segments come in order, so
    that the beginning of the output is there first; one that was lost comes before all others.
    """

    def __init__(self, segments: Iterable[Segment]) -> None:
        self._waiting = deque(sorted(segments))
        self._with: dict[Hashable, Segment] = {}
        self._losses: dict[Segment, int] = {}

    @property
    def finished(self) -> bool:
        """Whether no segment waits or is under way."""
        return not self._waiting and not self._with

    def next_for(self, worker: Hashable) -> Segment | None:
        """Hand a segment to a worker that has none; None if none waits."""
        if worker in self._with:
            raise ValueError(f"worker {worker} has {self._with[worker]}")
        if not self._waiting:
            return None
        self._with[worker] = self._waiting.popleft()
        return self._with[worker]

    def done(self, worker: Hashable) -> Segment:
        """Take note that a worker has rendered its segment, and return it."""
        return self._with.pop(worker)

    def lost(self, worker: Hashable) -> None:
        """Take back the segment of a worker that died.

        Raises:
            UserError: The segment was lost too often.
        """
        segment = self._with.pop(worker, None)
        if segment is None:
            return
        self._losses[segment] = self._losses.get(segment, 0) + 1
        if self._losses[segment] >= MAX_LOSSES:
            raise UserError(
                f"{MAX_LOSSES} workers died while they rendered frames {segment.first} to {segment.stop - 1}: look for"
                " their reason in Ray's logs (memory, most often), then run the command again"
            )
        self._waiting.appendleft(segment)
