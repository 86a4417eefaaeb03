"""What to take to a GPU machine without network, and what to run there, for a quarter of an hour.

    python -m scripts.gpu pack --photographs FOLDER --videos FOLDER --start runs/a
    python -m scripts.gpu measure --seconds 560 --out OUT
    python -m scripts.gpu measure --tiny --device cpu --seconds 120 --out OUT      a dry run

pack: everything that must travel goes into .gpu/, which git leaves alone, within a limit of bytes; it prints the call.
measure: parity and same bytes; graphs; epilogue and convolutions; peaks; steps; the engine; vspipe; the tests of
tests/backends/cuda/test_cuda.py; then training with what is left. It ends in time; OUT/results.jsonl has a line for
each number, written at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from vsrealbasicvsr.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def add_pack_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `pack`."""
    parser.add_argument("--photographs", type=Path, nargs="*", default=[], metavar="FOLDER", help="for training")
    parser.add_argument(
        "--videos", type=Path, nargs="*", default=[], metavar="FOLDER", help="for training, as they are"
    )
    parser.add_argument("--graphics", type=int, default=24, metavar="N", help="pictures to draw for training")
    parser.add_argument(
        "--start", type=Path, metavar="RUN", help="a run or a file of weights that training begins from"
    )
    parser.add_argument("--wheels", type=Path, metavar="FOLDER", help="wheels to take, instead of fetching them")
    parser.add_argument("--limit-mib", type=float, default=62.0, help="that may travel, the repository included")
    parser.add_argument("--quality", type=int, default=88, help="of the photographs, as WebP")
    parser.add_argument("--seconds", type=int, default=560, help="that the printed call takes there")
    parser.add_argument("--into", type=Path, default=ROOT / ".gpu", metavar="FOLDER", help="default: .gpu")


def add_measure_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `measure`."""
    parser.add_argument("--seconds", type=float, required=True, help="after which it has ended")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="for results.jsonl and logs")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="sizes for a dry run on a CPU")
    parser.add_argument("--packed", type=Path, default=ROOT / ".gpu", metavar="FOLDER", help="what pack made")
    parser.add_argument("--stages", metavar="NAME,...", help="these only")
    parser.add_argument("--skip", metavar="NAME,...", help="not these")
    parser.add_argument("training_words", nargs="*", metavar="-- WORD", help="options of training train")


def pack(arguments: argparse.Namespace) -> int:
    """Carry out `pack`."""
    from .pack import pack_all

    pack_all(arguments)
    return 0


def measure(arguments: argparse.Namespace) -> int:
    """Carry out `measure`; 1 if a stage did not end well."""
    from .results import Results
    from .runner import STAGES, run_stages
    from .setting import Setting

    names = [stage.name for stage in STAGES]
    chosen = _names(arguments.stages, names) if arguments.stages else names
    left_out = _names(arguments.skip, names) if arguments.skip else []
    if arguments.seconds <= 0:
        raise UserError(f"--seconds must be above 0, got {arguments.seconds:g}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    setting = Setting(
        device=arguments.device,
        tiny=arguments.tiny,
        packed=arguments.packed.resolve(),
        out=arguments.out.resolve(),
        training_words=tuple(arguments.training_words),
    )
    stages = [stage for stage in STAGES if stage.name in chosen and stage.name not in left_out]
    ended = run_stages(stages, setting, Results(setting.out), arguments.seconds)
    for name, how in ended.items():
        print(f"{name}: {how}")
    return int(any(how != "done" for how in ended.values()))


def _names(text: str, known: list[str]) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if unknown := [name for name in names if name not in known]:
        raise UserError(f'stages are {", ".join(known)}, got "{unknown[0]}"')
    return names


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 2 with one line on standard error for what the user can mend."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text, add_arguments, run in (
        ("pack", "put what must travel into a folder", add_pack_arguments, pack),
        ("measure", "measure, test and train within a time", add_measure_arguments, measure),
    ):
        command = commands.add_parser(name, help=text)
        add_arguments(command)
        command.set_defaults(run=run)
    arguments = parser.parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except (UserError, OSError) as error:
        print(f"gpu {arguments.command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
