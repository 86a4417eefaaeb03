"""Degradation on a GPU: threads with a CUDA stream each, video codecs in worker processes, samples in order."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Generator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import torch

from training.data.sampler import Drawn, Sample, degrade
from training.data.settings import DataSettings
from training.data.workers import Failure, start_worker, worker_context
from training.degradations import Jpeg, VideoCodec, codecs
from vsrealbasicvsr.backends import place_of


def degraded_on_gpu(
    drawn: Generator[Drawn], options: DataSettings, device: torch.device, *, num_codecs: int, num_ahead: int
) -> Generator[Sample]:
    """Yield samples degraded on the device, in the order in which they were drawn.

    One thread takes what was drawn and distributes it to others; codecs run in processes that these wait for.

    Args:
        drawn: What was drawn; closed at the end.
        options: Settings of the samples.
        device: Where they are degraded and stay.
        num_codecs: Number of processes for codecs; 0: the threads run them.
        num_ahead: Maximum number of samples in progress.

    Raises:
        DataError: A sample cannot be computed.
    """
    stopped, room = threading.Event(), threading.Semaphore(num_ahead)
    under_way: queue.SimpleQueue[Future[_OnDevice] | BaseException | None] = queue.SimpleQueue()
    with contextlib.ExitStack() as owned:
        run_codec: codecs.RunCodec = codecs.run
        if num_codecs:
            processes = ProcessPoolExecutor(
                num_codecs, mp_context=worker_context(), initializer=partial(start_worker, os.getpid())
            )
            owned.callback(processes.shutdown, wait=True, cancel_futures=True)
            run_codec = partial(_run_elsewhere, processes)
        threads = ThreadPoolExecutor(num_codecs + 2, "degrade", initializer=_start_thread, initargs=(device,))
        owned.callback(threads.shutdown, wait=True, cancel_futures=True)

        def hand_out() -> None:
            try:
                with place_of(device):  # else a loader that pins memory creates a context on GPU 0
                    for one in drawn:
                        while not room.acquire(timeout=0.1):
                            if stopped.is_set():
                                return
                        if stopped.is_set():
                            return
                        under_way.put(threads.submit(_degraded_on, device, one, options, run_codec))
                under_way.put(None)
            except BaseException as error:  # passed to the consumer, which would otherwise wait forever
                under_way.put(error)

        hander = threading.Thread(target=hand_out, name="hand out", daemon=True)
        owned.callback(drawn.close)
        owned.callback(hander.join)
        owned.callback(stopped.set)  # called first: callbacks run in reverse order
        hander.start()
        while (item := under_way.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            try:
                yield item.result().here()
            except Exception as error:
                raise Failure.of(error).error() from error
            room.release()


@dataclass(frozen=True, slots=True)
class _OnDevice:
    """A sample that a thread has computed on its own CUDA stream; `ready` is None on other devices."""

    sample: Sample
    ready: torch.cuda.Event | None

    def here(self) -> Sample:
        """Return the sample, safe to use on the caller's stream."""
        if self.ready is not None:
            stream = torch.cuda.current_stream(self.sample.lr.device)
            stream.wait_event(self.ready)
            for tensor in (self.sample.lr, self.sample.gt, self.sample.gt_unsharp):
                if tensor is not None:
                    tensor.record_stream(stream)  # its memory is not used again before the stream is done
        return self.sample


_of_thread = threading.local()


def _degraded_on(device: torch.device, drawn: Drawn, options: DataSettings, run_codec: codecs.RunCodec) -> _OnDevice:
    if device.type != "cuda":
        moved = replace(drawn, gt=drawn.gt.to(device))
        return _OnDevice(degrade(moved, options, run_codec=run_codec), None)
    with torch.cuda.device(device), torch.cuda.stream(_of_thread.stream):
        moved = replace(drawn, gt=drawn.gt.to(device, non_blocking=True))
        sample = degrade(moved, options, run_codec=run_codec)
        return _OnDevice(sample, _of_thread.stream.record_event())


def _run_elsewhere(processes: ProcessPoolExecutor, step: VideoCodec | Jpeg, planes: codecs.Planes) -> codecs.Planes:
    return processes.submit(codecs.run, step, planes).result()


def _start_thread(device: torch.device) -> None:
    if device.type == "cuda":
        _of_thread.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    else:
        torch.set_num_threads(1)  # of this thread alone; more threads might change the last bit
