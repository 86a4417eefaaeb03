"""What the cleaning module should be (paper, section 3.2, Fig. 4): its loss, and images rather than recurrence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from training.settings import changed
from training.studies.measuring import ONE_PASS
from training.studies.plan import Study, cut, pairwise, paper_variant, scope_of, scores_row
from training.studies.report import Column, Crops, Finding, Plot, Report, compared
from training.studies.variants import Variant
from training.studies.workbench import Measured, Workbench

CHAINS = ("usual", "harsh")
PAPER, NO_LOSS, RECURRENT, BICUBIC = "the paper's", "no cleaning loss", "recurrent cleaning", "bicubic"

type Found = Mapping[tuple[str, str], Measured]


def variants(bench: Workbench) -> dict[str, Variant | None]:
    """Return the networks that are compared, by name; None: bicubic interpolation."""
    base = bench.scale.stage_1
    return {
        PAPER: paper_variant(bench),
        NO_LOSS: Variant(name=NO_LOSS, settings=changed(base, {"cleaning_weight": 0.0})),
        RECURRENT: Variant(name=RECURRENT, settings=base, cleaning="recurrent"),
        BICUBIC: None,
    }


def make(bench: Workbench) -> Report:
    """Train the three networks and measure their pictures and their cleaned frames."""
    num_frames = bench.scale.num_frames
    found = {
        (name, chain): bench.measured(variant, ONE_PASS, chain, num_frames=num_frames)
        for name, variant in variants(bench).items()
        for chain in CHAINS
    }
    rows = [
        {"variant": name, "degradation": chain, **scores_row(measured)} for (name, chain), measured in found.items()
    ]
    crops = []
    for what in ("outputs", "cleaned"):
        pictures = [
            cut(
                bench,
                "harsh",
                num_frames=num_frames,
                frame=num_frames // 2,
                clip=clip,
                pictures=[getattr(found[name, "harsh"], what)[clip] for name in (NO_LOSS, RECURRENT, PAPER)],
            )
            for clip in range(min(2, len(bench.footage(num_frames))))
        ]
        caption = "Outputs" if what == "outputs" else "Cleaned frames, before propagation"
        columns = ["input", NO_LOSS, RECURRENT, PAPER, "truth"]
        crops.append(Crops(name=what, caption=f"{caption}, after the harsh chain", columns=columns, rows=pictures))
    return Report(
        columns=COLUMNS,
        rows=rows,
        findings=findings(found),
        plots=[
            Plot(
                name="cleaning",
                caption="PSNR of the output, and of the cleaned frames against the averaged truth",
                num_axes=2,
                draw=lambda axes: _draw(axes, found),
            )
        ],
        crops=crops,
        limits=(
            f"{scope_of(bench)} From trained weights the cleaned frames stay clean for a while even without their"
            " loss, and a recurrent module first does what the module of images does: the signs of the"
            " differences can be read, not their sizes."
        ),
    )


def findings(found: Found) -> list[Finding]:
    """Return what Fig. 4 says, beside ours."""
    return [
        compared(
            pairwise(found, PAPER, NO_LOSS, CHAINS, "cleaned_db"),
            paper="Fig. 4: without the cleaning loss, cleaned frames keep noise and artefacts",
            what="PSNR of the cleaned frames with the loss, less that without",
            unit="dB",
        ),
        compared(
            pairwise(found, PAPER, NO_LOSS, CHAINS, "psnr_db"),
            paper="Fig. 4: and so does the output",
            what="PSNR of the output with the loss, less that without",
            unit="dB",
        ),
        compared(
            pairwise(found, PAPER, RECURRENT, CHAINS, "psnr_db"),
            paper="Fig. 4: a recurrent cleaning module does worse than one of images",
            what="PSNR of the output with image cleaning, less that with recurrent cleaning",
            unit="dB",
        ),
    ]


def _draw(axes: Sequence[Any], found: Found) -> None:
    names = (NO_LOSS, RECURRENT, PAPER, BICUBIC)
    for one, score, words in zip(axes, ("psnr_db", "cleaned_db"), ("output, dB", "cleaned frames, dB"), strict=True):
        values = [found[name, chain].mean(score) or 0.0 for name in names for chain in CHAINS]
        for number, chain in enumerate(CHAINS):
            one.bar([place + 0.4 * number - 0.2 for place in range(len(names))], values[number :: len(CHAINS)], 0.4)
            one.containers[number].set_label(chain)
        one.set_ylim(bottom=min(values) - 1)
        one.set_xticks(range(len(names)), ["no loss", "recurrent", "paper", "bicubic"], fontsize=8)
        one.set_ylabel(words)
    axes[0].legend(fontsize=8)


COLUMNS = [
    Column("variant", "cleaning"),
    Column("degradation", "chain"),
    Column("psnr_db", "PSNR, dB", 2),
    Column("niqe", "NIQE", 2),
    Column("cleaned_db", "cleaned frames, dB", 2),
    Column("flicker_255", "flicker / 255", 2),
    Column("chroma_error_255", "chroma error / 255", 2),
]

STUDY = Study(
    name="cleaning",
    title="The cleaning module and its loss",
    source="Fig. 4 of the paper",
    question="What do the cleaning loss, and cleaning image by image, contribute?",
    make=make,
)
