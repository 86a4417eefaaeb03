"""The network on a CPU, by our own convolutions in C. Knows the model, torch and a library; no windows, no host.

Where there is no library for the processor the model itself computes: `load_kernels` returns None.
"""

from .backend import KernelNetwork
from .library import ENVIRONMENT, INSTRUCTION_SETS, Kernels, available, load_kernels
from .pages import empty_pages, is_large

__all__ = [
    "ENVIRONMENT",
    "INSTRUCTION_SETS",
    "KernelNetwork",
    "Kernels",
    "available",
    "empty_pages",
    "is_large",
    "load_kernels",
]
