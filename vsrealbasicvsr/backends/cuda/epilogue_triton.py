"""The Triton kernel of epilogue.py. Imported only where it runs."""

import triton
import triton.language as tl
from torch import Tensor

TILE = 1024
"""Number of values that one program of the GPU processes, if a pixel has no more: all channels of some pixels."""


def launch(x: Tensor, bias: Tensor, residual: Tensor | None, out: Tensor, slope: float, *, shuffle: bool) -> None:
    """Write the epilogue of x into `out`, which may be x unless `shuffle`. All maps are channels last and dense."""
    num, channels, height, width = x.shape
    num_pixels = num * height * width
    columns = triton.next_power_of_2(channels)
    rows = max(TILE // columns, 1)
    _epilogue[(triton.cdiv(num_pixels, rows),)](
        x,
        bias,
        x if residual is None else residual,
        out,
        num_pixels,
        height,
        width,
        slope,
        CHANNELS=channels,
        COLUMNS=columns,
        ROWS=rows,
        HAS_RESIDUAL=residual is not None,
        SHUFFLE=shuffle,
    )


# Sizes are not specialised: each kind of size would be compiled anew, in the middle of a clip.
@triton.jit(do_not_specialize=["num_pixels", "height", "width"])  # type: ignore[untyped-decorator]
def _epilogue(  # type: ignore[no-untyped-def]
    x,
    bias,
    residual,
    out,
    num_pixels,
    height,
    width,
    slope,
    CHANNELS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    SHUFFLE: tl.constexpr,
):
    # A pixel a row, a channel a column: whatever divides is done once for each pixel.
    pixel = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    channel = tl.arange(0, COLUMNS)[None, :]
    inside = (pixel < num_pixels) & (channel < CHANNELS)
    place = pixel.to(tl.int64) * CHANNELS + channel
    y = tl.load(x + place, mask=inside).to(tl.float32)
    y += tl.load(bias + channel, mask=channel < CHANNELS).to(tl.float32)
    below = tl.where(slope == 0, 0.0, y * slope)  # not a product: an infinite value times 0 is not a number
    y = tl.where(y < 0, below, y)
    if HAS_RESIDUAL:
        y += tl.load(residual + place, mask=inside).to(tl.float32)
    if SHUFFLE:
        column = pixel % width
        row = (pixel // width) % height
        frame = pixel // (width * height)
        first = ((frame * 2 * height + 2 * row).to(tl.int64) * 2 * width + 2 * column) * (CHANNELS // 4)
        corner = channel // (CHANNELS // 4)
        inner = channel % (CHANNELS // 4)
        place = first + ((corner // 2) * (2 * width) + corner % 2) * (CHANNELS // 4) + inner
    tl.store(out + place, y.to(out.dtype.element_ty), mask=inside)
