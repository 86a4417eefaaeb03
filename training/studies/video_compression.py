"""Video compression among the degradations of training (paper, section 5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from training.settings import changed
from training.studies.comparing import Found, crop_rows, measured_on, table_rows
from training.studies.plan import Study, pairwise, paper_variant, scope_of
from training.studies.report import Column, Crops, Finding, Plot, Report, compared
from training.studies.variants import Variant
from training.studies.workbench import Workbench

CHAINS = ("clean", "mild", "usual", "harsh")
COMPRESSED = ("mild", "usual", "harsh")
"""x264 at CRF 23, 28 and 35."""
WITH, WITHOUT, BICUBIC = "with the codec", "without", "bicubic"


def without_codec(bench: Workbench) -> Variant:
    """Return the network whose training clips went through everything but a video codec."""
    absent = {"degradations.codec1_probability": 0.0, "degradations.codec2_probability": 0.0}
    return Variant(name="without codec", settings=changed(bench.scale.stage_1, absent))


def make(bench: Workbench) -> Report:
    """Train both networks and measure them on clips that a codec has been over, and on clean ones."""
    networks = {WITH: paper_variant(bench), WITHOUT: without_codec(bench), BICUBIC: None}
    found = measured_on(bench, networks, CHAINS)
    pictures = crop_rows(bench, "harsh", [found[name, "harsh"] for name in (BICUBIC, WITHOUT, WITH)])
    return Report(
        columns=COLUMNS,
        rows=table_rows(found),
        findings=findings(found),
        plots=[
            Plot(
                name="compression",
                caption="Gain over bicubic interpolation in PSNR, and NIQE, by chain",
                num_axes=2,
                draw=lambda axes: _draw(axes, found),
            )
        ],
        crops=[
            Crops(
                name="crops",
                caption="After the harsh chain, which ends in x264 at CRF 35",
                columns=["input", BICUBIC, WITHOUT, WITH, "truth"],
                rows=pictures,
            )
        ],
        limits=(
            f"{scope_of(bench)} At smoke scale the default weights have seen codecs, and the network without"
            " begins to forget them. Both saw blur and noise, so both smooth blocks."
        ),
    )


def findings(found: Found) -> list[Finding]:
    """Return what section 5 says, beside ours."""
    return [
        compared(
            pairwise(found, WITH, WITHOUT, COMPRESSED, "psnr_db"),
            paper="Section 5: training with video compression does better on compressed videos",
            what="PSNR on compressed clips with the codec, less that without",
            unit="dB",
        ),
        compared(
            pairwise(found, WITHOUT, WITH, COMPRESSED, "niqe"),
            paper="and removes blocks and ringing that are otherwise enlarged",
            what="NIQE on compressed clips without the codec, less that with it",
            unit="",
        ),
    ]


def _draw(axes: Sequence[Any], found: Found) -> None:
    places = range(len(CHAINS))
    for number, name in enumerate((WITHOUT, WITH)):
        gains = [
            (found[name, chain].mean("psnr_db") or 0.0) - (found[BICUBIC, chain].mean("psnr_db") or 0.0)
            for chain in CHAINS
        ]
        axes[0].bar([place + 0.4 * number - 0.2 for place in places], gains, 0.4, label=name)
        values = [found[name, chain].mean("niqe") for chain in CHAINS]
        if None not in values:
            axes[1].bar([place + 0.4 * number - 0.2 for place in places], values, 0.4, label=name)
    for one, words in zip(axes, ("gain over bicubic, dB", "NIQE"), strict=True):
        one.set_xticks(places, CHAINS)
        one.set_ylabel(words)
    axes[0].legend(fontsize=8)


COLUMNS = [
    Column("variant", "training"),
    Column("degradation", "chain"),
    Column("psnr_db", "PSNR, dB", 2),
    Column("niqe", "NIQE", 2),
    Column("flicker_255", "flicker / 255", 2),
    Column("chroma_error_255", "chroma error / 255", 2),
]

STUDY = Study(
    name="video-compression",
    title="Video compression in training",
    source="Section 5 of the paper",
    question="Does a network that saw video codecs in training do better on compressed videos?",
    make=make,
)
