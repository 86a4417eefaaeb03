"""The input of a propagation trunk on a GPU: a state sampled along the flow, and the frame beside it, in one kernel.

What it costs, by count, for a pixel and 64 channels in 16 bits:

    torch    the state to float32, transposed for cuDNN's sampler (128 + 256 B), the sampling grid (8 B, 16 B and more),
             the sampling (4 * 256 B, most of it from the cache, and 256 B), to 16 bits (256 + 128 B), joined (134 +
             134 B), transposed again for the convolution (134 + 144 B): 1.6 kB in 15 kernels
    here     the flow (8 B), the state (128 B; each pixel is read four times, three of them from the cache), the frame
             (12 B), the result (144 B): 292 B in one kernel

At 720x480 an H100 took 0.57 ms for the warp alone; 292 B a pixel are 0.034 ms at 2.95 TB/s. The prediction is 0.05 ms,
and, because of 72 channels instead of 67, 0.18 ms or less for the convolution after it instead of 0.28: 0.6 ms for each
direction, 1.2 of a frame's 34.4 ms.

The result has the state first, so that its rows of channels begin where a thread copies 16 bytes at once; then the
frame, then zeros up to a multiple of 8 channels. Where there is no state, the frame and the zeros are all.

The only kernel (join_triton.py) is written in Triton. Where it is missing, or does not give torch's values, torch's own
operations stay: results never differ beyond floating-point rounding.
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from vsrealbasicvsr.model import flow_warp

from .convolution_task import CHANNEL_MULTIPLE

FRAME_CHANNELS = 8
"""Channels that a frame takes in a joined map: three, and zeros."""


class Join(Protocol):
    """Joins a state and a frame into one map."""

    def __call__(self, frame: Tensor, state: Tensor | None, flow_px: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Return the map that a trunk's first convolution reads.

        Args:
            frame: (N, 3, H, W) float32.
            state: (N, C, H, W) in `dtype`, C a multiple of 8. None: there is none, and no channels of it.
            flow_px: (N, 2, H, W) float32, along which the state is sampled, zero outside of the frame. None: it stays.
            dtype: Type of the result.

        Returns:
            (N, C + 8, H, W), channels last: the state, the frame, zeros.
        """
        ...


def by_torch(frame: Tensor, state: Tensor | None, flow_px: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Join with torch's operations: the reference for the kernel, and for tests without a GPU."""
    joined = F.pad(frame.to(dtype), (0, 0, 0, 0, 0, FRAME_CHANNELS - frame.shape[1]))
    if state is not None:
        joined = torch.cat((state if flow_px is None else flow_warp(state, flow_px), joined), dim=1)
    return joined.contiguous(memory_format=torch.channels_last)


def by_triton(frame: Tensor, state: Tensor | None, flow_px: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Join with one kernel, on the thread's current device, which `frame` is on, and its current stream."""
    from .join_triton import launch  # not above: loading Triton takes long, and only a GPU has a use for it

    num, _, height, width = frame.shape
    channels = 0 if state is None else state.shape[1]
    shape = (num, channels + FRAME_CHANNELS, height, width)
    out = torch.empty(shape, dtype=dtype, device=frame.device, memory_format=torch.channels_last)
    launch(
        frame.contiguous(),
        None if state is None else state.contiguous(memory_format=torch.channels_last),
        None if flow_px is None else flow_px.contiguous(),
        out,
    )
    return out


def order_of(channels: int) -> Tensor:
    """Return the channel of a trunk's input, frame first, for each channel of the joined map; -1 for zeros.

    `channels` are those of the state: 0 where there is none.
    """
    return torch.tensor([*range(3, 3 + channels), 0, 1, 2, *[-1] * (FRAME_CHANNELS - 3)])


def fits(channels: int) -> bool:
    """Return whether states of so many channels can be joined."""
    return channels % CHANNEL_MULTIPLE == 0
