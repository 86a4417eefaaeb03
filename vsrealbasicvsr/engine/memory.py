"""Memory budgets, and how frames are cached within them.

Whatever is cached would otherwise be computed again, to the same bits: a budget never changes the output.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vsrealbasicvsr.backends import empty_pages, free_device_bytes, is_large

from .limits import address_space_left_bytes, memory_bytes

CPU_BUDGET_BYTES = 11 * 2**29
"""CPU memory budget of a process with one filter, in bytes: 5.5 GiB."""

CPU_SHARE = 0.5
"""Maximum share of the memory of the machine or the container, and of the address space that is left."""

GPU_SHARE = 0.7
"""Share of the memory that is free on the GPU when the first frame is cleaned."""

_PROGRAM_BYTES = 3 * 2**28
"""Memory of Python, torch, VapourSynth and the weights: 0.75 GiB."""

_STEP_BYTES_PX = 900
"""Memory of a step for each low-resolution pixel: feature maps, and high-resolution frames on their way out."""

MAX_WINDOW_SHARE = 0.02
"""Maximum share of the free memory for the frames of a window that is kept only for reading backwards."""

_FLOW_BYTES_PX = 2 * 2 * 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What may be cached on a device.

    Attributes:
        num_states: Maximum number of hidden states, besides those in use.
        holds_flows: Whether flows are cached.
        is_tight: Whether finished windows are evicted at once.
        trims: Whether freed memory is returned to the system after each step.
    """

    num_states: int
    holds_flows: bool
    is_tight: bool = False
    trims: bool = False

    @classmethod
    def of(cls, *, height: int, width: int, channels: int, num_frames: int, free_bytes: int) -> "Budget":
        """Return the budget for a window of frames.

        Args:
            height: Rows of a frame.
            width: Columns of a frame.
            channels: Channels of a hidden state.
            num_frames: Frames that the window reads.
            free_bytes: Memory that may be filled.

        Returns:
            What fits; at least two states, whatever is free.
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
    """Return how many bytes a filter may fill on this device; below zero if the limits leave less than the program."""
    if (free_on_device := free_device_bytes(device)) is not None:
        return int(free_on_device * GPU_SHARE)
    memory, address_space = memory_bytes(), address_space_left_bytes()
    free = int(min(CPU_BUDGET_BYTES, CPU_SHARE * memory if memory is not None else CPU_BUDGET_BYTES)) - _PROGRAM_BYTES
    # The program is mapped already; the other share is for the threads' stacks and heaps, which map more than they use.
    return free if address_space is None else min(free, int(CPU_SHARE * address_space))


def packed(frame: Tensor) -> Tensor:
    """Return a frame as it is cached: unchanged, or in 16 bits if it is large. Values of -0.5 to 1.5 keep 1/65534."""
    if not is_large(*frame.shape[-2:]):
        return frame
    held = ((frame - 0.5).clamp(-1, 1) * 32767).round()
    if held.device.type != "cpu":
        return held.to(torch.int16)
    return empty_pages(tuple(held.shape), torch.int16).copy_(held)


def unpacked(held: Tensor) -> Tensor:
    """Return the float32 frame that `packed` was given, but for rounding."""
    return held.float() / 32767 + 0.5 if held.dtype == torch.int16 else held


def spread(first: int, stop: int, num: int) -> set[int]:
    """Return which of [first, stop) to cache if only `num` can be: as evenly as possible between first - 1 and stop."""
    if num >= stop - first:
        return set(range(first, stop))
    return {first - 1 + round(k * (stop - first + 1) / (num + 1)) for k in range(1, num + 1)}


def spread_to_end(first: int, stop: int, num: int) -> set[int]:
    """Return which of [first, stop) to cache, the last one included because nothing is cached beyond it."""
    return {stop - 1} | spread(first, stop - 1, num - 1) if num else set()
