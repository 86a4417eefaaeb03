"""What the cleaning module should be (paper, section 3.2, Fig. 4): its loss, and images rather than recurrence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from training.settings import changed
from training.studies.comparing import Found, crop_rows, draw_by_chain, measured_on, table_rows
from training.studies.plan import Study, pairwise, paper_variant, scope_of
from training.studies.report import Column, Crops, Finding, Plot, Report, compared
from training.studies.variants import Variant
from training.studies.workbench import Workbench

CHAINS = ("usual", "harsh")
PAPER, NO_LOSS, RECURRENT, BICUBIC = "the paper's", "no cleaning loss", "recurrent cleaning", "bicubic"

LABELS = {NO_LOSS: "no loss", RECURRENT: "recurrent", PAPER: "paper", BICUBIC: "bicubic"}
SCORES = {"psnr_db": "output, dB", "cleaned_db": "cleaned frames, dB"}
SHOWN: Mapping[Literal["outputs", "cleaned"], str] = {
    "outputs": "Outputs",
    "cleaned": "Cleaned frames, before propagation",
}


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
    found = measured_on(bench, variants(bench), CHAINS)
    shown = [found[name, "harsh"] for name in (NO_LOSS, RECURRENT, PAPER)]
    crops = [
        Crops(
            name=what,
            caption=f"{words}, after the harsh chain",
            columns=["input", NO_LOSS, RECURRENT, PAPER, "truth"],
            rows=crop_rows(bench, "harsh", shown, what=what, max_clips=2),
        )
        for what, words in SHOWN.items()
    ]
    return Report(
        columns=COLUMNS,
        rows=table_rows(found),
        findings=findings(found),
        plots=[
            Plot(
                name="cleaning",
                caption="PSNR of the output, and of the cleaned frames against the averaged truth",
                num_axes=2,
                draw=lambda axes: draw_by_chain(axes, found, LABELS, CHAINS, SCORES),
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
