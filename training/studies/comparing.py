"""Networks compared on the same chains of degradations: what several studies measure, show and plot alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from training.studies.measuring import ONE_PASS
from training.studies.plan import cut, scores_row
from training.studies.report import Bytes
from training.studies.variants import Variant
from training.studies.workbench import Measured, Workbench

type Found = Mapping[tuple[str, str], Measured]
"""Measurements by the names of network and chain."""


def measured_on(bench: Workbench, networks: Mapping[str, Variant | None], chains: Sequence[str]) -> Found:
    """Train the networks and measure each on each chain with one cleaning pass; None is bicubic interpolation."""
    num_frames = bench.scale.num_frames
    return {
        (name, chain): bench.measured(variant, ONE_PASS, chain, num_frames=num_frames)
        for name, variant in networks.items()
        for chain in chains
    }


def table_rows(found: Found) -> list[dict[str, Any]]:
    """Return one row of the table for each measurement."""
    return [{"variant": name, "degradation": chain, **scores_row(one)} for (name, chain), one in found.items()]


def crop_rows(
    bench: Workbench,
    chain: str,
    shown: Sequence[Measured],
    *,
    what: Literal["outputs", "cleaned"] = "outputs",
    max_clips: int | None = None,
) -> list[list[Bytes]]:
    """Return a row for each clip: the middle frame's input, what each network makes of it, and the truth."""
    num_frames = bench.scale.num_frames
    return [
        cut(
            bench,
            chain,
            num_frames=num_frames,
            frame=num_frames // 2,
            clip=clip,
            pictures=[getattr(one, what)[clip] for one in shown],
        )
        for clip in range(len(bench.footage(num_frames)))[:max_clips]
    ]


def draw_by_chain(
    axes: Sequence[Any], found: Found, names: Mapping[str, str], chains: Sequence[str], scores: Mapping[str, str]
) -> None:
    """Draw groups of bars, one group for each network and one bar in it for each chain; one axes for each score.

    Args:
        axes: Those of matplotlib, as many as there are scores.
        found: The measurements.
        names: Networks, and the words below their groups.
        chains: Chains in the order of their bars.
        scores: Names of scores, and the words beside their axes.
    """
    for one, (score, words) in zip(axes, scores.items(), strict=True):
        values = [found[name, chain].mean(score) or 0.0 for name in names for chain in chains]
        for number, chain in enumerate(chains):
            places = [place + 0.4 * number - 0.2 for place in range(len(names))]
            one.bar(places, values[number :: len(chains)], 0.4, label=chain)
        one.set_ylim(bottom=min(values) - 1)
        one.set_xticks(range(len(names)), list(names.values()), fontsize=8)
        one.set_ylabel(words)
    axes[0].legend(fontsize=8)
