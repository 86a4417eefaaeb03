"""Source frames on their way into the network: copied to the device, and cleaned there."""

import contextlib
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from vsrealbasicvsr.model import refine

from .memory import packed, unpacked
from .scene_cuts import SceneCutFinder
from .source_frame import SourceFrame
from .worker import Worker


class Cleaner:
    """Cleans source frames on one device. For its compute thread; devices that share frames lock them."""

    def __init__(self, worker: Worker, scene_cuts: SceneCutFinder, *, theta: float, cleaning: float) -> None:
        """theta, cleaning: see `refine`."""
        self._worker = worker
        self._scene_cuts = scene_cuts
        self._theta = theta
        self._cleaning = cleaning

    def cleaned(self, source: SourceFrame) -> Tensor:
        """Return the cleaned frame (1, 3, H, W), float32, on the worker's device."""
        if source.cleaned is None:
            with source.lock:
                if source.cleaned is None:
                    self._clean([source])
        assert source.cleaned is not None
        if self._worker.budget is None:
            self._worker.set_budget(source.cleaned)
        return unpacked(source.cleaned.to(self._worker.device.device))

    def clean_concurrently(self, sources: Sequence[SourceFrame], num: int) -> None:
        """Clean those that are not cleaned yet, `num` at a time.

        They must come in the order of their indices: every worker locks them in that order.
        """
        for group in itertools.batched([source for source in sources if source.cleaned is None], num):
            with contextlib.ExitStack() as locks:
                for source in group:
                    locks.enter_context(source.lock)
                if dirty := [source for source in group if source.cleaned is None]:
                    self._clean(dirty)

    def _clean(self, sources: Sequence[SourceFrame]) -> None:
        """Clean frames of one size, whose locks are held."""
        worker = self._worker
        images = [self._scene_cuts.image(source) for source in sources]
        worker.height = images[0].shape[-2]
        for source in sources:  # unless it was seen when it was supplied; later, beside its neighbour, it is too late
            self._scene_cuts.see(source)
        on_device = [worker.device.to_device(image)[None] for image in images]
        lr = (on_device[0] if len(on_device) == 1 else torch.cat(on_device))[None]
        cleaned, num_passes = refine(worker.backend, lr, theta=self._theta, cleaning=self._cleaning)
        for source, frame in zip(sources, torch.split(cleaned[0], 1), strict=True):
            # A tensor of its own, not a view that keeps the other frames alive too.
            source.cleaned = packed(frame if len(sources) == 1 else frame.clone())
            source.rgb = None
        worker.statistics.frames_cleaned += len(sources)
        worker.statistics.cleaning_passes += int(num_passes.sum().item())
