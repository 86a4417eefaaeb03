"""The moments of a video at which methods differ most: where there is detail and motion, spread over its length."""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from .excerpts import Extent
from .paths import full_name, main_video

NUM_CANDIDATES = 40
LOOKED_AT_WIDTH_PX = 192
MIN_SPACING = 0.5
"""Of the distance that evenly spread moments would have."""
CUT_CORRELATION = 0.5
"""Of the pixels of two neighbouring frames; below it a scene is taken to begin between them."""
MAX_MOTION = 24.0
"""Mean difference of two neighbouring frames of 8 bits, beyond which more motion does not count: it is a blur."""
EDGE_SECONDS = Fraction(1, 4)
"""Left out at the end of the video, where a loop has no room."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A frame that was looked at, by the time of the video's own clock; `score` is 0 or more."""

    seconds: Fraction
    score: float


def score_of(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> float:
    """Return how much there is to see in two neighbouring frames: detail times motion, 0 if a scene begins between.

    Args:
        first: (H, W) luma, 0 to 255.
        second: The next frame, of the same size.
    """
    one, two = first.astype(np.float32), second.astype(np.float32)
    detail = float(np.abs(np.diff(one, axis=0)).mean() + np.abs(np.diff(one, axis=1)).mean())
    motion = float(np.abs(two - one).mean())
    centred = one - one.mean(), two - two.mean()
    power = float(np.sqrt((centred[0] ** 2).sum() * (centred[1] ** 2).sum()))
    if power == 0 or float((centred[0] * centred[1]).sum()) / power < CUT_CORRELATION:
        return 0.0
    # 1 is added so that a still video is chosen by its detail.
    return detail * (1 + min(motion, MAX_MOTION))


def choose(candidates: list[Candidate], count: int, extent: Extent) -> list[Fraction]:
    """Return up to `count` times in order, the best first chosen, no two close to each other."""
    spacing = (extent.end - extent.start) / max(count, 1) * Fraction(MIN_SPACING)
    chosen: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda one: (-one.score, one.seconds)):
        if len(chosen) < count and all(abs(candidate.seconds - other.seconds) >= spacing for other in chosen):
            chosen.append(candidate)
    return sorted(one.seconds for one in chosen) or [extent.start]


def find_moments(path: Path, extent: Extent, count: int) -> list[Fraction]:
    """Return the times of up to `count` moments with the most detail and motion, by the video's own clock.

    Pairs of neighbouring frames are looked at in NUM_CANDIDATES places, after the key frame before each.
    """
    candidates: dict[Fraction, Candidate] = {}
    last = max(extent.start, extent.end - EDGE_SECONDS)
    with av.open(full_name(path)) as file:
        stream = main_video(file)
        base = Fraction(stream.time_base)
        for number in range(NUM_CANDIDATES):
            target = extent.start + (last - extent.start) * number / NUM_CANDIDATES
            try:
                file.seek(int(target / base), stream=stream, backward=True, any_frame=False)
                pair = _pair_at(file, stream, target)
            except (av.FFmpegError, StopIteration):
                continue
            if pair is not None:
                seconds, first, second = pair
                candidates.setdefault(seconds, Candidate(seconds, score_of(first, second)))
    return choose(list(candidates.values()), count, extent)


MAX_DECODED = 300
"""Frames that are decoded on the way to a candidate: a video may have one key frame only."""


def _pair_at(file: Any, stream: Any, target: Fraction) -> tuple[Fraction, npt.NDArray[Any], npt.NDArray[Any]] | None:
    """Return the time of the first frame from `target` on, and the luma of it and the next."""
    kept: Any = None
    for number, frame in enumerate(file.decode(stream)):
        if frame.pts is None:
            return None
        seconds = frame.pts * Fraction(stream.time_base)
        if kept is not None:
            return kept[0], kept[1], _luma(frame)
        if seconds >= target or number >= MAX_DECODED:
            kept = seconds, _luma(frame)
    return None


def _luma(frame: Any) -> npt.NDArray[Any]:
    height = max(16, 2 * round(frame.height * LOOKED_AT_WIDTH_PX / frame.width / 2))
    grey: npt.NDArray[Any] = frame.reformat(width=LOOKED_AT_WIDTH_PX, height=height, format="gray").to_ndarray()
    return grey
