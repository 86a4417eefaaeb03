"""Length of the sequence at inference (paper, Fig. 2): whether propagation helps, or carries artefacts along."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from training.settings import changed
from training.studies.measuring import ONE_PASS, spread
from training.studies.plan import Study, cut, differences, paper_variant, scope_of
from training.studies.report import Column, Crops, Finding, Plot, Report, compared
from training.studies.variants import Variant
from training.studies.workbench import Measured, Workbench

LENGTHS = (1, 5, 15, 30)
CHAINS = {"mild": "mild", "harsh": "severe"}
"""Chain of the evaluation, and what the paper calls it."""
WITH, WITHOUT = "with cleaning", "without cleaning"
NUM_MEASURED = 6

type Found = Mapping[tuple[str, str, int], Measured]


def one_stage(bench: Workbench) -> Variant:
    """Return the network without a cleaning module, trained on the same clips."""
    settings = changed(bench.scale.stage_1, {"cleaning_weight": 0.0})
    return Variant(name="one stage", settings=settings, cleaning="none")


def make(bench: Workbench) -> Report:
    """Measure both networks on sequences of each length, cut from the same clips."""
    num_frames = bench.scale.long_num_frames
    frames = spread(num_frames, NUM_MEASURED)
    lengths = [*(length for length in LENGTHS if length < num_frames), num_frames]
    networks = {WITH: paper_variant(bench), WITHOUT: one_stage(bench)}
    found = {
        (name, chain, length): bench.measured(
            variant, dataclasses.replace(ONE_PASS, length=length), chain, num_frames=num_frames, frames=frames
        )
        for name, variant in networks.items()
        for chain in CHAINS
        for length in lengths
    }
    rows = _rows(bench, found, frames, num_frames)
    shown = [(name, length) for name in (WITHOUT, WITH) for length in (1, num_frames)]
    pictures = [
        cut(
            bench,
            chain,
            num_frames=num_frames,
            frame=frames[len(frames) // 2],
            clip=0,
            pictures=[found[name, chain, length].outputs[0] for name, length in shown],
        )
        for chain in CHAINS
    ]
    return Report(
        columns=COLUMNS,
        rows=rows,
        findings=findings(found, num_frames),
        plots=[
            Plot(
                name="length",
                caption="PSNR (higher is better) and NIQE (lower is better) by the length of the sequence",
                num_axes=2,
                draw=lambda axes: _draw(axes, found, lengths),
            )
        ],
        crops=[
            Crops(
                name="crops",
                caption="Above after the mild chain, below after the severe one; 1 and all: frames of the sequence",
                columns=["input", *(f"{name}, {_word(length, num_frames)}" for name, length in shown), "truth"],
                rows=pictures,
            )
        ],
        limits=(
            f"{scope_of(bench)} The lengths are those of the same clips with the same weights, compared pair by"
            " pair. The network without a cleaning module was trained with one at first, at smoke scale: it has"
            " not had the time to learn what to do without. PSNR says little of artefacts that are exaggerated:"
            " look at the crops and at NIQE."
        ),
    )


def _rows(bench: Workbench, found: Found, frames: Sequence[int], num_frames: int) -> list[dict[str, Any]]:
    """Return the rows of the table, those of bicubic interpolation last."""
    rows: list[dict[str, Any]] = [
        {
            "network": name,
            "degradation": CHAINS[chain],
            "length": str(length) if length < num_frames else f"all ({length})",
            "psnr_db": measured.mean("psnr_db"),
            "niqe": measured.mean("niqe"),
        }
        for (name, chain, length), measured in found.items()
    ]
    for chain, words in CHAINS.items():
        measured = bench.measured(None, ONE_PASS, chain, num_frames=num_frames, frames=frames)
        rows.append({"network": "bicubic", "degradation": words, "length": "-"})
        rows[-1] |= {"psnr_db": measured.mean("psnr_db"), "niqe": measured.mean("niqe")}
    return rows


def findings(found: Found, num_frames: int) -> list[Finding]:
    """Return what Fig. 2 says, beside ours."""

    def gains(name: str, chain: str, score: str = "psnr_db") -> list[float]:
        longest, single = found[name, chain, num_frames], found[name, chain, 1]
        return differences(single, longest, score) if score == "niqe" else differences(longest, single, score)

    def more(first: Sequence[float], second: Sequence[float]) -> list[float]:
        return [a - b for a, b in zip(first, second, strict=True)]

    mild = "mild degradation: longer sequences are better"
    severe = "severe degradation, without cleaning: propagation exaggerates artefacts"
    cleaned = "severe degradation: with cleaning, long sequences help again"
    better = "of all frames over single frames"
    return [
        compared(gains(WITHOUT, "mild"), paper=mild, what=f"without cleaning, gain of PSNR {better}", unit="dB"),
        compared(gains(WITHOUT, "mild", "niqe"), paper=mild, what=f"without cleaning, gain of NIQE {better}", unit=""),
        compared([-gain for gain in gains(WITHOUT, "harsh")], paper=severe, what=f"loss of PSNR {better}", unit="dB"),
        compared(
            [-gain for gain in gains(WITHOUT, "harsh", "niqe")], paper=severe, what=f"loss of NIQE {better}", unit=""
        ),
        compared(
            more(gains(WITH, "harsh"), gains(WITHOUT, "harsh")),
            paper=cleaned,
            what="gain of PSNR by length with cleaning, less that without",
            unit="dB",
        ),
        compared(
            more(gains(WITH, "harsh", "niqe"), gains(WITHOUT, "harsh", "niqe")),
            paper=cleaned,
            what="gain of NIQE by length with cleaning, less that without",
            unit="",
        ),
    ]


def _draw(axes: Sequence[Any], found: Found, lengths: Sequence[int]) -> None:
    for (name, chain), style in zip(
        ((name, chain) for name in (WITHOUT, WITH) for chain in CHAINS), ("C1--", "C1-", "C0--", "C0-"), strict=True
    ):
        for one, score in zip(axes, ("psnr_db", "niqe"), strict=True):
            values = [found[name, chain, length].mean(score) for length in lengths]
            if None not in values:
                one.plot(range(len(lengths)), values, style, marker="o", label=f"{name}, {CHAINS[chain]}")
    for one, words in zip(axes, ("PSNR, dB", "NIQE"), strict=True):
        one.set_xticks(range(len(lengths)), [str(length) for length in lengths])
        one.set_xlabel("frames")
        one.set_ylabel(words)
    axes[0].legend(fontsize=7)


def _word(length: int, num_frames: int) -> str:
    return "all" if length == num_frames else str(length)


COLUMNS = [
    Column("network", "network"),
    Column("degradation", "degradation"),
    Column("length", "frames"),
    Column("psnr_db", "PSNR, dB", 2),
    Column("niqe", "NIQE", 2),
]

STUDY = Study(
    name="length",
    title="Length of the sequence at inference",
    source="Fig. 2 of the paper",
    question="Do more frames help, with mild and with severe degradation, with and without cleaning?",
    make=make,
)
