"""What a study ends in: a table, findings beside the paper's, plots and crops. Depends on no networks and no files."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

if TYPE_CHECKING:
    from matplotlib.axes import Axes

type Bytes = npt.NDArray[np.uint8]
type Value = str | float | None
type Verdict = Literal["agrees", "disagrees", "cannot be told"]

CONFIDENCE = 0.95
"""Of Student's interval around a mean difference; where it holds 0, the difference cannot be told from chance."""
LEAST = {"dB": 0.02, "of 255": 0.02, "": 0.1}
"""Smallest difference that counts, by unit ("": NIQE): the interval knows the clips, not the seeds of the training."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the table: key of the rows, heading, decimals (None: text)."""

    key: str
    heading: str
    decimals: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What the paper says, what was found here, and whether the two agree."""

    paper: str
    ours: str
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """Diagrams side by side: draw gets one pair of axes for each."""

    name: str
    caption: str
    num_axes: int
    draw: Callable[[Sequence[Axes]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Crops:
    """Pictures side by side: rows of one picture for each column, (H, W, 3) RGB, those of a row of one height."""

    name: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The end of a study."""

    columns: Sequence[Column]
    rows: Sequence[Mapping[str, Value]]
    findings: Sequence[Finding]
    plots: Sequence[Plot]
    crops: Sequence[Crops]
    limits: str
    """What a run of this scale can and cannot show."""


def compared(differences: Sequence[float], *, paper: str, what: str, unit: str, decimals: int = 2) -> Finding:
    """Return the finding of paired differences, one for each clip and chain, that are above 0 where the paper is right.

    what: the words before the number, as "longer less shorter". Where Student's interval holds 0 or the mean is
    below LEAST, nothing can be told.
    """
    if not len(differences):
        return Finding(paper=paper, ours=f"{what}: not measured", verdict="cannot be told")
    values = np.asarray(differences, dtype=np.float64)
    mean = float(values.mean())
    spread = math.inf
    if len(values) > 1:
        error = float(values.std(ddof=1)) / math.sqrt(len(values))
        spread = float(stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2)) * error
    ours = f"{what}: {mean:+.{decimals}f} {unit}".rstrip()
    if math.isfinite(spread):
        ours += f" ± {spread:.{decimals}f} ({len(values)} pairs)"
    if abs(mean) <= spread or abs(mean) < LEAST[unit]:
        return Finding(paper=paper, ours=ours, verdict="cannot be told")
    return Finding(paper=paper, ours=ours, verdict="agrees" if mean > 0 else "disagrees")


def equal(differences: Sequence[float], *, tolerance: float, paper: str, what: str, unit: str) -> Finding:
    """Return the finding of paired differences that are about 0 where the paper is right.

    It agrees if their mean is within the tolerance, and disagrees if it is farther and can be told from 0.
    """
    found = compared(differences, paper=paper, what=what, unit=unit)
    if not len(differences):
        return found
    is_equal = abs(float(np.mean(differences))) <= tolerance
    verdict: Verdict = "agrees" if is_equal else "disagrees"
    if not is_equal and found.verdict == "cannot be told":
        verdict = "cannot be told"
    return Finding(paper=paper, ours=found.ours, verdict=verdict)


def counted(agrees: bool, *, paper: str, ours: str) -> Finding:
    """Return a finding that holds or does not: a measured time, a count, an order."""
    return Finding(paper=paper, ours=ours, verdict="agrees" if agrees else "disagrees")


def mean(values: Sequence[float | None]) -> float | None:
    """Return the mean of the values that are there; None if there is none."""
    there = [value for value in values if value is not None]
    return float(np.mean(there)) if there else None
