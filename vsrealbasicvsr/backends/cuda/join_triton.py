"""The Triton kernel of join.py. Imported only where it runs."""

import triton
import triton.language as tl
from torch import Tensor

TILE = 2048
"""Number of values that one program of the GPU samples: all channels of some pixels."""

NUM_WARPS = 4


def launch(frame: Tensor, state: Tensor | None, flow: Tensor | None, out: Tensor) -> None:
    """Write the joined map. `frame` and `flow` are contiguous, the other maps channels last and dense."""
    num, channels, height, width = out.shape
    state_channels = channels - 8
    columns, pixels = block_of(state_channels)
    _join[(triton.cdiv(height * width, pixels), num)](
        frame,
        frame if state is None else state,
        frame if flow is None else flow,
        out,
        height,
        width,
        CHANNELS=state_channels,
        COLUMNS=columns,
        PIXELS=pixels,
        HAS_STATE=state is not None,
        HAS_FLOW=flow is not None,
        num_warps=NUM_WARPS,
    )


def block_of(channels: int) -> tuple[int, int]:
    """Return the columns and the pixels of one program, for states of so many channels."""
    columns = max(triton.next_power_of_2(channels), 8)
    return columns, max(min(TILE // columns, 128), 8)


@triton.jit(do_not_specialize=["height", "width"])  # type: ignore[untyped-decorator]
def _join(  # type: ignore[no-untyped-def]
    frame,
    state,
    flow,
    out,
    height,
    width,
    CHANNELS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PIXELS: tl.constexpr,
    HAS_STATE: tl.constexpr,
    HAS_FLOW: tl.constexpr,
):
    # A pixel a row, a channel a column.
    number = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)[:, None]
    plane = height.to(tl.int64) * width
    inside = pixel < height * width
    out += (number * plane + pixel) * (CHANNELS + 8)
    if HAS_STATE:
        channel = tl.arange(0, COLUMNS)[None, :]
        is_state = inside & (channel < CHANNELS)
        state += number * plane * CHANNELS + channel
        if HAS_FLOW:
            flow += number * 2 * plane + pixel
            # Limited to just outside of the frame, where all is zero: no integer holds what may come, or is no number.
            # Where a frame has a single column or row, torch's sampler knows no place beside it.
            x = (pixel % width).to(tl.float32) + tl.load(flow, mask=inside & (width > 1), other=0.0)
            y = (pixel // width).to(tl.float32) + tl.load(flow + plane, mask=inside & (height > 1), other=0.0)
            x = tl.minimum(tl.maximum(x, -2.0), (width + 1).to(tl.float32))
            y = tl.minimum(tl.maximum(y, -2.0), (height + 1).to(tl.float32))
            left = tl.floor(x).to(tl.int32)
            top = tl.floor(y).to(tl.int32)
            right = x - left
            down = y - top
            values = _weighted(state, top, left, (1 - down) * (1 - right), height, width, CHANNELS, is_state)
            values += _weighted(state, top, left + 1, (1 - down) * right, height, width, CHANNELS, is_state)
            values += _weighted(state, top + 1, left, down * (1 - right), height, width, CHANNELS, is_state)
            values += _weighted(state, top + 1, left + 1, down * right, height, width, CHANNELS, is_state)
        else:
            values = tl.load(state + pixel.to(tl.int64) * CHANNELS, mask=is_state, other=0.0).to(tl.float32)
        tl.store(out + channel, values.to(out.dtype.element_ty), mask=is_state)
    part = tl.arange(0, 8)[None, :]
    values = tl.load(frame + (number * 3 + part) * plane + pixel, mask=inside & (part < 3), other=0.0)
    tl.store(out + CHANNELS + part, values.to(out.dtype.element_ty), mask=inside & (part < 8))


@triton.jit  # type: ignore[untyped-decorator]
def _weighted(state, row, column, weight, height, width, CHANNELS: tl.constexpr, inside):  # type: ignore[no-untyped-def]
    """Load the values at a pixel, zero outside of the frame, times their weight."""
    inside = inside & (row >= 0) & (row < height) & (column >= 0) & (column < width)
    place = (row.to(tl.int64) * width + column) * CHANNELS
    return tl.load(state + place, mask=inside, other=0.0).to(tl.float32) * weight
