"""Which losses reach the cleaning module (paper, after Eq. 3, and section 5)."""

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
STAGE_1, KEPT_AWAY, LET_THROUGH, BICUBIC = "stage 1", "kept away from C (paper)", "let through to C (code)", "bicubic"

LABELS = {STAGE_1: "stage 1", KEPT_AWAY: "kept away", LET_THROUGH: "let through"}
SCORES = {"cleaned_db": "cleaned frames, dB", "psnr_db": "output, dB"}
SHOWN: Mapping[Literal["outputs", "cleaned"], str] = {"outputs": "Outputs", "cleaned": "Cleaned frames"}


def variants(bench: Workbench) -> dict[str, Variant | None]:
    """Return the networks that are compared, by name: after stage 1, and after stage 2 in both ways."""
    first, second = paper_variant(bench), bench.scale.stage_2
    networks: dict[str, Variant | None] = {STAGE_1: first}
    for name, reaches in ((KEPT_AWAY, False), (LET_THROUGH, True)):
        settings = changed(second, {"cleaning_gets_perceptual": reaches})
        networks[name] = Variant(name=f"stage 2 {name}", settings=settings, start=first)
    return {**networks, BICUBIC: None}


def make(bench: Workbench) -> Report:
    """Train stage 2 in both ways from the same stage 1, and measure outputs and cleaned frames."""
    found = measured_on(bench, variants(bench), CHAINS)
    shown = [found[name, "harsh"] for name in (STAGE_1, KEPT_AWAY, LET_THROUGH)]
    crops = [
        Crops(
            name=what,
            caption=f"{words}, after the harsh chain",
            columns=["input", STAGE_1, "kept away from C", "let through to C", "truth"],
            rows=crop_rows(bench, "harsh", shown, what=what, max_clips=2),
        )
        for what, words in SHOWN.items()
    ]
    losses = bench.scale.stage_2.losses
    return Report(
        columns=COLUMNS,
        rows=table_rows(found),
        findings=findings(found),
        plots=[
            Plot(
                name="losses",
                caption="PSNR of the cleaned frames against the averaged truth; PSNR of the output",
                num_axes=2,
                draw=lambda axes: draw_by_chain(axes, found, LABELS, CHAINS, SCORES),
            )
        ],
        crops=crops,
        limits=(
            f"{scope_of(bench)} Stage 2 has the {losses.discriminator} discriminator and"
            f" {'the' if losses.perceptual_weight else 'no'} perceptual loss (its VGG19 must be downloaded). A"
            " discriminator that is a few iterations old hardly knows what is real: the study shows whether its"
            " gradient moves the cleaned frames, not what a trained GAN makes of them."
        ),
    )


def findings(found: Found) -> list[Finding]:
    """Return what the text after Eq. 3 says, beside ours."""
    return [
        compared(
            pairwise(found, KEPT_AWAY, LET_THROUGH, CHAINS, "cleaned_db"),
            paper="Eq. 3: the cleaning module is to remove artefacts, not to make detail: C gets no gradient of the"
            " perceptual and adversarial losses, so that its frames stay clean",
            what="PSNR of the cleaned frames kept away, less that let through",
            unit="dB",
            decimals=3,
        ),
        compared(
            pairwise(found, KEPT_AWAY, LET_THROUGH, CHAINS, "psnr_db"),
            paper="and the output has fewer artefacts",
            what="PSNR of the output kept away, less that let through",
            unit="dB",
            decimals=3,
        ),
    ]


COLUMNS = [
    Column("variant", "gradient of stage 2"),
    Column("degradation", "chain"),
    Column("cleaned_db", "cleaned frames, dB", 2),
    Column("psnr_db", "PSNR, dB", 2),
    Column("niqe", "NIQE", 2),
    Column("flicker_255", "flicker / 255", 2),
]

STUDY = Study(
    name="losses",
    title="The losses that reach the cleaning module",
    source="Eq. 3 and section 5 of the paper",
    question="Should the perceptual and adversarial losses teach the cleaning module?",
    make=make,
)
