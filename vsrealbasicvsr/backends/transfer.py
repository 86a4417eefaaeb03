"""Tensors on their way between the host and any device."""

from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from .cuda import streams


def place_of(device: torch.device) -> AbstractContextManager[None]:
    """Return a context in which the thread works on the device, and on its default stream if it has streams."""
    return streams.place_of(device)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a CPU tensor on the device; on CUDA the thread does not wait for the copy."""
    return streams.to_device(tensor, device) if device.type == "cuda" else tensor.to(device)


def to_host(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return tensors of one device on the CPU. Any thread may call it; the device goes on computing meanwhile."""
    if tensors and tensors[0].device.type == "cuda":
        return streams.to_host(tensors)
    return [tensor.cpu() for tensor in tensors]
