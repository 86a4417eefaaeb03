"""Which backend computes on which kind of device."""

from collections.abc import Mapping

import torch

from vsrealbasicvsr.model import RealBasicVSR

from .base import Backend, BackendFactory
from .cpu import create_cpu_backend
from .cuda import create_cuda_backend
from .torch import create_torch_backend

FACTORIES: Mapping[str, BackendFactory] = {"cpu": create_cpu_backend, "cuda": create_cuda_backend}
"""Factories by torch's device type. Devices without an entry are served by torch's own operations."""


def create_backend(
    model: RealBasicVSR, device: torch.device, dtype: torch.dtype, *, max_tile_rows: int | None = None
) -> Backend:
    """Create the backend for a device; the arguments are those of `BackendFactory`."""
    factory = FACTORIES.get(device.type, create_torch_backend)
    return factory(model, device, dtype, max_tile_rows=max_tile_rows)
