"""How a video is divided into segments that are rendered and kept one by one."""

from dataclasses import dataclass

DEFAULT_SEGMENT_FRAMES = 240
"""Frames that are lost at most when a run is interrupted; also the distance of the key frames that joining needs."""


@dataclass(frozen=True, slots=True, order=True)
class Segment:
    """Frames [first, stop) of the upscaled clip."""

    first: int
    stop: int

    @property
    def num_frames(self) -> int:
        """Number of frames."""
        return self.stop - self.first


def plan_segments(
    num_frames: int, *, window_length: int, segment_frames: int = DEFAULT_SEGMENT_FRAMES
) -> list[Segment]:
    """Divide a clip into segments of whole windows, so that no window is computed for two segments.

    num_frames = 10, window_length = 3, segment_frames = 5: [0, 6), [6, 10)
    """
    windows = max(1, -(-segment_frames // window_length))
    step = windows * window_length
    return [Segment(first, min(first + step, num_frames)) for first in range(0, num_frames, step)]


def share(segments: list[Segment], index: int, count: int) -> list[Segment]:
    """Return the segments of worker `index` (0 to count - 1): neighbours, and shares that differ by one at most."""
    return segments[len(segments) * index // count : len(segments) * (index + 1) // count]


def runs(segments: list[Segment]) -> list[list[Segment]]:
    """Group segments that follow one another, so that each group is rendered without a pause."""
    groups: list[list[Segment]] = []
    for segment in sorted(segments):
        if groups and groups[-1][-1].stop == segment.first:
            groups[-1].append(segment)
        else:
            groups.append([segment])
    return groups
