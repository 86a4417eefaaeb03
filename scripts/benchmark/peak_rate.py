"""The machine's peak FLOP/s, by the two operations that libraries compute best."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vsrealbasicvsr.engine import DeviceConfig

from .turns import dtype_name, timed


@dataclass(frozen=True, slots=True, kw_only=True)
class PeakRate:
    """FLOP/s of a matrix product and of a convolution."""

    dtype: str
    product: float
    convolution: float

    @property
    def largest(self) -> float:
        """The larger of the two, taken as the machine's peak."""
        return max(self.product, self.convolution)

    def larger_of(self, other: PeakRate) -> PeakRate:
        """Return the larger rate of each operation from two measurements."""
        return dataclasses.replace(
            self, product=max(self.product, other.product), convolution=max(self.convolution, other.convolution)
        )

    def __str__(self) -> str:
        return (
            f"peak in {self.dtype}: {self.largest / 1e9:.0f} GFLOP/s, the larger of a product of square matrices"
            f" ({self.product / 1e9:.0f}) and a convolution 3x3, 64 to 64 channels, channels_last"
            f" ({self.convolution / 1e9:.0f})"
        )


def measure_peak(compute: DeviceConfig, *, tiny: bool = False) -> PeakRate:
    """Measure the best of several runs of each operation.

    Args:
        compute: Device and dtype. On a GPU operations are larger, to keep it busy.
        tiny: Use tiny operations, to test that it runs.
    """
    side, (width, height) = (2048, (320, 180)) if compute.device.type == "cpu" else (8192, (1280, 720))
    if tiny:
        side, width, height = 64, 32, 24
    options: dict[str, Any] = {"device": compute.device, "dtype": compute.dtype}
    a, b = torch.randn(side, side, **options), torch.randn(side, side, **options)
    maps = torch.randn(1, 64, height, width, **options).contiguous(memory_format=torch.channels_last)
    weights = torch.randn(64, 64, 3, 3, **options).contiguous(memory_format=torch.channels_last)

    def rate(flops: float, job: Callable[[], Tensor]) -> float:
        return flops / min(timed(compute, job)[0] for _ in range(6))

    return PeakRate(
        dtype=dtype_name(compute.dtype),
        product=rate(2 * side**3, lambda: a @ b),
        convolution=rate(2 * 9 * 64 * 64 * width * height, lambda: F.conv2d(maps, weights, padding=1)),
    )
