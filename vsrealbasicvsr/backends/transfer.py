"""Tensors on their way between the host and any device."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from .cuda import streams


def place_of(device: torch.device) -> AbstractContextManager[None]:
    """Return a context in which the thread works on the device, and on its default stream if it has streams."""
    return streams.place_of(device)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a CPU tensor on the device; on CUDA the thread does not wait for the copy."""
    return streams.to_device(tensor, device) if device.type == "cuda" else tensor.to(device)


@dataclass(frozen=True, slots=True)
class Launched:
    """Tensors of one device, which may still be at work on them. See `launched`."""

    tensors: Sequence[Tensor]
    ready: torch.cuda.Event | None


def launched(tensors: Sequence[Tensor]) -> Launched:
    """Return tensors for `to_host`, for the thread that has just launched their computation, before it goes on."""
    is_cuda = bool(tensors) and tensors[0].device.type == "cuda"
    return Launched(tensors, streams.mark(tensors[0].device) if is_cuda else None)


def to_host(results: Sequence[Tensor] | Launched) -> list[Tensor]:
    """Return tensors of one device on the CPU. Any thread may call it; the device goes on computing meanwhile.

    Of tensors that are not `Launched` a CUDA device may compute the next ones first.
    """
    if not isinstance(results, Launched):
        results = Launched(results, None)
    if results.tensors and results.tensors[0].device.type == "cuda":
        return streams.to_host(results.tensors, results.ready)
    return [tensor.cpu() for tensor in results.tensors]
