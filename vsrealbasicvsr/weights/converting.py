"""Lossless conversion of published checkpoints to our own format: the generator's moving average alone.

210 MB of optimiser states, discriminator and pickle become 25 MB (13 MB in float16) of tensors that cannot run code.
"""

import hashlib
from pathlib import Path

import torch

from vsrealbasicvsr.errors import UserError, shown_path

from .reading import build_network, default_detail, read_network
from .writing import write_weights

PUBLISHED_SHA256 = {
    "52f77c2c835aaa3fe675b3959b2f85010a6c6f63f77f7e279394646e55a4e376": (
        "OpenMMLab's realbasicvsr_c64b20_1x30x8_lr5e-5_150k_reds_20211104-52f77c2c.pth"
    ),
    "f2d73c0fe3e33869c812f608be77cbdbfc356443b718b78c9a6cb97027ce5de7": "the authors' RealBasicVSR_x4.pth",
    "0e2ff207": "OpenMMLab's realbasicvsr_wogan_c64b20_2x30x8_lr1e-4_300k_reds_20211027-0e2ff207.pth (without GAN)",
}
"""Known published files by the SHA-256 of their contents, or by its first digits where no more are known."""


def convert_weights(
    source: Path,
    target: Path,
    *,
    licence: str | None = None,
    dtype: torch.dtype = torch.float32,
    overwrite: bool = False,
    overwrite_option: str = "--overwrite",
) -> dict[str, str]:
    """Write the network of a file of weights to a safetensors file, atomically.

    Args:
        source: A published .pth, or .safetensors.
        target: The file to write.
        licence: Licence to state in the file; None keeps the source's.
        dtype: Type of the convolutions; float16 halves the size and is not lossless.
        overwrite: Replace `target` if it exists.
        overwrite_option: Option of the command line for that, named in the error.

    Returns:
        The metadata of the new file.

    Raises:
        UserError: The source holds no network, the target cannot be written, or a weight is too large for `dtype`.
    """
    target = target.expanduser()
    _check_target(source.expanduser(), target, overwrite=overwrite, overwrite_option=overwrite_option)
    stored = read_network(source)
    sha256 = sha256_of(source)
    metadata = {
        **stored.metadata,
        "source_file": source.name,
        "source_sha256": sha256,
        "source_is": published_name(sha256) or "not a published file that this program knows",
        "network": _describe_prefix(stored.prefix),
        "precision": str(dtype).removeprefix("torch."),
    }
    if licence is not None:
        metadata["licence"] = licence
    if "license" not in metadata:
        metadata.setdefault("licence", "not stated")
    try:
        if stored.sharp:
            metadata["network"] = "two sets of weights, the faithful and the sharp one"
            faithful, sharp = (build_network(source, stored, detail) for detail in (0, 1))
            mixture = default_detail(source, stored)
            write_weights(faithful, target, metadata=metadata, dtype=dtype, sharp=sharp, default_detail=mixture)
        else:
            write_weights(build_network(source, stored), target, metadata=metadata, dtype=dtype)
    except OSError as error:
        raise UserError(f"{shown_path(target)} cannot be written ({error.strerror}). Check its folder.") from None
    return metadata


def published_name(sha256: str) -> str | None:
    """Return the name of the published file with this SHA-256; None if it is not a known one."""
    return next((name for digits, name in PUBLISHED_SHA256.items() if sha256.startswith(digits)), None)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.expanduser().open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_target(source: Path, target: Path, *, overwrite: bool, overwrite_option: str) -> None:
    """Raise UserError unless the target may be written."""
    if target.is_dir():
        raise UserError(f"{shown_path(target)} is a folder. Name the file to make.")
    if target.exists() and source.exists() and target.samefile(source):
        raise UserError(f"{shown_path(target)} is the checkpoint itself. Name another file to make.")
    if target.exists() and not overwrite:
        raise UserError(f"{shown_path(target)} exists. Name another file, or use {overwrite_option} to replace it.")


def _describe_prefix(prefix: str) -> str:
    """Return in words which network of the file was taken, from the prefix of its tensors' names."""
    if prefix.startswith("generator_ema."):
        return "EMA: the moving average of the generator (generator_ema)"
    if prefix.startswith("generator."):
        return "generator: the file has no moving average of it"
    return "the only network of the file"
