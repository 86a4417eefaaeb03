"""VideoLQ as the paper measures it: naturalness of the first, the middle and the last frame of every sequence.

    python -m training benchmark VideoLQ --weights default --weights RealBasicVSR_x4.pth --out videolq
    python -m training benchmark VideoLQ --results DAN=results/dan --model BSRGAN.pth --out videolq
    python -m training benchmark VideoLQ --weights RealBasicVSR_x4.pth --sweep theta 0.5,1.5,5,255 --out fig6a

FOLDER holds sequences: folders of numbered frames, or videos. --sweep theta 0.5,1.5,5,255 is the paper's Fig. 6a,
--fixed-passes 1,2,3,5 its Fig. 6b, --length 1,5,15,30 its Fig. 2. Finished scores are kept in OUT: the same command
continues where it was interrupted, and other rows can be added.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from training.benchmarking.kept import FrameScores, Kept, Scores, file_name, means
from training.benchmarking.measured import Way
from training.benchmarking.methods import Bicubic, Method, Network, Results, SingleImage, digest_of, named
from training.benchmarking.naturalness import METRICS, Measures, load_measures
from training.benchmarking.sequences import Clip, find_sequences, read_clip, stamp
from training.benchmarking.tables import table, write_results
from training.data.sources import Source
from training.devices import choose_device
from training.evaluation.sheets import write_frames
from training.run_folder import find_weights
from vsrealbasicvsr.errors import UserError
from vsrealbasicvsr.weights import load_model

PROTOCOL = 1
"""Version of the measurement; raised when it changes, so that older scores are computed again."""

SWEPT = ("theta", "cleaning", "detail")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m training benchmark`."""
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="sequences: folders of numbered frames, or videos")
    rows = parser.add_argument_group("rows, each as often as wanted; without any: --weights default")
    rows.add_argument(
        "--weights", action="append", metavar="[NAME=]PATH", help='a run\'s folder, a file of weights, or "default"'
    )
    rows.add_argument(
        "--results",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="frames that another program made, as FOLDER/SEQUENCE/FRAME.png with the input's names",
    )
    rows.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="[NAME=]FILE",
        help="a x4 model of single images, run by spandrel",
    )
    ways = parser.add_argument_group("how --weights are run; each value of the last three is a row")
    ways.add_argument("--theta", type=float, default=5.0, help="as of Upscale; the authors' program has 255: one pass")
    ways.add_argument("--cleaning", type=float, default=1.0, help="as of Upscale")
    ways.add_argument("--detail", type=float, help="as of Upscale, for weights of two sets")
    ways.add_argument(
        "--sweep", nargs=2, action="append", default=[], metavar=("NAME", "VALUES"), help=f"of {', '.join(SWEPT)}"
    )
    ways.add_argument("--fixed-passes", default="", metavar="N,N", help="exactly so many cleaning passes")
    ways.add_argument("--length", default="", metavar="L,L", help="in independent pieces of so many frames")
    parser.add_argument("--num-sequences", type=int, metavar="N", help="this many, evenly spaced; default: all")
    parser.add_argument("--num-frames", type=int, metavar="T", help="the first T frames of each; default: all")
    parser.add_argument("--out", type=Path, default=Path("benchmark"), metavar="FOLDER", help="default %(default)s")
    parser.add_argument("--write-frames", action="store_true", help="the measured frames too, as OUT/frames/ROW")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")


def run(arguments: argparse.Namespace) -> int:
    """Measure, print the table, and write results.json, table.txt and the scores for resuming.

    Returns:
        The exit status, 0.

    Raises:
        UserError: An argument cannot be used.
    """
    for name in ("num_sequences", "num_frames"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    sequences = find_sequences(arguments.folder, arguments.num_sequences)
    device = choose_device(arguments.device)
    methods = find_methods(arguments, device)
    measures = load_measures(device)
    scores = _measure_all(arguments, sequences, methods, measures)
    write_results(arguments.out, scores, measures, {"arguments": json.loads(json.dumps(vars(arguments), default=str))})
    print(table(scores, measures))
    print(f"{arguments.out / 'results.json'} and table.txt")
    return 0


# ---- rows ------------------------------------------------------------------------------------------------------------


def find_methods(arguments: argparse.Namespace, device: torch.device) -> list[Method]:
    """Return the rows in the order of the table: bicubic, frames of other programs, models by spandrel, networks.

    Raises:
        UserError: Something is unavailable, or two rows have one name.
    """
    ways = list(find_ways(arguments))
    texts = arguments.weights or ([] if arguments.results or arguments.model else ["default"])
    if ways[0][0] and not texts:
        raise UserError("--sweep, --fixed-passes and --length are of networks. Give one by --weights")
    methods: list[Method] = [Bicubic()]
    for text in arguments.results:
        name, _, folder = text.partition("=")
        if not name or not folder:
            raise UserError(f"--results {text}: give it a name. Write --results NAME={text.strip('=')}")
        methods.append(Results(name, Path(folder)))
    methods += [SingleImage(name, Path(path), device) for name, path in named(arguments.model)]
    for name, path in named(texts):
        models = {
            detail: load_model(find_weights(path), device, detail) for detail in {detail for _, _, detail in ways}
        }
        digests = {detail: digest_of(model) for detail, model in models.items()}
        methods += [Network(name + label, models[detail], digests[detail], way) for label, way, detail in ways]
    names = [file_name(method.name) for method in methods]
    if repeated := [method.name for method in methods if names.count(file_name(method.name)) > 1]:
        raise UserError(f"two rows are called {repeated[0]!r}. Give each a name of its own, as NAME=PATH")
    return methods


def find_ways(arguments: argparse.Namespace) -> Iterator[tuple[str, Way, float | None]]:
    """Yield (suffix of the row's name, way to run a network, its detail), one for each value that is swept."""
    base = Way(theta=arguments.theta, cleaning=arguments.cleaning)
    if not (arguments.sweep or arguments.fixed_passes or arguments.length):
        yield "", base, arguments.detail
    for name, text in arguments.sweep:
        if name not in SWEPT:
            raise UserError(
                f"--sweep: unknown {name!r}. Known are {', '.join(SWEPT)}; see also --fixed-passes, --length"
            )
        for value in _numbers(f"--sweep {name}", text, float):
            theta, cleaning = (value if name == swept else getattr(base, swept) for swept in ("theta", "cleaning"))
            way = dataclasses.replace(base, theta=theta, cleaning=cleaning)
            yield f" {name} {value:g}", way, value if name == "detail" else arguments.detail
    for number in _numbers("--fixed-passes", arguments.fixed_passes, int):
        way = dataclasses.replace(base, num_passes=number)
        yield f" {number} passes" if number != 1 else " 1 pass", way, arguments.detail
    for length in _numbers("--length", arguments.length, int):
        yield f" length {length}", dataclasses.replace(base, length=length), arguments.detail


def _numbers[N: (int, float)](option: str, text: str, kind: type[N]) -> list[N]:
    """Return the numbers between commas, each once."""
    try:
        return list(dict.fromkeys(kind(part) for part in text.split(",") if text))
    except ValueError:
        raise UserError(f"{option}: expected numbers between commas, got {text!r}") from None


# ---- measuring -------------------------------------------------------------------------------------------------------


def _measure_all(
    arguments: argparse.Namespace, sequences: dict[str, Source], methods: Sequence[Method], measures: Measures
) -> Scores:
    """Return the scores of all rows. Sequence by sequence, so that rows can be compared before the end."""
    kept = Kept(arguments.out)
    scores: dict[str, dict[str, list[FrameScores]]] = {method.name: {} for method in methods}
    common = {"protocol": PROTOCOL, "num_frames": arguments.num_frames, "metrics_by": measures.by}
    # All identities come first: a sequence that is missing in --results is reported before hours of work.
    identities = {name: [method.identity(name) for method in methods] for name in sequences}
    for number, (name, source) in enumerate(sequences.items(), start=1):
        clip: Clip | None = None
        for method, identity in zip(methods, identities[name], strict=True):
            asked = {**common, "sequence": stamp(source.paths), **identity}
            frames, begun = kept.read(method.name, name, asked), time.monotonic()
            seconds = "kept"
            if frames is None or (arguments.write_frames and not kept.has_frames(method.name, name, asked)):
                clip = clip or read_clip(name, source, arguments.num_frames)
                if arguments.write_frames:
                    kept.forget_frames(method.name, name)
                frames = _measure(arguments, method, clip, measures)
                if arguments.write_frames:
                    kept.note_frames(method.name, name, asked)
                kept.write(method.name, name, asked, frames)
                seconds = f"{time.monotonic() - begun:.1f} s"
            scores[method.name][name] = frames
            words = [f"{m.upper()} {value:.3f}" for m in METRICS if (value := means(frames)[m]) is not None]
            print(
                f"{number}/{len(sequences)} {name}  {method.name}: {', '.join(words) or '-'}  ({seconds})", flush=True
            )
    return scores


def _measure(arguments: argparse.Namespace, method: Method, clip: Clip, measures: Measures) -> list[FrameScores]:
    pictures = method.enlarge(clip)
    stems = [clip.stems[number] for number in clip.measured]
    if arguments.write_frames:
        write_frames(_frames_of(arguments.out, method, clip.name), pictures, stems)
    return [FrameScores(frame=stem, **measures.of(picture)) for stem, picture in zip(stems, pictures, strict=True)]


def _frames_of(out: Path, method: Method, sequence: str) -> Path:
    return out / "frames" / file_name(method.name) / sequence
