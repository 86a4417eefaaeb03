"""Freed memory, given back to the system. Knows the C library and nothing else."""

import ctypes
import functools
from collections.abc import Callable


def return_freed_memory() -> None:
    """Give the memory that was freed but is still held by the C library back to the system, where it can be asked to.

    glibc keeps freed frames in the heaps of the threads that made them, and VapourSynth has many threads: a chain of
    plain resizers grew from 63 to 364 MB over 16,000 frames of 64x48, and stayed at 42 MB with a call of this every
    30 frames.
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
