"""Batches in a fixed order, computed concurrently with the training step by worker processes, or by these and a GPU.

Sample number i is a pure function of the clips, the options and i (see sampler.py). Batch k of process r of R holds the
samples k B R + r B ... k B R + (r + 1) B - 1, whatever the number of workers: a run that is resumed at batch k, or on
more processes with smaller batches, sees what it would have seen.

    CPU   workers: draw and degrade                      main process: stack
    GPU   workers: draw    threads: copy, degrade on the GPU, codecs in other workers    main process: stack

Everything is passed on as 8-bit frames.
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
from training.data.pool import check_pool, make_sample, pool_clip
from training.data.resident_pool import ResidentPool, cuts_of
from training.data.sampler import (
    Sample,
    draw,
)
from training.data.settings import DataSettings
from training.data.workers import PREFETCH_BATCHES, Order, computed
from training.degradations import SCALE

NUM_MEASURED = 4
"""Samples that are computed to find out how to divide workers between drawing and codecs."""


_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Batch:
    """N samples of L frames, uint8.

    Attributes:
        lr: (N, L, 3, h, w).
        gt: (N, U, 3, 4h, 4w).
        gt_unsharp: `gt`, sharpened; None if the options do not ask for it.
        mirrored: gt has U = ceil(L / 2) frames, of which `mirror` makes L; otherwise U = L.
        wait_seconds: How long the caller waited.
    """

    lr: Tensor
    gt: Tensor
    gt_unsharp: Tensor | None
    mirrored: bool
    wait_seconds: float


class Loader:
    """An iterator of batches that owns processes and threads: use it in a `with` block, or close() it."""

    def __init__(self, samples: Generator[Sample], *, batch: int, mirrored: bool) -> None:
        self._samples, self._batch, self._mirrored = samples, batch, mirrored
        self._reported: set[str] = set()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """Return the next batch.

        Raises:
            DataError: A sample cannot be computed or a worker has died; everything is closed then.
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
        """End workers and threads. Further calls do nothing."""
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
    """Return a loader of the batches first_iteration <= k < num_iterations of process `rank`.

    On a CUDA device batches are in its memory: samples are degraded there, see `make_feeder`, or, with a pool, cut
    there from clips that it holds, see resident_pool.py. Otherwise they are in main memory.

    Args:
        dataset: The clips.
        options: Settings of the samples.
        batch: Samples of a batch.
        first_iteration: Number of the first batch.
        num_iterations: Number after the last batch; None: endless.
        num_processes: Number of processes that share the work.
        rank: Index of this one.
        num_workers: Worker processes; 0 computes samples here, while the caller waits.
        device: Where batches are wanted; None: in main memory.

    Raises:
        UserError: No clip is large enough for the options, or the pool is of other footage.
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
    """Return a loader of the same batches, degraded on `device` and left there; on the CPU equal to make_loader's bits.

    As many threads as there are codec processes, and two more, process the samples, each on a CUDA stream of its own.

    Args:
        dataset: The clips.
        options: Settings of the samples, without a pool.
        batch: Samples of a batch.
        first_iteration: Number of the first batch.
        num_iterations: Number after the last batch; None: endless.
        num_processes: Number of processes that share the work.
        rank: Index of this one.
        num_drawing: Processes that read pieces of clips and draw recipes; 0: a thread does.
        num_codecs: Processes that run video codecs; 0: the threads do.
        device: Where samples are degraded.

    Raises:
        ValueError: The options ask for a pool.
        UserError: No clip is large enough for the options.
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
    """Raise UserError if no clip is large enough for the options, or if the pool is of other footage."""
    if options.pool_clips:
        check_pool(dataset, options)
        options = options.of_pool_clips()
    dataset.suited(num_frames=options.num_unique, side_px=options.crop_px * SCALE)
