"""Several ways to upscale one clip, measured in turns: all of them once, then all again.

So a machine that gets slower or faster meanwhile does so for all. Each has one run before that is not timed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vsrealbasicvsr.engine import DeviceConfig as DeviceConfig

MAX_PSNR_DB = 200.0
"""What two equal pictures have here, instead of infinity."""


@dataclass(frozen=True, slots=True)
class First:
    """What the untimed run shows: the clip (T, 3, S*H, S*W) if it can be told, and peaks where they are known.

    rss_bytes: of a process that does nothing else. cuda_bytes: of what torch allocated on the GPU in it.
    """

    hr: Tensor | None = None
    rss_bytes: int | None = None
    cuda_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class EngineRun:
    """What a run of the engine took. ends: seconds from the start to the end of each frame, ascending."""

    seconds: float
    ends: Sequence[float]
    passes_per_frame: float

    @property
    def steady_frames_per_second(self) -> float | None:
        """The rate of the second half of the frames, or None of a single frame."""
        half = len(self.ends) // 2
        if not half or self.ends[-1] <= self.ends[-half - 1]:
            return None
        return half / (self.ends[-1] - self.ends[-half - 1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way to upscale the clip.

    model: the network, "" where it is none of ours. num_frames: of a timed run. flops_per_frame: multiplications and
    additions of the network as it is written, however it is computed. first: the untimed run. seconds: a timed one.
    runs: what the timed runs of the engine tell besides.
    """

    name: str
    model: str
    dtype: torch.dtype
    num_frames: int
    flops_per_frame: float | None
    first: Callable[[], First]
    seconds: Callable[[], float]
    runs: list[EngineRun] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Turns:
    """first and seconds by the ways' place in the sequence; failed: the reason of those that could not be measured."""

    first: Mapping[int, First]
    seconds: Mapping[int, Sequence[float]]
    failed: Mapping[int, str]


def measure_in_turns(ways: Sequence[Way], num_repeats: int) -> Turns:
    """Every way's untimed run, then the timed ones in turns. A way that fails is left out from there on."""
    first: dict[int, First] = {}
    seconds: dict[int, list[float]] = {}
    failed: dict[int, str] = {}
    for repeat in range(-1, num_repeats):
        for index, way in enumerate(ways):
            if index in failed:
                continue
            try:
                if repeat < 0:
                    first[index], seconds[index] = way.first(), []
                else:
                    seconds[index].append(way.seconds())
            except (RuntimeError, OSError, MemoryError) as error:
                failed[index] = " ".join(str(error).split())[:200] or type(error).__name__
    return Turns(first, {index: times for index, times in seconds.items() if index not in failed}, failed)


def timed(compute: DeviceConfig, job: Callable[[], Tensor]) -> tuple[float, Tensor]:
    """The seconds that a job takes on the thread that computes for this device, and its result.

    The engine's thread: each thread that calls torch gets a pool of workers of its own.
    """

    def work() -> tuple[float, Tensor]:
        synchronise(compute.device)
        before = time.perf_counter()
        result = job()
        synchronise(compute.device)
        return time.perf_counter() - before, result

    return compute.run(work)


def dtype_name(dtype: torch.dtype) -> str:
    """The name without "torch."."""
    return str(dtype).removeprefix("torch.")


def synchronise(device: torch.device) -> None:
    """Wait until a GPU has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def psnr_db(ours: Tensor, reference: Tensor) -> float:
    """Of a whole clip, for a largest value of 1; MAX_PSNR_DB at most. Raises ValueError if the shapes differ."""
    if ours.shape != reference.shape:
        raise ValueError(f"psnr_db: the clips differ in shape, {tuple(ours.shape)} and {tuple(reference.shape)}")
    errors = [(a.double() - b.double()).square().mean().item() for a, b in zip(ours, reference, strict=True)]
    error = sum(errors) / len(errors)
    return MAX_PSNR_DB if error < 10 ** (-MAX_PSNR_DB / 10) else -10 * math.log10(error)
