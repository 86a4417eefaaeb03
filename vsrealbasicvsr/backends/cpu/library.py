"""The compiled kernels.c: finding, loading and calling it."""

import ctypes
import functools
import importlib.util
import os
import platform
import sys
import threading
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from vsrealbasicvsr.errors import UserError, printable

ENVIRONMENT = "RBVSR_KERNELS"
"""The variable that chooses the kernels: "off" (torch computes), or one of INSTRUCTION_SETS."""

INSTRUCTION_SETS = ("avx512", "avx2", "neon")
"""Compiled where the build's compiler can; each is one library in the folder `rbvsr_kernels` of site-packages."""

CONV3, CONV1, GATHER, CONV7, FLOW_INPUT, ENLARGE, DOT3, DOT7 = range(8)
TO_MAP, TO_SHUFFLED_MAP = range(2)

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
    "half_source",
    "kept_first",
    "kept_stop",
]
_ADDRESSES = ["source", "second", "weights", "bias", "residual", "target", "second_target"]

OPERATION = np.dtype(
    [(name, np.int32) for name in _INTEGERS] + [("slope", np.float32)] + [(name, np.uintp) for name in _ADDRESSES],
    align=True,
)
"""One operation; kernels.c declares the same and says what the fields mean."""


class Kernels:
    """A compiled library and its threads."""

    def __init__(self, path: Path, num_threads: int) -> None:
        """Load a library; raises OSError if the file is none of ours, MemoryError if its threads cannot start."""
        self._library = ctypes.CDLL(str(path))
        self._library.rbvsr_open.argtypes, self._library.rbvsr_open.restype = [ctypes.c_int], ctypes.c_void_p
        self._library.rbvsr_run.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_ssize_t]
        if self._library.rbvsr_operation_bytes() != OPERATION.itemsize:
            raise OSError(f"{path} was compiled from another version of kernels.c. Install the package again.")
        self.name = path.stem
        self.lanes: int = self._library.rbvsr_lanes()
        """Channels of a map come in multiples of this."""
        self._pool = self._library.rbvsr_open(max(num_threads, 1))
        if not self._pool:
            raise MemoryError("not enough memory for the threads of the kernels")

    def padded(self, channels: int) -> int:
        """Return the number of channels that a feature map of so many has in memory."""
        return -(-channels // self.lanes) * self.lanes

    def run(self, operations: npt.NDArray[np.void]) -> None:
        """Carry out an array of OPERATION in order, also in a child that was forked.

        Concurrent callers wait for each other. Raises MemoryError if a convolution's scratch memory is lacking.
        """
        if self._library.rbvsr_run(self._pool, operations.ctypes.data, len(operations)):
            raise MemoryError("not enough memory for the scratch of a convolution")


def load_kernels(name: str | None = None) -> Kernels | None:
    """Load kernels, which compute on as many threads as torch does now; once for each number of threads.

    Args:
        name: One of INSTRUCTION_SETS. None: what the variable RBVSR_KERNELS names, else the best for the processor.

    Returns:
        The kernels; None if the processor has none, or the variable says "off".

    Raises:
        UserError: There are no kernels of this name.
    """
    name = name or os.environ.get(ENVIRONMENT, "") or next(iter(available()), "off")
    if name not in ("off", *INSTRUCTION_SETS):
        choices = ", ".join(("off", *INSTRUCTION_SETS))
        raise UserError(
            f'{ENVIRONMENT} must be one of {choices}, got "{printable(name, 40)}". Unset it for the best of them.'
        )
    if name != "off" and name not in available():
        there = ", ".join(available()) or "none"
        raise UserError(
            f'{ENVIRONMENT}: there are no kernels "{name}" for this processor (there are: {there}). Unset it.'
        )
    return None if name == "off" else _load(name, torch.get_num_threads())


@functools.cache
def available() -> tuple[str, ...]:
    """Return the names of the kernels that are installed and that this processor can run, the fastest first."""
    if platform.machine().lower() in ("arm64", "aarch64"):
        can: tuple[str, ...] = ("neon",)
    else:
        can = {"AVX512": ("avx512", "avx2"), "AVX2": ("avx2",)}.get(torch.backends.cpu.get_cpu_capability(), ())
    return tuple(name for name in can if find_library(name) is not None)


def find_library(name: str) -> Path | None:
    """Return the file of these kernels, None if they are not installed."""
    found = importlib.util.find_spec("rbvsr_kernels")  # a folder, no package
    folders = found.submodule_search_locations if found else None
    file = f"{name}.dll" if sys.platform == "win32" else f"{name}.so"
    return next((path for folder in folders or () if (path := Path(folder) / file).is_file()), None)


_loaded: dict[tuple[str, int], Kernels] = {}
_loaded_lock = threading.Lock()


def _load(name: str, num_threads: int) -> Kernels:
    with _loaded_lock:  # to four callers at once functools.cache would give four pools of threads, which never end
        if (name, num_threads) not in _loaded:
            path = find_library(name)
            assert path is not None
            _loaded[name, num_threads] = Kernels(path, num_threads)
        return _loaded[name, num_threads]


def _after_fork() -> None:
    """Replace the lock in a child: a thread that it does not have may hold it."""
    global _loaded_lock
    _loaded_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
