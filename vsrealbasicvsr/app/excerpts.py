"""Short parts of a video, at any time of it, without reading the rest: packets are copied to a small file first.

BestSource reads a whole file before it returns the first frame, which takes minutes for a film; of an excerpt it takes
moments.
"""

from bisect import bisect_right
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av

from vsrealbasicvsr.errors import UserError, printable, shown_path

from .paths import check_readable, full_name, main_video
from .source import Source, open_source

REORDERED_SECONDS = Fraction(1)
"""Copied beyond the end, because frames are not stored in the order in which they are shown."""
MAX_DISTANCE_SECONDS = Fraction(1, 2)
"""Between the time that was asked for and the frame that is shown there."""
ROUNDING_SECONDS = Fraction(1, 1000)
"""Matroska counts in milliseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """When a video is shown: from `start` to `end`, in seconds of its own clock; `rate` is frames per second."""

    start: Fraction
    end: Fraction
    rate: Fraction


def measure(path: Path) -> Extent:
    """Return when a video is shown, from its header and its first frame.

    Raises:
        UserError: There is no such file, or no video in it that can be read.
    """
    check_readable(path)
    with av.open(full_name(path)) as file:
        stream = main_video(file)
        try:
            first = next(file.decode(stream))
        except (StopIteration, av.FFmpegError):
            raise UserError(f"no frame of {shown_path(path)} can be read: is the file complete?") from None
        start = Fraction(first.pts or 0) * Fraction(stream.time_base)
        rate = Fraction(stream.average_rate or stream.guessed_rate or 25)
        length = Fraction(0)
        if stream.duration:
            length = stream.duration * Fraction(stream.time_base)
        elif file.duration:
            length = Fraction(file.duration, av.time_base)
    return Extent(start=start, end=start + max(length, 1 / rate), rate=rate)


@dataclass(frozen=True, slots=True, kw_only=True)
class Excerpt:
    """Part of a video. `at` is the number in `source` of the frame that is shown at the time that was asked for."""

    source: Source
    at: int


def open_excerpt(path: Path, seconds: Fraction, *, before: Fraction, after: Fraction, folder: Path) -> Excerpt:
    """Open what is shown from `before` seconds earlier to `after` seconds later than a time of the video's own clock.

    The excerpt may hold more at both ends.

    Args:
        path: The video.
        seconds: The time.
        before: Seconds that are wanted earlier than that.
        after: Seconds that are wanted later than that.
        folder: Where the excerpt and its index are written.

    Raises:
        UserError: No frame is shown at that time, or the video cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / "excerpt.mkv"
    wanted = seconds
    try:
        wanted -= _copy(path, part, seconds - before, seconds + after)
        source = open_source(part, folder)
    except (UserError, av.FFmpegError, ValueError, OSError, StopIteration):
        wanted = seconds
        source = open_source(path, folder)  # no time stamps, or a codec that Matroska does not take
    timeline = source.timeline
    at = bisect_right(timeline.pts, (wanted + ROUNDING_SECONDS) / timeline.time_base) - 1
    shown = timeline.pts[max(at, 0)] * timeline.time_base
    if abs(wanted - shown) > max(MAX_DISTANCE_SECONDS, 2 / max(timeline.mean_rate, Fraction(1))):
        raise UserError(f"no frame of {shown_path(path)} can be read at {printable(f'{float(seconds):.3f}', 40)} s")
    return Excerpt(source=source, at=max(at, 0))


def _copy(path: Path, target: Path, start: Fraction, stop: Fraction) -> Fraction:
    """Copy the video packets from the key frame before `start` to a little after `stop`.

    Returns by how many seconds the copy's times are smaller: it begins at 0, for no muxer takes times below.
    """
    shift = None
    with av.open(full_name(path)) as file, av.open(full_name(target), "w", format="matroska") as out:
        stream = main_video(file)
        base = Fraction(stream.time_base)
        copied = out.add_stream_from_template(stream, opaque=True)
        file.seek(max(int(start / base), stream.start_time or 0), stream=stream, backward=True, any_frame=False)
        for packet in file.demux(stream):
            if not packet.size:
                continue
            if packet.pts is None:
                raise ValueError("packets without time stamps")
            if (packet.dts if packet.dts is not None else packet.pts) * base > stop + REORDERED_SECONDS:
                break
            shift = min(packet.pts, packet.dts if packet.dts is not None else packet.pts) if shift is None else shift
            packet.pts -= shift
            packet.dts = None if packet.dts is None else packet.dts - shift
            packet.stream = copied
            out.mux(packet)
    return (shift or 0) * base
