"""Writing of our weights format: safetensors that describe themselves in their metadata."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from vsrealbasicvsr.errors import UserError
from vsrealbasicvsr.model import Architecture, RealBasicVSR
from vsrealbasicvsr.whole_file import whole_file

from .mixing import DEFAULT_DETAIL, SHARP, differences
from .sealing import TENSORS_SHA256, tensors_sha256


def write_weights(
    model: RealBasicVSR,
    path: Path,
    *,
    metadata: Mapping[str, str],
    dtype: torch.dtype = torch.float16,
    sharp: RealBasicVSR | None = None,
    default_detail: float | None = None,
) -> None:
    """Write a network, or two of one architecture, to a file, atomically.

    Args:
        model: The network; of two sets the faithful one.
        path: The .safetensors file.
        metadata: Description: training, licence. The architecture and the SHA-256 of the tensors are added.
        dtype: Type of the convolutions; the flow network's normalisation constants stay float32.
        sharp: The network that `detail=1` gives; tensors that equal the faithful ones in `dtype` are stored once.
        default_detail: Mixture of the two in [0, 1] where none is requested; given together with `sharp`.

    Raises:
        OSError: The file cannot be written.
        UserError: A weight is not finite in `dtype`, or the two networks cannot be stored in one file.
    """
    if (sharp is None) != (default_detail is None):
        raise ValueError("write_weights: sharp and default_detail go together. Give both, or neither.")
    description = {
        **{key: text for key, text in metadata.items() if key != DEFAULT_DETAIL},  # it belongs to the source's two sets
        "architecture": json.dumps(_stored_sizes(model)),
        "format": "vsrealbasicvsr-1",
    }
    tensors = _stored_tensors(model, dtype)
    if sharp is not None and default_detail is not None:
        if not 0 <= default_detail <= 1:
            raise UserError(f"write_weights: default_detail must be between 0 and 1, got {default_detail}.")
        tensors |= _partners(model, tensors, sharp, dtype)
        description[DEFAULT_DETAIL] = str(float(default_detail))
    description[TENSORS_SHA256] = tensors_sha256(tensors, description)
    with whole_file(path) as file:
        file.write(save(tensors, metadata=description))  # save_file would create a file that only its owner can read


def _stored_sizes(model: RealBasicVSR) -> dict[str, object]:
    """Return the sizes for the metadata; without those that older files do not name either, if they are the default."""
    sizes, usual = dataclasses.asdict(model.sizes), Architecture()
    newer = {name for name in ("scale", "num_cleaning_levels") if sizes[name] == getattr(usual, name)}
    return {name: size for name, size in sizes.items() if name not in newer}


def _partners(
    model: RealBasicVSR, tensors: Mapping[str, Tensor], sharp: RealBasicVSR, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Return the sharp network's tensors that differ from those of `model`, by their names in the file."""
    if different := differences(model.sizes, sharp.sizes):
        raise UserError(
            f"write_weights: the two sets are not of one architecture ({different}). "
            "Train the sharp one from the faithful one."
        )
    partners = {
        SHARP + key: tensor
        for key, tensor in _stored_tensors(sharp, dtype).items()
        if not torch.equal(tensor, tensors[key])
    }
    if not partners:
        raise UserError(f"write_weights: the two sets are the same in {dtype}. Write one of them by itself.")
    return partners


def _stored_tensors(model: RealBasicVSR, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return a network's tensors as a file stores them. Raise UserError, see `write_weights`."""
    tensors = {
        key: tensor.detach().cpu().to(torch.float32 if key.endswith((".mean", ".std")) else dtype).contiguous()
        for key, tensor in model.state_dict().items()
    }
    if broken := [key for key, tensor in tensors.items() if not torch.isfinite(tensor).all()]:
        raise UserError(f"write_weights: {broken[0]!r} has values that are not finite as {dtype}. Use a wider type.")
    return tensors
