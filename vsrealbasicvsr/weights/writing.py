"""Our weights format: safetensors with a description of itself in the metadata."""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from vsrealbasicvsr.model import RealBasicVSR


def write_weights(
    model: RealBasicVSR, path: Path, *, metadata: Mapping[str, str], dtype: torch.dtype = torch.float16
) -> None:
    """Write a network to `path`, whole or not at all.

    metadata: what it was trained on and how, its licence; the architecture is added. dtype: of the convolutions; the flow
    network's normalisation constants stay in float32. Raises OSError if the file cannot be written.
    """
    tensors = {
        key: tensor.detach().cpu().to(torch.float32 if key.endswith((".mean", ".std")) else dtype).contiguous()
        for key, tensor in model.state_dict().items()
    }
    description = {"architecture": json.dumps(dataclasses.asdict(model.sizes)), "format": "vsrealbasicvsr-1", **metadata}
    partial = path.with_name(path.name + ".partial")
    try:
        save_file(tensors, partial, metadata=description)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
