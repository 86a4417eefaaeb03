"""Times of frames: those of a source, and those of frames with given durations."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av

from vsrealbasicvsr.app.paths import check_readable, full_name, main_video
from vsrealbasicvsr.app.timeline import MAX_RATE_DEVIATION, Timeline

MAX_TICKS_PER_SECOND = 1_000_000
"""Finest time base; durations are rounded to it where their common one would be finer."""


def timeline_of(
    durations: Sequence[Fraction | None],
    *,
    rate: Fraction,
    start_seconds: Fraction,
    last_seconds: Fraction | None = None,
) -> Timeline:
    """Return the times of frames that are shown one after another.

    Args:
        durations: In seconds. None: the frame has none; the last one then gets `last_seconds` or the duration of the
            one before it, others 1 / rate.
        rate: Frames per second.
        start_seconds: When the first frame begins.
        last_seconds: Duration of the last frame, if it has none itself.
    """
    known = [1 / rate if duration is None else duration for duration in durations]
    if durations[-1] is None and (last_seconds or len(known) > 1):
        known[-1] = last_seconds or known[-2]
    ticks = math.lcm(start_seconds.denominator, *{duration.denominator for duration in known})
    ticks = min(ticks, MAX_TICKS_PER_SECOND)
    seconds = [start_seconds]
    for duration in known:
        seconds.append(seconds[-1] + duration)
    *pts, end = (round(second * ticks) for second in seconds)
    return Timeline(pts=tuple(pts), end=end, time_base=Fraction(1, ticks))


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceTimes:
    """Times of a file's video, in seconds.

    Attributes:
        first: When its first frame begins.
        last: When its last frame begins.
        last_duration: Of the last frame; None if the file does not tell.
    """

    first: Fraction
    last: Fraction
    last_duration: Fraction | None


def source_times(path: Path) -> SourceTimes:
    """Read the times of a file's video, without what its edit list hides.

    Raises:
        UserError: It has no video that can be read.
    """
    check_readable(path)
    with av.open(full_name(path)) as file:
        stream = main_video(file)
        times = [
            (packet.pts * packet.time_base, (packet.duration or 0) * packet.time_base)
            for packet in file.demux(stream)
            if packet.pts is not None and packet.time_base is not None and not packet.is_discard
        ]
    if not times:  # as in .avi files: the frames' durations are used instead
        return SourceTimes(first=Fraction(0), last=Fraction(0), last_duration=None)
    last, duration = max(times)
    return SourceTimes(first=min(times)[0], last=last, last_duration=duration or None)


def nominal_rate(rate: Fraction, mean: Fraction) -> Fraction:
    """Return the rate to give to the encoder: the clip's own, or the mean rate if they differ (variable rate)."""
    mean = mean.limit_denominator(1001)
    return rate if mean and rate and abs(rate / mean - 1) < MAX_RATE_DEVIATION else mean or rate or Fraction(25)
