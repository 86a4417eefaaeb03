"""Dynamic refinement (paper, section 3.3, Eq. 5, Fig. 5 and 6): how often to clean, by threshold or by number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from training.benchmarking.measured import Way
from training.studies.measuring import spread
from training.studies.plan import Study, cut, differences, paper_variant, scope_of
from training.studies.report import Column, Crops, Finding, Plot, Report, compared, counted, mean
from training.studies.workbench import Measured, Workbench

CHAINS = ("mild", "usual", "harsh")
THETAS = (0.5, 1.0, 1.5, 2.5, 5.0, 255.0)
PASSES = (1, 2, 3, 5)
PAPER_THETA = 1.5
"""The paper's threshold for a network that was trained without a GAN, as here."""
NUM_MEASURED = 3
LEAST_NIQE = 0.05
"""Difference of NIQE below which two values count as equal."""

type Key = tuple[str, float]
"""("theta", its value) or ("passes", their number)."""
type Found = Mapping[tuple[Key, str], Measured]


def make(bench: Workbench) -> Report:
    """Run one network with each threshold and each number of passes."""
    num_frames = bench.scale.num_frames
    frames = spread(num_frames, NUM_MEASURED)
    network = paper_variant(bench)
    ways: dict[Key, Way] = {("theta", theta): Way(theta=theta) for theta in THETAS}
    ways |= {("passes", number): Way(theta=255.0, num_passes=number if number > 1 else None) for number in PASSES}
    found = {
        (key, chain): bench.measured(network, way, chain, num_frames=num_frames, frames=frames)
        for key, way in ways.items()
        for chain in CHAINS
    }
    rows = [_row(found, key) for key in ways]
    shown: list[Key] = [("passes", 1), ("passes", 3), ("passes", 5), ("theta", PAPER_THETA)]
    pictures = [
        cut(
            bench,
            chain,
            num_frames=num_frames,
            frame=frames[len(frames) // 2],
            clip=0,
            pictures=[found[key, chain].outputs[0] for key in shown],
        )
        for chain in CHAINS
    ]
    return Report(
        columns=COLUMNS,
        rows=rows,
        findings=findings(found),
        plots=[
            Plot(
                name="refinement",
                caption="NIQE (lower is better) and passes of each frame by theta; NIQE by fixed passes",
                num_axes=3,
                draw=lambda axes: _draw(axes, found),
            )
        ],
        crops=[
            Crops(
                name="crops",
                caption="From above: after the mild, the usual and the harsh chain",
                columns=["input", "1 pass", "3 passes", "5 passes", f"theta {PAPER_THETA:g}", "truth"],
                rows=pictures,
            )
        ],
        limits=(
            f"{scope_of(bench)} How many passes Eq. 5 takes for which frame is exact at any scale. The default"
            " weights are meant to clean a frame once, and what further passes add looks like paint: their curve"
            " is theirs, not that of a network trained as the paper's. NIQE of a few frames of this size is"
            " noisy."
        ),
    )


def findings(found: Found) -> list[Finding]:
    """Return what Fig. 5 and 6 say, beside ours."""

    def niqes(worse: Key, better: Key, chains: Sequence[str] = CHAINS) -> list[float]:
        pairs = [(found[worse, chain], found[better, chain]) for chain in chains]
        return [value for a, b in pairs for value in differences(a, b, "niqe")]

    means = {theta: mean([found[("theta", theta), chain].mean("niqe") for chain in CHAINS]) for theta in THETAS}
    curve = {theta: value for theta, value in means.items() if value is not None}
    ends, middle = (THETAS[0], THETAS[-1]), THETAS[1:-1]
    is_lowest_inside = bool(curve) and all(
        min(curve[theta] for theta in middle) < curve[end] - LEAST_NIQE for end in ends
    )
    by_chain = {chain: _mean_passes(found[("theta", PAPER_THETA), chain]) for chain in CHAINS}
    return [
        counted(
            is_lowest_inside,
            paper="Fig. 6a: NIQE is lowest at a theta in the middle, 1.5 without GAN training; 0.5 and 255 are worse",
            ours="NIQE by theta: " + ", ".join(f"{theta:g}: {value:.2f}" for theta, value in curve.items()),
        ),
        compared(
            niqes(("passes", 1), ("theta", PAPER_THETA), ("harsh",)),
            paper="Fig. 5: of severe degradation one pass leaves noise that refinement removes",
            what=f"harsh chain, NIQE of one pass, less that of theta {PAPER_THETA:g}",
            unit="",
        ),
        compared(
            niqes(("passes", 5), ("theta", PAPER_THETA)),
            paper="Fig. 6b: a fixed number of passes, and many of them, does worse than Eq. 5",
            what=f"NIQE of five passes, less that of theta {PAPER_THETA:g}",
            unit="",
        ),
        counted(
            by_chain["harsh"] > by_chain["mild"],
            paper="Eq. 5: the worse the input, the more passes",
            ours=f"passes at theta {PAPER_THETA:g}: "
            + ", ".join(f"{chain} {number:.2f}" for chain, number in by_chain.items()),
        ),
    ]


def _mean_passes(measured: Measured) -> float:
    return float(np.mean([number for clip in measured.clips for number in clip["num_passes"]]))


def _row(found: Found, key: Key) -> dict[str, Any]:
    name, value = key
    words = f"theta {value:g}" if name == "theta" else f"{value:g} pass{'es' if value > 1 else ''}"
    row: dict[str, Any] = {"way": words}
    for chain in CHAINS:
        row |= {f"passes_{chain}": _mean_passes(found[key, chain]), f"niqe_{chain}": found[key, chain].mean("niqe")}
    row["niqe"] = mean([row[f"niqe_{chain}"] for chain in CHAINS])
    row["psnr_db"] = mean([found[key, chain].mean("psnr_db") for chain in CHAINS])
    return row


def _draw(axes: Sequence[Any], found: Found) -> None:
    for number, chain in enumerate(CHAINS):
        curves = (
            (axes[0], [found[("theta", theta), chain].mean("niqe") for theta in THETAS]),
            (axes[1], [_mean_passes(found[("theta", theta), chain]) for theta in THETAS]),
            (axes[2], [found[("passes", passes), chain].mean("niqe") for passes in PASSES]),
        )
        for one, values in curves:
            if None not in values:
                one.plot(range(len(values)), values, f"C{number}-", marker="o", label=chain)
    for one, words in ((axes[0], "NIQE"), (axes[1], "passes")):
        one.set_xticks(range(len(THETAS)), [f"{theta:g}" for theta in THETAS])
        one.set_xlabel("theta")
        one.set_ylabel(words)
    axes[2].set_xticks(range(len(PASSES)), [str(number) for number in PASSES])
    axes[2].set_xlabel("fixed passes")
    axes[2].set_ylabel("NIQE")
    axes[1].legend(fontsize=8)


COLUMNS = [
    Column("way", "cleaning"),
    *(Column(f"passes_{chain}", f"passes, {chain}", 2) for chain in CHAINS),
    *(Column(f"niqe_{chain}", f"NIQE {chain}", 2) for chain in CHAINS),
    Column("niqe", "NIQE, mean", 2),
    Column("psnr_db", "PSNR, dB", 2),
]

STUDY = Study(
    name="refinement",
    title="Dynamic refinement",
    source="Fig. 5, Fig. 6 and Eq. 5 of the paper",
    question="How often should a frame be cleaned: by the threshold theta, or a fixed number of times?",
    make=make,
)
