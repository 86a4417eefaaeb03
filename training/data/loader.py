"""Batches in exact order, made beside the training step: by worker processes, or by these and a GPU together.

Sample number i is a pure function of the clips, the options and i (see samples.py). Batch k of process r of R holds the
samples k B R + r B ... k B R + (r + 1) B - 1, however many workers there are: a run that goes on at batch k, or on more
processes with smaller batches, sees what it would have seen.

    CPU   workers: draw and degrade                      first process: stack
    GPU   workers: draw    threads: copy, degrade on the GPU, codecs in other workers    first process: stack

Everything travels as 8-bit frames. Knows no networks and no losses.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from training.data.cost import measure_input
from training.data.dataset import ClipDataset
from training.data.gpu_feeder import degraded_on_gpu
from training.data.pool import make_sample, pool_clip
from training.data.resident_pool import ResidentPool, cuts_of
from training.data.sampler import (
    Sample,
    draw,
)
from training.data.settings import DataSettings
from training.data.workers import PREFETCH_BATCHES, Order, computed
from vsrealbasicvsr.model import SCALE

NUM_MEASURED = 4
"""Samples that are computed to find out how to share workers between drawing and codecs."""


_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Batch:
    """N samples of L frames, uint8: lr (N, L, 3, h, w), gt (N, U, 3, 4h, 4w) and gt_unsharp (sharpened) or None.

    mirrored: gt has U = ceil(L / 2) frames, and `mirror` makes L of them. wait_seconds: how long the caller waited.
    """

    lr: Tensor
    gt: Tensor
    gt_unsharp: Tensor | None
    mirrored: bool
    wait_seconds: float


class Loader:
    """An iterator of Batch that owns processes and threads: use it in a `with` block, or close() it."""

    def __init__(self, samples: Generator[Sample], *, batch: int, mirrored: bool) -> None:
        self._samples, self._batch, self._mirrored = samples, batch, mirrored
        self._reported: set[str] = set()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """Return the next batch.

        Raises DataError if a sample cannot be made or a worker has died; everything is closed then.
        """
        started = time.perf_counter()
        samples = [next(self._samples) for _ in range(self._batch)]
        for note in (note for sample in samples for note in sample.notes):
            if note not in self._reported:
                self._reported.add(note)
                _log.warning("%s Another clip takes its place.", note)
        sharpened = [sample.gt_unsharp for sample in samples if sample.gt_unsharp is not None]
        lr = torch.stack([sample.lr for sample in samples])
        gt = torch.stack([sample.gt for sample in samples])
        gt_unsharp = torch.stack(sharpened) if sharpened else None
        return Batch(lr, gt, gt_unsharp, self._mirrored, time.perf_counter() - started)

    def close(self) -> None:
        """End workers and threads. A second call does nothing."""
        self._samples.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, place: TracebackType | None
    ) -> None:
        self.close()


def make_loader(
    dataset: ClipDataset,
    options: DataSettings,
    *,
    batch: int,
    first_iteration: int = 0,
    num_iterations: int | None = None,
    num_processes: int = 1,
    rank: int = 0,
    num_workers: int = 0,
    device: torch.device | None = None,
) -> Loader:
    """Batches first_iteration <= k < num_iterations (None: without end) of process `rank`.

    num_workers = 0 makes them here, while the caller waits. On a CUDA device batches lie on it: samples are degraded
    there, see make_feeder, or, with a pool, cut there from clips that it holds, see resident_pool.py. Otherwise they
    lie in main memory.

    Raises ValueError if no clip is large enough for the options.
    """
    if device is not None and device.type != "cpu" and not options.pool_clips:
        num_drawing, num_codecs = 0, 0
        if num_workers:
            num_drawing, num_codecs = measure_input(dataset, options, num_samples=NUM_MEASURED).shares_of(num_workers)
        return make_feeder(
            dataset,
            options,
            batch=batch,
            first_iteration=first_iteration,
            num_iterations=num_iterations,
            num_processes=num_processes,
            rank=rank,
            num_drawing=num_drawing,
            num_codecs=num_codecs,
            device=device,
        )
    _check(dataset, options)
    order = Order(first_iteration, num_iterations, batch, num_processes, rank)
    if device is not None and device.type != "cpu":
        numbers = Order(0, options.pool_clips, 1, 1, 0)
        clips = computed(partial(pool_clip, dataset, options), numbers, num_workers=num_workers, pin_memory=False)
        samples = cuts_of(ResidentPool(clips, device), options, iter(order))
    else:
        samples = computed(partial(make_sample, dataset, options), order, num_workers=num_workers, pin_memory=False)
    return Loader(samples, batch=batch, mirrored=options.stochastic)


def make_feeder(
    dataset: ClipDataset,
    options: DataSettings,
    *,
    batch: int,
    first_iteration: int = 0,
    num_iterations: int | None = None,
    num_processes: int = 1,
    rank: int = 0,
    num_drawing: int,
    num_codecs: int,
    device: torch.device,
) -> Loader:
    """Return the same batches, degraded on `device` and left there; on the CPU device bit for bit those of make_loader.

    num_drawing processes read pieces of clips and draw recipes (0: a thread does), num_codecs processes run video
    codecs (0: the threads do). As many threads, and two more, see samples through, each on a CUDA stream of its own.

    Raises ValueError if no clip is large enough for the options, or if they ask for a pool.
    """
    if options.pool_clips:
        raise ValueError("make_feeder: a pool's clips are degraded already. Use make_loader.")
    _check(dataset, options)
    order = Order(first_iteration, num_iterations, batch, num_processes, rank)
    pin_memory = device.type == "cuda" and num_drawing > 0
    drawn = computed(partial(draw, dataset, options), order, num_workers=num_drawing, pin_memory=pin_memory)
    samples = degraded_on_gpu(drawn, options, device, num_codecs=num_codecs, num_ahead=PREFETCH_BATCHES * batch)
    return Loader(samples, batch=batch, mirrored=options.stochastic)


def _check(dataset: ClipDataset, options: DataSettings) -> None:
    """Raises ValueError if no clip is large enough."""
    options = options.of_pool_clips() if options.pool_clips else options
    dataset.suited(num_frames=options.num_unique, side_px=options.crop_px * SCALE)
