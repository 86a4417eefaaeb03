"""From a run to weights for core.rbvsr.Upscale(model=...): the moving average, in half precision, with its history."""

import argparse
import sys
from pathlib import Path

import torch

from training.checkpoints import EMA, ORIGIN, SETTINGS, CheckpointError, newest_checkpoint
from vsrealbasicvsr.model import RealBasicVSR
from vsrealbasicvsr.weights import write_weights


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of `python -m training export`."""
    parser.add_argument("run", type=Path, help="a run's folder; its newest whole checkpoint is taken")
    parser.add_argument("out", type=Path, help="the .safetensors to write")
    parser.add_argument("--trained-on", default="", help="what it was trained on and how, for the metadata")
    parser.add_argument("--license", default="", help="licence of the weights, for the metadata")
    parser.add_argument("--full", action="store_true", help="float32 instead of float16")
    parser.add_argument("--force", action="store_true", help="replace OUT if it exists")


def export(run: Path, out: Path, *, trained_on: str, licence: str, dtype: torch.dtype) -> int:
    """Write the moving average of the run's newest checkpoint to `out`; returns the number of its iteration.

    Raises CheckpointError if the run has no whole checkpoint or `out` cannot be written, ValueError if a weight is too
    large for `dtype`.
    """
    state, warnings = newest_checkpoint(run)
    for warning in warnings:
        print(f"training export: {warning}", file=sys.stderr)
    metadata = {
        "trained_on": trained_on,
        "license": licence,
        "training_iteration": str(state["iteration"]),
        "training_settings": (run / SETTINGS).read_text(encoding="utf-8") if (run / SETTINGS).exists() else "",
        "training_origin": (run / ORIGIN).read_text(encoding="utf-8") if (run / ORIGIN).exists() else "",
    }
    write_network(RealBasicVSR.from_state_dict(state["ema"]), out, metadata=metadata, dtype=dtype)
    return int(state["iteration"])


def write_network(model: RealBasicVSR, out: Path, *, metadata: dict[str, str], dtype: torch.dtype) -> None:
    """`write_weights`, with CheckpointError where the file cannot be written."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_weights(model, out, metadata=metadata, dtype=dtype)
    except OSError as error:
        raise CheckpointError(
            f"{out} could not be written: {error.strerror}. Make room on the disk or name another file."
        ) from None


def run(arguments: argparse.Namespace) -> int:
    """The exit status; what was written is printed."""
    out: Path = arguments.out
    if out.is_dir() or (out.exists() and not arguments.force):
        print(f"training export: {out} exists. Name another file, or use --force to replace it.", file=sys.stderr)
        return 2
    iteration = export(
        arguments.run,
        out,
        trained_on=arguments.trained_on,
        licence=arguments.license,
        dtype=torch.float32 if arguments.full else torch.float16,
    )
    print(f"{out}: {out.stat().st_size:,} bytes, the moving average after {iteration} steps ({arguments.run / EMA})")
    return 0
