"""What may be held, and how: budgets in bytes, pictures in 16 bits, freed memory given back. Knows no windows.

Whatever is held is held because it would otherwise be computed again, to the same bits: a budget never shows in the
picture.
"""

import ctypes
import errno
import functools
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vsrealbasicvsr.kernel import empty_pages, is_large

from .limits import address_space_left_bytes, memory_bytes

CPU_BUDGET_BYTES = 11 * 2**29
"""Of the whole process on a CPU, if it holds one filter: 5.5 GiB."""

CPU_SHARE = 0.5
"""Of the memory of the machine or the container, and of the address space that is left, at most."""

GPU_SHARE = 0.7
"""Of the memory that is free on the GPU when the first frame is cleaned."""

_PROGRAM_BYTES = 3 * 2**28
"""Python, torch, VapourSynth and the weights: 0.75 GiB."""

_STEP_BYTES_PX = 900
"""What a step takes for each low-resolution pixel: maps in work, and high-resolution frames on their way out."""

MAX_WINDOW_SHARE = 0.02
"""Of the free memory, for the frames of a window that is kept only for reading backwards."""

_FLOW_BYTES_PX = 2 * 2 * 4


_OUT_OF_MEMORY = re.compile(
    r"out.of.(?:\w+.)?memory"  # CUDA, HIP, MPS and, as an error's name, SYCL: out_of_device_memory
    r"|not enough memory|(?:can't|cannot|could not|unable to|failed to) allocate"  # torch's on a CPU, the C library's
    r"|alloc(?:ation)?_failed"  # cublas_status_alloc_failed; cudnn_..._device_allocation_failed
    r"|bad_alloc|bad allocation"
    r"|failed to map segment"  # a shared object that is loaded late
    r"|can't start new thread"  # no room for its stack, or too many processes
    r"|unable to find an engine to execute this computation"  # cuDNN found no room for the workspace of any
)
"""In lower case. That other texts tell of allocations ("an allocator was not initialised") does not make them one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """num_states: states of the propagation that may be held, besides those in use. holds_flows: whether flows are.
    is_tight: whether finished windows have to go at once. trims: whether freed memory is given back after each step.
    """

    num_states: int
    holds_flows: bool
    is_tight: bool = False
    trims: bool = False

    @classmethod
    def of(cls, *, height: int, width: int, channels: int, num_frames: int, free_bytes: int) -> "Budget":
        """What fits, for a window that reads `num_frames` frames of this size, into so much free memory.

        States have `channels` channels. At least two are held, whatever is free.
        """
        num_px = height * width
        large = is_large(height, width)
        state_bytes = num_px * channels * (2 if large else 4)
        picture_bytes_px = 3 * (2 if large else 4)
        # Two windows are alive at once, and the frames of the second are not yet cleaned.
        frames_bytes = num_px * num_frames * (picture_bytes_px + 3 * 4)
        left = free_bytes - frames_bytes - num_px * _STEP_BYTES_PX - 3 * state_bytes
        flows_bytes = num_px * num_frames * _FLOW_BYTES_PX
        holds_flows = flows_bytes < left // 4
        num_states = (left - flows_bytes * holds_flows) // state_bytes
        is_tight = large or frames_bytes + flows_bytes > free_bytes * MAX_WINDOW_SHARE
        return cls(num_states=max(num_states, 2), holds_flows=holds_flows, is_tight=is_tight, trims=large)


def free_bytes(device: torch.device) -> int:
    """What a filter may fill on this device; on the CPU below zero if the limits leave less than the program takes."""
    if device.type == "cuda":
        held_by_torch = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int((torch.cuda.mem_get_info(device)[0] + held_by_torch) * GPU_SHARE)
    memory, address_space = memory_bytes(), address_space_left_bytes()
    free = int(min(CPU_BUDGET_BYTES, CPU_SHARE * memory if memory is not None else CPU_BUDGET_BYTES)) - _PROGRAM_BYTES
    # The program is mapped already; the other share is for the threads' stacks and heaps, which map more than they use.
    return free if address_space is None else min(free, int(CPU_SHARE * address_space))


def packed(picture: Tensor) -> Tensor:
    """The picture as it is held: as it is, or in 16 bits if it is large. Values of -0.5 to 1.5 keep 1/65534."""
    if not is_large(*picture.shape[-2:]):
        return picture
    held = ((picture - 0.5).clamp(-1, 1) * 32767).round()
    if held.device.type != "cpu":
        return held.to(torch.int16)
    return empty_pages(tuple(held.shape), torch.int16).copy_(held)


def unpacked(held: Tensor) -> Tensor:
    """The float32 picture that `packed` was given, but for rounding."""
    return held.float() / 32767 + 0.5 if held.dtype == torch.int16 else held


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is one of the ways in which torch, its libraries and Python say that memory is short."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    if isinstance(error, OSError):  # mmap
        return error.errno == errno.ENOMEM
    text = str(error).lower()
    if not isinstance(error, RuntimeError) or "internal assert failed" in text:  # an allocator's bug
        return False
    return _OUT_OF_MEMORY.search(text) is not None


def spread(first: int, stop: int, num: int) -> set[int]:
    """Which of [first, stop) to hold if only `num` can be: as evenly as it goes between first - 1 and stop."""
    if num >= stop - first:
        return set(range(first, stop))
    return {first - 1 + round(k * (stop - first + 1) / (num + 1)) for k in range(1, num + 1)}


def spread_to_end(first: int, stop: int, num: int) -> set[int]:
    """The same, the last one included: nothing is held beyond."""
    return {stop - 1} | spread(first, stop - 1, num - 1) if num else set()


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
