"""CPU tensors with memory pages of their own, which go back to the system as soon as the tensor is dropped."""

import collections
import contextlib
import ctypes
import math
import mmap
import weakref

import torch
from torch import Tensor

MIN_BYTES = 2**20
"""Minimum size of a tensor that gets pages of its own."""

NUM_SPARE = 2
"""Maximum number of spare pages, kept to be used again where the caller wants it. Fresh ones, which the system fills
with zeros, cost 1 to 3 ms of the 48 of a step at 320x180."""


def empty_pages(shape: tuple[int, ...], dtype: torch.dtype, *, recycles: bool = False) -> Tensor:
    """Return an uninitialised CPU tensor whose memory goes back to the system as soon as it is dropped.

    For tensors that are cached: malloc takes blocks of up to 32 MiB from its heaps once one of them was freed, and the
    heaps of a process with many threads shrink late. A window of 320x180 left 300 MB of 440 behind.

    Args:
        shape: The tensor's shape.
        dtype: The tensor's type.
        recycles: Keep the memory when the tensor is dropped (of two at most) for the next tensor of this size.

    Raises:
        MemoryError: The system has no more memory.
    """
    num_bytes = math.prod(shape) * dtype.itemsize
    if num_bytes < MIN_BYTES:
        return torch.empty(shape, dtype=dtype)
    memory = (_taken(num_bytes) if recycles else None) or _map(num_bytes)
    if not recycles:
        return torch.frombuffer(memory, dtype=dtype).view(shape)
    # What torch holds for as long as any tensor looks at the memory; an mmap cannot be watched itself.
    seen = (ctypes.c_char * num_bytes).from_buffer(memory)
    weakref.finalize(seen, _spare.append, memory).atexit = False
    return torch.frombuffer(seen, dtype=dtype).view(shape)


def drop_spare_pages() -> None:
    """Return all spare pages to the system."""
    _spare.clear()


_spare: collections.deque[mmap.mmap] = collections.deque(maxlen=NUM_SPARE)
"""A deque's operations are atomic: a tensor may be dropped at any time, by any thread."""


def _taken(num_bytes: int) -> mmap.mmap | None:
    """Take a spare of this size; those of other sizes belong to a clip that is over, and are dropped."""
    while True:
        try:
            memory = _spare.popleft()
        except IndexError:
            return None
        if len(memory) == num_bytes:
            return memory


def _map(num_bytes: int) -> mmap.mmap:
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    try:
        pages = mmap.mmap(-1, num_bytes, **private)
    except OSError as error:
        raise MemoryError(f"{num_bytes} bytes for a state or a picture ({error})") from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without large pages
            pages.madvise(mmap.MADV_HUGEPAGE)
    return pages
