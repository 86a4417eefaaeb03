"""Frames of VapourSynth to a video file, by the encoders that PyAV carries."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import vapoursynth as vs

from vsrealbasicvsr.errors import UserError, printable
from vsrealbasicvsr.scheduling import scheduling_kept

DEFAULT_CODEC, DEFAULT_DEEP_CODEC = "libx264", "libx265"
"""For 8 bits, and for more: few players decode H.264 of 10 bits."""
DEFAULT_CRF = {"libx264": 17, "libx265": 18, "libsvtav1": 24, "libvpx-vp9": 24}
DEFAULT_PRESET = {"libx264": "medium", "libx265": "medium", "libsvtav1": "6"}
CODEC_THREADS = 8
"""Of an encoder, on every machine: some encoders' streams depend on it, and segments of several machines are joined."""

SEGMENT_FORMAT = "matroska"
"""ffmpeg's name of the container of a segment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoder:
    """What the frames are encoded with; `pix_fmt` is ffmpeg's name."""

    codec: str
    options: Mapping[str, str]
    pix_fmt: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tags:
    """What the stream says of its frames; numbers as in ITU-T H.273, 2: not known."""

    rate: Fraction
    sample_aspect_ratio: Fraction = Fraction(1)
    color_range: int = 0
    colorspace: int = 2
    color_primaries: int = 2
    color_trc: int = 2
    chroma_location: int | None = None
    hdr: Mapping[str, str] = field(default_factory=dict)
    """x265's words for mastering display and content light: master-display, max-cll."""


def choose_encoder(
    clip_format: vs.VideoFormat, *, codec: str | None, crf: float | None, preset: str | None, options: Mapping[str, str]
) -> Encoder:
    """Choose the codec, its options and the pixel format nearest to the clip's.

    Raises:
        UserError: There is no such encoder, or it takes no format that the clip can be converted to.
    """
    name = codec or (DEFAULT_CODEC if clip_format.bits_per_sample == 8 else DEFAULT_DEEP_CODEC)
    try:
        found = av.Codec(name, "w")
    except ValueError:
        raise UserError(
            f"there is no encoder {printable(name, 100)!r}: --codec takes libx264, libx265, libsvtav1, libvpx-vp9,"
            " ffv1, prores_ks or another video encoder of ffmpeg"
        ) from None
    if found.type != "video":
        raise UserError(f"{printable(name, 100)} encodes {found.type}, not video: choose another --codec")
    accepted = [video_format.name for video_format in found.video_formats or ()]
    pix_fmt = next((name for name in _candidates(clip_format) if name in accepted or not accepted), None)
    if pix_fmt is None:
        raise UserError(
            f"the encoder {name} takes none of the formats that the clip can be converted to: choose another"
        )
    chosen = dict(options)
    crf_given = DEFAULT_CRF.get(name) if crf is None else crf
    if crf_given is not None and "crf" not in chosen:
        chosen["crf"] = f"{crf_given:g}"
    preset_given = preset or DEFAULT_PRESET.get(name)
    if preset_given and "preset" not in chosen:
        chosen["preset"] = preset_given
    return Encoder(codec=name, options=chosen, pix_fmt=pix_fmt)


def _candidates(clip_format: vs.VideoFormat) -> list[str]:
    """Return ffmpeg's names of pixel formats, from the clip's own to ever poorer ones."""
    depths = [depth for depth in (16, 14, 12, 10, 9, 8) if depth <= max(8, min(16, clip_format.bits_per_sample))]
    if clip_format.sample_type == vs.FLOAT:
        depths = [16, 12, 10, 8]
    subsampling = {(0, 0): "444", (1, 0): "422", (1, 1): "420", (2, 0): "411", (2, 2): "410", (0, 1): "440"}
    own = subsampling.get((clip_format.subsampling_w, clip_format.subsampling_h), "444")
    names = []
    if clip_format.color_family == vs.GRAY:
        names += ["gray" + _suffix(depth) for depth in depths]
    if clip_format.color_family == vs.RGB:
        names += ["gbrp" + _suffix(depth) for depth in depths]
        own = "444"
    if clip_format.color_family == vs.GRAY:
        own = "420"
    for layout in dict.fromkeys((own, "420")):
        names += [f"yuv{layout}p" + _suffix(depth) for depth in depths]
    # Higher than the clip's depth is a last resort: ProRes takes 10 bits only.
    return [*names, *(f"yuv{layout}p10le" for layout in dict.fromkeys((own, "422", "444", "420")))]


def _suffix(depth: int) -> str:
    return "" if depth == 8 else f"{depth}le"


def to_pix_fmt(clip: vs.VideoNode, pix_fmt: str) -> vs.VideoNode:
    """Convert the clip to a pixel format of ffmpeg, with dithering where depth is lost."""
    video_format = av.VideoFormat(pix_fmt)
    depth = video_format.components[0].bits
    if pix_fmt.startswith("gbrp"):
        family, layout = vs.RGB, (0, 0)
    elif pix_fmt.startswith("gray"):
        family, layout = vs.GRAY, (0, 0)
    else:
        family = vs.YUV
        digits = pix_fmt[3:6]
        layout = {"444": (0, 0), "422": (1, 0), "420": (1, 1), "411": (2, 0), "410": (2, 2), "440": (0, 1)}[digits]
    wanted = vs.core.query_video_format(family, vs.INTEGER, depth, *layout)
    if clip.format is not None and clip.format.id == wanted.id:
        return clip
    arguments: dict[str, Any] = {}
    if clip.format is not None and clip.format.color_family == vs.RGB and family != vs.RGB:
        arguments["matrix"] = vs.MATRIX_BT709
    return clip.resize.Spline36(format=wanted.id, dither_type="error_diffusion", **arguments)


def configure(context: Any, encoder: Encoder, size_px: tuple[int, int], tags: Tags) -> None:
    """Prepare a codec context that is not open yet, for frames of this (width, height)."""
    options = dict(encoder.options)
    if encoder.codec == "libx265":
        own = [f"{name}={value}" for name, value in tags.hdr.items()]
        own += ["hdr10=1"] if own else []
        options["x265-params"] = ":".join(filter(None, (options.get("x265-params"), *own, "log-level=error")))
    os.environ.setdefault("SVT_LOG", "1")  # errors only: it has no option for this
    context.options = options
    (context.width, context.height), context.pix_fmt = size_px, encoder.pix_fmt
    context.framerate, context.time_base = tags.rate, 1 / tags.rate
    context.thread_count = CODEC_THREADS
    context.sample_aspect_ratio = tags.sample_aspect_ratio
    context.color_range, context.colorspace = tags.color_range, tags.colorspace
    context.color_primaries, context.color_trc = tags.color_primaries, tags.color_trc
    if tags.chroma_location is not None and tags.chroma_location >= 0:
        context.chroma_sample_location = tags.chroma_location + 1  # ffmpeg counts from 1, VapourSynth from 0


def refusal(encoder: Encoder, size_px: tuple[int, int], reason: str) -> UserError:
    """Return the error for an encoder that cannot be opened."""
    options = "".join(f" {name}={value}" for name, value in encoder.options.items())
    return UserError(
        f"the encoder {encoder.codec} does not take {size_px[0]}x{size_px[1]} {encoder.pix_fmt} with"
        f" {printable(options.strip(), 200) or 'its default options'} ({printable(reason, 200)}): change --codec or its"
        " options"
    )


class SegmentWriter:
    """Encodes frames one after another into a file of their own, which is complete once `close` returned."""

    def __init__(self, path: Path, clip: vs.VideoNode, encoder: Encoder, tags: Tags) -> None:
        """Open the encoder. Raises UserError if it refuses its options."""
        self._file = av.open(str(path), "w", format=SEGMENT_FORMAT)
        self._path = path
        self._pix_fmt = encoder.pix_fmt
        self._count = 0
        self._stream: Any = self._file.add_stream(encoder.codec, rate=tags.rate)
        self._time_base = 1 / tags.rate
        configure(self._stream.codec_context, encoder, (clip.width, clip.height), tags)
        try:
            with scheduling_kept():
                self._stream.codec_context.open(strict=False)
        except (av.FFmpegError, ValueError) as error:
            self._file.close()
            path.unlink(missing_ok=True)
            raise refusal(encoder, (clip.width, clip.height), getattr(error, "strerror", None) or str(error)) from None

    def write(self, frame: vs.VideoFrame) -> None:
        """Encode the next frame."""
        picture = _to_av(frame, self._pix_fmt)
        picture.pts, picture.time_base = self._count, self._time_base
        self._count += 1
        self._file.mux(self._stream.encode(picture))

    def close(self) -> None:
        """Write what the encoder holds, and bring the file to the disk."""
        try:
            self._file.mux(self._stream.encode())
        finally:
            self._file.close()
        with self._path.open("rb") as file:
            os.fsync(file.fileno())

    def abandon(self) -> None:
        """Close the file as it is, and delete it."""
        with contextlib.suppress(av.FFmpegError, OSError):  # what is still to be written may not fit on the disk
            self._file.close()
        self._path.unlink(missing_ok=True)


def _to_av(frame: vs.VideoFrame, pix_fmt: str) -> av.VideoFrame:
    """Copy a frame of VapourSynth to one of ffmpeg of the same layout."""
    picture = av.VideoFrame(frame.width, frame.height, pix_fmt)
    order = (1, 2, 0) if pix_fmt.startswith("gbrp") else range(frame.format.num_planes)
    for target, plane in zip(picture.planes, order, strict=True):
        samples = np.asarray(frame[plane])
        row_bytes = samples.shape[1] * samples.itemsize
        rows: Any = np.frombuffer(target, np.uint8).reshape(-1, target.line_size)
        rows[: samples.shape[0], :row_bytes] = np.ascontiguousarray(samples).view(np.uint8).reshape(-1, row_bytes)
    return picture


def packets_of(path: Path) -> Iterator[Any]:
    """Yield the encoded packets of a segment, in the order in which they were encoded."""
    with av.open(str(path)) as file:
        yield from (packet for packet in file.demux(video=0) if packet.size)
