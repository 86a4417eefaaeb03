"""Batches in exact order, made beside the training step: by worker processes, or by these and a GPU together.

Sample number i is a pure function of the clips, the options and i (see samples.py). Batch k of process r of R holds the
samples k B R + r B ... k B R + (r + 1) B - 1, however many workers there are: a run that goes on at batch k, or on more
processes with smaller batches, sees what it would have seen.

    CPU   workers: draw and degrade                      first process: stack
    GPU   workers: draw    threads: copy, degrade on the GPU, codecs in other workers    first process: stack

Everything travels as 8-bit frames. Knows no networks and no losses.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import queue
import signal
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.context import BaseContext
from types import TracebackType
from typing import Self

import cv2
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from training.degradations import Jpeg, VideoCodec, codecs
from training.resident_pool import ResidentPool, cuts_of
from training.samples import (
    Drawn,
    Sample,
    SampleError,
    SampleOptions,
    degrade,
    draw,
    make_sample,
    mirror,
    num_unique,
    one_thread,
    pool_clip,
)
from training.store import ClipStore
from vsrealbasicvsr.errors import UserError
from vsrealbasicvsr.model import SCALE

__all__ = [
    "Batch",
    "ClipStore",
    "DataError",
    "InputCost",
    "Loader",
    "SampleOptions",
    "make_feeder",
    "make_loader",
    "make_sample",
    "measure_input",
    "mirror",
    "num_unique",
]

PREFETCH_BATCHES = 4
"""Samples that are under way, in batches: the slowest takes twice as long as the usual one, and is not to be felt."""
NUM_MEASURED = 4
"""Samples that are made to find out how to share workers between drawing and codecs."""

_SECONDS_BETWEEN_LOOKS = 2.0

_log = logging.getLogger(__name__)


class DataError(UserError):
    """Samples cannot be made; the text says which, and why."""


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


@dataclass(frozen=True, slots=True)
class InputCost:
    """CPU seconds for one clip, one thread: reading and drawing, codecs (JPEG too), all other degradations."""

    load_seconds: float
    codec_seconds: float
    other_seconds: float

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.load_seconds + self.codec_seconds + self.other_seconds

    @property
    def clips_per_second_per_core(self) -> float:
        """How many clips one worker makes."""
        return 1 / self.seconds

    def num_workers(self, *, batch: int, step_seconds: float, with_gpu: bool = False) -> int:
        """Workers that make a batch in the time of a training step; with_gpu: the GPU does what is no codec."""
        seconds = self.load_seconds + self.codec_seconds if with_gpu else self.seconds
        return max(1, -int(-seconds * batch // step_seconds))

    def shares_of(self, num_workers: int) -> tuple[int, int]:
        """Workers that draw, and workers that run codecs, beside a GPU that does the rest: as their costs are."""
        drawing_share = self.load_seconds / max(self.load_seconds + self.codec_seconds, 1e-9)
        num_drawing = min(max(round(num_workers * drawing_share), 1), max(num_workers - 1, 1))
        return num_drawing, max(num_workers - num_drawing, 1)

    def describe(self, *, batch: int, step_seconds: float | None = None, with_gpu: bool = False) -> str:
        """One line for the user."""
        text = (
            f"input: {self.seconds:.2f} CPU seconds a clip (reading {self.load_seconds:.3f}, codecs"
            f" {self.codec_seconds:.2f}, other degradations {self.other_seconds:.2f}{', on the GPU' * with_gpu}),"
            f" {self.clips_per_second_per_core:.2f} clips per second per core"
        )
        if step_seconds is None:
            return text
        needed = self.num_workers(batch=batch, step_seconds=step_seconds, with_gpu=with_gpu)
        return f"{text}; {needed} workers feed {batch} clips every {step_seconds:.2f} s"


class Loader:
    """An iterator of Batch that owns processes and threads: use it in a `with` block, or close() it."""

    def __init__(self, samples: Generator[Sample], *, batch: int, mirrored: bool) -> None:
        self._samples, self._batch, self._mirrored = samples, batch, mirrored
        self._reported: set[str] = set()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """The next batch.

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
    store: ClipStore,
    options: SampleOptions,
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
            cost = measure_input(store, options, num_samples=NUM_MEASURED)
            num_drawing, num_codecs = cost.shares_of(num_workers)
        return make_feeder(
            store,
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
    _check(store, options)
    order = _Order(first_iteration, num_iterations, batch, num_processes, rank)
    if device is not None and device.type != "cpu":
        numbers = _Order(0, options.pool_clips, 1, 1, 0)
        clips = _made(partial(pool_clip, store, options), numbers, num_workers=num_workers, pin_memory=False)
        samples = cuts_of(ResidentPool(clips, device), options, iter(order))
    else:
        samples = _made(partial(make_sample, store, options), order, num_workers=num_workers, pin_memory=False)
    return Loader(samples, batch=batch, mirrored=options.stochastic)


def make_feeder(
    store: ClipStore,
    options: SampleOptions,
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
    """The same batches, degraded on `device` and left there; on the CPU device bit for bit those of make_loader.

    num_drawing processes read pieces of clips and draw recipes (0: a thread does), num_codecs processes run video
    codecs (0: the threads do). As many threads, and two more, see samples through, each on a CUDA stream of its own.

    Raises ValueError if no clip is large enough for the options, or if they ask for a pool.
    """
    if options.pool_clips:
        raise ValueError("make_feeder: a pool's clips are degraded already. Use make_loader.")
    _check(store, options)
    order = _Order(first_iteration, num_iterations, batch, num_processes, rank)
    pin_memory = device.type == "cuda" and num_drawing > 0
    drawn = _made(partial(draw, store, options), order, num_workers=num_drawing, pin_memory=pin_memory)
    samples = _fed(drawn, options, device, num_codecs=num_codecs, num_ahead=PREFETCH_BATCHES * batch)
    return Loader(samples, batch=batch, mirrored=options.stochastic)


def measure_input(store: ClipStore, options: SampleOptions, *, num_samples: int = 8) -> InputCost:
    """What a sample costs on this machine, on average over the first ones; a pool's clips are taken as not yet made.

    Raises ValueError or ClipError as make_sample does.
    """
    options = options.of_pool_clips() if options.pool_clips else options
    load_seconds, codec_seconds, all_seconds = 0.0, 0.0, 0.0

    def run_codec(step: VideoCodec | Jpeg, planes: codecs.Planes) -> codecs.Planes:
        nonlocal codec_seconds
        started = time.process_time()
        coded = codecs.run(step, planes)
        codec_seconds += time.process_time() - started
        return coded

    with one_thread():
        degrade(draw(store, options, 0), options)  # what is set up on first use is not counted
        for index in range(num_samples):
            started = time.process_time()
            drawn = draw(store, options, index)
            load_seconds += time.process_time() - started
            degrade(drawn, options, run_codec=run_codec)
            all_seconds += time.process_time() - started
    other_seconds = all_seconds - load_seconds - codec_seconds
    return InputCost(load_seconds / num_samples, codec_seconds / num_samples, other_seconds / num_samples)


@dataclass(frozen=True, slots=True)
class _Failure:
    """What a worker could not make: one line, and of a bug the traceback."""

    text: str
    traceback: str

    @classmethod
    def of(cls, error: Exception, index: int | None = None) -> _Failure:
        """What is under way to the user: of our own errors the text, of others the kind too."""
        text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        if index is not None and not isinstance(error, SampleError):
            text = f"sample {index}: {text}"
        cause = error.__cause__ if isinstance(error, SampleError) else error
        is_bug = cause is not None and not isinstance(cause, UserError | OSError)
        return cls(" ".join(text.split()), "".join(traceback.format_exception(error)) if is_bug else "")

    def error(self) -> DataError:
        error = DataError(self.text)
        if self.traceback:
            error.add_note(self.traceback)
        return error


class _Order(Sampler[int]):
    """The numbers of the samples of one process, in the order of its batches."""

    def __init__(self, first: int, stop: int | None, batch: int, num_processes: int, rank: int) -> None:
        if batch < 1 or not 0 <= rank < num_processes or first < 0:
            raise ValueError(
                f"make_loader: batch must be 1 or more and 0 <= rank < num_processes, got {batch}, {rank} and"
                f" {num_processes}; first_iteration must be 0 or more, got {first}."
            )
        self._first, self._stop = first, stop
        self._batch, self._num_processes, self._rank = batch, num_processes, rank

    def __iter__(self) -> Iterator[int]:
        iteration = self._first
        while self._stop is None or iteration < self._stop:
            start = (iteration * self._num_processes + self._rank) * self._batch
            yield from range(start, start + self._batch)
            iteration += 1

    def num_ahead(self, num_workers: int) -> int:
        """Samples that each worker may make ahead."""
        return max(2, -(-PREFETCH_BATCHES * self._batch // num_workers))


class _Items[T](Dataset[T | _Failure]):
    """What workers make of a number. An exception travels as data, not as pages of traceback."""

    def __init__(self, make: Callable[[int], T]) -> None:
        self._make = make

    def __getitem__(self, index: int) -> T | _Failure:
        try:
            return self._make(index)
        except Exception as error:
            return _Failure.of(error, index)


def _made[T](make: Callable[[int], T], order: _Order, *, num_workers: int, pin_memory: bool) -> Generator[T]:
    """What `make` makes of the numbers, in order, by num_workers processes or (0) here.

    Raises DataError if it raises, or if a process dies.
    """
    items = _Items(make)
    if num_workers == 0:
        for index in order:
            yield _unwrapped(items[index])
        return
    loader = DataLoader(
        items,
        batch_size=None,
        sampler=order,
        collate_fn=_as_it_is,
        num_workers=num_workers,
        prefetch_factor=order.num_ahead(num_workers),
        worker_init_fn=partial(_start_worker, os.getpid()),
        multiprocessing_context=_processes(),
        pin_memory=pin_memory,
        generator=torch.Generator(),  # otherwise it draws from torch's own, which belongs to the training
    )
    iterator = iter(loader)
    try:
        for item in iterator:
            yield _unwrapped(item)
    except (RuntimeError, ConnectionError, EOFError) as error:  # the last two while it is sending
        raise _dead_worker(error) from error
    finally:
        del iterator  # ends the workers


def _fed(
    drawn: Generator[Drawn], options: SampleOptions, device: torch.device, *, num_codecs: int, num_ahead: int
) -> Generator[Sample]:
    """Samples degraded on the device, in the order of what was drawn, up to num_ahead of them under way.

    One thread takes what is drawn and hands it to the others; codecs run in processes that these wait for.
    """
    stopped, room = threading.Event(), threading.Semaphore(num_ahead)
    under_way: queue.SimpleQueue[Future[_OnDevice] | BaseException | None] = queue.SimpleQueue()
    with contextlib.ExitStack() as owned:
        run_codec: codecs.RunCodec = codecs.run
        if num_codecs:
            processes = ProcessPoolExecutor(
                num_codecs, mp_context=_processes(), initializer=partial(_start_worker, os.getpid())
            )
            owned.callback(processes.shutdown, wait=True, cancel_futures=True)
            run_codec = partial(_run_elsewhere, processes)
        threads = ThreadPoolExecutor(num_codecs + 2, "degrade", initializer=_start_thread, initargs=(device,))
        owned.callback(threads.shutdown, wait=True, cancel_futures=True)

        def hand_out() -> None:
            try:
                for one in drawn:
                    while not room.acquire(timeout=0.1):
                        if stopped.is_set():
                            return
                    if stopped.is_set():
                        return
                    under_way.put(threads.submit(_degraded_on, device, one, options, run_codec))
                under_way.put(None)
            except BaseException as error:  # whatever it is, the one who waits must hear of it
                under_way.put(error)

        hander = threading.Thread(target=hand_out, name="hand out", daemon=True)
        owned.callback(drawn.close)
        owned.callback(hander.join)
        owned.callback(stopped.set)  # the last one entered is the first one called
        hander.start()
        while (item := under_way.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            try:
                yield item.result().here()
            except Exception as error:
                raise _Failure.of(error).error() from error
            room.release()


@dataclass(frozen=True, slots=True)
class _OnDevice:
    """A sample that a thread has made on its own CUDA stream; `ready` is None on other devices."""

    sample: Sample
    ready: torch.cuda.Event | None

    def here(self) -> Sample:
        """The sample, safe to use on the caller's stream."""
        if self.ready is not None:
            stream = torch.cuda.current_stream(self.sample.lr.device)
            stream.wait_event(self.ready)
            for tensor in (self.sample.lr, self.sample.gt, self.sample.gt_unsharp):
                if tensor is not None:
                    tensor.record_stream(stream)  # its memory is not given to others before the stream is done
        return self.sample


_of_thread = threading.local()


def _degraded_on(device: torch.device, drawn: Drawn, options: SampleOptions, run_codec: codecs.RunCodec) -> _OnDevice:
    if device.type != "cuda":
        moved = replace(drawn, gt=drawn.gt.to(device))
        return _OnDevice(degrade(moved, options, run_codec=run_codec), None)
    with torch.cuda.stream(_of_thread.stream):
        moved = replace(drawn, gt=drawn.gt.to(device, non_blocking=True))
        sample = degrade(moved, options, run_codec=run_codec)
        return _OnDevice(sample, _of_thread.stream.record_event())


def _run_elsewhere(processes: ProcessPoolExecutor, step: VideoCodec | Jpeg, planes: codecs.Planes) -> codecs.Planes:
    return processes.submit(codecs.run, step, planes).result()


def _start_thread(device: torch.device) -> None:
    if device.type == "cuda":
        _of_thread.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    else:
        torch.set_num_threads(1)  # of this thread alone; more of them might change the last bit


def _processes() -> BaseContext:
    """How workers are started: never as a fork of this process, which has threads and perhaps a GPU.

    Where there is a fork server, it imports this module once; workers then start at once and share its memory.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _start_worker(first_process: int, number: int = 0) -> None:
    """What each worker process does first: one thread for everything, and signals are the first process's to answer.

    It ends when the first process has ended, however that came about: the fork server, which is its parent, would keep
    it alive after a kill -9.
    """
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_IGN)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    if os.name == "posix":
        threading.Thread(target=_end_with, args=(first_process,), daemon=True).start()


def _end_with(process: int) -> None:
    while True:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
        try:
            os.kill(process, 0)  # asks only whether it is there
        except ProcessLookupError:
            os._exit(1)


def _as_it_is[T](item: T) -> T:
    return item


def _unwrapped[T](item: T | _Failure) -> T:
    if isinstance(item, _Failure):
        raise item.error()
    return item


def _dead_worker(error: RuntimeError | ConnectionError | EOFError) -> Exception:
    """A text that helps for torch's errors about a process that has died; other errors as they are."""
    if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
        return error
    cause = (str(error) or type(error).__name__).splitlines()[0]
    return DataError(
        f"a data worker has died ({cause}): out of memory, or of shared memory (in a container: give it more with"
        " --shm-size)? Use fewer --workers."
    )


def _check(store: ClipStore, options: SampleOptions) -> None:
    """Raises ValueError if no clip is large enough."""
    options = options.of_pool_clips() if options.pool_clips else options
    store.suited(num_frames=options.num_unique, side_px=options.crop_px * SCALE)
