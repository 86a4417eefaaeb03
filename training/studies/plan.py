"""What a study is: a name, a question, and a function from the workbench to a report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from training.evaluation.sheets import most_detailed
from training.studies.measuring import pixels, scaled
from training.studies.report import Bytes, Report
from training.studies.variants import Variant
from training.studies.workbench import Measured, Workbench

CROP_PX, CROP_ENLARGED = 72, 2
"""Side of the largest crop in high-resolution pixels, and how many times each pixel is shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """A study of the paper: source names its figure or section, question what is asked there."""

    name: str
    title: str
    source: str
    question: str
    make: Callable[[Workbench], Report]


def paper_variant(bench: Workbench) -> Variant:
    """Return the paper's network after stage 1: image cleaning, the cleaning loss, the stochastic scheme."""
    return Variant(name="paper", settings=bench.scale.stage_1)


def cut(
    bench: Workbench, chain: str, *, num_frames: int, frame: int, clip: int, pictures: Sequence[Bytes]
) -> list[Bytes]:
    """Return the most detailed part of a clip's frame: of its input, of the pictures (cleaned or hr), of the truth."""
    pair = bench.pairs(num_frames, chain)[clip]
    truth = pixels(pair.truth[frame])
    top, left, height, width = most_detailed(truth)
    top, left, height, width = (side // pair.scale * pair.scale for side in (top, left, height, width))
    top, left = top + max(height - CROP_PX, 0) // 2, left + max(width - CROP_PX, 0) // 2
    height, width = min(height, CROP_PX), min(width, CROP_PX)
    enlarged = []
    for picture in (pixels(pair.lr[frame]), *pictures, truth):
        whole = scaled(picture, pair.scale) if picture.shape[0] < truth.shape[0] else picture
        enlarged.append(scaled(whole[top : top + height, left : left + width], CROP_ENLARGED))
    return enlarged


def scores_row(measured: Measured) -> dict[str, float | None]:
    """Return the mean scores of a method, as a row of the table takes them."""
    names = ("psnr_db", "niqe", "cleaned_db", "flicker_255", "colour_shift_255", "chroma_error_255")
    return {name: measured.mean(name) for name in names}


def pairwise(
    found: Mapping[tuple[str, str], Measured], first: str, second: str, chains: Sequence[str], score: str
) -> list[float]:
    """Return the score of one method less that of another, for each clip of each chain that both have it of."""
    pairs = [(found[first, chain], found[second, chain]) for chain in chains]
    return [value for a, b in pairs for value in differences(a, b, score)]


def differences(first: Measured, second: Measured, score: str) -> list[float]:
    """Return the score of one measurement less that of another, for each clip that both have it of."""
    return [
        float(a[score]) - float(b[score])
        for a, b in zip(first.clips, second.clips, strict=True)
        if a[score] is not None and b[score] is not None
    ]


def scope_of(bench: Workbench) -> str:
    """Return the sentence that says how far the networks of this scale have come."""
    iterations = bench.scale.stage_1.iterations
    if bench.scale.start == "default":
        return (
            f"Every network begins with the default weights, which had hours of training, and took {iterations:,}"
            " iterations more, with one seed: this shows where a change pulls a trained network at first, not where a"
            " training from nothing ends. So few small clips also unsettle it: its PSNR can fall below bicubic's."
        )
    return f"Every network took {iterations:,} iterations (the paper's 300,000), with one seed."
