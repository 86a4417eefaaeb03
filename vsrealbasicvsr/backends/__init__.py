"""Implementations of the network's steps, one for each kind of device. The engine imports nothing but these names.

To support another device (MPS, ONNX Runtime, ...): write one module with a class that fulfils `Backend` and a
`BackendFactory` for it, and add it to FACTORIES (factories.py). tests/backends/test_backends.py runs every backend
that is available through the same cases. Without an entry, a device that torch knows is served by torch's own
operations.
"""

from .base import Backend, BackendFactory, PropagationInputs, is_large
from .cpu import ENVIRONMENT as KERNELS_VARIABLE
from .cpu import Kernels, empty_pages, load_kernels
from .cpu import available as available_kernels
from .cuda import abandon_capture, capture_stream, triton_version
from .factories import FACTORIES, create_backend
from .half_precision import bfloat16_flaw, float16_flaw
from .memory import free_device_bytes, is_out_of_memory, return_freed_memory
from .transfer import Launched, launched, place_of, to_device, to_host

__all__ = [
    "FACTORIES",
    "KERNELS_VARIABLE",
    "Backend",
    "BackendFactory",
    "Kernels",
    "Launched",
    "PropagationInputs",
    "abandon_capture",
    "available_kernels",
    "bfloat16_flaw",
    "capture_stream",
    "create_backend",
    "empty_pages",
    "float16_flaw",
    "free_device_bytes",
    "is_large",
    "is_out_of_memory",
    "launched",
    "load_kernels",
    "place_of",
    "return_freed_memory",
    "to_device",
    "to_host",
    "triton_version",
]
