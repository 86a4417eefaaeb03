"""Time and memory on this machine, measured side by side in one run: interleaved repeats, medians and spread.

    python -m scripts.benchmark input
    python -m scripts.benchmark input --data clips/ --step-seconds 0.5 --batch 16 --json input.json
    python -m scripts.benchmark network --sizes 64x64,320x180 --models default --json network.json
    python -m scripts.benchmark memory --size 1920x1080 --frames 32 --length 30
    python -m scripts.benchmark command --size 160x112 --frames 720

input: the CPU time of one training clip of the published recipe, ours against a plain pipeline.
network: time and memory of a frame: the published structure in eager torch, the engine alone, and vspipe with all.
memory: the peak memory of vspipe while it upscales a clip of YUV420P8.
command: what `rbvsr upscale` adds to vspipe piped into ffmpeg.

The docstring of each part's module says how it measures. Only that module is imported: `network` and `memory` need the
packages that the filter needs, and no others.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from vsrealbasicvsr.errors import UserError


def add_input_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `input`."""
    parser.add_argument("--data", type=Path, metavar="CLIPS", help="prepared clips; default: some are made")
    parser.add_argument("--num-clips", type=int, default=12, metavar="N")
    parser.add_argument("--repeats", type=int, default=5, metavar="N")
    parser.add_argument("--num-frames", type=int, default=30, metavar="L", help="that the network sees")
    parser.add_argument("--crop", type=int, default=64, metavar="PX", help="side of the low-resolution crop")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=16, metavar="N", help="clips of one training step")
    parser.add_argument("--step-seconds", type=float, default=0.5, metavar="S", help="how long a training step takes")


def add_network_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `network`."""
    parser.add_argument(
        "--sizes", metavar="WxH,...", help="default: 64x64,128x96,320x180; on a GPU also 640x360,720x480,1280x720"
    )
    parser.add_argument("--repeats", type=int, default=3, metavar="N")
    parser.add_argument("--frames", type=int, metavar="N", help="of the clip, default: 10, on a GPU 90")
    parser.add_argument("--requests", type=int, metavar="N", help="in flight in the engine, default: one for each core")
    parser.add_argument(
        "--models",
        default="published,default",
        metavar="NAMES",
        help="published: random weights of the published sizes",
    )
    parser.add_argument("--device", default="auto", help="as Upscale takes it")
    parser.add_argument("--precision", default="auto", help="of the engine and vspipe, as Upscale takes it")
    parser.add_argument("--no-vspipe", dest="vspipe", action="store_false", help="leave out vspipe's rows")
    parser.add_argument(
        "--no-peaks", dest="peaks", action="store_false", help="leave out the machine's peak rate and peak memory"
    )
    parser.add_argument(
        "--no-stand-ins", dest="stand_ins", action="store_false", help="leave out other upscalers and their networks"
    )


def add_memory_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `memory`."""
    parser.add_argument("--size", default="320x180", metavar="WxH", help="of the clip that goes in")
    parser.add_argument(
        "--frames", type=int, metavar="N", help="default: twice the length, so that two windows are cached"
    )
    parser.add_argument("--length", type=int, default=30, metavar="N", help="as Upscale takes it")
    parser.add_argument("--model", choices=("default", "published"), default="default")


def add_command_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `command`."""
    parser.add_argument("--size", default="160x112", metavar="WxH", help="of the video that goes in")
    parser.add_argument("--frames", type=int, default=720, metavar="N")
    parser.add_argument("--repeats", type=int, default=3, metavar="N")


def run_input(arguments: argparse.Namespace) -> None:
    """Run `input`."""
    from . import input

    input.run_input(arguments)


def run_network(arguments: argparse.Namespace) -> None:
    """Run `network`."""
    from . import network

    network.run_network(arguments)


def run_memory(arguments: argparse.Namespace) -> None:
    """Run `memory`."""
    from . import memory

    memory.run_memory(arguments)


def run_command(arguments: argparse.Namespace) -> None:
    """Run `command`."""
    from . import command

    command.run_command(arguments)


PARTS = (
    ("input", "the CPU time of training's input, against a plain pipeline", add_input_arguments, run_input),
    ("network", "time and memory of a frame: plain, engine, vspipe", add_network_arguments, run_network),
    ("memory", "the peak memory of vspipe", add_memory_arguments, run_memory),
    ("command", "what rbvsr upscale adds to vspipe and ffmpeg", add_command_arguments, run_command),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one part. Return the exit status: 2, with one line on standard error, for an error that the user can mend."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.benchmark", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = parser.add_subparsers(dest="part", required=True, metavar="PART")
    for name, text, add_arguments, run in PARTS:
        part = parts.add_parser(name, help=text)
        add_arguments(part)
        part.add_argument("--json", type=Path, metavar="FILE")
        part.set_defaults(run=run)
    arguments = parser.parse_args(argv)
    try:
        arguments.run(arguments)
    except (UserError, OSError) as error:
        print(f"benchmark {arguments.part}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
