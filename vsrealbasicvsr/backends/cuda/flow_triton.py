"""The Triton kernel of half_flow.py. Imported only where it runs."""

import triton
import triton.language as tl
from torch import Tensor

PIXELS = 128
"""Pixels of one program."""

NUM_WARPS = 4


def launch(frames: Tensor, coarse: Tensor | None, joined: Tensor, flow: Tensor) -> None:
    """Write the input of a level's convolutions and the flow that they correct. See `PrepareLevel`."""
    num, _, height, width = flow.shape
    _prepare[(triton.cdiv(height * width, PIXELS), num)](
        frames,
        flow if coarse is None else coarse,
        joined,
        flow,
        num,
        height,
        width,
        1 if coarse is None else coarse.shape[2],
        1 if coarse is None else coarse.shape[3],
        HAS_COARSE=coarse is not None,
        PIXELS=PIXELS,
        num_warps=NUM_WARPS,
    )


@triton.jit(do_not_specialize=["num", "height", "width", "coarse_height", "coarse_width"])  # type: ignore[untyped-decorator]
def _prepare(  # type: ignore[no-untyped-def]
    frames,
    coarse,
    joined,
    flow,
    num,
    height,
    width,
    coarse_height,
    coarse_width,
    HAS_COARSE: tl.constexpr,
    PIXELS: tl.constexpr,
):
    # A pixel a row, a channel of the input a column.
    frame = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)[:, None]
    channel = tl.arange(0, 8)[None, :]
    plane = height.to(tl.int64) * width
    inside = pixel < height * width
    row = pixel // width
    column = pixel % width
    right = tl.zeros((PIXELS, 1), tl.float32)
    down = tl.zeros((PIXELS, 1), tl.float32)
    if HAS_COARSE:
        y = row.to(tl.float32) * ((coarse_height - 1).to(tl.float32) / tl.maximum(height - 1, 1).to(tl.float32))
        x = column.to(tl.float32) * ((coarse_width - 1).to(tl.float32) / tl.maximum(width - 1, 1).to(tl.float32))
        small = coarse + frame * 2 * coarse_height * coarse_width
        right = 2 * _sample(small, y, x, coarse_height, coarse_width, inside)
        down = 2 * _sample(small + coarse_height * coarse_width, y, x, coarse_height, coarse_width, inside)
    second = channel - 3
    place = (frame + num) * 3 * plane + second * plane
    is_second = inside & (channel >= 3) & (channel < 6)
    sampled = _sample(frames + place, row + down, column + right, height, width, is_second)
    first = tl.load(frames + frame * 3 * plane + channel * plane + pixel, mask=inside & (channel < 3), other=0.0)
    value = tl.where(channel < 3, first, tl.where(channel < 6, sampled, tl.where(channel == 6, right, down)))
    value = tl.minimum(tl.maximum(value, -65504.0), 65504.0)
    tl.store(joined + (frame * plane + pixel) * 8 + channel, value.to(tl.float16), mask=inside)
    part = tl.arange(0, 2)[None, :]
    tl.store(flow + (frame * 2 + part) * plane + pixel, tl.where(part == 0, right, down), mask=inside)


@triton.jit
def _sample(plane, y, x, height, width, inside):  # type: ignore[no-untyped-def]
    """Sample planes bilinearly at (y, x) in pixels; outside of them are the values of the outermost pixels."""
    y = tl.minimum(tl.maximum(y, 0.0), (height - 1).to(tl.float32))
    x = tl.minimum(tl.maximum(x, 0.0), (width - 1).to(tl.float32))
    top = y.to(tl.int32)
    left = x.to(tl.int32)
    down = y - top
    right = x - left
    below = tl.minimum(top + 1, height - 1)
    beside = tl.minimum(left + 1, width - 1)
    upper = tl.load(plane + top * width + left, mask=inside, other=0.0) * (1 - right)
    upper += tl.load(plane + top * width + beside, mask=inside, other=0.0) * right
    lower = tl.load(plane + below * width + left, mask=inside, other=0.0) * (1 - right)
    lower += tl.load(plane + below * width + beside, mask=inside, other=0.0) * right
    return upper * (1 - down) + lower * down
