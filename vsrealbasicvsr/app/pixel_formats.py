"""Pixel formats of VapourSynth and of ffmpeg: which goes into which, and frames of one as frames of the other."""

from collections.abc import Iterator
from typing import Any

import av
import numpy as np
import vapoursynth as vs

from vsrealbasicvsr.errors import UserError

ALPHA = "_Alpha"
"""The frame property that holds an alpha plane, as BestSource delivers it."""

_LAYOUTS = {"444": (0, 0), "422": (1, 0), "420": (1, 1), "411": (2, 0), "410": (2, 2), "440": (0, 1)}
_PLANAR = {"rgb24": "gbrp", "rgba": "gbrap", "rgb48be": "gbrp16le", "rgba64be": "gbrap16le", "argb": "gbrap"}
"""Packed formats of which ffmpeg makes no more than another order of the same samples."""
_PLANES_OF_GBR = (1, 2, 0, 3)


def pixel_formats(clip_format: vs.VideoFormat, *, alpha: bool) -> list[str]:
    """Return ffmpeg's names of pixel formats that a clip can be converted to, from its own to ever poorer ones."""
    depths = [depth for depth in (16, 14, 12, 10, 9, 8) if depth <= max(8, min(16, clip_format.bits_per_sample))]
    if clip_format.sample_type == vs.FLOAT:
        depths = [16, 12, 10, 8]
    own = next(
        (name for name, layout in _LAYOUTS.items() if layout == (clip_format.subsampling_w, clip_format.subsampling_h)),
        "444",
    )
    if clip_format.color_family == vs.GRAY:
        own = "420"
    plain = [*_names(clip_format.color_family, own, depths, "")]
    return [*_names(clip_format.color_family, own, depths, "a"), *plain] if alpha else plain


def _names(family: vs.ColorFamily, own: str, depths: list[int], alpha: str) -> Iterator[str]:
    suffixes = ["" if depth == 8 else f"{depth}le" for depth in depths]
    rgb = [f"gbr{alpha}p{suffix}" for suffix in suffixes]
    rgb += [packed for packed, planar in _PLANAR.items() if planar in rgb]
    if family == vs.GRAY and not alpha:
        yield from (f"gray{suffix}" for suffix in suffixes)
    if family == vs.RGB:
        yield from rgb
    for layout in dict.fromkeys((own, "420")):
        yield from (f"yuv{alpha}{layout}p{suffix}" for suffix in suffixes)
    # Higher than the clip's depth is a last resort: ProRes takes 10 bits only.
    yield from (f"yuv{alpha}{layout}p10le" for layout in dict.fromkeys((own, "422", "444", "420")))
    if family == vs.YUV:
        yield from rgb


def has_alpha(pix_fmt: str) -> bool:
    """Return whether a pixel format of ffmpeg has an alpha plane."""
    return any(component.is_alpha for component in av.VideoFormat(pix_fmt).components)


def check_divisible(video_format: vs.VideoFormat, width: int, height: int) -> None:
    """Raise UserError for a size that does not go with the chroma planes."""
    step_x, step_y = 1 << video_format.subsampling_w, 1 << video_format.subsampling_h
    if width % step_x or height % step_y:
        raise UserError(
            f"frames of {video_format.name} have a width divisible by {step_x} and a height divisible by {step_y}, got"
            f" {width}x{height}: change --width or --height"
        )


def to_pix_fmt(clip: vs.VideoNode, pix_fmt: str, *, matrix: int, to_limited: bool = False) -> vs.VideoNode:
    """Convert the clip, and its alpha planes, to a pixel format of ffmpeg, with dithering where depth is lost.

    Args:
        clip: What to convert.
        pix_fmt: ffmpeg's name.
        matrix: Between YUV and RGB.
        to_limited: YUV and GRAY of full range become limited range.

    Raises:
        UserError: The format has chroma planes of a fraction of the size, which the clip's size is no multiple of.
    """
    planar = _PLANAR.get(pix_fmt, pix_fmt)
    depth = av.VideoFormat(planar).components[0].bits
    family, layout = vs.YUV, (0, 0)
    if planar.startswith(("gbr", "gray")):
        family = vs.RGB if planar.startswith("gbr") else vs.GRAY
    else:
        layout = _LAYOUTS[planar.removeprefix("yuva").removeprefix("yuv")[:3]]
    wanted = vs.core.query_video_format(family, vs.INTEGER, depth, *layout)
    check_divisible(wanted, clip.width, clip.height)
    alpha = clip.std.PropToClip(ALPHA) if has_alpha(pix_fmt) else None
    to_limited &= family != vs.RGB
    if clip.format is None or clip.format.id != wanted.id or to_limited:
        arguments: dict[str, Any] = {}
        if clip.format is not None and clip.format.color_family == vs.RGB and family != vs.RGB:
            arguments = {"matrix": matrix, "range": vs.RANGE_LIMITED}
        elif family == vs.RGB and clip.format is not None and clip.format.color_family != vs.RGB:
            arguments = {"matrix_in": matrix}
        if to_limited:
            arguments["range"] = vs.RANGE_LIMITED
        clip = clip.resize.Spline36(format=wanted.id, dither_type="error_diffusion", **arguments)
    if alpha is not None:
        gray = vs.core.query_video_format(vs.GRAY, vs.INTEGER, depth, 0, 0)
        full = {"range_in": vs.RANGE_FULL, "range": vs.RANGE_FULL}
        clip = clip.std.ClipToProp(alpha.resize.Point(format=gray.id, **full), prop=ALPHA)
    return clip


def to_av(frame: vs.VideoFrame, pix_fmt: str) -> av.VideoFrame:
    """Copy a frame of VapourSynth, and its alpha plane, to one of ffmpeg of the same layout."""
    planar = _PLANAR.get(pix_fmt, pix_fmt)
    picture = av.VideoFrame(frame.width, frame.height, planar)
    planes = [np.asarray(frame[plane]) for plane in range(frame.format.num_planes)]
    if has_alpha(planar):
        planes.append(np.asarray(frame.props[ALPHA][0]))
    if planar.startswith("gbr"):
        planes = [planes[plane] for plane in _PLANES_OF_GBR[: len(planes)]]
    for target, samples in zip(picture.planes, planes, strict=True):
        row_bytes = samples.shape[1] * samples.itemsize
        rows: Any = np.frombuffer(target, np.uint8).reshape(-1, target.line_size)
        rows[: samples.shape[0], :row_bytes] = np.ascontiguousarray(samples).view(np.uint8).reshape(-1, row_bytes)
    return picture if planar == pix_fmt else picture.reformat(format=pix_fmt)
