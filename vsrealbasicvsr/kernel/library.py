"""kernels.c, compiled: found, loaded and called. The only place that knows of machine addresses."""

import ctypes
import functools
import importlib.util
import os
import platform
import threading
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

ENVIRONMENT = "RBVSR_KERNELS"
"""The variable that chooses the kernels: "off" (torch computes), or one of INSTRUCTION_SETS."""

INSTRUCTION_SETS = ("avx512", "avx2", "neon")
"""Compiled where the build's compiler can; each is one library in the folder `rbvsr_kernels` of site-packages."""

CONV3, CONV1, GATHER = range(3)
TO_MAP, TO_SHUFFLED_MAP, ADD_TO_PLANES = range(3)

_INTEGERS = [
    "kind",
    "store_as",
    "height",
    "width",
    "first",
    "stop",
    "source_first",
    "target_first",
    "channels_in",
    "source_stride",
    "channels_out",
    "target_stride",
]
_ADDRESSES = ["source", "second", "weights", "bias", "residual", "target"]

OPERATION = np.dtype(
    [(name, np.int32) for name in _INTEGERS] + [("slope", np.float32)] + [(name, np.uintp) for name in _ADDRESSES],
    align=True,
)
"""One operation; kernels.c declares the same and says what the fields mean."""


class Kernels:
    """One compiled library and its threads."""

    def __init__(self, path: Path, num_threads: int) -> None:
        """Raises OSError if the file is no such library, MemoryError if its threads cannot be made."""
        self._library = ctypes.CDLL(str(path))
        self._library.rbvsr_open.argtypes, self._library.rbvsr_open.restype = [ctypes.c_int], ctypes.c_void_p
        self._library.rbvsr_run.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_long]
        self.name = path.stem
        self.lanes: int = self._library.rbvsr_lanes()
        """Channels of a map come in multiples of this."""
        self._pool = self._library.rbvsr_open(max(num_threads, 1))
        if not self._pool:
            raise MemoryError("not enough memory for the threads of the kernels")
        self._lock = threading.Lock()

    def padded(self, channels: int) -> int:
        """The channels that a map of so many has in memory."""
        return -(-channels // self.lanes) * self.lanes

    def run(self, operations: npt.NDArray[np.void]) -> None:
        """Carry out an array of OPERATION, one after another. Raises MemoryError."""
        with self._lock:
            if self._library.rbvsr_run(self._pool, operations.ctypes.data, len(operations)):
                raise MemoryError("not enough memory for the scratch of a convolution")


def load_kernels(name: str | None = None) -> Kernels | None:
    """The kernels of this name (one of INSTRUCTION_SETS), or the best that the processor has; None: there are none.

    They compute on as many threads as torch does now. Loaded once for each number of threads.
    """
    name = name or os.environ.get(ENVIRONMENT, "") or _best()
    return _load(name, torch.get_num_threads()) if name in INSTRUCTION_SETS else None


def _best() -> str | None:
    if platform.machine() in ("arm64", "aarch64"):
        return "neon"
    return {"AVX512": "avx512", "AVX2": "avx2"}.get(torch.backends.cpu.get_cpu_capability())


@functools.cache
def _load(name: str, num_threads: int) -> Kernels | None:
    found = importlib.util.find_spec("rbvsr_kernels")  # a folder, no package
    for folder in (found.submodule_search_locations or []) if found else []:
        path = Path(folder) / f"{name}.so"
        if path.is_file():
            return Kernels(path, num_threads)
    return None
