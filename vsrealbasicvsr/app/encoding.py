"""Frames of VapourSynth to a video file, by the encoders that PyAV carries."""

import contextlib
import io
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import vapoursynth as vs

from vsrealbasicvsr.errors import UserError, printable
from vsrealbasicvsr.scheduling import scheduling_kept

from .paths import full_name
from .pixel_formats import has_alpha, pixel_formats, to_av

DEFAULT_CODEC, DEFAULT_DEEP_CODEC = "libx264", "libx265"
"""For 8 bits, and for more: few players decode H.264 of 10 bits."""
X265_MIN_PX = 128
"""x265 (seen with 4.3) corrupts the heap where a side is below 64 pixels; from 64 on its streams may differ from run to
run; from 128 on they were always the same."""
SVTAV1_MIN_LONGER_PX = 16
"""SVT-AV1 (seen with 4.2) corrupts the heap where both sides are 8 pixels or less; with 16x4 and 4x16 it does not."""
DEFAULT_CRF = {"libx264": 17, "libx265": 18, "libsvtav1": 24, "libvpx-vp9": 24}
RATE_OPTIONS = {"qp", "b", "rc"}
"""Options of encoders that a crf would overrule: with one of them there is no default crf."""
DEFAULT_PRESET = {"libx264": "medium", "libx265": "medium", "libsvtav1": "6"}
CODEC_THREADS = 8
"""Of an encoder, on every machine: some encoders' streams depend on it, and segments of several machines are joined."""

PLAIN_CODECS = ("libx265",)
"""Encoders that take alpha, but as a second layer that hardly any player decodes."""
NOT_OPENED = {"libvpx-vp9": ("gbrap", "yuva422p", "yuva444p")}
"""Pixel formats in the list of an encoder that refuses to open with them: hardly any player shows their alpha."""
RANGE_IN_STREAM = ("h264", "hevc", "av1", "vp9", "mjpeg")
"""Of what these encode, decoders know whether it is of full range; of others, the container alone may say it."""
RANGE_IN_MATROSKA = ("ffv1", "rawvideo", "jpeg2000", "mpeg4", "snow")
"""Of those others, for which decoders believe Matroska; .mp4 says it only where the primaries are known, .mov never."""
SEGMENT_FORMATS = ("matroska", "mov", "nut")
"""ffmpeg's names of the containers of segments; the first that takes the codec."""
NOT_MUXED = {"mov": ("vp8", "vp9", "av1", "flac", "opus", "truehd"), "mp4": ("truehd",)}
"""Codecs in the list of a container of ffmpeg that refuses them when the file is begun."""


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
    clip_format: vs.VideoFormat,
    *,
    alpha: bool,
    codec: str | None,
    crf: float | None,
    preset: str | None,
    options: Mapping[str, str],
) -> Encoder:
    """Choose the codec, its options and the pixel format nearest to the clip's; with alpha where the codec has it.

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
    accepted = [pix_fmt for pix_fmt in accepted if pix_fmt not in NOT_OPENED.get(name, ())]
    candidates = pixel_formats(clip_format, alpha=alpha and name not in PLAIN_CODECS)
    pix_fmt = next((name for name in candidates if name in accepted or not accepted), None)
    if pix_fmt is None:
        raise UserError(
            f"the encoder {name} takes none of the formats that the clip can be converted to: choose another --codec"
        )
    chosen = dict(options)
    crf_given = DEFAULT_CRF.get(name) if crf is None and not RATE_OPTIONS & chosen.keys() else crf
    if crf_given is not None and "crf" not in chosen:
        chosen["crf"] = f"{crf_given:g}"
    preset_given = preset or DEFAULT_PRESET.get(name)
    if preset_given and "preset" not in chosen:
        chosen["preset"] = preset_given
    if pix_fmt.startswith("yuva") and name == "libvpx-vp9":
        chosen.setdefault("auto-alt-ref", "0")  # it refuses alpha with the frames that are never shown
    return Encoder(codec=name, options=chosen, pix_fmt=pix_fmt)


def holds(muxer: str, codec: str) -> bool:
    """Return whether a container takes the streams of an encoder, and gives back what it takes to decode them."""
    if codec == "rawvideo" and muxer in ("mov", "mp4"):  # takes planes, and does not say how they lie
        return False
    name = av.Codec(codec, "w").canonical_name
    with av.open(io.BytesIO(), "w", format=muxer) as file:
        return name in file.supported_codecs and name not in NOT_MUXED.get(muxer, ())


def carries_range(muxer: str, codec: str) -> bool:
    """Return whether frames of full range, of an encoder and in a container, are decoded as such."""
    name = av.Codec(codec, "w").canonical_name
    return name in RANGE_IN_STREAM or (name in RANGE_IN_MATROSKA and muxer in ("matroska", "webm"))


def segment_format(codec: str) -> str:
    """Return ffmpeg's name of the container in which segments of an encoder are kept. Raises UserError if none does."""
    found = next((name for name in SEGMENT_FORMATS if holds(name, codec)), None)
    if found is None:
        raise UserError(f"no container that can be joined holds what {codec} encodes: choose another --codec")
    return found


def check_size(encoder: Encoder, size_px: tuple[int, int]) -> None:
    """Raise UserError for frames of this (width, height) with which the encoder is not safe."""
    if encoder.codec == "libx265" and min(size_px) < X265_MIN_PX:
        raise UserError(
            f"libx265 is not safe where a side of the output is below {X265_MIN_PX} pixels, and this one is"
            f" {size_px[0]}x{size_px[1]}: choose --codec libx264 or ffv1"
        )
    if encoder.codec == "libsvtav1" and max(size_px) < SVTAV1_MIN_LONGER_PX:
        raise UserError(
            f"libsvtav1 is not safe where both sides of the output are below {SVTAV1_MIN_LONGER_PX} pixels, and this"
            f" one is {size_px[0]}x{size_px[1]}: choose --codec libx264 or ffv1"
        )


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
        """Open the encoder. Raises UserError if it refuses its options or the size of the clip."""
        check_size(encoder, (clip.width, clip.height))
        self._file = av.open(full_name(path), "w", format=segment_format(encoder.codec))
        self._path = path
        self._pix_fmt = encoder.pix_fmt
        self._count = 0
        self._stream: Any = self._file.add_stream(encoder.codec, rate=tags.rate)
        self._time_base = 1 / tags.rate
        if has_alpha(encoder.pix_fmt) and encoder.codec.startswith("libvpx"):
            self._stream.metadata["alpha_mode"] = "1"  # else the container leaves the alpha plane out
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
        picture: Any = to_av(frame, self._pix_fmt)
        context = self._stream.codec_context  # ProRes writes into each frame what the frame says, not the context
        picture.color_range, picture.colorspace = context.color_range, context.colorspace
        picture.color_primaries, picture.color_trc = context.color_primaries, context.color_trc
        picture.pts, picture.time_base = self._count, self._time_base
        self._count += 1
        self._file.mux(self._stream.encode(picture))

    def close(self) -> None:
        """Write what the encoder holds, and bring the file to the disk."""
        try:
            self._file.mux(self._stream.encode())
        finally:
            self._file.close()
        with self._path.open("r+b") as file:  # Windows flushes only what is open for writing
            os.fsync(file.fileno())

    def abandon(self) -> None:
        """Close the file as it is, and delete it."""
        with contextlib.suppress(av.FFmpegError, OSError):  # what is still to be written may not fit on the disk
            self._file.close()
        self._path.unlink(missing_ok=True)


def packets_of(path: Path) -> Iterator[Any]:
    """Yield the encoded packets of a segment, in the order in which they were encoded."""
    with av.open(full_name(path)) as file:
        yield from (packet for packet in file.demux(video=0) if packet.size)
