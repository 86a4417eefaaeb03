"""The command line of `python scripts/encode.py`."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from vsrealbasicvsr.errors import printable, shown_path

from .command_line import print_warning, run_program
from .errors import EncodeError
from .job import ENCODER, encode

OWN_OPTIONS = frozenset({"-vf", "-filter:v", "-filter_complex", "-lavfi", "-i", "-r", "-map", "-an", "-c:a", "-acodec"})
"""Options of ffmpeg that would undo what this program does."""
SUFFIXES = frozenset({".mkv", ".mp4", ".m4v", ".mov"})


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line. Exit with argparse's message if it makes no sense."""
    parser = argparse.ArgumentParser(
        prog="encode",
        description="Encode what a .vpy script makes of a video; colours, aspect, times and audio stay right.",
        epilog=f"After -- come options of ffmpeg for the encoder. Without them: {shlex.join(ENCODER)}",
    )
    parser.add_argument("script", type=Path, help="a .vpy script that finds the video in its variable `source`")
    parser.add_argument("source", type=Path, help="the video, from which the audio comes as well")
    parser.add_argument("result", type=Path, help="the file to write: .mkv, .mp4 or .mov")
    parser.add_argument("--arg", action="append", default=[], metavar="NAME=VALUE", help="a variable of the script")
    arguments = list(arguments)
    at = arguments.index("--") if "--" in arguments else len(arguments)
    given = parser.parse_args(arguments[:at])
    given.encoder_options = arguments[at + 1 :] or list(ENCODER)
    return given


def checked(given: argparse.Namespace) -> dict[str, str]:
    """Return the script's variables. Raise EncodeError for what cannot work, before anything is started."""
    for path in (given.script, given.source):
        if not path.is_file():
            raise EncodeError(f"{shown_path(path)} is not a file")
    if given.result.suffix.lower() not in SUFFIXES:
        raise EncodeError(f"{shown_path(given.result)} must end in {', '.join(sorted(SUFFIXES))}")
    if given.result.exists() and given.result.samefile(given.source):
        raise EncodeError(f"{shown_path(given.result)} is the source itself. Name another file")
    if not given.result.resolve().parent.is_dir():
        raise EncodeError(f"{shown_path(given.result.parent)} is not a folder. Make it first")
    if wrong := sorted(OWN_OPTIONS.intersection(given.encoder_options)):
        raise EncodeError(f"{wrong[0]} cannot be given: filters go into the script, and times and audio are kept here")
    pairs = [text.partition("=") for text in given.arg]
    if wrong := [name for name, equals, _ in pairs if not equals or not name.isidentifier()]:
        raise EncodeError(f"--arg must be NAME=VALUE, got {printable(wrong[0], 100)!r}")
    return {name: value for name, _, value in pairs}


def main(arguments: Sequence[str] | None = None) -> int:
    """Encode the video that the command line names. Return the exit status."""
    given = parse_arguments(sys.argv[1:] if arguments is None else arguments)

    def work() -> str:
        return encode(
            given.script,
            given.source,
            given.result,
            arguments=checked(given),
            encoder_options=given.encoder_options,
            warn=partial(print_warning, "encode"),
        )

    return run_program("encode", work, result=given.result, check="Check the disk")
