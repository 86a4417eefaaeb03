"""Worker processes that compute numbered items in order, and end with the process that started them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing.context import BaseContext

import cv2
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from training.data.sampler import SampleError
from vsrealbasicvsr.errors import UserError

PREFETCH_BATCHES = 4
"""Prefetch depth, in batches: hides that the slowest sample takes twice as long as the usual one."""


_SECONDS_BETWEEN_LOOKS = 2.0


class DataError(UserError):
    """Samples cannot be computed. The text says which and why."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a worker could not compute an item: one line, and for a bug the traceback."""

    text: str
    traceback: str

    @classmethod
    def of(cls, error: Exception, index: int | None = None) -> Failure:
        """Return the text of our own errors; for others the type of the exception too."""
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


class Order(Sampler[int]):
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
        """Return the number of samples that each worker may compute ahead."""
        return max(2, -(-PREFETCH_BATCHES * self._batch // num_workers))


class _Items[T](Dataset[T | Failure]):
    """The function that workers call with a number. An exception is returned as data, not as pages of traceback."""

    def __init__(self, make: Callable[[int], T]) -> None:
        self._make = make

    def __getitem__(self, index: int) -> T | Failure:
        try:
            return self._make(index)
        except Exception as error:
            return Failure.of(error, index)


def computed[T](make: Callable[[int], T], order: Order, *, num_workers: int, pin_memory: bool) -> Generator[T]:
    """Yield make(number) for the numbers, in order.

    Args:
        make: Called with a number.
        order: The numbers.
        num_workers: Number of processes that call it; 0: this one.
        pin_memory: Move results to page-locked memory, for a GPU.

    Raises:
        DataError: `make` raised, or a process died.
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
        worker_init_fn=partial(start_worker, os.getpid()),
        multiprocessing_context=worker_context(),
        pin_memory=pin_memory,
        generator=torch.Generator(),  # torch's default generator belongs to the training
    )
    iterator = iter(loader)
    try:
        for item in iterator:
            yield _unwrapped(item)
    except (RuntimeError, ConnectionError, EOFError) as error:  # the last two if it dies while sending
        raise _dead_worker(error) from error
    finally:
        del iterator  # ends the workers


def worker_context() -> BaseContext:
    """Return how workers are started: never as a fork of this process, which has threads and perhaps a GPU.

    Where there is a fork server, it imports what workers need once; they then start quickly and share its memory.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["training.data.loader"])
    return context


def start_worker(first_process: int, number: int = 0) -> None:
    """Initialise a worker process: one thread for everything; signals are left to the main process.

    The worker ends when the main process has ended, however that happened: the fork server, which is its parent, would
    keep it alive after a kill -9.

    Args:
        first_process: Process id of the main process.
        number: Of the worker; torch passes it.
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
            os.kill(process, 0)  # sends no signal, only checks that the process exists
        except ProcessLookupError:
            os._exit(1)


def _as_it_is[T](item: T) -> T:
    return item


def _unwrapped[T](item: T | Failure) -> T:
    if isinstance(item, Failure):
        raise item.error()
    return item


def _dead_worker(error: RuntimeError | ConnectionError | EOFError) -> Exception:
    """Return an error with advice for torch's errors about a process that has died; other errors unchanged."""
    if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
        return error
    cause = (str(error) or type(error).__name__).splitlines()[0]
    return DataError(
        f"a data worker has died ({cause}): out of memory, or of shared memory (in a container: give it more with"
        " --shm-size)? Use fewer --workers."
    )
