"""The Triton kernel of convolution.py. Imported only where it runs."""

import os

import triton
import triton.language as tl

from .convolution_task import Plan, Task

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether kernels run in Triton's interpreter, which multiplies bfloat16 as if they were integers."""


def launch(task: Task, plan: Plan) -> None:
    """Compute a convolution into `task.out`. See `Task` for the layouts."""
    num, _, height, width = task.x.shape
    tiles_across, tiles_down = triton.cdiv(width, plan.tile_width), triton.cdiv(height, plan.tile_height)
    packed = task.packed
    num_blocks = triton.cdiv(packed.channels_out, plan.out_block)
    _convolution[(tiles_across * tiles_down * num_blocks, num)](
        task.x,
        packed.weight,
        packed.bias,
        task.x if task.residual is None else task.residual,
        task.out,
        height,
        width,
        tiles_across,
        task.slope,
        **constants(task, plan),
        num_warps=plan.num_warps,
        num_stages=plan.num_stages,
    )


def constants(task: Task, plan: Plan) -> dict[str, int | bool]:
    """Return the kernel's compile-time arguments."""
    packed = task.packed
    return {
        "SIDE": packed.side,
        "CHANNELS": packed.channels,
        "OUT_CHANNELS": packed.channels_out,
        "NUM_BLOCKS": triton.cdiv(packed.channels_out, plan.out_block),
        "OUT_BLOCK": plan.out_block,
        "STEP": plan.step,
        "K_PADDED": packed.weight.shape[1],
        "TILE_HEIGHT": plan.tile_height,
        "TILE_WIDTH": plan.tile_width,
        "PIXELS_ARE_COLUMNS": plan.pixels_are_columns,
        "HAS_RESIDUAL": task.residual is not None and not task.residual_is_small,
        "HAS_BASE": task.residual_is_small,
        "SHUFFLE": task.shuffle,
        "PLANAR": task.planar,
        "LIMIT": task.limit,
        "WIDEN": INTERPRETED,
    }


# Sizes are not specialized: each kind of size would be compiled anew, in the middle of a clip.
@triton.jit(do_not_specialize=["height", "width", "tiles_across", "slope"])  # type: ignore[untyped-decorator]
def _convolution(  # type: ignore[no-untyped-def]
    x,
    weight,
    bias,
    residual,
    out,
    height,
    width,
    tiles_across,
    slope,
    SIDE: tl.constexpr,
    CHANNELS: tl.constexpr,
    OUT_CHANNELS: tl.constexpr,
    NUM_BLOCKS: tl.constexpr,
    OUT_BLOCK: tl.constexpr,
    STEP: tl.constexpr,
    K_PADDED: tl.constexpr,
    TILE_HEIGHT: tl.constexpr,
    TILE_WIDTH: tl.constexpr,
    PIXELS_ARE_COLUMNS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    HAS_BASE: tl.constexpr,
    SHUFFLE: tl.constexpr,
    PLANAR: tl.constexpr,
    LIMIT: tl.constexpr,
    WIDEN: tl.constexpr,
):
    # The blocks of output channels of one tile follow each other: they find its pixels in the cache.
    block = tl.program_id(0) % NUM_BLOCKS
    tile = tl.program_id(0) // NUM_BLOCKS
    frame = tl.program_id(1).to(tl.int64)
    first_row = (tile // tiles_across) * TILE_HEIGHT
    first_column = (tile % tiles_across) * TILE_WIDTH
    first = frame * height * width + first_row * width + first_column
    down = tl.arange(0, TILE_HEIGHT * TILE_WIDTH) // TILE_WIDTH
    right = tl.arange(0, TILE_HEIGHT * TILE_WIDTH) % TILE_WIDTH
    row = first_row + down
    column = first_column + right
    channel = block * OUT_BLOCK + tl.arange(0, OUT_BLOCK)
    x += first * CHANNELS
    weight += channel[:, None] * K_PADDED
    # fmt: off
    y = _product(
        x, weight, row, column, down * width + right, height, width,
        SIDE, CHANNELS, STEP, K_PADDED // STEP, TILE_HEIGHT * TILE_WIDTH, OUT_BLOCK, PIXELS_ARE_COLUMNS, WIDEN,
    )
    # fmt: on
    y = _activated(y, tl.load(bias + channel, mask=channel < OUT_CHANNELS, other=0.0).to(tl.float32), slope)
    inside = ((row < height) & (column < width))[:, None] & (channel < OUT_CHANNELS)[None, :]
    if PLANAR:
        plane = frame * OUT_CHANNELS + channel[None, :]
        place = plane * (height.to(tl.int64) * width) + (row * width + column)[:, None]
        if HAS_BASE:
            y += _enlarged(residual, plane, row[:, None], column[:, None], height, width, inside)
    elif SHUFFLE:
        shuffled = frame * height * width * 4 + (first_row * 2) * (width * 2) + first_column * 2
        place = _shuffled(shuffled, down, right, channel, width, OUT_CHANNELS // 4)
    else:
        place = (first + down * width + right)[:, None] * OUT_CHANNELS + channel[None, :]
    _store(out, y, residual, place, inside, HAS_RESIDUAL, LIMIT)


@triton.jit
def _activated(y, bias, slope):  # type: ignore[no-untyped-def]
    """Add the bias of each channel, and multiply what is below zero by the slope."""
    y += bias[None, :]
    below = tl.where(slope == 0, 0.0, y * slope)  # not a product: an infinite value times 0 is not a number
    return tl.where(y < 0, below, y)


@triton.jit  # type: ignore[untyped-decorator]
def _store(out, y, residual, place, inside, HAS_RESIDUAL: tl.constexpr, LIMIT: tl.constexpr):  # type: ignore[no-untyped-def]
    """Store the values, plus the residual, which lies as they do."""
    if HAS_RESIDUAL:
        y += tl.load(residual + place, mask=inside, other=0.0).to(tl.float32)
    if LIMIT:
        y = tl.minimum(tl.maximum(y, -65504.0), 65504.0)
    tl.store(out + place, y.to(out.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _shuffled(first, down, right, channel, width, CHANNELS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return where the channels of a tile's pixels are after a pixel shuffle by 2; `first` is its first pixel."""
    corner = channel // CHANNELS
    pixel = (down * 2) * (width * 2) + right * 2
    beside = ((corner // 2) * (width * 2) + corner % 2) * CHANNELS + channel % CHANNELS
    return (first + pixel)[:, None] * CHANNELS + beside[None, :]


@triton.jit  # type: ignore[untyped-decorator]
def _product(  # type: ignore[no-untyped-def]
    x,
    weight,
    row,
    column,
    local,
    height,
    width,
    SIDE: tl.constexpr,
    CHANNELS: tl.constexpr,
    STEP: tl.constexpr,
    NUM_STEPS: tl.constexpr,
    PIXELS: tl.constexpr,
    OUT_BLOCK: tl.constexpr,
    PIXELS_ARE_COLUMNS: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Return the products of a tile's pixels, which lie at `local`, and a block of weights: (PIXELS, OUT_BLOCK)."""
    RADIUS: tl.constexpr = SIDE // 2
    part = tl.arange(0, STEP)
    if PIXELS_ARE_COLUMNS:
        total = tl.zeros((OUT_BLOCK, PIXELS), tl.float32)
    else:
        total = tl.zeros((PIXELS, OUT_BLOCK), tl.float32)
    for step in range(0, NUM_STEPS):  # counted in steps: of a multiple of STEP Triton would not know how it divides
        if CHANNELS % STEP == 0:  # one tap of the filter at a time, or a part of it
            tap = step // (CHANNELS // STEP)
            down = tap // SIDE - RADIUS
            right = tap % SIDE - RADIUS
            within = (row + down >= 0) & (row + down < height) & (column + right >= 0) & (column + right < width)
            shift = (down * width + right) * CHANNELS + step % (CHANNELS // STEP) * STEP
            values = tl.load(x + shift + ((local * CHANNELS)[:, None] + part[None, :]), mask=within[:, None], other=0.0)
        else:  # several taps, or parts of them
            taps = (step * STEP + part) // CHANNELS
            downs = taps // SIDE - RADIUS
            rights = taps % SIDE - RADIUS
            rows = row[:, None] + downs[None, :]
            columns = column[:, None] + rights[None, :]
            within = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width) & (taps < SIDE * SIDE)[None, :]
            shift = (downs * width + rights) * CHANNELS + (step * STEP + part) % CHANNELS
            values = tl.load(x + (local[:, None] * CHANNELS + shift[None, :]), mask=within, other=0.0)
        factors = tl.load(weight + (step * STEP + part)[None, :])
        if WIDEN:
            values = values.to(tl.float32)
            factors = factors.to(tl.float32)
        if PIXELS_ARE_COLUMNS:
            total = tl.dot(factors, tl.trans(values), total)
        else:
            total = tl.dot(values, tl.trans(factors), total)
    return tl.trans(total) if PIXELS_ARE_COLUMNS else total


@triton.jit
def _enlarged(small, plane, row, column, height, width, inside):  # type: ignore[no-untyped-def]
    """Enlarge planes of a quarter of the size bilinearly, borders aligned, and return the value at (row, column)."""
    rows = height // 4
    columns = width // 4
    y = tl.maximum(row * 0.25 - 0.375, 0.0)
    x = tl.maximum(column * 0.25 - 0.375, 0.0)
    top = y.to(tl.int32)
    left = x.to(tl.int32)
    down = y - top
    right = x - left
    below = tl.minimum(top + 1, rows - 1)
    beside = tl.minimum(left + 1, columns - 1)
    plane = plane * rows * columns
    upper = tl.load(small + plane + (top * columns + left), mask=inside, other=0.0) * (1 - right)
    upper += tl.load(small + plane + (top * columns + beside), mask=inside, other=0.0) * right
    lower = tl.load(small + plane + (below * columns + left), mask=inside, other=0.0) * (1 - right)
    lower += tl.load(small + plane + (below * columns + beside), mask=inside, other=0.0) * right
    return upper * (1 - down) + lower * down
