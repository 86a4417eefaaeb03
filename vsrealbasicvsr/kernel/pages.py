"""How large tensors are held: which frames are large, and pages of their own. Knows no network."""

import contextlib
import math
import mmap

import torch
from torch import Tensor

LARGE_PX = 500_000
"""What is held of larger frames is held in 16 bits: 1280x720 and more."""

MIN_BYTES = 2**20
"""Of a tensor that gets pages of its own."""


def is_large(height: int, width: int) -> bool:
    """Whether what is held of frames of this size is held in 16 bits."""
    return height * width > LARGE_PX


def empty_pages(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor on the CPU whose memory goes back to the system as soon as it is dropped.

    For what is held long: malloc takes blocks of up to 32 MiB from its heaps once one of them was freed, and the heaps
    of a process with many threads shrink late. A window of 320x180 left 300 MB of 440 behind.
    """
    num_bytes = math.prod(shape) * dtype.itemsize
    if num_bytes < MIN_BYTES:
        return torch.empty(shape, dtype=dtype)
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    try:
        pages = mmap.mmap(-1, num_bytes, **private)
    except OSError as error:
        raise MemoryError(f"{num_bytes} bytes for a state or a picture ({error})") from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without large pages
            pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=dtype).view(shape)
