"""The CUDA backend. Importing it needs neither a GPU nor Triton."""

import importlib.metadata

from .backend import CudaBackend, create_cuda_backend


def triton_version() -> str:
    """Return the version of Triton, which compiles the epilogues; "none" where torch came without it."""
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return "none"


__all__ = ["CudaBackend", "create_cuda_backend", "triton_version"]
