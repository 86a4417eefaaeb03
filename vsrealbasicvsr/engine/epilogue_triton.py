"""The kernel of epilogue.py. Imported only where it is to run."""

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024
"""Values that a program of the GPU works on."""


def launch(x: Tensor, bias: Tensor, residual: Tensor | None, out: Tensor, slope: float, *, shuffle: bool) -> None:
    """Write the epilogue of x into `out`, which may be x unless shuffle. All maps are channels last and dense."""
    _, channels, height, width = x.shape
    _epilogue[(triton.cdiv(x.numel(), BLOCK),)](
        x,
        bias,
        x if residual is None else residual,
        out,
        x.numel(),
        height,
        width,
        slope,
        CHANNELS=channels,
        HAS_RESIDUAL=residual is not None,
        SHUFFLE=shuffle,
        BLOCK=BLOCK,
    )


@triton.jit  # type: ignore[untyped-decorator]
def _epilogue(  # type: ignore[no-untyped-def]
    x,
    bias,
    residual,
    out,
    num_values,
    height,
    width,
    slope,
    CHANNELS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    SHUFFLE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < num_values
    channel = place % CHANNELS
    y = tl.load(x + place, mask=inside).to(tl.float32) + tl.load(bias + channel).to(tl.float32)
    y = tl.where(y >= 0, y, y * slope)
    if HAS_RESIDUAL:
        y += tl.load(residual + place, mask=inside).to(tl.float32)
    if SHUFFLE:
        pixel = place // CHANNELS
        column = pixel % width
        row = (pixel // width) % height
        frame = pixel // (width * height)
        corner = channel // (CHANNELS // 4)
        up_row = 2 * row + corner // 2
        up_column = 2 * column + corner % 2
        place = ((frame * 2 * height + up_row) * 2 * width + up_column) * (CHANNELS // 4) + channel % (CHANNELS // 4)
    tl.store(out + place, y.to(out.dtype.element_ty), mask=inside)
