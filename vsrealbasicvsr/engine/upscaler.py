"""The windows of one clip through one network: each computed once, its frames made lazily and in order."""

import contextlib
import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from vsrealbasicvsr.model import SCALE, RealBasicVSR, refine
from vsrealbasicvsr.scenes import Thumbnail, is_scene_cut, thumbnail

from .compute import Compute
from .memory import (
    Budget,
    free_bytes,
    is_out_of_memory,
    packed,
    return_freed_memory,
    spread,
    spread_to_end,
    unpacked,
)
from .network import Network, Propagation
from .windows import Grid, Window

SceneCuts = Literal["auto", "props", "off"]

type Planes = Sequence[Tensor]
"""Planes of a picture, each (rows, columns), on the CPU: three of float32, or what the caller's conversion makes."""

type MakePlanes = Callable[[], Planes]

type Convert = Callable[[Tensor], Sequence[Tensor]]
"""From a frame (3, S*H, S*W), float32, to planes, on the device that it is on."""

MAX_WINDOWS = 3
"""Kept alive for each device: the one in use, and those that share context with it, for reading backwards."""

MAX_REQUESTS = 64
"""Frames that a host has asked for at once, at most; beyond, windows may have to be filled twice."""

MIN_ROWS = 16
"""Of a band, when memory is short: below, there is nothing left to save."""


LOWEST, HIGHEST = -2.0, 3.0
"""What samples are limited to. Every integer format lies within, super-white and the most saturated colours that YUV
can say included (-1.3 to 2.3), and what a resizer's overshoot adds."""

MAX_NAMED = 20
"""Frames with samples beyond that are named in the log."""


@dataclass(slots=True, weakref_slot=True)
class SourceFrame:
    """A frame of the clip, as the host hands it over, and later what was computed from it alone.

    rgb: (3, H, W) float32 on the CPU, gamma-encoded, or what returns it, which is called once at most; dropped once the
    frame is cleaned.
    begins_scene and ends_scene: what the host knows of cuts before and after the frame, or None. host: a thing of the
    host's own that comes back with the upscaled frame.
    """

    rgb: Tensor | Callable[[], Tensor] | None
    begins_scene: bool | None = None
    ends_scene: bool | None = None
    host: object = None
    cleaned: Tensor | None = None
    thumbnail: Thumbnail | None = None
    flow_to_next: Tensor | None = None
    flow_from_next: Tensor | None = None
    lock: threading.RLock = field(default_factory=threading.RLock)
    number: int = -1
    """In the clip, known once it is supplied."""
    is_limited: bool = False
    """Whether `rgb` is a tensor whose samples are known to lie from LOWEST to HIGHEST."""


@dataclass(slots=True)
class Statistics:
    """What was done so far, counted."""

    frames_supplied: int = 0
    frames_cleaned: int = 0
    cleaning_passes: int = 0
    flows: int = 0
    windows_computed: int = 0
    backward_steps: int = 0
    forward_steps: int = 0
    frames_reconstructed: int = 0
    times_out_of_memory: int = 0


@dataclass(slots=True)
class _Segment:
    """The propagation over the frames of a window that belong to one scene; `frames` are consecutive.

    left: the kept frames that were not given away yet. backward and forward: states that are held. forward_state is
    that of the frame before next_forward.
    """

    frames: range
    kept: range
    left: set[int]
    next_forward: int
    backward: dict[int, Tensor] = field(default_factory=dict)
    forward: dict[int, Tensor] = field(default_factory=dict)
    forward_state: Tensor | None = None

    @classmethod
    def over(cls, frames: range, kept: range) -> "_Segment":
        return cls(frames, kept, set(kept), frames.start)

    def begin_again(self) -> None:
        """As if nothing had been computed or given away."""
        self.drop_states()
        self.left = set(self.kept)

    def drop_states(self) -> None:
        """Everything can be computed again."""
        self.backward.clear()
        self.forward.clear()
        self.forward_state, self.next_forward = None, self.frames.start

    def num_states(self) -> int:
        """Those that are held."""
        return len(self.backward) + len(self.forward)

    def is_begun(self) -> bool:
        """Whether anything is held that a walk goes on from."""
        return self.num_states() > 0 or self.forward_state is not None


@dataclass(slots=True)
class _LiveWindow:
    window: Window
    num_waiting: int = 0
    sources: dict[int, SourceFrame] = field(default_factory=dict)
    segments: list[_Segment] | None = None

    def is_finished(self) -> bool:
        """Whether all its frames were given away."""
        return self.segments is not None and not any(segment.left for segment in self.segments)


@dataclass(slots=True)
class _Worker:
    """A device, the network on it, and what may be held there (known once a frame was seen)."""

    compute: Compute
    network: Network
    budget: Budget | None = None


class WindowUpscaler:
    """Upscales the frames of one clip, window by window.

    The host calls, for a frame n that it wants: `expect(n)`; `missing(window)` and `supply(...)` until nothing is
    missing; `upscale(n)`; and, whatever happened, `release(n)` once for each `expect(n)`. All of it from any thread.
    A window that somebody waits for is never dropped; a few others are kept. A source frame that cannot be had is
    `lose`d: the others are made without it, as if a scene ended before it and one began after it.

    Several devices share the work: windows are dealt to them in turn. When memory runs out, what is held is dropped and
    computed again, then frames are worked on in ever smaller bands.
    """

    def __init__(
        self,
        model: RealBasicVSR,
        compute: Compute | Sequence[Compute],
        grid: Grid,
        *,
        theta: float,
        cleaning: float = 1.0,
        scene_cuts: SceneCuts = "auto",
        max_rows: int | None = None,
    ) -> None:
        """max_rows: rows of a frame that are cleaned or propagated at once; None: as its size allows."""
        self.grid = grid
        self.statistics = Statistics()
        devices = [compute] if isinstance(compute, Compute) else compute
        self._workers = [_Worker(one, one.prepare(model, max_rows=max_rows)) for one in devices]
        self._state_channels = model.sizes.mid_channels
        self._theta = theta
        self._cleaning = cleaning
        self._scene_cuts = scene_cuts
        self._lock = threading.Lock()
        self._live: OrderedDict[int, _LiveWindow] = OrderedDict()
        # Frames that two live windows share are one object, so each is asked for, cleaned and matched once.
        self._sources: WeakValueDictionary[int, SourceFrame] = WeakValueDictionary()
        self._warnings: list[str] = []
        self._noted: set[str] = set()
        self._lost: dict[int, str] = {}
        self._limited: set[int] = set()
        self._height: int | None = None  # of the clip, known from the first frame on
        self._handed_on: dict[int, SourceFrame] = {}
        self._handed_to = -1

    def expect(self, n: int) -> int:
        """The window that keeps frame n; it is held until `release(n)`. Raises IndexError outside of the clip."""
        number = self.grid.number_of(n)
        with self._lock:
            self._window(number).num_waiting += 1
        return number

    def release(self, n: int, *, is_memory_short: bool = False) -> None:
        """End one `expect(n)`. is_memory_short: keep nothing for reading backwards."""
        with self._lock:
            if live := self._live.get(self.grid.number_of(n)):
                live.num_waiting -= 1
            is_tight = is_memory_short or any(worker.budget and worker.budget.is_tight for worker in self._workers)
            some_dropped = self._drop_idle_windows(is_tight)
        if some_dropped:
            return_freed_memory()

    def missing(self, number: int) -> list[int]:
        """The source frames that the window still needs, ascending."""
        with self._lock:
            live = self._window(number)
            frames = range(live.window.read_first, live.window.read_stop)
            for i in frames:
                if i not in live.sources and (source := self._sources.get(i)) is not None:
                    live.sources[i] = source
            if number == self._handed_to:
                self._handed_on = {}
            return [i for i in frames if i not in live.sources and i not in self._lost]

    def lose(self, n: int, reason: str = "") -> None:
        """Source frame n cannot be had: from now on, windows that lack it do without. reason: once it is known."""
        with self._lock:
            if reason and not self._lost.get(n):
                self._warnings.append(f"source frame {n} cannot be had ({reason}): those around it are made without it")
            self._lost[n] = self._lost.get(n) or reason

    def why_lost(self, n: int) -> str | None:
        """The reason that was given for frame n, None if it is not lost."""
        with self._lock:
            return self._lost.get(n)

    def supply(self, number: int, frames: Mapping[int, SourceFrame]) -> None:
        """Hand source frames to a window. A frame that is there already stays the one it was."""
        with self._lock:
            live = self._window(number)
            for i, frame in frames.items():
                if i not in live.sources:
                    frame.number = i
                    live.sources[i] = self._sources.setdefault(i, frame)
                    self.statistics.frames_supplied += live.sources[i] is frame

    def host_of(self, n: int) -> object:
        """The `host` of source frame n. Raises LookupError if its window lacks it."""
        with self._lock:
            live = self._window(self.grid.number_of(n))
            if n not in live.sources:
                raise LookupError(f"frame {n} was not supplied")
            return live.sources[n].host

    def upscale(self, n: int) -> tuple[Tensor, object]:
        """Frame n, (3, S*H, S*W) float32 on the CPU, and the `host` of its source frame. Raises as `upscale_into`."""
        worker, live = self._ready(n)
        made = worker.compute.run(lambda: self._upscale(worker, live, n, convert=lambda hr: [hr]))
        return worker.compute.on_host(made)[0], live.sources[n].host

    def upscale_into(self, n: int, make_planes: MakePlanes, convert: Convert | None = None) -> object:
        """Write frame n into the planes that `make_planes` returns, as float32 RGB or as `convert` makes them.

        Returns the `host` of its source frame.

        make_planes is called once the frame is at hand, by another thread maybe: high-resolution frames are large, and
        many may be asked for at once. Raises LookupError if the window misses source frames, and what torch raises for
        want of memory if there is too little even for the smallest bands.
        """
        worker, live = self._ready(n)
        if convert is None and worker.compute.device.type == "cpu":
            worker.compute.run(lambda: self._upscale(worker, live, n, into=make_planes))
        else:
            made = worker.compute.run(lambda: self._upscale(worker, live, n, convert=convert or list))
            for plane, part in zip(make_planes(), worker.compute.on_host(made), strict=True):
                plane.copy_(part)
        return live.sources[n].host

    def _ready(self, n: int) -> tuple[_Worker, _LiveWindow]:
        """Who makes frame n, and its window, of which nothing is missing."""
        number = self.grid.number_of(n)
        if lacking := self.missing(number):
            raise LookupError(f"frame {n} needs source frames {lacking}")
        with self._lock:
            live = self._window(number)
            if n not in live.sources:
                raise LookupError(f"source frame {n} is lost")
            return self._workers[number % len(self._workers)], live

    def take_warnings(self) -> list[str]:
        """What the user should hear of, each once."""
        with self._lock:
            warnings, self._warnings = self._warnings, []
        return warnings

    def take_notes(self) -> list[str]:
        """What the networks did otherwise than they might, each once: nothing that shows in more than last bits."""
        with self._lock:
            notes = [f"{worker.compute.device}: {note}" for worker in self._workers for note in worker.network.notes]
            new = [note for note in notes if note not in self._noted]
            self._noted.update(new)
        return new

    def _window(self, number: int) -> _LiveWindow:
        """The live window of this number, now the most recently used. Call with the lock held."""
        live = self._live.get(number)
        if live is None:
            live = self._live[number] = _LiveWindow(self.grid.window(number))
        self._live.move_to_end(number)
        return live

    def _drop_idle_windows(self, is_tight: bool) -> bool:
        """Drop windows nobody waits for, the longest unused first: all but a few, and if memory is tight those that
        have given all their frames. Whether there were any. Call with the lock held.

        Windows that are filled but not begun will be waited for in a moment: each request reads a frame's properties
        before the frame, and many requests may be in flight.
        """
        idle = {number: live for number, live in self._live.items() if live.num_waiting <= 0}
        begun = [number for number, live in idle.items() if live.segments is not None]
        filled = [number for number in idle if number not in begun]
        most = MAX_WINDOWS * len(self._workers)
        surplus = {*begun[: max(len(begun) - most, 0)]}
        surplus |= {*filled[: max(len(filled) - most - MAX_REQUESTS // self.grid.length, 0)]}
        if is_tight:
            surplus |= {number for number in begun if idle[number].is_finished()}
        for number in surplus:
            del self._live[number]
        # Frames that the next window reads too outlive the last of those that were dropped.
        following = max(surplus, default=-1) + 1
        if 0 < following < self.grid.num_windows and following not in self._live:
            last, seen = idle[following - 1], range(self.grid.window(following).read_first, self.grid.num_frames)
            self._handed_on = {i: source for i, source in last.sources.items() if i in seen}
            self._handed_to = following
        return bool(surplus)

    def _count(self, **more: int) -> None:
        with self._lock:
            for name, number in more.items():
                setattr(self.statistics, name, getattr(self.statistics, name) + number)

    # From here on everything runs on the worker's compute thread, one job at a time.

    # Frame n comes back as what `convert` makes of it, on the device; on the CPU it may be written into planes instead.

    def _upscale(
        self, worker: _Worker, live: _LiveWindow, n: int, *, into: MakePlanes | None = None, convert: Convert = list
    ) -> Sequence[Tensor]:
        for attempt in itertools.count():
            try:
                return self._try_to_upscale(worker, live, n, into, convert)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or (attempt > 0 and not self._can_shrink(worker)):
                    raise
            # After the block: the error held what the failed step had made.
            self._shrink(worker, n, attempt)
        raise AssertionError

    def _try_to_upscale(
        self, worker: _Worker, live: _LiveWindow, n: int, into: MakePlanes | None, convert: Convert
    ) -> Sequence[Tensor]:
        if live.segments is None:
            live.segments = [
                _Segment.over(frames, range(max(frames.start, live.window.first), min(frames.stop, live.window.stop)))
                for frames in live.window.segments(lambda i: self._is_cut(live.sources.get(i - 1), live.sources.get(i)))
                if frames.start in live.sources
            ]
            self._count(windows_computed=1)
        segment = next(segment for segment in live.segments if n in segment.kept)
        if n not in segment.left:
            segment.begin_again()
        run = _Run(self, worker, segment, live.sources)
        if not segment.backward:
            self._make_room(worker, live)
        run.begin()
        backward, forward = run.backward_state(n), run.forward_state(n)
        cleaned = run.cleaned(n)
        parts = worker.network.reconstruct(cleaned, backward, forward)
        hr = cleaned.new_empty(3, *(SCALE * size for size in cleaned.shape[-2:])) if into is None else None
        planes = list(hr) if hr is not None else into()  # type: ignore[misc]
        for first, rows in parts:
            for plane, part in zip(planes, rows, strict=True):
                plane[first : first + len(part)] = part
        made = convert(hr) if hr is not None else ()
        segment.left.discard(n)
        segment.backward.pop(n, None)
        segment.forward.pop(n, None)
        self._count(frames_reconstructed=1)
        return made

    def _budget(self, worker: _Worker, picture: Tensor) -> Budget:
        height, width = picture.shape[-2:]
        return Budget.of(
            height=height,
            width=width,
            channels=self._state_channels,
            num_frames=min(self.grid.length + 2 * self.grid.overlap, self.grid.num_frames),
            free_bytes=free_bytes(worker.compute.device),
        )

    def _windows_of(self, worker: _Worker) -> list[_LiveWindow]:
        """The windows that this worker computes, those nobody waits for first."""
        with self._lock:
            mine = [live for number, live in self._live.items() if self._workers[number % len(self._workers)] is worker]
        return sorted(mine, key=lambda live: live.num_waiting > 0)

    def _make_room(self, worker: _Worker, current: _LiveWindow) -> None:
        """Let other windows forget their states if together they would be more than may be held."""
        others = [live for live in self._windows_of(worker) if live is not current and live.segments]
        num_held = sum(segment.num_states() for live in others for segment in live.segments or ())
        limit = max(worker.budget.num_states // 8, 2) if worker.budget else 2
        for live in others:
            if num_held <= limit:
                break
            for segment in live.segments or ():
                num_held -= segment.num_states()
                segment.drop_states()

    def _can_shrink(self, worker: _Worker) -> bool:
        return self._height is not None and min(worker.network.max_rows or self._height, self._height) > MIN_ROWS

    def _shrink(self, worker: _Worker, n: int, attempt: int) -> None:
        """After an attempt failed for want of memory: drop what is held, and from the second on halve the bands."""
        self._count(times_out_of_memory=1)
        for window in self._windows_of(worker):
            for segment in window.segments or ():
                segment.drop_states()
            with self._lock:  # other threads supply
                sources = list(window.sources.values())
            for source in sources:
                source.flow_to_next = source.flow_from_next = None
        worker.network.release()
        return_freed_memory()
        said = "what was held is computed again where it is needed"
        fewer = 2
        if attempt == 0:
            fewer = max(worker.budget.num_states // 2, 2) if worker.budget else 2
        else:
            assert self._height is not None
            rows = max(min(worker.network.max_rows or self._height, self._height) // 2, MIN_ROWS)
            worker.network.max_rows = rows
            said = (
                f"from now on frames are worked on in bands of {rows} rows, which shows in their last bits only; "
                f"tile={rows} does so from the start"
            )
        if worker.budget:
            worker.budget = replace(worker.budget, num_states=fewer, holds_flows=False, is_tight=True, trims=True)
        with self._lock:
            self._warnings.append(f"out of memory at frame {n} on {worker.compute.device}: {said}")

    def _cleaned(self, worker: _Worker, source: SourceFrame) -> Tensor:
        """The cleaned frame (1, 3, H, W), float32, on the worker's device."""
        with source.lock:
            if source.cleaned is None:
                self._clean(worker, [source])
            assert source.cleaned is not None
            if worker.budget is None:
                worker.budget = self._budget(worker, source.cleaned)
            return unpacked(source.cleaned.to(worker.compute.device))

    def _clean_abreast(self, worker: _Worker, sources: Sequence[SourceFrame], num: int) -> None:
        """Clean those that are not yet, `num` at a time. They come in the order of their numbers, in which every worker
        locks them.
        """
        for group in itertools.batched([source for source in sources if source.cleaned is None], num):
            with contextlib.ExitStack() as locks:
                for source in group:
                    locks.enter_context(source.lock)
                if dirty := [source for source in group if source.cleaned is None]:
                    self._clean(worker, dirty)

    def _clean(self, worker: _Worker, sources: Sequence[SourceFrame]) -> None:
        """Clean frames of one size, whose locks are held."""
        pictures = [self._picture(source) for source in sources]
        self._height = pictures[0].shape[-2]
        if self._scene_cuts == "auto":
            for source, picture in zip(sources, pictures, strict=True):
                # Later, beside a frame that comes with another window, it is too late. A frame that says on both sides
                # whether there is a cut is never looked at.
                if source.thumbnail is None and None in (source.begins_scene, source.ends_scene):
                    source.thumbnail = thumbnail(picture)
        on_device = [worker.compute.to_device(picture)[None] for picture in pictures]
        lr = (on_device[0] if len(on_device) == 1 else torch.cat(on_device))[None]
        cleaned, num_passes = refine(worker.network, lr, theta=self._theta, cleaning=self._cleaning)
        for source, frame in zip(sources, torch.split(cleaned[0], 1), strict=True):
            # by itself, not as a part of what holds the others too
            source.cleaned = packed(frame if len(sources) == 1 else frame.clone())
            source.rgb = None
        self._count(frames_cleaned=len(sources), cleaning_passes=int(num_passes.sum().item()))

    def _is_cut(self, before: SourceFrame | None, after: SourceFrame | None) -> bool:
        if before is None or after is None:  # lost
            return True
        if self._scene_cuts == "off":
            return False
        told = [cut for cut in (before.ends_scene, after.begins_scene) if cut is not None]
        if told or self._scene_cuts == "props":
            return any(told)
        return is_scene_cut(self._look_at(before), self._look_at(after))

    def _look_at(self, source: SourceFrame) -> Thumbnail:
        with source.lock:
            if source.thumbnail is None:
                source.thumbnail = thumbnail(self._picture(source))
            return source.thumbnail

    def _picture(self, source: SourceFrame) -> Tensor:
        """The frame (3, H, W) as it came, NaN as 0 and all else from LOWEST to HIGHEST: one sample beyond would spoil
        all frames of its scene. Call with the frame's lock held.

        Made once: the scene detector and the cleaning share one copy, which takes the place of the host's frame.
        """
        assert source.rgb is not None
        picture = source.rgb if isinstance(source.rgb, Tensor) else source.rgb()
        if not source.is_limited:
            picture = self._limited_picture(picture, source.number)
            source.rgb, source.is_limited = picture, True
        return picture

    def _limited_picture(self, picture: Tensor, number: int) -> Tensor:
        lowest, highest = picture.aminmax()
        if lowest >= LOWEST and highest <= HIGHEST:  # neither is true of NaN
            return picture
        num = int((~((picture >= LOWEST) & (picture <= HIGHEST))).any(0).sum())
        with self._lock:
            if number not in self._limited and len(self._limited) < MAX_NAMED:
                more = "; further frames are not named" if len(self._limited) == MAX_NAMED - 1 else ""
                self._limited.add(number)
                pixels = f"{num} pixels that are" if num > 1 else "1 pixel that is"
                self._warnings.append(
                    f"source frame {number} has {pixels} no number or beyond {LOWEST:g} to "
                    f"{HIGHEST:g}: NaN is taken for 0, the others for the limits{more}"
                )
        return picture.nan_to_num(nan=0.0, posinf=HIGHEST, neginf=LOWEST).clamp_(LOWEST, HIGHEST)


@dataclass(frozen=True, slots=True)
class _Run:
    """The propagation through one segment on one device, as far as it is asked for."""

    upscaler: WindowUpscaler
    worker: _Worker
    segment: _Segment
    sources: Mapping[int, SourceFrame]

    def cleaned(self, i: int) -> Tensor:
        """Frame i, cleaned."""
        return self.upscaler._cleaned(self.worker, self.sources[i])

    def begin(self) -> None:
        """Do together what may be done together, before the first frame of the segment is made.

        For networks that want several frames at once. What is made is what is made one by one, to the bit.
        """
        if self.segment.is_begun():
            return
        frames, worker = self.segment.frames, self.worker
        num = worker.network.num_abreast(*self.cleaned(frames.stop - 1).shape[-2:])
        budget = worker.budget
        if num == 1 or budget is None:
            return
        self.upscaler._clean_abreast(worker, [self.sources[i] for i in frames], num)
        if budget.holds_flows:
            self._match_abreast(num)
        if budget.num_states >= 2 * len(self.segment.left):
            self._walk_both_ways()

    def _match_abreast(self, num: int) -> None:
        """The flows that the two walks take, `num` at a time."""
        frames, kept = self.segment.frames, self.segment.kept
        after = [i for i in range(kept.start, frames.stop - 1) if self.sources[i].flow_from_next is None]
        before = [i for i in range(frames.start, kept.stop - 1) if self.sources[i].flow_to_next is None]
        pairs = [(i, i + 1) for i in after] + [(i + 1, i) for i in before]  # (ref, supp)
        for group in itertools.batched(pairs, num):
            refs, supps = (torch.cat([self.cleaned(i) for i in numbers]) for numbers in zip(*group, strict=True))
            for (ref, supp), flow in zip(group, torch.split(self.worker.network.flow(refs, supps), 1), strict=True):
                if ref < supp:
                    self.sources[ref].flow_from_next = flow.clone()
                else:
                    self.sources[supp].flow_to_next = flow.clone()
            self.upscaler._count(flows=len(group))

    def _walk_both_ways(self) -> None:
        """The backward states of the frames that are left, from the last frame down, and beside each step one of the
        forward states, from the first frame up; what is still lacking of these comes when it is asked for.
        """
        segment, state = self.segment, None
        for i in reversed(range(min(segment.left), segment.frames.stop)):
            behind, k = self._behind(i, state), segment.next_forward
            if k <= max(segment.left):
                state, segment.forward_state = self.worker.network.propagate_both(behind, self._ahead(k))
                segment.next_forward = k + 1
                if k in segment.left:
                    segment.forward[k] = segment.forward_state
                self._after_step(backward_steps=1, forward_steps=1)
            else:
                state = self.worker.network.propagate_backward(*behind)
                self._after_step(backward_steps=1)
            if i in segment.left:
                segment.backward[i] = state

    def _behind(self, i: int, state: Tensor | None) -> Propagation:
        """What the backward state of frame i is made from."""
        return self.cleaned(i), state, None if state is None else self._flow_from_next(i)

    def _ahead(self, i: int) -> Propagation:
        """What the forward state of frame i is made from."""
        state = self.segment.forward_state
        return self.cleaned(i), state, None if state is None else self._flow_to_next(i - 1)

    def backward_state(self, n: int) -> Tensor:
        """That of frame n; walks down from the nearest state above it that is held, or from the segment's end.

        On the way as many states are held as may be, those of the kept frames from the first one that is left on: the
        frames will be wanted in ascending order.

            held before      . . . . . . . h         (h: the state to begin from)
            wanted               n
            held then        . h . n . h . h         room for two more, besides n
        """
        held = self.segment.backward
        if n in held:
            return held[n]
        begin = min((i for i in held if i > n), default=self.segment.frames.stop)
        state = held.get(begin)
        below = max((i for i in held if i < n), default=None)
        lowest = min(self.segment.left) if below is None else below + 1
        self.cleaned(begin - 1)  # the budget is known from the first frame on
        room = max(self.worker.budget.num_states - self.segment.num_states(), 0) if self.worker.budget else 0
        wanted = (
            spread(lowest, begin, room) if state is not None else spread_to_end(lowest, self.segment.kept.stop, room)
        )
        wanted.add(n)
        if below is None:  # threads jumble neighbouring requests
            wanted.add(lowest)
        for i in reversed(range(lowest, begin)):
            state = self.worker.network.propagate_backward(*self._behind(i, state))
            if i in wanted and i in self.segment.left:
                held[i] = state
            self._after_step(backward_steps=1)
        return held[n]

    def forward_state(self, n: int) -> Tensor:
        """That of frame n; walks on from the last frame that was reached."""
        segment = self.segment
        if n in segment.forward:
            return segment.forward[n]
        if n < segment.next_forward:  # passed, and no longer held
            segment.forward_state, segment.next_forward = None, segment.frames.start
        while segment.next_forward <= n:
            i = segment.next_forward
            segment.forward_state = self.worker.network.propagate_forward(*self._ahead(i))
            segment.next_forward = i + 1
            self._after_step(forward_steps=1)
            if i in segment.left:
                segment.forward[i] = segment.forward_state
                passed = [k for k in segment.forward if k != i]
                if passed and self.worker.budget and segment.num_states() > self.worker.budget.num_states:
                    del segment.forward[min(passed)]
        return segment.forward[n]

    def _after_step(self, **counted: int) -> None:
        self.upscaler._count(**counted)
        if self.worker.budget and self.worker.budget.trims:
            return_freed_memory()  # planes of large frames, otherwise kept in the heap of this thread

    def _flow_to_next(self, i: int) -> Tensor:
        """What aligns the state of frame i to frame i + 1."""
        source = self.sources[i]
        held = source.flow_to_next  # once: another device's worker may drop it
        if held is not None:
            return held.to(self.worker.compute.device)
        flow = self._flow(ref=i + 1, supp=i)
        if self.worker.budget and self.worker.budget.holds_flows:
            source.flow_to_next = flow
        return flow

    def _flow_from_next(self, i: int) -> Tensor:
        """What aligns the state of frame i + 1 to frame i."""
        source = self.sources[i]
        held = source.flow_from_next
        if held is not None:
            return held.to(self.worker.compute.device)
        flow = self._flow(ref=i, supp=i + 1)
        if self.worker.budget and self.worker.budget.holds_flows:
            source.flow_from_next = flow
        return flow

    def _flow(self, *, ref: int, supp: int) -> Tensor:
        self.upscaler._count(flows=1)
        return self.worker.network.flow(self.cleaned(ref), self.cleaned(supp))
