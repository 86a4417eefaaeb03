"""Runs of a clip through the plain network and through the engine, and clocks inside the engine.

The engine is used as VapourSynth uses it: several concurrent requests, each for one frame; the frames are dropped.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vsrealbasicvsr.backends import Launched
from vsrealbasicvsr.engine import DeviceConfig, Grid, SceneCuts, SourceFrame, WindowUpscaler
from vsrealbasicvsr.model import RealBasicVSR

from .turns import EngineRun, synchronise

STEPS = {
    "cleaning_residue": "cleaning",
    "flow": "flow",
    "propagate_backward": "backward",
    "propagate_forward": "forward",
    "reconstruct": "reconstruction",
}
TOGETHER = {"propagate_both": "both directions"}
"""Steps that are computed together for small frames on a GPU; they have a share only there."""
REST = "rest"
IDLE, COPIES = "compute thread idle", "requests waiting for copies"


@dataclass(frozen=True, slots=True, kw_only=True)
class Arguments:
    """Arguments of Upscale that decide what the engine does. The defaults are those of Upscale."""

    theta: float = 5.0
    scene_cuts: SceneCuts = "auto"
    length: int = 30
    overlap: int = 8


USUAL = Arguments()
"""The defaults of Upscale."""
AS_PLAIN = Arguments(theta=255.0, scene_cuts="off")
"""Arguments with which the engine computes what the plain network does: one cleaning pass, no scene cuts."""


def plain_clip(network: RealBasicVSR, frames: Tensor, device: torch.device) -> Tensor:
    """Return the clip (T, 3, S*H, S*W), float32 on the CPU, by the network alone. Call it on the device's thread."""
    hr: Tensor = network(frames[None].to(device))
    return hr[0].float().cpu()


def make_upscaler(
    network: RealBasicVSR, compute: DeviceConfig, num_frames: int, arguments: Arguments = USUAL
) -> WindowUpscaler:
    """Build the engine for a clip of `num_frames` frames."""
    grid = Grid(num_frames=num_frames, length=arguments.length, overlap=arguments.overlap)
    return WindowUpscaler(network, compute, grid, theta=arguments.theta, scene_cuts=arguments.scene_cuts)


def upscaled_frame(upscaler: WindowUpscaler, frames: Tensor, n: int) -> Tensor:
    """Return frame n, (3, S*H, S*W) float32 on the CPU, requested as VapourSynth does. Thread-safe."""
    index = upscaler.cache.acquire(n)
    try:
        while missing := upscaler.cache.missing(index):
            upscaler.cache.supply(index, {i: SourceFrame(frames[i].clone()) for i in missing})
        return upscaler.upscale(n)[0]
    finally:
        upscaler.cache.release(n)


def run_engine(
    upscaler: WindowUpscaler, frames: Tensor, num_requests: int, keep: Callable[[int, Tensor], None] | None = None
) -> EngineRun:
    """Upscale the whole clip with concurrent requests.

    Args:
        upscaler: The engine.
        frames: (T, 3, H, W).
        num_requests: Number of concurrent requests.
        keep: Called with each frame's number and the frame, in any order.
    """
    ends: list[float] = []
    before = time.perf_counter()

    def upscale(n: int) -> None:
        frame = upscaled_frame(upscaler, frames, n)
        ends.append(time.perf_counter() - before)
        if keep is not None:
            keep(n, frame)

    with ThreadPoolExecutor(num_requests, "request") as requests:
        for _ in requests.map(upscale, range(len(frames))):
            pass
    counted = upscaler.statistics
    return EngineRun(max(ends), sorted(ends), counted.cleaning_passes / max(counted.frames_cleaned, 1))


def engine_clip(upscaler: WindowUpscaler, frames: Tensor, num_requests: int) -> Tensor:
    """Return the clip (T, 3, S*H, S*W), float32 on the CPU, by the engine."""
    made: dict[int, Tensor] = {}
    run_engine(upscaler, frames, num_requests, made.__setitem__)
    return torch.stack([made[n] for n in range(len(frames))])


def plain_flops_per_frame(network: RealBasicVSR, num_frames: int, width: int, height: int) -> float:
    """Return the multiplications and additions of the plain network's convolutions, per frame."""
    shapes = RealBasicVSR(network.sizes).to("meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        shapes(torch.empty(1, num_frames, 3, height, width, device="meta"))
    return float(counter.get_total_flops()) / num_frames


# ---- clocks ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StepClock(DeviceConfig):
    """A device whose backends add the time of each of their steps to `spent`, in seconds by the step's name.

    On a GPU each step is synchronised. The time of a step that calls another counts for the outer one.
    """

    spent: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STEPS.values(), 0.0), compare=False)

    def prepare(self, *args: Any, **kwargs: Any) -> Any:
        """Prepare a backend as DeviceConfig does, with a clock at each step."""
        network = DeviceConfig.prepare(self, *args, **kwargs)
        running: list[str] = []

        def timed_step(name: str, step: Callable[..., Any]) -> Callable[..., Any]:
            def run(*args: Any, **kwargs: Any) -> Any:
                if running:
                    return step(*args, **kwargs)
                running.append(name)
                synchronise(self.device)
                before = time.perf_counter()
                try:
                    made = step(*args, **kwargs)
                    return list(made) if isinstance(made, Iterator) else made  # tiles are computed as they are read
                finally:
                    synchronise(self.device)
                    self.spent[name] = self.spent.get(name, 0.0) + time.perf_counter() - before
                    running.pop()

            return run

        for method, name in {**STEPS, **TOGETHER}.items():
            if hasattr(network, method):
                setattr(network, method, timed_step(name, getattr(network, method)))
        return network


@dataclass(frozen=True, slots=True)
class WaitClock(DeviceConfig):
    """A device that adds to `spent` the seconds that its thread is busy, and those that requests wait for copies.

    Nothing else changes: on a GPU, where steps are asynchronous, this is what the CPU does beside them.
    """

    spent: dict[str, float] = field(default_factory=lambda: {"busy": 0.0, "copies": 0.0}, compare=False)
    lock: threading.Lock = field(default_factory=threading.Lock, compare=False)

    def run[T](self, job: Callable[[], T]) -> T:
        """Run a job as DeviceConfig does, with a clock on its thread."""

        def clocked() -> T:
            before = time.perf_counter()
            try:
                return job()
            finally:
                self._add("busy", time.perf_counter() - before)

        return DeviceConfig.run(self, clocked)

    def on_host(self, made: Sequence[Tensor] | Launched) -> list[Tensor]:
        """Copy results as DeviceConfig does, with a clock on the thread that waits."""
        before = time.perf_counter()
        try:
            return DeviceConfig.on_host(self, made)
        finally:
            self._add("copies", time.perf_counter() - before)

    def _add(self, name: str, seconds: float) -> None:
        with self.lock:
            self.spent[name] += seconds


def engine_shares(network: RealBasicVSR, compute: DeviceConfig, frames: Tensor, num_requests: int) -> dict[str, float]:
    """Return the share of a whole clip's time that each step takes, and the rest, in a separate run with clocks."""
    clocked = StepClock(compute.device, compute.dtype)
    run = run_engine(make_upscaler(network, clocked, len(frames)), frames, num_requests)
    shares = {name: spent / run.seconds for name, spent in clocked.spent.items()}
    return {**shares, REST: 1 - sum(shares.values())}


def engine_waits(network: RealBasicVSR, compute: DeviceConfig, frames: Tensor, num_requests: int) -> dict[str, float]:
    """Return seconds per frame of waiting: the device's thread for work, and the requests (summed) for copies."""
    clocked = WaitClock(compute.device, compute.dtype)
    run = run_engine(make_upscaler(network, clocked, len(frames)), frames, num_requests)
    idle = max(run.seconds - clocked.spent["busy"], 0.0)
    return {IDLE: idle / len(frames), COPIES: clocked.spent["copies"] / len(frames)}
