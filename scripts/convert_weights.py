"""Convert a published RealBasicVSR checkpoint to safetensors, as `rbvsr models convert` does.

    python scripts/convert_weights.py RealBasicVSR_x4.pth realbasicvsr.safetensors [--half]

Nothing in the checkpoint is executed. Exit status: 0, or 1 with one line that says what is wrong.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from vsrealbasicvsr.errors import UserError, printable
from vsrealbasicvsr.weights import convert_weights


def main(argv: Sequence[str] | None = None) -> int:
    """Convert, and print what was done or what is wrong. Return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("source", type=Path, metavar="IN", help="a published .pth, or .safetensors")
    parser.add_argument("target", type=Path, metavar="OUT", help="the .safetensors file to make")
    parser.add_argument("--half", action="store_true", help="store float16: half the size, no longer lossless")
    parser.add_argument("--licence", "--license", help="the licence of the weights, to be written into the file")
    parser.add_argument("--force", action="store_true", help="replace OUT if it exists")
    given = parser.parse_args(argv)
    try:
        metadata = convert_weights(
            given.source,
            given.target,
            licence=given.licence,
            dtype=torch.float16 if given.half else torch.float32,
            overwrite=given.force,
            overwrite_option="--force",
        )
    except UserError as error:
        print(f"convert_weights: {printable(str(error), 1000)}", file=sys.stderr)
        return 1
    target = given.target.expanduser()
    print(f"{target}: {metadata['network']}, {metadata['precision']}, from {metadata['source_is']}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
