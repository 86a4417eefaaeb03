"""The SHA-256 by which a safetensors file tells that its tensors are those that were written. Knows no networks."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from .mixing import DEFAULT_DETAIL

TENSORS_SHA256 = "tensors_sha256"
"""In a file's metadata."""


def tensors_sha256(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """The SHA-256 of all tensors of a file (names, types, shapes, bytes) and of its own mixture, in hexadecimal.

    Both sets of a file with two, under the names that they have in it. The rest of the metadata only describes.
    """
    digest = hashlib.sha256()
    for key in sorted(tensors):
        tensor = tensors[key].contiguous()
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    digest.update(f"{DEFAULT_DETAIL} {metadata.get(DEFAULT_DETAIL)}\n".encode())
    return digest.hexdigest()


def is_intact(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bool:
    """Whether the tensors are those that were written; True where the file does not say which those are."""
    stated = metadata.get(TENSORS_SHA256)
    return stated is None or stated == tensors_sha256(tensors, metadata)
