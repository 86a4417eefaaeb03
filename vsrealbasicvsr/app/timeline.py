"""Presentation times of a video's frames."""

from bisect import bisect_left
from dataclasses import dataclass
from fractions import Fraction

MAX_RATE_DEVIATION = 0.02
"""Relative difference of the clip's and the mean frame rate above which the rate counts as variable."""

MIN_RATE = Fraction(1, 1000)
"""Frames per second, the least that an encoder is told; the frames are shown at their own times all the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """When each frame is shown: `pts` rise, and `end` is when the last frame ends, in units of `time_base` seconds."""

    pts: tuple[int, ...]
    end: int
    time_base: Fraction
    shifts: tuple[Fraction, ...] = ()
    """Seconds that were added from each place on where the times of the file begin again."""

    @property
    def mean_rate(self) -> Fraction:
        """Frames per second, on average."""
        return len(self.pts) / ((self.end - self.pts[0]) * self.time_base)

    @property
    def start_seconds(self) -> Fraction:
        """When the first frame is shown."""
        return self.pts[0] * self.time_base

    @property
    def end_seconds(self) -> Fraction:
        """When the last frame ends."""
        return self.end * self.time_base

    def durations(self) -> list[int]:
        """How long each frame is shown, in units of time_base."""
        return [after - pts for pts, after in zip(self.pts, (*self.pts[1:], self.end), strict=True)]

    def frames_between(self, start_seconds: Fraction | None, stop_seconds: Fraction | None) -> tuple[int, int]:
        """Return (first, stop): the frames that begin in [start, stop), counted in seconds from the first frame."""
        begins = [(pts - self.pts[0]) * self.time_base for pts in self.pts]
        first = 0 if start_seconds is None else bisect_left(begins, start_seconds)
        stop = len(begins) if stop_seconds is None else bisect_left(begins, stop_seconds)
        return first, stop

    def cut(self, first: int, stop: int) -> "Timeline":
        """Return the frames [first, stop), at the times they had."""
        end = self.pts[stop] if stop < len(self.pts) else self.end
        return Timeline(pts=self.pts[first:stop], end=end, time_base=self.time_base, shifts=self.shifts)

    def nominal_rate(self, clip_rate: Fraction) -> Fraction:
        """Return the rate to tell an encoder: the clip's own, or the mean where the rate is variable."""
        mean = max(self.mean_rate.limit_denominator(1001), MIN_RATE)
        return clip_rate if clip_rate and abs(clip_rate / mean - 1) < MAX_RATE_DEVIATION else mean
