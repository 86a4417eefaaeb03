"""Several ways to upscale one clip, measured in turns: all of them once, then all again.

A machine that gets slower or faster meanwhile does so for all of them. Each has one untimed run first.
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
"""PSNR of two equal clips, instead of infinity."""


@dataclass(frozen=True, slots=True)
class First:
    """Result of the untimed run.

    Attributes:
        hr: The clip (T, 3, S*H, S*W), if it is available.
        rss_bytes: Peak resident set of a process that does nothing else.
        cuda_bytes: Peak of torch's allocations on the GPU in it.
    """

    hr: Tensor | None = None
    rss_bytes: int | None = None
    cuda_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class EngineRun:
    """Times of a run of the engine.

    Attributes:
        seconds: Of the whole run.
        ends: Seconds from the start to the end of each frame, ascending.
        passes_per_frame: Cleaning passes.
    """

    seconds: float
    ends: Sequence[float]
    passes_per_frame: float

    @property
    def steady_frames_per_second(self) -> float | None:
        """Rate of the second half of the frames; None for a single frame."""
        half = len(self.ends) // 2
        if not half or self.ends[-1] <= self.ends[-half - 1]:
            return None
        return half / (self.ends[-1] - self.ends[-half - 1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way to upscale the clip.

    Attributes:
        name: Of the way.
        model: The network; "" if it is not ours.
        dtype: Of the convolutions.
        num_frames: Frames of a timed run.
        flops_per_frame: Multiplications and additions of the network as it is written, however it is computed.
        first: The untimed run.
        seconds: A timed run.
        runs: Further results of the timed runs of the engine.
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
    """Results by the ways' index in the sequence.

    Attributes:
        first: Of the untimed runs.
        seconds: Of the timed runs.
        failed: Reasons of the ways that could not be measured.
    """

    first: Mapping[int, First]
    seconds: Mapping[int, Sequence[float]]
    failed: Mapping[int, str]


def measure_in_turns(ways: Sequence[Way], num_repeats: int) -> Turns:
    """Measure every way: the untimed runs, then the timed ones in turns. A way that fails is left out from then on."""
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
    """Run a job on the device's thread. Return the seconds that it takes, and its result.

    It is the engine's thread: every thread that calls torch gets its own pool of workers.
    """

    def work() -> tuple[float, Tensor]:
        synchronise(compute.device)
        before = time.perf_counter()
        result = job()
        synchronise(compute.device)
        return time.perf_counter() - before, result

    return compute.run(work)


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a dtype without "torch."."""
    return str(dtype).removeprefix("torch.")


def synchronise(device: torch.device) -> None:
    """Wait until a GPU has completed all work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def psnr_db(ours: Tensor, reference: Tensor) -> float:
    """Return the PSNR of a whole clip in [0, 1], at most MAX_PSNR_DB. Raise ValueError if the shapes differ."""
    if ours.shape != reference.shape:
        raise ValueError(f"psnr_db: the clips differ in shape, {tuple(ours.shape)} and {tuple(reference.shape)}")
    errors = [(a.double() - b.double()).square().mean().item() for a, b in zip(ours, reference, strict=True)]
    error = sum(errors) / len(errors)
    return MAX_PSNR_DB if error < 10 ** (-MAX_PSNR_DB / 10) else -10 * math.log10(error)
