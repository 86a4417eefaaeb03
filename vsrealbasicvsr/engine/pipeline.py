"""One frame through one device: scenes, hidden states, reconstruction, and the planes that the caller wants."""

from collections.abc import Callable, Sequence

from torch import Tensor

from .cleaning import Cleaner
from .frame_cache import CachedWindow, FrameCache
from .messages import Messages
from .propagation import ScenePropagator, SceneStates
from .recovery import Recovery
from .scene_cuts import SceneCutFinder
from .worker import Worker

type Planes = Sequence[Tensor]
"""Planes of an image, each (rows, columns), on the CPU: three of float32, or the output of the caller's conversion."""

type MakePlanes = Callable[[], Planes]

type Convert = Callable[[Tensor], Sequence[Tensor]]
"""From a frame (3, S*H, S*W), float32, to planes, on the device that it is on."""


class Pipeline:
    """Upscales frames on one device. Its methods are for the device's compute thread, one call at a time."""

    def __init__(
        self,
        worker: Worker,
        cleaner: Cleaner,
        scene_cuts: SceneCutFinder,
        cache: FrameCache,
        messages: Messages,
        *,
        worker_index: int,
    ) -> None:
        self.worker = worker
        self.cleaner = cleaner
        self._scene_cuts = scene_cuts
        self._cache = cache
        self._messages = messages
        self._worker_index = worker_index
        self._recovery = Recovery(worker, cache, messages, worker_index=worker_index)
        self._num_notes = 0
        self._note_diagnostics()

    def upscale(
        self, cached: CachedWindow, n: int, *, into: MakePlanes | None = None, convert: Convert = list
    ) -> Sequence[Tensor]:
        """Upscale frame n of a window.

        Args:
            cached: The window, with its source frames.
            n: The frame.
            into: Returns planes on the CPU that the frame is written into, called once the frame is at hand. None: the
                frame is returned.
            convert: Makes planes of the frame, unless `into` is given.

        Returns:
            The planes on the device; none if `into` is given.

        Raises:
            RuntimeError, MemoryError: See `Recovery.run`.
        """
        try:
            return self._recovery.run(n, lambda: self._upscale(cached, n, into, convert))
        finally:
            self._note_diagnostics()
            if self.worker.budget is not None and self.worker.budget.is_tight:
                self._cache.is_tight = True

    def _upscale(self, cached: CachedWindow, n: int, into: MakePlanes | None, convert: Convert) -> Sequence[Tensor]:
        if cached.scenes is None:
            cached.scenes = self._scenes_of(cached)
            self.worker.statistics.windows_computed += 1
        scene = next(scene for scene in cached.scenes if n in scene.kept)
        if n not in scene.left:
            scene.restart()
        if not scene.backward:
            self._limit_states_of_other_windows(cached)
        propagator = ScenePropagator(self.worker, self.cleaner, scene, cached.sources)
        backward, forward = propagator.states(n)
        cleaned = propagator.cleaned(n)
        parts = self.worker.backend.reconstruct(cleaned, backward, forward)
        hr = cleaned.new_empty(3, *(self.worker.scale * size for size in cleaned.shape[-2:])) if into is None else None
        planes = list(hr) if hr is not None else into()  # type: ignore[misc]
        for first, rows in parts:
            for plane, part in zip(planes, rows, strict=True):
                plane[first : first + len(part)] = part
        converted = convert(hr) if hr is not None else ()
        scene.finish(n)
        self.worker.statistics.frames_reconstructed += 1
        return converted

    def _scenes_of(self, cached: CachedWindow) -> list[SceneStates]:
        window, sources = cached.window, cached.sources
        return [
            SceneStates.over(frames, window)
            for frames in window.segments(lambda i: self._scene_cuts.is_cut(sources.get(i - 1), sources.get(i)))
            if frames.start in sources
        ]

    def _limit_states_of_other_windows(self, current: CachedWindow) -> None:
        """Drop cached states of the device's other windows until they fit their share of the budget."""
        others = [one for one in self._cache.windows_of(self._worker_index) if one is not current and one.scenes]
        num_states = sum(scene.num_states() for one in others for scene in one.scenes or ())
        limit = max(self.worker.budget.num_states // 8, 2) if self.worker.budget else 2
        for one in others:
            if num_states <= limit:
                break
            for scene in one.scenes or ():
                num_states -= scene.num_states()
                scene.drop_states()

    def _note_diagnostics(self) -> None:
        notes = self.worker.backend.notes
        if len(notes) > self._num_notes:
            for note in notes[self._num_notes :]:
                self._messages.note(f"{self.worker.device.device}: {note}")
            self._num_notes = len(notes)
