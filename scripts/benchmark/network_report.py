"""The table of the network's benchmark: a row for each way, and the shares of its time."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .engine_runs import engine_shares, engine_waits
from .peak_rate import PeakRate
from .report import Spread, aligned
from .subjects import build_network
from .turns import First, Turns, Way, dtype_name, psnr_db
from .ways import ENGINE, MAX_COMPARED_FRAMES, PLAIN, VSPIPE, Setting

ENGINE_ALONE, AROUND = "engine alone", "conversion and the rest"
MOST_OVER_ENGINE = 0.05
"""Target: how much longer vspipe may take than the engine alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Time and memory of one way on one clip, per frame. Rates and ratios are medians over repeats.

    Attributes:
        width: Of the clip, in pixels.
        height: Of the clip, in pixels.
        model: Name of the network; "" if it is not ours.
        name: Name of the way.
        dtype: Type of the convolutions.
        num_frames: Frames of a timed run.
        seconds_per_frame: Time of the whole clip, per frame.
        frames_per_second: Rate of the whole clip.
        steady_frames_per_second: Rate of the second half of the frames.
        passes_per_frame: Cleaning passes.
        flops_per_second: Effective rate.
        times_plain: Speed relative to the plain network of the same model in float32 (of the first model for other
            networks).
        over_engine: Additional time relative to the engine alone, as a share of it.
        psnr_db: Against the plain network.
        rss_bytes: Peak resident set of the process.
        cuda_bytes: Peak of torch's allocations on the GPU.
        shares: Shares of the time, by what it was spent on; their sum is 1.
        waits: Seconds per frame that the CPU waits, by what for; several requests wait concurrently.
        share_of_peak: Effective rate relative to the machine's peak.
    """

    width: int
    height: int
    model: str
    name: str
    dtype: str
    num_frames: int
    seconds_per_frame: Spread
    frames_per_second: float
    steady_frames_per_second: float | None
    passes_per_frame: float | None
    flops_per_second: float | None
    times_plain: float | None
    over_engine: float | None
    psnr_db: float | None
    rss_bytes: int | None
    cuda_bytes: int | None
    shares: Mapping[str, float] = field(default_factory=dict)
    waits: Mapping[str, float] = field(default_factory=dict)
    share_of_peak: float | None = None

    def with_share_of(self, peaks: Sequence[PeakRate]) -> Row:
        """Return the row with the share that its rate has of the peak of its dtype."""
        largest = next((peak.largest for peak in peaks if peak.dtype == self.dtype), None)
        rate = self.flops_per_second
        return dataclasses.replace(self, share_of_peak=rate / largest if rate and largest else None)

    @property
    def title(self) -> str:
        """Size, model and name, in columns."""
        return f"{f'{self.width}x{self.height}':<9} {self.model:<9} {self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkReport:
    """All rows, and the reasons why others are missing."""

    num_frames: int
    num_repeats: int
    num_requests: int
    peaks: Sequence[PeakRate]
    rows: Sequence[Row]
    not_measured: Mapping[str, str]

    def describe(self) -> str:
        """Return the tables."""
        parts = [f"{row.title}: {_parts(row)}" for row in self.rows if row.shares]
        lines = [
            f"{self.num_frames} frames, whole clip by its frames (plain: at most {MAX_COMPARED_FRAMES}); median of"
            f" {self.num_repeats} repeats in turns (lowest-highest); {self.num_requests} requests in flight",
            *(str(peak) for peak in self.peaks),
            "",
            *aligned([_HEAD, *map(_cells, self.rows)]),
            "",
            *(["where the time goes, ms a frame", *parts] if parts else []),
            *(f"{row.title}: {_beside(row)}" for row in self.rows if row.waits),
        ]
        over = [(row, row.over_engine) for row in self.rows if row.over_engine is not None]
        lines += [
            f"{row.title}: {share:+.1%} over the engine alone (aim: at most {MOST_OVER_ENGINE:+.0%})"
            for row, share in over
        ]
        lines += [f"not measured: {name}: {reason}" for name, reason in self.not_measured.items()]
        return "\n".join(lines)


_HEAD = [
    "",
    "ms a frame",
    "frames/s",
    "steady",
    "GFLOP/s",
    "of peak",
    "times plain",
    "PSNR, dB",
    "peak, GiB",
    "GPU, GiB",
]


def _cells(row: Row) -> list[str]:
    def cell(value: float | None, form: str, unit: float = 1.0) -> str:
        return "-" if value is None else format(value / unit, form)

    return [
        row.title,
        str(row.seconds_per_frame),
        f"{row.frames_per_second:.2f}",
        cell(row.steady_frames_per_second, ".2f"),
        cell(row.flops_per_second, ".0f", 1e9),
        cell(row.share_of_peak, ".0%"),
        cell(row.times_plain, ".2f"),
        cell(row.psnr_db, ".1f"),
        cell(row.rss_bytes, ".2f", 2**30),
        cell(row.cuda_bytes, ".2f", 2**30),
    ]


def _parts(row: Row) -> str:
    total_ms = 1000 * row.seconds_per_frame.median
    return ", ".join(f"{name} {share * total_ms:.1f} ({share:.0%})" for name, share in row.shares.items())


def _beside(row: Row) -> str:
    waits = ", ".join(f"{name} {1000 * seconds:.1f} ms a frame" for name, seconds in row.waits.items())
    return f"{row.passes_per_frame:.2f} cleaning passes a frame; {waits}"


def rows_of(setting: Setting, ways: Sequence[Way], turns: Turns) -> list[Row]:
    """Return a row for each way that was measured, without a share of the peak."""
    return [_row(setting, ways, turns, index) for index in range(len(ways)) if index in turns.seconds]


def _row(setting: Setting, ways: Sequence[Way], turns: Turns, index: int) -> Row:
    """Return the row of one way. Ratios are medians over the turns."""
    way, first = ways[index], turns.first[index]
    seconds = _per_frame(ways, turns, index)
    plain = _per_frame(ways, turns, _find(ways, way.model or ways[0].model, PLAIN))
    engine = _per_frame(ways, turns, _find(ways, way.model, ENGINE))
    over_engine, shares, waits = None, {}, {}
    if way.name == VSPIPE and engine:
        over_engine = statistics.median(ours / alone - 1 for ours, alone in zip(seconds, engine, strict=True))
        shares = {ENGINE_ALONE: 1 / (1 + over_engine), AROUND: over_engine / (1 + over_engine)}
    elif way.name == ENGINE:
        network = build_network(way.model)
        shares = engine_shares(network, setting.compute, setting.frames, setting.num_requests)
        waits = engine_waits(network, setting.compute, setting.frames, setting.num_requests)
    steady = [run.steady_frames_per_second for run in way.runs if run.steady_frames_per_second is not None]
    median = statistics.median(seconds)
    rate = way.flops_per_frame / median if way.flops_per_frame else None
    reference = turns.first.get(_find(ways, way.model, PLAIN)) if way.model else None
    is_comparable = reference is not None and reference is not first
    return Row(
        width=setting.size[0],
        height=setting.size[1],
        model=way.model,
        name=way.name,
        dtype=dtype_name(way.dtype),
        num_frames=way.num_frames,
        seconds_per_frame=Spread.of(seconds),
        frames_per_second=1 / median,
        steady_frames_per_second=statistics.median(steady) if steady else None,
        passes_per_frame=way.runs[-1].passes_per_frame if way.runs else None,
        flops_per_second=rate,
        times_plain=statistics.median(p / s for p, s in zip(plain, seconds, strict=True)) if plain else None,
        over_engine=over_engine,
        psnr_db=_psnr(first, reference) if is_comparable else None,
        rss_bytes=first.rss_bytes,
        cuda_bytes=first.cuda_bytes,
        shares=shares,
        waits=waits,
    )


def _find(ways: Sequence[Way], model: str, name: str) -> int:
    """Return the index of the first way of this name; -1 if there is none."""
    return next((i for i, way in enumerate(ways) if (way.model, way.name.split()[0]) == (model, name)), -1)


def _per_frame(ways: Sequence[Way], turns: Turns, index: int) -> list[float]:
    """Return seconds per frame, by turn; empty if the way was not measured."""
    return [seconds / ways[index].num_frames for seconds in turns.seconds.get(index, ())]


def _psnr(first: First, reference: First | None) -> float | None:
    if first.hr is None or reference is None or reference.hr is None:
        return None
    return psnr_db(first.hr, reference.hr)
