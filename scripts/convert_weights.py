"""A safetensors file of a published RealBasicVSR checkpoint: the moving average of the generator alone, losslessly.

    python scripts/convert_weights.py RealBasicVSR_x4.pth realbasicvsr.safetensors [--half]

210 MB of optimiser states, discriminator and pickle become 25 MB (13 MB with --half) of tensors that cannot run code.
Nothing in the checkpoint is executed. Exit status: 0, or 1 with one line that says what is wrong.
"""

import argparse
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from vsrealbasicvsr.errors import UserError, printable, shown_path
from vsrealbasicvsr.weights import build_network, default_detail, read_network, write_weights

PUBLISHED_SHA256 = {
    "52f77c2c835aaa3fe675b3959b2f85010a6c6f63f77f7e279394646e55a4e376": (
        "OpenMMLab's realbasicvsr_c64b20_1x30x8_lr5e-5_150k_reds_20211104-52f77c2c.pth"
    ),
    "f2d73c0fe3e33869c812f608be77cbdbfc356443b718b78c9a6cb97027ce5de7": "the authors' RealBasicVSR_x4.pth",
    "0e2ff207": "OpenMMLab's realbasicvsr_wogan_c64b20_2x30x8_lr1e-4_300k_reds_20211027-0e2ff207.pth (without GAN)",
}
"""How the SHA-256 of the published files begin, as far as it is known."""


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line, parsed."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("source", type=Path, metavar="IN", help="a published .pth, or .safetensors")
    parser.add_argument("target", type=Path, metavar="OUT", help="the .safetensors file to make")
    parser.add_argument("--half", action="store_true", help="store float16: half the size, no longer lossless")
    parser.add_argument("--licence", "--license", help="the licence of the weights, to be written into the file")
    parser.add_argument("--force", action="store_true", help="replace OUT if it exists")
    return parser.parse_args(argv)


def convert(source: Path, target: Path, *, licence: str | None, dtype: torch.dtype) -> dict[str, str]:
    """What the new file `target` says of itself.

    Raises WeightsError for the source, OSError for the target, UserError for a weight that is too large for `dtype`.
    """
    stored = read_network(source)
    sha256 = sha256_of(source)
    published = [name for digits, name in PUBLISHED_SHA256.items() if sha256.startswith(digits)]
    metadata = {
        **stored.metadata,
        "source_file": source.name,
        "source_sha256": sha256,
        "source_is": published[0] if published else "not a published file that this program knows",
        "network": describe_prefix(stored.prefix),
        "precision": str(dtype).removeprefix("torch."),
    }
    if licence is not None:
        metadata["licence"] = licence
    metadata.setdefault("licence", "not stated")
    if stored.sharp:
        metadata["network"] = "two sets of weights, the faithful and the sharp one"
        faithful, sharp = (build_network(source, stored, detail) for detail in (0, 1))
        mixture = default_detail(source, stored)
        write_weights(faithful, target, metadata=metadata, dtype=dtype, sharp=sharp, default_detail=mixture)
    else:
        write_weights(build_network(source, stored), target, metadata=metadata, dtype=dtype)
    return metadata


def describe_prefix(prefix: str) -> str:
    """Which network of a file with several this one is, from what stands before the names of its tensors."""
    if prefix.startswith("generator_ema."):
        return "EMA: the moving average of the generator (generator_ema)"
    if prefix.startswith("generator."):
        return "generator: the file has no moving average of it"
    return "the only network of the file"


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.expanduser().open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status; what was done or what is wrong is printed."""
    arguments = parse_arguments(argv)
    source, target = arguments.source, arguments.target.expanduser()
    try:
        if target.is_dir():
            raise IsADirectoryError(f"{shown_path(target)} is a folder. Name the file to make.")
        if target.exists() and source.expanduser().exists() and target.samefile(source.expanduser()):
            raise FileExistsError(f"{shown_path(target)} is the checkpoint itself. Name another file to make.")
        if target.exists() and not arguments.force:
            raise FileExistsError(f"{shown_path(target)} exists. Name another file, or use --force to replace it.")
        dtype = torch.float16 if arguments.half else torch.float32
        metadata = convert(source, target, licence=arguments.licence, dtype=dtype)
    except OSError as error:
        # Those from above bring a sentence; those of the system bring a number and come from writing.
        return refuse(
            f"{shown_path(target)} cannot be written ({error.strerror}). Check its folder."
            if error.errno
            else str(error)
        )
    except UserError as error:
        return refuse(str(error))
    print(f"{target}: {metadata['network']}, {metadata['precision']}, from {metadata['source_is']}.")
    return 0


def refuse(text: str) -> int:
    """The exit status of a failure, after its one line."""
    print(f"convert_weights: {printable(text, 1000)}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
