"""The upscaler of one clip: the engine's front door."""

from collections.abc import Generator, Iterable, Sequence

from torch import Tensor

from vsrealbasicvsr.model import RealBasicVSR

from .cleaning import Cleaner
from .device import DeviceConfig
from .frame_cache import FrameCache
from .messages import Messages
from .pipeline import Convert, MakePlanes, Pipeline
from .scene_cuts import SceneCutFinder, SceneCuts
from .source_frame import SourceFrame, source_frames
from .windows import Grid
from .worker import Statistics, Worker


class WindowUpscaler:
    """Upscales the frames of one clip, window by window.

    `upscale_frames` upscales a whole clip in order. A caller that wants frames in any order, from any thread, calls for
    a frame n: `cache.acquire(n)`; `cache.missing(index)` and `cache.supply(index, ...)` until nothing is missing;
    `upscale(n)`; and, whatever happened, `cache.release(n)` once for each acquire. The frame is the same either way. A
    source frame that cannot be read is reported by `cache.lose`: the others are computed without it, as if a scene
    ended before it and another began after it.

    Several devices share the work: windows are dealt to them in turn. When memory runs out, what is cached is dropped
    and computed again, then frames are processed in ever smaller tiles.

    Attributes:
        grid: The windows of the clip.
        scale: Output pixels per input pixel, on each axis.
        cache: The requests for frames, and the source frames.
        messages: Warnings and notes for the user.
    """

    def __init__(
        self,
        model: RealBasicVSR,
        devices: DeviceConfig | Sequence[DeviceConfig],
        grid: Grid,
        *,
        theta: float,
        cleaning: float = 1.0,
        scene_cuts: SceneCuts = "auto",
        max_tile_rows: int | None = None,
    ) -> None:
        """Prepare the network on its devices.

        Args:
            model: The network; it is not changed.
            devices: Where to compute.
            grid: The windows of the clip.
            theta: Threshold for further cleaning passes, in units of 1/255. See `refine`.
            cleaning: Strength of a cleaning pass, from 0 to 1. See `refine`.
            scene_cuts: "auto" obeys the frames' own scene cuts, else detects them; "props" only obeys; "off" has none.
            max_tile_rows: Maximum height of a tile while frames are cleaned or propagated. None: the frame's size
                decides.
        """
        configs = [devices] if isinstance(devices, DeviceConfig) else devices
        self.grid, self.scale = grid, model.sizes.scale
        self.messages = Messages()
        finder = SceneCutFinder(self.messages, scene_cuts)
        self.cache = FrameCache(grid, self.messages, finder, num_workers=len(configs))
        self._pipelines = []
        num_frames = min(grid.length + 2 * grid.overlap, grid.num_frames)
        for index, config in enumerate(configs):
            for note in config.notes:
                self.messages.note(note)
            backend = config.prepare(model, max_tile_rows=max_tile_rows)
            sizes = model.sizes
            worker = Worker(config, backend, sizes.mid_channels, sizes.start_passes, sizes.scale, num_frames)
            cleaner = Cleaner(worker, finder, theta=theta, cleaning=cleaning)
            self._pipelines.append(Pipeline(worker, cleaner, finder, self.cache, self.messages, worker_index=index))

    @property
    def statistics(self) -> Statistics:
        """Counters of the work done so far, on all devices."""
        supplied = Statistics(frames_supplied=self.cache.num_supplied)
        return Statistics.total([supplied, *(pipeline.worker.statistics for pipeline in self._pipelines)])

    def upscale_frames(self, frames: Iterable[Tensor | SourceFrame]) -> Generator[Tensor, None, None]:
        """Upscale the whole clip in order. One such iterator at a time.

        Frames are read as far ahead as a window needs. Closing the iterator early, like its end or an error, frees what
        is cached.

        Args:
            frames: The clip's frames in order, each (3, H, W) float32 on the CPU, gamma-encoded, or a SourceFrame.

        Yields:
            The upscaled frames, (3, S*H, S*W) float32 on the CPU.

        Raises:
            ValueError: There are fewer frames than the grid has, or frames of different or wrong shapes.
        """
        sources = source_frames(frames)
        try:
            for n in range(self.grid.num_frames):
                index = self.cache.acquire(n)
                try:
                    for i in self.cache.missing(index):
                        if (source := next(sources, None)) is None:
                            raise ValueError(f"upscale_frames: expected {self.grid.num_frames} frames, got {i}")
                        self.cache.supply(index, {i: source})
                    hr, _ = self.upscale(n)
                finally:
                    self.cache.release(n)
                yield hr
        finally:
            self.cache.clear()

    def upscale(self, n: int) -> tuple[Tensor, object]:
        """Return frame n, (3, S*H, S*W) float32 on the CPU, and the `user_data` of its source frame.

        Raises:
            LookupError: Its window misses source frames, or frame n is lost.
            RuntimeError, MemoryError: See `Recovery.run`.
        """
        pipeline, cached = self._pipelines[self.cache.worker_of(n)], self.cache.window_of(n)
        device = pipeline.worker.device
        (hr,) = device.run_to_host(lambda: pipeline.upscale(cached, n, convert=lambda hr: [hr]))
        return hr, cached.sources[n].user_data

    def upscale_into(self, n: int, make_planes: MakePlanes, convert: Convert | None = None) -> object:
        """Write frame n into planes of the caller.

        Args:
            n: The frame.
            make_planes: Returns the planes. Called once the frame is at hand, maybe by another thread: high-resolution
                frames are large, and many may be asked for at once.
            convert: From the frame to planes like those of `make_planes`, on the device. None: float32 RGB.

        Returns:
            The `user_data` of the source frame.

        Raises:
            LookupError, RuntimeError, MemoryError: As `upscale`.
        """
        pipeline, cached = self._pipelines[self.cache.worker_of(n)], self.cache.window_of(n)
        device = pipeline.worker.device
        if convert is None and device.device.type == "cpu":
            device.run(lambda: pipeline.upscale(cached, n, into=make_planes))
        else:
            converted = device.run_to_host(lambda: pipeline.upscale(cached, n, convert=convert or list))
            for plane, part in zip(make_planes(), converted, strict=True):
                plane.copy_(part)
        return cached.sources[n].user_data

    def close(self) -> None:
        """Free everything that is cached, and the scratch memory of the devices. Call it when nothing is asked for."""
        self.cache.clear()
        for pipeline in self._pipelines:
            pipeline.worker.device.run(pipeline.worker.backend.release)
