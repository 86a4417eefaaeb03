"""Where and how large a run measures, and the small things that all stages need."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from scripts.benchmark.subjects import build_network
from vsrealbasicvsr.engine import DeviceConfig
from vsrealbasicvsr.model import RealBasicVSR

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One run. tiny: sizes that a CPU does in seconds, to see that the stages themselves run.

    packed: the folder that `pack` made, or one that is not there. out: the folder of results, which comes back.
    training_words: options of python -m training train, in place of those of the recipe.
    """

    device: str
    tiny: bool
    packed: Path
    out: Path
    training_words: tuple[str, ...] = ()

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(width, height) of the frames that speed is measured with."""
        return [(32, 24)] if self.tiny else [(320, 180), (720, 480), (1280, 720)]

    @property
    def parity_sizes(self) -> list[tuple[int, int]]:
        """(width, height) of the frames whose pictures are compared: a usual, an odd and a large one."""
        return [(24, 16)] if self.tiny else [(64, 48), (61, 45), (320, 180)]

    @property
    def models(self) -> list[str]:
        """Names for `network`."""
        return ["default"] if self.tiny else ["default", "published"]

    @property
    def precisions(self) -> list[str]:
        """Keys of DTYPES that are measured."""
        return ["fp32"] if self.device == "cpu" else list(DTYPES)

    def compute(self, precision: str) -> DeviceConfig:
        """Return the engine's way to compute on the device in this precision."""
        name = "cuda:0" if self.device == "cuda" else self.device
        return DeviceConfig(torch.device(name), DTYPES[precision])

    @property
    def fastest(self) -> str:
        """The precision that users get."""
        return "fp32" if self.device == "cpu" else "fp16"


def network(model: str) -> RealBasicVSR:
    """Return the default network, or the published sizes with random weights."""
    return build_network(model)


def pictures(num: int, width: int, height: int) -> list[Tensor]:
    """Return a smooth picture that moves, (3, H, W) each: the same for the same arguments."""
    generator = torch.Generator().manual_seed(width * 10_000 + height)
    coarse = torch.rand(1, 3, height // 8 + 2, (width + num) // 8 + 2, generator=generator)
    base = F.interpolate(coarse, size=(height, width + num), mode="bicubic")[0].clamp(0, 1)
    return [base[:, :, n : n + width].contiguous() for n in range(num)]


_SLEEP_CYCLES = 10_000_000
"""Some 5 ms, in which Python launches a short job: its kernels then follow each other without waiting for it."""


def median_ms(job: Callable[[], object], device: torch.device, *, repeats: int = 10) -> float:
    """Median milliseconds of a job on the device, after three runs that do not count. By its own clock on CUDA."""
    for _ in range(3):
        job()
    times: list[float] = []
    for _ in range(repeats):
        if device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            torch.cuda._sleep(_SLEEP_CYCLES)  # type: ignore[no-untyped-call]
            begin.record()
            job()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end))
        else:
            before = time.perf_counter()
            job()
            times.append(1000 * (time.perf_counter() - before))
    return statistics.median(times)
