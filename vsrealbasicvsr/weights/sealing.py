"""The SHA-256 with which a safetensors file proves that its tensors are unchanged."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from .mixing import DEFAULT_DETAIL

TENSORS_SHA256 = "tensors_sha256"
"""Metadata key of the SHA-256."""


def tensors_sha256(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Return the SHA-256, in hexadecimal, of a file's tensors and of its default mixture.

    The names, dtypes, shapes and bytes of all tensors are covered, those of both sets in a file with two. The rest of
    the metadata is not: it only describes.
    """
    digest = hashlib.sha256()
    for key in sorted(tensors):
        tensor = tensors[key].contiguous()
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    digest.update(f"{DEFAULT_DETAIL} {metadata.get(DEFAULT_DETAIL)}\n".encode())
    return digest.hexdigest()


def is_intact(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bool:
    """Return whether the tensors match the SHA-256 in the metadata; True if there is none."""
    stated = metadata.get(TENSORS_SHA256)
    return stated is None or stated == tensors_sha256(tensors, metadata)
