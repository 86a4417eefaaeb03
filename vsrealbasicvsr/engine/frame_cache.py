"""The windows in use, and the source frames that they share. Holds the upscaler's lock; any thread may call it."""

import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from vsrealbasicvsr.backends import return_freed_memory

from .messages import Messages
from .propagation import SceneStates
from .scene_cuts import SceneCutFinder
from .source_frame import SourceFrame
from .windows import Grid, Window

MAX_WINDOWS = 3
"""Maximum number of cached windows per device that nobody waits for: the current one, and its neighbours, which share
context with it, so that reading backwards is cheap."""

MAX_REQUESTS = 64
"""Maximum number of frames that a caller asks for at once; beyond, windows may have to be filled twice."""


@dataclass(slots=True)
class CachedWindow:
    """A window and what is cached for it.

    Attributes:
        window: The window.
        num_requests: Requests for its frames that are not released yet.
        sources: Its source frames, as far as they were supplied.
        scenes: Its scenes, once its first frame was asked for. The device's compute thread works on them.
    """

    window: Window
    num_requests: int = 0
    sources: dict[int, SourceFrame] = field(default_factory=dict)
    scenes: list[SceneStates] | None = None

    @property
    def frames(self) -> range:
        """The source frames that the window reads."""
        return range(self.window.read_first, self.window.read_stop)

    def is_finished(self) -> bool:
        """Return whether all its frames were returned."""
        return self.scenes is not None and not any(scene.left for scene in self.scenes)


class FrameCache:
    """Windows by their index, least recently used first.

    Windows that overlap share their frames: a frame that one of them has, all of them have, so each frame is asked for,
    cleaned and matched once. A window with requests is never evicted; a few others are kept.

    Attributes:
        grid: The windows of the clip.
        num_supplied: Frames supplied so far.
        is_tight: Whether memory is tight: then windows all of whose frames were returned are evicted at once.
    """

    def __init__(self, grid: Grid, messages: Messages, scene_cuts: SceneCutFinder, *, num_workers: int = 1) -> None:
        """Create an empty cache; `num_workers` devices compute its windows in turn."""
        self.num_supplied = 0
        self.is_tight = False
        self._messages = messages
        self._scene_cuts = scene_cuts
        self.grid = grid
        self._num_workers = num_workers
        self._windows: OrderedDict[int, CachedWindow] = OrderedDict()
        self._lost: dict[int, str] = {}
        # Frames of an evicted window that the next window needs too, until that window exists.
        self._inherited: dict[int, SourceFrame] = {}
        self._heir = -1
        self._lock = threading.Lock()

    def acquire(self, n: int) -> int:
        """Register a request for frame n, and return the index of its window, which is kept until `release(n)`.

        Raises:
            IndexError: The clip has no frame n.
        """
        index = self.index_of(n)
        with self._lock:
            self._use(index).num_requests += 1
        return index

    def index_of(self, n: int) -> int:
        """Return the index of the window that keeps frame n. Raises IndexError if the clip has no frame n."""
        return self.grid.index_of(n)

    def missing(self, index: int) -> list[int]:
        """Return the source frames that a window still needs, ascending. Changes nothing."""
        with self._lock:
            cached = self._windows.get(index) or self._new_window(index)
            return self._missing(cached)

    def supply(self, index: int, frames: Mapping[int, SourceFrame]) -> None:
        """Add source frames to a window, and to all windows that overlap it. A frame that is there already stays.

        The calling thread looks for scene cuts, before any device sees the frames.
        """
        with self._lock:
            there = self._use(index).sources
            new = {i: frame for i, frame in frames.items() if i not in there}
            around = self._sources_around(new)
        for i, frame in new.items():
            frame.index = i
        self._scene_cuts.look(around | new, new)
        with self._lock:
            cached = self._use(index)
            for i, frame in new.items():
                if i in cached.sources:  # another thread supplied it meanwhile
                    continue
                self.num_supplied += 1
                for other in self._windows.values():
                    if i in other.frames:
                        other.sources[i] = frame

    def lose(self, n: int, reason: str = "") -> None:
        """Note that source frame n cannot be read: windows are computed without it. reason: once it is known."""
        with self._lock:
            is_news = bool(reason and not self._lost.get(n))
            self._lost[n] = self._lost.get(n) or reason
        if is_news:
            self._messages.warn(
                f"source frame {n} could not be read ({reason}): its neighbours are upscaled without it"
            )

    def why_lost(self, n: int) -> str | None:
        """Return the reason given for the loss of frame n, None if it is not lost."""
        return self._lost.get(n)

    def window_of(self, n: int) -> CachedWindow:
        """Return the window that keeps frame n. It has all its source frames but lost ones.

        Raises:
            LookupError: Source frames are missing, or frame n is lost.
        """
        with self._lock:
            cached = self._use(self.index_of(n))
            if missing := self._missing(cached):
                raise LookupError(f"frame {n} needs source frames {missing}")
            if n not in cached.sources:
                raise LookupError(f"source frame {n} is lost")
            return cached

    def source(self, n: int) -> SourceFrame:
        """Return source frame n. Raises LookupError if it was not supplied."""
        with self._lock:
            cached = self._windows.get(self.index_of(n))
            if cached is None or n not in cached.sources:
                raise LookupError(f"frame {n} was not supplied")
            return cached.sources[n]

    def release(self, n: int, *, is_memory_short: bool = False) -> None:
        """End a request for frame n, and evict windows without requests. is_memory_short: as if `is_tight` were set."""
        with self._lock:
            if cached := self._windows.get(self.index_of(n)):
                cached.num_requests -= 1
            is_any_evicted = self._evict(is_memory_short or self.is_tight)
        if is_any_evicted:
            return_freed_memory()

    def clear(self) -> None:
        """Evict everything, windows with requests included."""
        with self._lock:
            self._windows.clear()
            self._inherited, self._heir = {}, -1
        return_freed_memory()

    def worker_of(self, n: int) -> int:
        """Return the index of the worker that computes frame n."""
        return self.index_of(n) % self._num_workers

    def windows_of(self, worker: int) -> list[CachedWindow]:
        """Return the windows of a worker, those without requests first."""
        with self._lock:
            own = [cached for index, cached in self._windows.items() if index % self._num_workers == worker]
        return sorted(own, key=lambda cached: cached.num_requests > 0)

    def sources_of(self, cached: CachedWindow) -> list[SourceFrame]:
        """Return the frames of a window; other threads may supply more meanwhile."""
        with self._lock:
            return list(cached.sources.values())

    # ---- with the lock held ------------------------------------------------------------------------------------------

    def _missing(self, cached: CachedWindow) -> list[int]:
        return [i for i in cached.frames if i not in cached.sources and i not in self._lost]

    def _sources_around(self, numbers: Iterable[int]) -> dict[int, SourceFrame]:
        """Return the frames before and after these, as far as any window has them."""
        around = {j for i in numbers for j in (i - 1, i + 1)}
        return {j: cached.sources[j] for cached in self._windows.values() for j in around if j in cached.sources}

    def _use(self, index: int) -> CachedWindow:
        """Return the window, which becomes the most recently used one."""
        cached = self._windows.get(index)
        if cached is None:
            cached = self._windows[index] = self._new_window(index)
            if index == self._heir:
                self._inherited, self._heir = {}, -1
        self._windows.move_to_end(index)
        return cached

    def _new_window(self, index: int) -> CachedWindow:
        """Return a window that has the frames that are there already; the cache does not change."""
        cached = CachedWindow(self.grid.window(index))
        others = [*(other.sources for other in self._windows.values()), self._inherited]
        for i in cached.frames:
            if (sources := next((sources for sources in others if i in sources), None)) is not None:
                cached.sources[i] = sources[i]
        return cached

    def _evict(self, is_memory_tight: bool) -> bool:
        """Evict windows without requests, the least recently used first, and return whether there were any.

        All but a few go, and if memory is tight also those that are finished.

        Windows that are filled but not begun will be asked for in a moment: each request reads a frame's properties
        before the frame, and many requests may be in flight.
        """
        idle = {index: cached for index, cached in self._windows.items() if cached.num_requests <= 0}
        begun = [index for index, cached in idle.items() if cached.scenes is not None]
        filled = [index for index in idle if index not in begun]
        max_begun = MAX_WINDOWS * self._num_workers
        surplus = {*begun[: max(len(begun) - max_begun, 0)]}
        surplus |= {*filled[: max(len(filled) - max_begun - MAX_REQUESTS // self.grid.length, 0)]}
        if is_memory_tight:
            surplus |= {index for index in begun if idle[index].is_finished()}
        for index in surplus:
            del self._windows[index]
        following = max(surplus, default=-1) + 1
        if 0 < following < self.grid.num_windows and following not in self._windows:
            wanted = range(self.grid.window(following).read_first, self.grid.num_frames)
            self._inherited = {i: source for i, source in idle[following - 1].sources.items() if i in wanted}
            self._heir = following
        return bool(surplus)
