"""The windows of one clip through one network: each computed once, its frames made lazily and in order."""

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal
from weakref import WeakValueDictionary

from torch import Tensor

from vsrealbasicvsr.model import RealBasicVSR, refine

from .compute import Compute
from .memory import return_freed_memory
from .scenes import is_scene_cut, thumbnail
from .windows import Grid, Window

SceneCuts = Literal["auto", "props", "off"]

MAX_IDLE_WINDOWS = 2
"""Windows kept although nobody waits for them: the current one, and its neighbour that shares context with it."""


NOT_BEGUN = -1


@dataclass(slots=True, weakref_slot=True)
class SourceFrame:
    """A frame of the clip, as the host hands it over, and later what was computed from it alone.

    rgb: (3, H, W) float32 on the CPU, gamma-encoded. begins_scene and ends_scene: what the host knows of cuts before
    and after the frame, or None. host: a thing of the host's own that comes back with the upscaled frame.
    """

    rgb: Tensor | None
    begins_scene: bool | None = None
    ends_scene: bool | None = None
    host: object = None
    cleaned: Tensor | None = None
    thumbnail: Tensor | None = None
    flows_to_next: tuple[Tensor, Tensor] | None = None


@dataclass(slots=True)
class Statistics:
    """What was done so far, counted."""

    frames_supplied: int = 0
    frames_cleaned: int = 0
    cleaning_passes: int = 0
    flow_pairs: int = 0
    windows_computed: int = 0
    backward_steps: int = 0
    forward_steps: int = 0
    frames_reconstructed: int = 0


@dataclass(slots=True)
class _Segment:
    """The propagation over the frames of a window that belong to one scene; `frames` are consecutive."""

    frames: range
    kept: range
    backward: dict[int, Tensor] = field(default_factory=dict)
    forward: dict[int, Tensor] = field(default_factory=dict)
    forward_state: Tensor | None = None
    next_forward: int = NOT_BEGUN


@dataclass(slots=True)
class _LiveWindow:
    window: Window
    num_waiting: int = 0
    sources: dict[int, SourceFrame] = field(default_factory=dict)
    segments: list[_Segment] | None = None


class WindowUpscaler:
    """Upscales the frames of one clip, window by window.

    The host calls, for a frame n that it wants: `expect(n)`; `missing(window)` and `supply(...)` until nothing is
    missing; `upscale(n)`; and, whatever happened, `release(n)` once for each `expect(n)`. All of it from any thread.
    A window that somebody waits for is never dropped; two others are kept.
    """

    def __init__(
        self, model: RealBasicVSR, compute: Compute, grid: Grid, *, theta: float, scene_cuts: SceneCuts = "auto"
    ) -> None:
        self.grid = grid
        self.statistics = Statistics()
        self._network = compute.prepare(model)
        self._compute = compute
        self._theta = theta
        self._scene_cuts = scene_cuts
        self._lock = threading.Lock()
        self._live: OrderedDict[int, _LiveWindow] = OrderedDict()
        # Frames that two live windows share are one object, so each is asked for, cleaned and matched once.
        self._sources: WeakValueDictionary[int, SourceFrame] = WeakValueDictionary()

    def expect(self, n: int) -> int:
        """The window that keeps frame n; it is held until `release(n)`. Raises IndexError outside of the clip."""
        number = self.grid.number_of(n)
        with self._lock:
            self._window(number).num_waiting += 1
        return number

    def release(self, n: int) -> None:
        """End one `expect(n)`."""
        with self._lock:
            if live := self._live.get(self.grid.number_of(n)):
                live.num_waiting -= 1
            some_dropped = self._drop_idle_windows()
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
            return [i for i in frames if i not in live.sources]

    def supply(self, number: int, frames: Mapping[int, SourceFrame]) -> None:
        """Hand source frames to a window. A frame that is there already stays the one it was."""
        with self._lock:
            live = self._window(number)
            for i, frame in frames.items():
                if i not in live.sources:
                    live.sources[i] = self._sources.setdefault(i, frame)
                    self.statistics.frames_supplied += live.sources[i] is frame

    def upscale(self, n: int) -> tuple[Tensor, object]:
        """Frame n, (3, S*H, S*W) float32 on the CPU, and the `host` of its source frame.

        Raises LookupError if its window misses source frames.
        """
        number = self.grid.number_of(n)
        if lacking := self.missing(number):
            raise LookupError(f"frame {n} needs source frames {lacking}")
        with self._lock:
            live = self._window(number)
        hr = self._compute.run(lambda: self._upscale(live, n))
        return hr, live.sources[n].host

    def _window(self, number: int) -> _LiveWindow:
        """The live window of this number, now the most recently used. Call with the lock held."""
        live = self._live.get(number)
        if live is None:
            live = self._live[number] = _LiveWindow(self.grid.window(number))
        self._live.move_to_end(number)
        return live

    def _drop_idle_windows(self) -> bool:
        """Whether there were any to drop. Call with the lock held."""
        idle = [number for number, live in self._live.items() if live.num_waiting <= 0]
        surplus = idle[: max(len(idle) - MAX_IDLE_WINDOWS, 0)]
        for number in surplus:
            del self._live[number]
        return bool(surplus)

    # From here on everything runs on the compute thread, one job at a time.

    def _upscale(self, live: _LiveWindow, n: int) -> Tensor:
        if live.segments is None:
            live.segments = [
                _Segment(frames, range(max(frames.start, live.window.first), min(frames.stop, live.window.stop)))
                for frames in live.window.segments(lambda i: self._is_cut(live.sources[i - 1], live.sources[i]))
            ]
            self.statistics.windows_computed += 1
        segment = next(segment for segment in live.segments if n in segment.kept)
        given_away = n not in segment.backward or (n not in segment.forward and n < segment.next_forward)
        if segment.next_forward == NOT_BEGUN or given_away:
            self._propagate_backward(segment, live.sources)
        while segment.next_forward <= n:
            self._propagate_forward_once(segment, live.sources)
        backward, forward = segment.backward.pop(n), segment.forward.pop(n)
        cleaned = self._cleaned(live.sources[n])
        hr = self._network.reconstruct(cleaned, backward, forward)
        self.statistics.frames_reconstructed += 1
        return hr[0].float().cpu()

    def _propagate_backward(self, segment: _Segment, sources: Mapping[int, SourceFrame]) -> None:
        """Begin a segment, or begin it again for a frame that was given away before."""
        segment.backward.clear()
        segment.forward.clear()
        # Not begun, until this has come to its end: it may fail half-way, for want of memory.
        segment.forward_state, segment.next_forward = None, NOT_BEGUN
        state: Tensor | None = None
        # Frames before the first one that is kept can be spared: nothing flows from them in this direction.
        for i in reversed(range(segment.kept.start, segment.frames.stop)):
            flow = self._flows(sources[i], sources[i + 1])[1] if state is not None else None
            state = self._network.propagate_backward(self._cleaned(sources[i]), state, flow)
            if i in segment.kept:
                segment.backward[i] = state
            self.statistics.backward_steps += 1
        segment.next_forward = segment.frames.start

    def _propagate_forward_once(self, segment: _Segment, sources: Mapping[int, SourceFrame]) -> None:
        i, state = segment.next_forward, segment.forward_state
        flow = self._flows(sources[i - 1], sources[i])[0] if state is not None else None
        segment.forward_state = self._network.propagate_forward(self._cleaned(sources[i]), state, flow)
        if i in segment.kept:
            segment.forward[i] = segment.forward_state
        segment.next_forward = i + 1
        self.statistics.forward_steps += 1

    def _cleaned(self, source: SourceFrame) -> Tensor:
        if source.cleaned is None:
            self._look_at(source)
            assert source.rgb is not None
            lr = source.rgb.to(self._compute.device)[None, None]
            cleaned, num_passes = refine(self._network, lr, theta=self._theta)
            source.cleaned = cleaned[0]
            source.rgb = None
            self.statistics.frames_cleaned += 1
            self.statistics.cleaning_passes += int(num_passes.item())
        return source.cleaned

    def _flows(self, first: SourceFrame, second: SourceFrame) -> tuple[Tensor, Tensor]:
        """(forward, backward) flow between neighbours."""
        if first.flows_to_next is None:
            first.flows_to_next = self._network.flows(self._cleaned(first), self._cleaned(second))
            self.statistics.flow_pairs += 1
        return first.flows_to_next

    def _is_cut(self, before: SourceFrame, after: SourceFrame) -> bool:
        if self._scene_cuts == "off":
            return False
        told = [cut for cut in (before.ends_scene, after.begins_scene) if cut is not None]
        if told or self._scene_cuts == "props":
            return any(told)
        return is_scene_cut(self._look_at(before), self._look_at(after))

    def _look_at(self, source: SourceFrame) -> Tensor:
        if source.thumbnail is None:
            assert source.rgb is not None
            source.thumbnail = thumbnail(source.rgb)
        return source.thumbnail
