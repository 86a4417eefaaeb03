"""Windows of frames, as integers."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A window: it keeps frames [first, stop) and reads [read_first, read_stop), its context included."""

    index: int
    first: int
    stop: int
    read_first: int
    read_stop: int

    def segments(self, is_cut_before: Callable[[int], bool]) -> list[range]:
        """Return the frames to read, split at scene cuts, without those segments that keep no frame.

        is_cut_before(i): whether a scene begins at frame i; asked for read_first < i < read_stop only.

            frames      o o K K K|K K o|o o     | a cut
            segments    ---------|-----         the third is context only
        """
        borders = [i for i in range(self.read_first + 1, self.read_stop) if is_cut_before(i)]
        starts, stops = [self.read_first, *borders], [*borders, self.read_stop]
        return [
            range(first, stop)
            for first, stop in zip(starts, stops, strict=True)
            if first < self.stop and stop > self.first
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """The windows of a clip, on a grid fixed by n alone: each frame is kept by exactly one window.

    num_frames = 10, length = 6, overlap = 2 (K kept, o read for context only):
        window 0  K K K K K K o o . .
        window 1  . . . . o o K K K K

    Raises ValueError unless num_frames >= 1, length >= 1 and overlap >= 0.
    """

    num_frames: int
    length: int
    overlap: int

    def __post_init__(self) -> None:
        if self.num_frames < 1 or self.length < 1 or self.overlap < 0:
            raise ValueError(f"Grid: needs num_frames >= 1, length >= 1 and overlap >= 0, got {self}")

    @property
    def num_windows(self) -> int:
        """The number of windows of the clip."""
        return -(-self.num_frames // self.length)

    def index_of(self, n: int) -> int:
        """Return the index of the window that keeps frame n. Raises IndexError if the clip has no frame n."""
        if not 0 <= n < self.num_frames:
            raise IndexError(f"frame {n} of a clip of {self.num_frames} frames")
        return n // self.length

    def window(self, index: int) -> Window:
        """Return the window with this index. Raises IndexError if there is none."""
        if not 0 <= index < self.num_windows:
            raise IndexError(f"window {index} of {self.num_windows}")
        first = index * self.length
        stop = min(first + self.length, self.num_frames)
        return Window(
            index=index,
            first=first,
            stop=stop,
            read_first=max(first - self.overlap, 0),
            read_stop=min(stop + self.overlap, self.num_frames),
        )
