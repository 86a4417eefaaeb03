"""The CPU backend, by our own convolutions in C. Where the processor has no kernels, torch computes."""

from .backend import CpuBackend, create_cpu_backend
from .library import ENVIRONMENT, INSTRUCTION_SETS, Kernels, available, load_kernels
from .pages import empty_pages

__all__ = [
    "ENVIRONMENT",
    "INSTRUCTION_SETS",
    "CpuBackend",
    "Kernels",
    "available",
    "create_cpu_backend",
    "empty_pages",
    "load_kernels",
]
