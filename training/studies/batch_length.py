"""Batch against length (paper, section 4.2, Fig. 9): as many frames a step, in many short or in few long sequences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from training.settings import changed
from training.studies.measuring import ONE_PASS
from training.studies.plan import Study, cut, differences, scope_of, scores_row
from training.studies.report import Column, Crops, Finding, Plot, Report, compared
from training.studies.scales import Pair
from training.studies.variants import Variant
from training.studies.workbench import Measured, Workbench
from vsrealbasicvsr.errors import UserError

CHAIN = "usual"

type Found = Mapping[Pair, Measured]


def parse_pairs(text: str) -> list[Pair]:
    """Return the pairs of "48x10,24x20". Raises UserError unless there are two or more, all with the same product."""
    try:
        pairs = [Pair(*(int(number) for number in part.split("x"))) for part in text.split(",")]
    except (ValueError, TypeError):
        raise UserError(f"--pairs must look like 48x10,24x20,16x30, got {text!r}") from None
    if min(min(pair.batch, pair.num_frames) for pair in pairs) < 1:
        raise UserError(f"--pairs must be numbers from 1 on, got {text}")
    if len({pair.batch * pair.num_frames for pair in pairs}) != 1:
        raise UserError(f"--pairs must all have the same number of frames a step, got {text}")
    if len(set(pairs)) < 2:
        raise UserError(f"--pairs must be two or more, got {text}")
    return sorted(set(pairs), key=lambda pair: pair.num_frames)


def variant_of(bench: Workbench, pair: Pair) -> Variant:
    """Return the network that is trained with this batch and length."""
    settings = changed(bench.scale.stage_1, {"batch": pair.batch, "num_frames": pair.num_frames})
    return Variant(name=f"batch {pair}", settings=settings)


def make(bench: Workbench) -> Report:
    """Train with B x L constant, then with B constant, and measure long clips."""
    constant_product = parse_pairs(bench.scale.pairs)
    smallest = min(pair.batch for pair in constant_product)
    constant_batch = [Pair(smallest, pair.num_frames) for pair in constant_product]
    num_frames = bench.scale.long_num_frames
    found = {
        pair: bench.measured(variant_of(bench, pair), ONE_PASS, CHAIN, num_frames=num_frames)
        for pair in dict.fromkeys([*constant_product, *constant_batch])
    }
    rows: list[dict[str, Any]] = [
        {
            "pair": str(pair),
            "frames": float(pair.batch * pair.num_frames),
            **scores_row(measured),
            "drift": _unsteadiness(measured),
        }
        for pair, measured in found.items()
    ]
    bicubic = bench.measured(None, ONE_PASS, CHAIN, num_frames=num_frames)
    rows.append({"pair": "bicubic", **scores_row(bicubic), "drift": _unsteadiness(bicubic)})
    pictures = [
        cut(
            bench,
            CHAIN,
            num_frames=num_frames,
            frame=num_frames // 2,
            clip=clip,
            pictures=[found[pair].outputs[clip] for pair in found],
        )
        for clip in range(min(2, len(bench.footage(num_frames))))
    ]
    return Report(
        columns=COLUMNS,
        rows=rows,
        findings=findings(found, constant_product, constant_batch),
        plots=[
            Plot(
                name="batch-length",
                caption="PSNR over a long clip, mean over the clips; chroma error by length",
                num_axes=2,
                draw=lambda axes: _draw(axes, found, constant_product, constant_batch),
            )
        ],
        crops=[
            Crops(
                name="crops",
                caption="The middle of a long clip, by batch x length",
                columns=["input", *map(str, found), "truth"],
                rows=pictures,
            )
        ],
        limits=(
            f"{scope_of(bench)} The pairs see as many frames a step and take as many steps. The paper's advantage"
            " of long sequences is one of lengths of 10 to 30 frames and of trainings from nothing; lengths of 2"
            " to 8 of a network that knows long sequences already tell what it loses by short ones."
        ),
    )


def findings(found: Found, constant_product: Sequence[Pair], constant_batch: Sequence[Pair]) -> list[Finding]:
    """Return what Fig. 9 says, beside ours."""
    longest, shortest = constant_product[-1], constant_product[0]
    return [
        compared(
            differences(found[longest], found[shortest], "psnr_db"),
            paper="Fig. 9: at B x L constant, longer sequences are better than larger batches",
            what=f"PSNR of {longest}, less that of {shortest}",
            unit="dB",
        ),
        compared(
            differences(found[constant_batch[-1]], found[constant_batch[0]], "psnr_db"),
            paper="at B constant, longer sequences are better",
            what=f"PSNR of {constant_batch[-1]}, less that of {constant_batch[0]}",
            unit="dB",
        ),
        compared(
            differences(found[shortest], found[longest], "chroma_error_255"),
            paper="Fig. 9: short sequences give colour artefacts",
            what=f"chroma error of {shortest}, less that of {longest}",
            unit="of 255",
        ),
        compared(
            differences(found[shortest], found[longest], "flicker_255"),
            paper="Fig. 9: long sequences are steadier",
            what=f"flicker of {shortest}, less that of {longest}",
            unit="of 255",
        ),
    ]


def _unsteadiness(measured: Measured) -> float:
    """Return the standard deviation of a frame's PSNR over the clip, mean over the clips."""
    return float(np.mean([np.std(clip["psnr_by_frame"]) for clip in measured.clips]))


def _draw(axes: Sequence[Any], found: Found, constant_product: Sequence[Pair], constant_batch: Sequence[Pair]) -> None:
    for pair, measured in found.items():
        curve = np.mean([clip["psnr_by_frame"] for clip in measured.clips], axis=0)
        axes[0].plot(curve, "-" if pair in constant_product else "--", label=str(pair), linewidth=1)
    axes[0].set_xlabel("frame")
    axes[0].set_ylabel("PSNR, dB")
    axes[0].legend(fontsize=7)
    for pairs, words in ((constant_product, "B x L constant"), (constant_batch, "B constant")):
        lengths = [pair.num_frames for pair in pairs]
        axes[1].plot(lengths, [found[pair].mean("chroma_error_255") for pair in pairs], marker="o", label=words)
    axes[1].set_xlabel("frames of a training sequence")
    axes[1].set_ylabel("chroma error / 255")
    axes[1].legend(fontsize=8)


COLUMNS = [
    Column("pair", "B x L"),
    Column("frames", "frames a step", 0),
    Column("psnr_db", "PSNR, dB", 2),
    Column("drift", "deviation of PSNR, dB", 2),
    Column("niqe", "NIQE", 2),
    Column("flicker_255", "flicker / 255", 2),
    Column("chroma_error_255", "chroma error / 255", 2),
    Column("colour_shift_255", "colour shift / 255", 2),
]

STUDY = Study(
    name="batch-length",
    title="Batch against length",
    source="Section 4.2 and Fig. 9 of the paper",
    question="Are many short sequences or few long ones better to train with?",
    make=make,
)
