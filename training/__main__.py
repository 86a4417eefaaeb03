"""python -m training COMMAND: from a folder of videos to weights for core.rbvsr.Upscale."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from vsrealbasicvsr.errors import UserError, print_any_text, printable, shown_path

MAX_ERROR_LENGTH = 1000

COMMANDS = {
    "prepare": "cut a folder of videos, frames or photographs into clips",
    "flow": "teach the flow network known motion, for people who start without one",
    "train": "train, fine-tune or resume a run",
    "evaluate": "measure weights on held-out clips, with pictures",
    "benchmark": "VideoLQ as the paper measures it, beside other methods and the paper's table",
    "study": "a figure of the paper with footage of your own: trained, measured, with a page",
    "export": "the weights of a run, or of two, as a file for Upscale(model=...)",
    "degrade": "show what the degradations do to a clip",
}
"""Commands and their help. Each is a module of `training.commands` with run(arguments) -> exit status, and with either
add_arguments(parser) or, where a library parses many options, parse(words, program)."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Return the exit status.

    An error that the user can mend (UserError, or OSError about a file) is one line on standard error and status 2. Any
    other exception is a bug and keeps its traceback.

    Args:
        argv: The words of the command line; None for those of this process.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in COMMANDS.items():
        subparsers.add_parser(name, help=text, add_help=False)
    if not words or words[0] not in COMMANDS:
        parser.parse_args(words[:1] or ["--help"])
        return 2
    # Only this command's module is imported: `export` needs neither codecs nor TensorBoard.
    try:
        module = importlib.import_module(f"training.commands.{words[0]}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] in ("training", "vsrealbasicvsr"):
            raise
        print(f"training {words[0]}: {error.name} is missing; pip install -e '.[train]'", file=sys.stderr)
        return 2
    program = f"python -m training {words[0]}"
    try:
        if hasattr(module, "parse"):
            return int(module.run(module.parse(words[1:], program=program)))
        command = argparse.ArgumentParser(prog=program, description=module.__doc__, allow_abbrev=False)
        module.add_arguments(command)
        return int(module.run(command.parse_args(words[1:])))
    except (UserError, OSError) as error:
        for note in getattr(error, "__notes__", ()):  # the traceback of a bug in a worker process
            print(note, file=sys.stderr)
        text = str(error)
        if isinstance(error, OSError) and error.filename is not None:
            text = f"{shown_path(error.filename)}: {error.strerror}. Check the path, its permissions and the disk."
        print(f"training {words[0]}: {printable(text, MAX_ERROR_LENGTH)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"training {words[0]}: interrupted; what was written is whole", file=sys.stderr)
        return 130


if __name__ == "__main__":
    print_any_text()
    status = main()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # torch's own threads may still run: Python's end meets them now and then, and aborts a run that was good.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
