"""The CUDA backend. Importing it needs neither a GPU nor Triton."""

import contextlib
import importlib.metadata

from .backend import CudaBackend, create_cuda_backend
from .graphs import abandon as abandon_capture
from .streams import capture_stream

_TRITONS = ("triton", "triton-windows", "pytorch-triton-rocm", "pytorch-triton-xpu", "pytorch-triton")
"""Distributions that bring the module `triton`: torch's for each kind of GPU, and the one for Windows."""


def triton_version() -> str:
    """Return the version of Triton, which compiles the kernels; "none" where torch came without it."""
    for name in _TRITONS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return "none"


__all__ = ["CudaBackend", "abandon_capture", "capture_stream", "create_cuda_backend", "triton_version"]
