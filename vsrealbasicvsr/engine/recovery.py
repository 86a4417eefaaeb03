"""Recovery when memory is short: drop what is cached and try again, then process frames in ever smaller tiles."""

import itertools
from collections.abc import Callable
from dataclasses import replace

from vsrealbasicvsr.backends import is_out_of_memory, return_freed_memory

from .frame_cache import FrameCache
from .messages import Messages
from .worker import Worker

MIN_TILE_ROWS = 16
"""Minimum tile height in rows that is tried: below, there is nothing left to save."""


class Recovery:
    """Runs jobs of one device again after memory ran out. For its compute thread."""

    def __init__(self, worker: Worker, cache: FrameCache, messages: Messages, *, worker_index: int) -> None:
        self._worker = worker
        self._cache = cache
        self._messages = messages
        self._worker_index = worker_index

    def run[T](self, n: int, job: Callable[[], T]) -> T:
        """Return what `job` returns for frame n; each time that memory runs out, free some and run it again.

        Raises:
            RuntimeError, MemoryError: Memory is too short even for the smallest tiles, or the job failed otherwise.
        """
        for attempt in itertools.count():
            try:
                return job()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or (attempt > 0 and not self._can_shrink_tiles()):
                    raise
            # After the block: the error held the intermediate results of the failed job.
            self._drop_cached()
            if attempt == 0:
                said = "cached data was dropped, and is computed again where it is needed"
                num_states = max(self._worker.budget.num_states // 2, 2) if self._worker.budget else 2
            else:
                rows, num_states = self._shrink_tiles(), 2
                said = (
                    f"processing in tiles of {rows} rows from now on (differences within rounding); "
                    f"tile={rows} does so from the start"
                )
            self._tighten_budget(num_states)
            self._messages.warn(f"out of memory at frame {n} on {self._worker.device.device}: {said}")
        raise AssertionError

    def _drop_cached(self) -> None:
        """Drop the states and flows of all windows of the device, and the caches of its backend."""
        self._worker.statistics.times_out_of_memory += 1
        for cached in self._cache.windows_of(self._worker_index):
            for scene in cached.scenes or ():
                scene.drop_states()
            for source in self._cache.sources_of(cached):
                source.flow_to_next = source.flow_from_next = None
        self._worker.backend.release()
        return_freed_memory()

    def _tile_rows(self, height: int) -> int:
        return min(self._worker.backend.max_tile_rows or height, height)

    def _can_shrink_tiles(self) -> bool:
        height = self._worker.height
        return height is not None and self._tile_rows(height) > MIN_TILE_ROWS

    def _shrink_tiles(self) -> int:
        """Halve the tiles, and return their height in rows."""
        assert self._worker.height is not None
        rows = max(self._tile_rows(self._worker.height) // 2, MIN_TILE_ROWS)
        self._worker.backend.max_tile_rows = rows
        return rows

    def _tighten_budget(self, num_states: int) -> None:
        if self._worker.budget:
            self._worker.budget = replace(
                self._worker.budget, num_states=num_states, holds_flows=False, is_tight=True, trims=True
            )
