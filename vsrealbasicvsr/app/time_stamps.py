"""Time stamps of a file, made strictly increasing: some are missing or repeated, go back, or begin again."""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

NUM_COMPARED = 8
"""Stamps on each side of a place where they begin again: each of those behind it is less than each in front of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamps:
    """Strictly increasing time stamps, one for each frame or packet of a file.

    Attributes:
        times: In units of the file's time base divided by `scale`.
        scale: 1, or more where the file's units are too coarse for all to differ.
        shifts: What was added from each place on where the file's stamps begin again, in the file's units.
    """

    times: tuple[int, ...]
    scale: int = 1
    shifts: tuple[int, ...] = ()


def increasing(
    stamps: Sequence[int | None], *, step: Fraction, start: int = 0, shifts: Sequence[int] | None = None
) -> Stamps:
    """Keep the longest increasing sequence of stamps, and put the others between their neighbours.

    step = 10:  5 15 -- -- 45      becomes  5 15 25 35 45    missing
                5 15 15 35         becomes  5 15 25 35       repeated
                5 15 25 -7 45      becomes  5 15 25 35 45    gone back
                5 15 25 ... 5 15   becomes  5 15 25 ... 35 45: begun again, as where two files were concatenated

    Args:
        stamps: In the order of the frames; None where the file has none.
        step: The usual distance of two stamps, and the largest from one that is kept to the next that is put in.
        start: Where the first one is if there are none at all.
        shifts: What to add where the stamps begin again, if they do as often; default: what continues them by `step`.
    """
    known = [time for time in stamps if time is not None]
    if len(known) == len(stamps) and all(before < after for before, after in pairwise(known)):
        return Stamps(times=tuple(known))
    continued, added = _continued(stamps, step, shifts)
    kept = _longest_increasing(continued)
    if not kept:
        continued, kept = [start, *continued[1:]], [0]
    first, last = kept[0], kept[-1]
    gaps = []
    for place, after in pairwise(kept):
        distance = Fraction(_known(continued[after]) - _known(continued[place]), after - place)
        gaps.append((place, after, distance if after - place == 1 else min(step, distance)))
    gaps.append((last, len(stamps), step))
    scale = max(1, *(math.ceil(1 / distance) for _, _, distance in gaps))
    times = [math.floor(scale * (_known(continued[first]) + (n - first) * step)) for n in range(first)]
    for place, after, distance in gaps:
        times += [math.floor(scale * (_known(continued[place]) + n * distance)) for n in range(after - place)]
    return Stamps(times=tuple(times), scale=scale, shifts=added)


def non_decreasing(stamps: Sequence[int | None], *, shifts: Sequence[int] = ()) -> Stamps:
    """Shift the stamps each time that they go back, as far as there are shifts, and never let them go back.

    For subtitles, which are far apart, and may begin at the same time.
    """
    times: list[int] = []
    num_begun, last = 0, None
    for time in stamps:
        if time is not None:
            num_begun += last is not None and time < last
            last = time
        shift = shifts[min(num_begun, len(shifts)) - 1] if num_begun and shifts else 0
        least = times[-1] if times else None
        shifted = (least or 0) if time is None else time + shift
        times.append(shifted if least is None else max(least, shifted))
    return Stamps(times=tuple(times))


def _known(time: int | None) -> int:
    assert time is not None
    return time


def _continued(
    stamps: Sequence[int | None], step: Fraction, shifts: Sequence[int] | None
) -> tuple[list[int | None], tuple[int, ...]]:
    """Shift the stamps from each place on where they begin again; return them and the shifts."""
    known = [n for n, time in enumerate(stamps) if time is not None]
    times = [_known(stamps[n]) for n in known]
    begins = [
        k
        for k in range(NUM_COMPARED, len(known) - NUM_COMPARED + 1)
        if max(times[k : k + NUM_COMPARED]) < min(times[k - NUM_COMPARED : k])
    ]
    continued, added = list(stamps), [0]
    for k, after in pairwise([*begins, len(known)]):
        last = times[k - 1] + added[-1] + math.floor((known[k] - known[k - 1]) * step)
        added.append(last - times[k] if shifts is None or len(shifts) != len(begins) else shifts[len(added) - 1])
        for n in known[k:after]:
            continued[n] = _known(stamps[n]) + added[-1]
    return continued, tuple(added[1:])


def _longest_increasing(stamps: Sequence[int | None]) -> list[int]:
    """Return the places of the longest increasing sequence; of equal stamps, the first counts."""
    ends: list[int] = []  # ends[k]: the place of the least stamp that ends an increasing sequence of k + 1
    least: list[int] = []
    before: dict[int, int | None] = {}
    for n, time in enumerate(stamps):
        if time is None:
            continue
        k = bisect_left(least, time)
        if k < len(least) and least[k] == time:
            continue
        before[n] = ends[k - 1] if k else None
        ends[k : k + 1], least[k : k + 1] = [n], [time]
    found = []
    place = ends[-1] if ends else None
    while place is not None:
        found.append(place)
        place = before[place]
    return found[::-1]
