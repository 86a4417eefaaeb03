"""Memory that runs short: recognizing the errors that say so, and returning freed memory to the system."""

import ctypes
import errno
import functools
import re
from collections.abc import Callable

import torch

_OUT_OF_MEMORY = re.compile(
    r"out.of.(?:\w+.)?memory"  # CUDA, HIP, MPS and, as an error's name, SYCL: out_of_device_memory
    r"|not enough memory|(?:can't|cannot|could not|unable to|failed to) allocate"  # torch's on a CPU, the C library's
    r"|alloc(?:ation)?_failed"  # cublas_status_alloc_failed; cudnn_..._device_allocation_failed
    r"|bad_alloc|bad allocation"
    r"|failed to map segment"  # a shared object that is loaded late
    r"|can't start new thread"  # no memory for its stack, or too many processes
    r"|unable to find an engine to execute this computation"  # cuDNN found no memory for the workspace of any
)
"""Patterns in lower case. Other texts about allocations ("an allocator was not initialised") do not mean that memory is
short."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error is one of the ways in which torch, its libraries and Python say that memory is short."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    if isinstance(error, OSError):  # mmap
        return error.errno == errno.ENOMEM
    text = str(error).lower()
    if not isinstance(error, RuntimeError) or "internal assert failed" in text:  # an allocator's bug
        return False
    return _OUT_OF_MEMORY.search(text) is not None


def free_device_bytes(device: torch.device) -> int | None:
    """Return how much memory of a GPU is free, or cached by torch and free; None where the device does not tell.

    The CPU does not, and neither does a GPU that shares the CPU's memory (MPS).
    """
    if device.type not in ("cuda", "xpu"):
        return None
    module = torch.cuda if device.type == "cuda" else torch.xpu
    held_by_torch = module.memory_reserved(device) - module.memory_allocated(device)
    try:
        return int(module.mem_get_info(device)[0] + held_by_torch)
    except (AttributeError, RuntimeError):  # torch.xpu has it from 2.7 on, and not for every device
        if device.type == "cuda":
            raise
        return int(torch.xpu.get_device_properties(device).total_memory - module.memory_allocated(device))


def empty_device_cache(device: torch.device) -> None:
    """Return the memory that torch keeps for later on a GPU to its driver. For a thread that works on the device."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "xpu":
        torch.xpu.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def return_freed_memory() -> None:
    """Return memory that was freed, but is still kept by the C library, to the system, where that is possible.

    glibc keeps freed frames in the heaps of the threads that allocated them, and VapourSynth has many threads: a chain
    of plain resizers grew from 63 to 364 MB over 16,000 frames of 64x48, and stayed at 42 MB with a call of this
    function every 30 frames.
    """
    if trim := _malloc_trim():
        trim(0)


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):  # not glibc
        return None
    trim.argtypes, trim.restype = [ctypes.c_size_t], ctypes.c_int
    return trim
