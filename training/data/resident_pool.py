"""A pool of degraded clips in a GPU's memory: computed by worker processes during the run, cut on the GPU.

The samples are those of a pool on disk (see pool.py), to the bit. A clip is copied once and then used for thousands of
samples, so a training step waits for nothing once its clips are there.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Generator, Iterator
from dataclasses import replace

import torch

from training.data.pool import cut_clip, draw_cut
from training.data.sampler import Sample
from training.data.settings import DataSettings
from vsrealbasicvsr.backends import place_of


class ResidentPool:
    """Clips on a device.

    Args:
        made: Yields clip 0, 1, 2, ... of the pool; read by a thread.
        device: Where the clips are.
    """

    def __init__(self, made: Generator[Sample], device: torch.device) -> None:
        self._made, self._device = made, device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._clips: list[Sample] = []
        self._error: BaseException | None = None
        self._stopped = threading.Event()
        self._more = threading.Condition()
        self._thread = threading.Thread(target=self._fill, name="resident pool", daemon=True)
        self._thread.start()

    def clip(self, number: int) -> Sample:
        """Return clip `number`, waiting until it is there. Raise what its computation raised."""
        with self._more:
            self._more.wait_for(lambda: len(self._clips) > number or self._error is not None)
            if len(self._clips) > number:
                return self._clips[number]
            assert self._error is not None
            raise self._error

    def close(self) -> None:
        """Stop computing clips; those that are there remain."""
        self._stopped.set()
        self._thread.join()

    def _fill(self) -> None:
        try:
            # On its device: else a loader that pins memory creates a context on GPU 0.
            with place_of(self._device), contextlib.closing(self._made):
                for clip in self._made:
                    on_device = self._copied(clip)
                    with self._more:
                        self._clips.append(on_device)
                        self._more.notify_all()
                    if self._stopped.is_set():
                        return
        except BaseException as error:  # passed to the consumer, which would otherwise wait forever
            with self._more:
                self._error = error
                self._more.notify_all()

    def _copied(self, clip: Sample) -> Sample:
        """Return the clip on the device, completely copied, on a stream of its own that does not wait for training."""
        if self._stream is None:
            return clip
        with torch.cuda.stream(self._stream):
            lr, gt = clip.lr.to(self._device), clip.gt.to(self._device)
            gt_unsharp = None if clip.gt_unsharp is None else clip.gt_unsharp.to(self._device)
            self._stream.synchronize()
        return replace(clip, lr=lr, gt=gt, gt_unsharp=gt_unsharp)


def cuts_of(pool: ResidentPool, options: DataSettings, numbers: Iterator[int]) -> Generator[Sample]:
    """Yield the samples of these numbers, on the pool's device; close the pool at the end."""
    try:
        for index in numbers:
            drawn = draw_cut(options, index)
            # Wait for every clip that the sample may be cut from, so that the choice does not depend on timing.
            pool.clip(options.num_pool_clips(index) - 1)
            yield cut_clip(pool.clip(drawn.clip), options, drawn)
    finally:
        pool.close()
