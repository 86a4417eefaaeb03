"""Export weights for core.rbvsr.Upscale(model=...) from a run: the moving average in half precision, with its history.

With a second run, trained from the first, to a file of two sets of weights, for Upscale(detail=...).
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

import torch

from training.run_folder import EMA, ORIGIN, SETTINGS, CheckpointError, newest_checkpoint, write_network
from vsrealbasicvsr.model import MAX_START_PASSES, START_PASSES_KEY, RealBasicVSR
from vsrealbasicvsr.weights import build_network, read_network

HISTORY = ("training_iteration", "training_settings", "training_origin")
"""Metadata about the run that weights come from; for the sharp set with the prefix SHARP_HISTORY."""
SHARP_HISTORY = "sharp_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A network to export.

    Attributes:
        model: The network.
        metadata: What is known of its training.
        text: Where it comes from, in words.
    """

    model: RealBasicVSR
    metadata: dict[str, str]
    text: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m training export`."""
    parser.add_argument(
        "run", type=Path, help="a run's folder, whose newest complete checkpoint is used, or a file of weights"
    )
    parser.add_argument("out", type=Path, help="the .safetensors to write")
    parser.add_argument(
        "--sharp", type=Path, help="a second run or file, trained from the first: the sharp one of two sets of weights"
    )
    parser.add_argument(
        "--default-detail", type=float, help="with --sharp: the mixture where none is asked for, 0 faithful to 1 sharp"
    )
    parser.add_argument(
        "--start-passes",
        type=int,
        choices=range(MAX_START_PASSES + 1),
        help="how often the first frame of a scene is processed before the pass that counts, if not as in training:"
        " networks trained with 1 get steadier ends from more",
    )
    parser.add_argument("--trained-on", default="", help="what it was trained on and how, for the metadata")
    parser.add_argument("--license", default="", help="licence of the weights, for the metadata")
    parser.add_argument("--full", action="store_true", help="float32 instead of float16")
    parser.add_argument("--force", action="store_true", help="replace OUT if it exists")


def read_source(path: Path, *, is_sharp: bool) -> Source:
    """Read the moving average of a run's newest checkpoint, or the network of a file of weights.

    Args:
        path: The run's folder or the file.
        is_sharp: Which network to take if the file holds two sets.

    Raises:
        CheckpointError: The run has no complete checkpoint.
        WeightsError: The file cannot be used as weights.
    """
    if not path.exists():
        raise CheckpointError(
            f"there is no {path}. Name a run's folder (the --out of python -m training train) or a file of weights."
        )
    if not path.is_dir():
        stored = read_network(path)
        model = build_network(path, stored, float(is_sharp) if stored.sharp else None)
        metadata = {key: text for key, text in stored.metadata.items() if not key.startswith(SHARP_HISTORY)}
        if is_sharp and stored.sharp:
            metadata |= {key: stored.metadata.get(SHARP_HISTORY + key, "") for key in HISTORY}
        return Source(model=model, metadata=metadata, text=str(path))
    state, warnings = newest_checkpoint(path)
    for warning in warnings:
        print(f"training export: {warning}", file=sys.stderr)
    metadata = {
        "training_iteration": str(state["iteration"]),
        "training_settings": _text_of(path / SETTINGS),
        "training_origin": without_folders(_text_of(path / ORIGIN)),
    }
    text = f"the moving average after {state['iteration']} steps ({path / EMA})"
    return Source(model=RealBasicVSR.from_state_dict(state["ema"]), metadata=metadata, text=text)


def without_folders(origin: str) -> str:
    """Return the text of an origin.json with the last part of every path: weights are given away, folders are private.

    The text is unchanged if it is not an object of JSON.
    """

    def last_part(value: object) -> object:
        if isinstance(value, list):
            return [last_part(one) for one in value]
        return PureWindowsPath(value).name or value if isinstance(value, str) else value  # takes both kinds of slashes

    try:
        read = json.loads(origin)
    except ValueError:
        return origin
    if not isinstance(read, dict):
        return origin
    return json.dumps({key: last_part(value) for key, value in read.items()}, indent=1) + "\n"


def _text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def with_start_passes(model: RealBasicVSR, num_passes: int | None) -> RealBasicVSR:
    """Return the network with another number of start passes (see Architecture); None: unchanged."""
    if num_passes is None:
        return model
    state_dict = {name: tensor for name, tensor in model.state_dict().items() if name != START_PASSES_KEY}
    if num_passes:
        state_dict[START_PASSES_KEY] = torch.tensor(float(num_passes))
    return RealBasicVSR.from_state_dict(state_dict)


def export(
    run: Path,
    out: Path,
    *,
    trained_on: str,
    licence: str,
    dtype: torch.dtype,
    sharp: Path | None = None,
    default_detail: float | None = None,
    start_passes: int | None = None,
) -> str:
    """Write the weights of a run or a file, or those of two as two sets.

    Of a file with two sets, the faithful one is taken for `run` and the sharp one for `sharp`.

    Args:
        run: A run's folder or a file of weights.
        out: The .safetensors to write.
        trained_on: Description of the training, for the metadata.
        licence: Of the weights, for the metadata.
        dtype: Type of the convolutions.
        sharp: A second run or file, trained from the first.
        default_detail: Mixture of the two in [0, 1] where none is requested.
        start_passes: Number of start passes, if not as trained.

    Returns:
        What was written, in words.

    Raises:
        CheckpointError: A run has no complete checkpoint, or `out` cannot be written.
        WeightsError: A file cannot be used as weights.
        UserError: A weight is too large for `dtype`, or the two networks differ in architecture.
    """
    faithful = read_source(run, is_sharp=False)
    metadata = faithful.metadata | {
        key: text
        for key, text in (("trained_on", trained_on), ("license", licence))
        if text or key not in faithful.metadata
    }
    model = with_start_passes(faithful.model, start_passes)
    if sharp is None:
        write_network(model, out, metadata=metadata, dtype=dtype)
        return faithful.text
    other = read_source(sharp, is_sharp=True)
    metadata |= {SHARP_HISTORY + key: other.metadata[key] for key in HISTORY if key in other.metadata}
    sharp_model = with_start_passes(other.model, start_passes)
    write_network(model, out, metadata=metadata, dtype=dtype, sharp=sharp_model, default_detail=default_detail)
    return f"faithful: {faithful.text}; sharp: {other.text}; detail is {default_detail:g} unless it is given"


def run(arguments: argparse.Namespace) -> int:
    """Export, and print what was written. Return the exit status."""
    out: Path = arguments.out
    if (arguments.sharp is None) != (arguments.default_detail is None):
        print("training export: --sharp and --default-detail go together. Give both, or neither.", file=sys.stderr)
        return 2
    if out.is_dir() or (out.exists() and not arguments.force):
        print(f"training export: {out} exists. Name another file, or use --force to replace it.", file=sys.stderr)
        return 2
    what = export(
        arguments.run,
        out,
        trained_on=arguments.trained_on,
        licence=arguments.license,
        dtype=torch.float32 if arguments.full else torch.float16,
        sharp=arguments.sharp,
        default_detail=arguments.default_detail,
        start_passes=arguments.start_passes,
    )
    print(f"{out}: {out.stat().st_size:,} bytes, {what}")
    return 0
