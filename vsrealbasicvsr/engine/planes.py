"""Conversion of an upscaled frame to the planes of a video format, on the device that the frame is on.

A host converts with all cores, at 16 times the area of the source; a GPU converts on the way, and then has an eighth of
the bytes to copy (8-bit 4:2:0 instead of three planes of floats). The values are those of zimg, which VapourSynth's
core.resize is, but for rounding.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

_KR_KB: Mapping[int, tuple[float, float]] = {
    1: (0.2126, 0.0722),  # BT.709
    4: (0.30, 0.11),  # FCC
    5: (0.299, 0.114),  # BT.470 B, G
    6: (0.299, 0.114),  # SMPTE 170M, BT.601
    7: (0.212, 0.087),  # SMPTE 240M
    9: (0.2627, 0.0593),  # BT.2020, non-constant luminance
}
_YCGCO = 8
MATRICES = frozenset({*_KR_KB, _YCGCO})
"""ITU-T H.273 matrix coefficients that need no transfer function."""

_BICUBIC_B, _BICUBIC_C = 0.0, 0.5
_BICUBIC_SUPPORT = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaneFormat:
    """How images are stored.

    Attributes:
        family: Colour family.
        bits: 8 to 16 for integers, 16 or 32 for floats.
        is_float: Whether samples are floats.
        is_full_range: Whether integers go from 0 to the largest; else from 16 to 235 (chroma to 240) times
            2^(bits - 8).
        subsampling: Binary logarithms of how many pixels of a row and of a column share one chroma sample.
        matrix: Matrix coefficients as numbered by ITU-T H.273, one of MATRICES.
        chroma_location: Chroma location as numbered by ITU-T H.273.
    """

    family: Literal["rgb", "yuv", "grey"]
    bits: int
    is_float: bool
    is_full_range: bool
    subsampling: tuple[int, int] = (0, 0)
    matrix: int = 1
    chroma_location: int = 0

    def __post_init__(self) -> None:
        if self.bits not in ((16, 32) if self.is_float else range(8, 17)) or self.matrix not in MATRICES:
            raise ValueError(f"PlaneFormat: no way to write {self}")


def to_planes(rgb: Tensor, form: PlaneFormat) -> list[Tensor]:
    """Convert a frame to planes, in about as much memory again as the frame has.

    Args:
        rgb: (3, H, W) float32, gamma-encoded. H and W are multiples of the chroma planes' subsampling.
        form: The format.

    Returns:
        One plane for grey, else three, on the frame's device: uint8 for 8 bits, the bits of unsigned integers as int16
        for 9 to 16 (torch has next to no operations on uint16), float16 or float32.
    """
    if form.family == "rgb":
        return [_written(plane, form, is_chroma=False) for plane in rgb]
    y, *chroma = _rows(form.matrix)
    planes = [_written(_weighted(rgb, y), form, is_chroma=False)]
    if form.family == "yuv":
        shifts_x, shifts_y = _shifts(form.chroma_location)
        for row in chroma:
            plane = _weighted(rgb, row)
            plane = _shrunk(plane, 1, form.subsampling[0], shifts_x)
            plane = _shrunk(plane, 0, form.subsampling[1], shifts_y)
            planes.append(_written(plane, form, is_chroma=True))
    return planes


def _rows(matrix: int) -> tuple[tuple[float, float, float], ...]:
    """Return the factors of R, G and B for Y, U and V."""
    if matrix == _YCGCO:
        return (0.25, 0.5, 0.25), (-0.25, 0.5, -0.25), (0.5, 0.0, -0.5)
    kr, kb = _KR_KB[matrix]
    kg = 1 - kr - kb
    to_u, to_v = 0.5 / (1 - kb), 0.5 / (1 - kr)
    return (kr, kg, kb), (-kr * to_u, -kg * to_u, 0.5), (0.5, -kg * to_v, -kb * to_v)


def _weighted(rgb: Tensor, row: tuple[float, float, float]) -> Tensor:
    red, green, blue = rgb
    weighted: Tensor = (red * row[0]).add_(green, alpha=row[1]).add_(blue, alpha=row[2])
    return weighted


def _shifts(chroma_location: int) -> tuple[float, float]:
    """Return where a chroma sample lies among the pixels that share it, to the right and down.

    0 is in the middle, -1 on the first pixel, 1 on the last.
    """
    x = 0.0 if chroma_location in (1, 3, 5) else -1.0  # centre, top, bottom; else on the left
    y = {2: -1.0, 3: -1.0, 4: 1.0, 5: 1.0}.get(chroma_location, 0.0)
    return x, y


def _bicubic(distance: float) -> float:
    """Mitchell and Netravali's cubic, for B and C as VapourSynth has them by default."""
    x, b, c = abs(distance), _BICUBIC_B, _BICUBIC_C
    if x < 1:
        return ((12 - 9 * b - 6 * c) * x**3 + (-18 + 12 * b + 6 * c) * x**2 + (6 - 2 * b)) / 6
    if x < 2:
        return ((-b - 6 * c) * x**3 + (6 * b + 30 * c) * x**2 + (-12 * b - 48 * c) * x + (8 * b + 24 * c)) / 6
    return 0.0


def _shrunk(plane: Tensor, dim: int, log2_factor: int, shift: float) -> Tensor:
    """Return the plane with 2^log2_factor fewer samples along an axis. shift: see `_shifts`. Edges are mirrored."""
    if log2_factor == 0:
        return plane
    factor = 2**log2_factor
    # Of the first sample made: its place in pixels, whose centres are at 0.5, 1.5, ...
    centre = factor / 2 + shift * (factor - 1) / 2
    num_taps = 2 * _BICUBIC_SUPPORT * factor
    first = math.floor(centre - num_taps / 2 + 0.5)
    taps = [_bicubic((first + k + 0.5 - centre) / factor) for k in range(num_taps)]
    size = plane.shape[dim]
    made = size // factor
    places = torch.arange(first, first + (made - 1) * factor + num_taps, device=plane.device)
    places = torch.where(places < 0, -1 - places, torch.where(places >= size, 2 * size - 1 - places, places))
    padded = plane.index_select(dim, places.clamp(0, size - 1))
    sum_: Tensor | None = None
    for k, tap in enumerate(taps):
        if tap == 0:
            continue
        seen = padded.narrow(dim, k, (made - 1) * factor + 1)
        seen = seen[::factor] if dim == 0 else seen[:, ::factor]
        weight = tap / sum(taps)
        sum_ = seen * weight if sum_ is None else sum_.add_(seen, alpha=weight)
    assert sum_ is not None
    return sum_


def _written(plane: Tensor, form: PlaneFormat, *, is_chroma: bool) -> Tensor:
    """Values of 0 to 1 (chroma: -0.5 to 0.5) as the format has them."""
    if form.is_float:
        return plane.half() if form.bits == 16 else plane
    highest, unit = 2**form.bits - 1, 2 ** (form.bits - 8)
    if form.is_full_range:
        scale, offset = highest, 128 * unit if is_chroma else 0
    else:
        wide = is_chroma and form.matrix != _YCGCO  # which writes its differences as narrow as its luma
        scale, offset = (224 if wide else 219) * unit, (128 if is_chroma else 16) * unit
    numbers: Tensor = (plane * scale).add_(offset).round_().clamp_(0, highest)
    return numbers.to(torch.uint8) if form.bits == 8 else numbers.to(torch.int32).to(torch.int16)
