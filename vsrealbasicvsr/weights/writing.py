"""Our weights format: safetensors with a description of itself in the metadata."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from vsrealbasicvsr.errors import UserError
from vsrealbasicvsr.model import RealBasicVSR
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
    """Write a network to `path`, or two of one architecture, whole or not at all.

    metadata: what it was trained on and how, its licence; the architecture and the SHA-256 of the tensors are added.
    dtype: of the convolutions; the flow network's normalisation constants stay in float32. sharp: the network that
    `detail=1` gives, where `model` is the faithful one; its tensors that are equal in `dtype` are shared.
    default_detail in [0, 1]: the mixture of the two where none is asked for. Raises OSError if the file cannot be
    written, UserError if a weight is not a finite number of that type or the two networks cannot stand in one file.
    """
    if (sharp is None) != (default_detail is None):
        raise ValueError("write_weights: sharp and default_detail go together. Give both, or neither.")
    description = {
        **{key: text for key, text in metadata.items() if key != DEFAULT_DETAIL},  # that of the file it came from
        "architecture": json.dumps(dataclasses.asdict(model.sizes)),
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
        file.write(save(tensors, metadata=description))  # not save_file: it makes files that only their owner can read


def _partners(
    model: RealBasicVSR, tensors: Mapping[str, Tensor], sharp: RealBasicVSR, dtype: torch.dtype
) -> dict[str, Tensor]:
    """The sharp network's tensors that differ from those of `model`, under their names in the file."""
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
    """A network's tensors as a file holds them. Raises UserError, see `write_weights`."""
    tensors = {
        key: tensor.detach().cpu().to(torch.float32 if key.endswith((".mean", ".std")) else dtype).contiguous()
        for key, tensor in model.state_dict().items()
    }
    if broken := [key for key, tensor in tensors.items() if not torch.isfinite(tensor).all()]:
        raise UserError(f"write_weights: {broken[0]!r} has values that are not finite as {dtype}. Use a wider type.")
    return tensors
