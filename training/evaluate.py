"""How far a network is above bicubic on held-out clips: a table, results.json, and pictures to look at.

    python -m training evaluate runs/b --data held_out/
    python -m training evaluate mine.safetensors --data held_out/ --against default --out compared

Every clip is degraded anew by a recipe that depends on the seed and the clip's name, and super-resolved as
core.rbvsr.Upscale does in one window. The same arguments give the same numbers.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import platform
import textwrap
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from training import degradations, metrics
from training.checkpoints import EMA, whole_file
from training.clips import moved_photograph
from training.losses import luma
from training.metrics import Absent, Lpips, Motion, psnr_db, to_bytes
from training.store import ClipStore
from vsrealbasicvsr.model import SCALE, RealBasicVSR, refine
from vsrealbasicvsr.weights import load_model

type Bytes = npt.NDArray[np.uint8]

RECIPES = ("evaluation", "moderate", "published", "none")
"""evaluation: the same for every clip but for its noise. moderate, published: drawn for each. none: bicubic only."""

MIN_CROP_PX = 16
SLICE_HEIGHT_PX = 96
"""At least so many rows of a picture show the one row over time."""

BICUBIC, OURS, AGAINST, TRUTH = "bicubic", "ours", "against", "truth"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A clip and what became of it. truth (T, 3, S*H, S*W), lr (T, 3, H, W): float32 in [0, 1], of 8 bits."""

    name: str
    source: str
    recipe: degradations.Recipe
    truth: Tensor
    lr: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """One enlargement of one clip; None: not to be had (see the notes of the report), or nothing to measure there."""

    psnr_db: float | None
    psnr_rgb_db: float | None
    ssim: float | None
    lpips: float | None
    niqe: float | None
    flicker_255: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """The scores of one clip by method, bicubic first; our gain in luma PSNR and shift of colours from bicubic's."""

    clip: str
    source: str
    scores: Mapping[str, Scores]
    gain_db: float
    colour_shift_255: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """The metrics that need something: LPIPS its weights, NIQE frames of two patches and more."""

    lpips: Lpips | Absent
    niqe: Absent | None = None

    @property
    def absent(self) -> dict[str, Absent]:
        """The metrics that are not to be had here, and why."""
        found = {"lpips": self.lpips, "niqe": self.niqe}
        return {name: value for name, value in found.items() if isinstance(value, Absent)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of `python -m training evaluate`."""
    parser.add_argument("weights", metavar="RUN_OR_WEIGHTS", help='a run\'s folder, a file of weights, or "default"')
    parser.add_argument(
        "--data", type=Path, nargs="+", required=True, metavar="CLIPS", help="folders of python -m training prepare"
    )
    parser.add_argument("--against", metavar="RUN_OR_WEIGHTS", help="a second network, beside the first")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="default: RUN/evaluation, or evaluation for a file of weights"
    )
    parser.add_argument("--recipe", choices=RECIPES, default=RECIPES[0], help="how the clips are degraded")
    parser.add_argument("--theta", type=float, default=5.0, help="threshold of cleaning again, as of Upscale")
    parser.add_argument("--num-clips", type=int, metavar="N", help="this many, evenly spaced; default: all")
    parser.add_argument("--num-frames", type=int, default=10, metavar="T", help="of each clip")
    parser.add_argument("--crop", type=int, default=96, metavar="PX", help="side of the low-resolution picture")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    parser.add_argument("--lpips-weights", type=Path, metavar="FILE", help="AlexNet's, as torchvision has them")
    parser.add_argument("--seed", type=int, default=0)


def run(arguments: argparse.Namespace) -> int:
    """Evaluate, print the table, leave results.json and pictures.

    Raises ValueError with one line for what the user can mend.
    """
    for name, least in (("num_clips", 1), ("num_frames", 1), ("crop", MIN_CROP_PX), ("seed", 0)):
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise ValueError(f"--{name.replace('_', '-')} must be at least {least}, got {value}")
    device = _device(arguments.device)
    models = {OURS: load_model(find_weights(arguments.weights), device)}
    if arguments.against is not None:
        models = {AGAINST: load_model(find_weights(arguments.against), device), **models}
    out = arguments.out or (
        Path(arguments.weights) / "evaluation" if Path(arguments.weights).is_dir() else Path("evaluation")
    )
    patches = (SCALE * arguments.crop // metrics.NIQE_PATCH_PX) ** 2
    needed_px = -(-2 * metrics.NIQE_PATCH_PX // SCALE)
    too_small = Absent(f"frames of {SCALE * arguments.crop} px hold no two patches", f"Use --crop {needed_px} or more")
    measures = Measures(
        lpips=metrics.load_lpips(arguments.lpips_weights, device), niqe=too_small if patches < 2 else None
    )
    pairs = read_pairs(
        arguments.data,
        recipe=arguments.recipe,
        num_clips=arguments.num_clips,
        num_frames=arguments.num_frames,
        crop_px=arguments.crop,
        seed=arguments.seed,
    )
    records: list[Record] = []
    recipes: dict[str, Any] = {}
    for pair in pairs:
        enlarged = enlargements(models, pair, theta=arguments.theta)
        records.append(measure(pair, enlarged, measures))
        recipes[pair.name] = json.loads(pair.recipe.to_json())
        write_pictures(out, pair, enlarged)
        print(f"{len(records)}: {pair.name}  {records[-1].gain_db:+.2f} dB", flush=True)
    text = report(records, measures.absent)
    print(text)
    options = json.loads(json.dumps(vars(arguments), default=str))
    write_results(out / "results.json", records, measures.absent, {"arguments": options, "recipes": recipes})
    print(f"{out / 'results.json'} and {len(records)} pictures beside it")
    return 0


def find_weights(text: str) -> str | Path:
    """What load_model reads: of a run's folder its moving average.

    Raises ValueError for a folder without it; what is wrong with a file, load_model says.
    """
    path = Path(text)
    if text == "default" or not path.is_dir():
        return text
    if not (path / EMA).is_file():
        raise ValueError(f"{path} holds no {EMA}: it is no run, or has not come to its first checkpoint yet")
    return path / EMA


# ---- clips -----------------------------------------------------------------------------------------------------------


def read_pairs(
    folders: Path | Sequence[Path], *, recipe: str, num_clips: int | None, num_frames: int, crop_px: int, seed: int
) -> Iterator[Pair]:
    """The clips of prepared folders, degraded, one at a time: the middle of their first frames.

    crop_px: side of the low-resolution picture; smaller clips are taken as large as they are. num_clips: that many,
    evenly spaced. A photograph is moved over as in training. What is drawn depends on the seed and the clip's name.

    Raises ValueError if the folders hold no clips.
    """
    store = ClipStore.open(folders)
    numbers: Sequence[int] = range(len(store))
    if num_clips is not None and num_clips < len(store):
        numbers = [round(place) for place in np.linspace(0, len(store) - 1, num_clips)]
    for number in numbers:
        clip = store[number]
        name = Path(clip.file).stem
        generator = np.random.default_rng((seed, zlib.crc32(name.encode())))
        height, width = (min(side, SCALE * crop_px) // SCALE * SCALE for side in (clip.height, clip.width))
        if clip.kind == "photograph":
            frames = moved_photograph(
                store.read(number)[0], num_frames=num_frames, height=height, width=width, generator=generator
            )
        else:
            frames = store.read(
                number,
                num_frames=min(num_frames, clip.num_frames),
                top=(clip.height - height) // 2,
                left=(clip.width - width) // 2,
                height=height,
                width=width,
            )
        truth = torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous()
        drawn = make_recipe(recipe, generator, num_frames=len(truth))
        yield Pair(
            name=name,
            source=clip.source,
            recipe=drawn,
            truth=truth.float() / 255,
            lr=degradations.apply(drawn, truth).float() / 255,
        )


def make_recipe(name: str, generator: np.random.Generator, *, num_frames: int) -> degradations.Recipe:
    """One of RECIPES, written out for a clip."""
    if name == "evaluation":
        return degradations.evaluation_recipe(int(generator.integers(2**32)), num_frames)
    if name == "none":
        steps = degradations.evaluation_recipe(0, num_frames).steps
        return degradations.Recipe(tuple(step for step in steps if isinstance(step, degradations.Resize)))
    settings = {"moderate": degradations.MODERATE, "published": degradations.PUBLISHED}[name]
    return degradations.sample(settings, generator, num_frames=num_frames)


# ---- enlarging and measuring -----------------------------------------------------------------------------------------


def super_resolve(model: RealBasicVSR, lr: Tensor, theta: float) -> Tensor:
    """The clip (T, 3, H, W) as core.rbvsr.Upscale makes it in one window: (T, 3, S*H, S*W)."""
    with torch.inference_mode():
        return model.super_resolve(refine(model, lr[None], theta=theta)[0])[0]


def bicubic(lr: Tensor) -> Tensor:
    """The clip (T, 3, H, W), enlarged without a network: (T, 3, S*H, S*W)."""
    return F.interpolate(lr, scale_factor=SCALE, mode="bicubic", align_corners=False)


def enlargements(models: Mapping[str, RealBasicVSR], pair: Pair, *, theta: float) -> dict[str, Tensor]:
    """The clip by bicubic and by each network, rounded to 8 bits, on the CPU."""
    enlarged = {BICUBIC: to_bytes(bicubic(pair.lr))}
    for name, model in models.items():
        device = next(model.parameters()).device
        # the same numbers every time on one GPU: no kernel chosen by a race, no sums in the order of arrival
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            enlarged[name] = to_bytes(super_resolve(model, pair.lr.to(device), theta)).cpu()
    return enlarged


def measure(pair: Pair, enlarged: Mapping[str, Tensor], measures: Measures) -> Record:
    """The scores of every enlargement, and of the truth itself where a metric needs no truth."""
    motion = metrics.estimated_motion(pair.truth)
    scores = {name: _scores(clip, pair.truth, motion, measures) for name, clip in enlarged.items()}
    scores[TRUTH] = dataclasses.replace(
        _scores(pair.truth, pair.truth, motion, measures), psnr_db=None, psnr_rgb_db=None, ssim=None, lpips=None
    )
    return Record(
        clip=pair.name,
        source=pair.source,
        scores=scores,
        gain_db=psnr_db(luma(enlarged[OURS]), luma(pair.truth)) - psnr_db(luma(enlarged[BICUBIC]), luma(pair.truth)),
        colour_shift_255=metrics.colour_shift_255(enlarged[OURS], enlarged[BICUBIC]),
    )


def _scores(clip: Tensor, truth: Tensor, motion: Motion, measures: Measures) -> Scores:
    small = min(clip.shape[-2:]) < metrics.NIQE_PATCH_PX
    return Scores(
        psnr_db=psnr_db(luma(clip), luma(truth)),
        psnr_rgb_db=psnr_db(clip, truth),
        ssim=metrics.ssim(clip, truth),
        lpips=None if isinstance(measures.lpips, Absent) else measures.lpips(clip, truth),
        niqe=None if measures.niqe is not None or small else _or_none(metrics.niqe(clip)),
        flicker_255=_or_none(metrics.flicker_255(clip, motion)),
    )


# ---- what is shown and written ---------------------------------------------------------------------------------------

_COLUMNS: tuple[tuple[str, str, int], ...] = (
    ("psnr_db", "PSNR dB", 2),
    ("ssim", "SSIM", 3),
    ("lpips", "LPIPS", 3),
    ("niqe", "NIQE", 2),
    ("flicker_255", "flicker", 2),
)
"""Field of Scores, heading, decimals."""
_WITHOUT_TRUTH = ("niqe", "flicker_255")


def report(records: Sequence[Record], absent: Mapping[str, Absent]) -> str:
    """A table of the clips with means and the worst clip, and a word about every metric that is absent."""
    methods = list(records[0].scores)
    gains, shifts = [record.gain_db for record in records], [record.colour_shift_255 for record in records]
    columns = [
        ["", ["clip"], *([record.clip] for record in records), ["mean"]],
        ["", ["source"], *([record.source] for record in records), [""]],
    ]
    averages = means(records)
    for field, heading, decimals in _COLUMNS:
        shown = [name for name in methods if name != TRUTH or field in _WITHOUT_TRUTH]
        rows = [[getattr(scores[name], field) for name in shown] for scores in (*(r.scores for r in records), averages)]
        cells = [["-" if value is None else f"{value:.{decimals}f}" for value in row] for row in rows]
        columns.append([heading, shown, *cells])
    columns.append(["gain dB", [OURS], *([f"{value:+.2f}"] for value in (*gains, float(np.mean(gains))))])
    columns.append(["shift", [OURS], *([f"{value:.2f}"] for value in (*shifts, float(np.mean(shifts))))])
    worst = min(records, key=lambda record: record.gain_db)
    notes = [
        f"worst clip: {worst.clip} ({worst.source}) {worst.gain_db:+.2f} dB;"
        f" largest colour shift {max(shifts):.2f}/255; {len(records)} clips",
        "gain: luma PSNR over bicubic. shift: largest difference of a colour's mean from bicubic, of 255."
        " LPIPS, NIQE, flicker: lower is better. flicker: warping error along the truth's motion, of 255.",
        *(f"{name.upper()} is absent: {reason}" for name, reason in absent.items()),
    ]
    return "\n".join([*_table(columns), *(line for note in notes for line in textwrap.wrap(note, 120))])


def means(records: Sequence[Record]) -> dict[str, Scores]:
    """Of every method and metric, over the clips that have it."""

    def mean(method: str, field: str) -> float | None:
        values = [getattr(record.scores[method], field) for record in records]
        measured = [value for value in values if value is not None]
        return float(np.mean(measured)) if measured else None

    fields = [field.name for field in dataclasses.fields(Scores)]
    return {name: Scores(**{field: mean(name, field) for field in fields}) for name in records[0].scores}


def write_results(
    path: Path, records: Sequence[Record], absent: Mapping[str, Absent], given: Mapping[str, Any]
) -> None:
    """results.json: what was asked for, versions, every score, means, the worst clip, and what is absent and why."""
    worst = min(records, key=lambda record: record.gain_db)
    plain = {
        **given,
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "opencv": cv2.__version__},
        "absent": {name: dataclasses.asdict(reason) for name, reason in absent.items()},
        "means": {name: dataclasses.asdict(scores) for name, scores in means(records).items()},
        "mean_gain_db": float(np.mean([record.gain_db for record in records])),
        "worst": {"clip": worst.clip, "gain_db": worst.gain_db},
        "largest_colour_shift_255": max(record.colour_shift_255 for record in records),
        "clips": [{**dataclasses.asdict(record), "gain_db": record.gain_db} for record in records],
    }
    with whole_file(path) as file:
        file.write((json.dumps(plain, indent=1, allow_nan=False) + "\n").encode())


def write_pictures(folder: Path, pair: Pair, enlarged: Mapping[str, Tensor]) -> None:
    """NAME.png: the middle frame by bicubic | (the other network) | ours | truth. NAME_slice.png: its middle row.

    In the slice time runs downwards, each frame's row a few pixels high: what flickers is ragged there.
    """
    shown = [_pixels(clip) for clip in (*enlarged.values(), pair.truth)]
    middle = len(pair.truth) // 2
    _write_png(folder / f"{pair.name}.png", _side_by_side([frames[middle] for frames in shown]))
    rows = max(2, math.ceil(SLICE_HEIGHT_PX / len(pair.truth)))
    slices = [frames[:, frames.shape[1] // 2].repeat(rows, axis=0) for frames in shown]
    _write_png(folder / f"{pair.name}_slice.png", _side_by_side(slices))


def _side_by_side(pictures: Sequence[Bytes]) -> Bytes:
    gap = np.full((pictures[0].shape[0], 4, 3), 255, dtype=np.uint8)
    return np.concatenate([part for picture in pictures for part in (gap, picture)][1:], axis=1)


def _pixels(clip: Tensor) -> Bytes:
    """(T, H, W, 3) of (T, 3, H, W)."""
    return np.asarray((to_bytes(clip) * 255).round().byte().permute(0, 2, 3, 1).numpy(), dtype=np.uint8)


def _write_png(path: Path, rgb: Bytes) -> None:
    fine, encoded = cv2.imencode(".png", np.ascontiguousarray(rgb[:, :, ::-1]))
    if not fine:
        raise RuntimeError(f"write_pictures: OpenCV failed to encode {rgb.shape} as PNG.")
    with whole_file(path) as file:
        file.write(encoded.tobytes())


def _table(columns: Sequence[Sequence[Any]]) -> list[str]:
    """Aligned lines. A column is its heading and then, row by row, its cells: words left, numbers right."""
    lines = [""] * len(columns[0])
    for heading, *rows in columns:
        widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
        texts = [heading]
        for row in rows:
            padded = [c.rjust(w) if heading else c.ljust(w) for c, w in zip(row, widths, strict=True)]
            texts.append(" ".join(padded))
        width = max(map(len, texts))
        lines = [f"{line}{text.ljust(width)}  " for line, text in zip(lines, texts, strict=True)]
    return [line.rstrip() for line in lines]


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"--device must be auto, cpu, cuda or cuda:N, got {name!r}") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device {name}: torch finds no CUDA GPU here. Use --device cpu")
    return device


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
