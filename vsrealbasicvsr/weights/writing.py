"""Our weights format: safetensors with a description of itself in the metadata."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save

from vsrealbasicvsr.model import RealBasicVSR


def write_weights(
    model: RealBasicVSR, path: Path, *, metadata: Mapping[str, str], dtype: torch.dtype = torch.float16
) -> None:
    """Write a network to `path`, whole or not at all.

    metadata: what it was trained on and how, its licence; the architecture is added. dtype: of the convolutions; the
    flow network's normalisation constants stay in float32. Raises OSError if the file cannot be written, ValueError if
    a weight is not a finite number of that type.
    """
    tensors = {
        key: tensor.detach().cpu().to(torch.float32 if key.endswith((".mean", ".std")) else dtype).contiguous()
        for key, tensor in model.state_dict().items()
    }
    if broken := [key for key, tensor in tensors.items() if not torch.isfinite(tensor).all()]:
        raise ValueError(f"write_weights: {broken[0]!r} has values that are not finite as {dtype}. Use a wider type.")
    description = {
        **metadata,
        "architecture": json.dumps(dataclasses.asdict(model.sizes)),
        "format": "vsrealbasicvsr-1",
    }
    partial = path.with_name(path.name + ".partial")
    try:
        # Not save_file: it makes files that only their owner can read.
        partial.write_bytes(save(tensors, metadata=description))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
