"""Kernels that were compiled for another processor or system, in a program that an emulator runs (kernel_program.c)."""

import ctypes
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vsrealbasicvsr.backends.cpu import library
from vsrealbasicvsr.backends.cpu.library import OPERATION, Kernels

POINTS = {library.CONV3: (36, 1), library.CONV7: (64, 3)}
"""The products of Winograd's algorithm, and the rows that are read beyond those that are made."""


class ForeignKernels(Kernels):
    """What Kernels is to its library, to a program: memory goes there and back with each run."""

    def __init__(self, command: list[str], environment: dict[str, str], num_threads: int) -> None:
        self._program = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._program.stdin is not None
        assert self._program.stdout is not None
        self._to, self._back = self._program.stdin, self._program.stdout
        self.name = Path(command[-1]).stem
        self.lanes, operation_bytes = struct.unpack("=ii", self._read(8))
        assert operation_bytes == OPERATION.itemsize
        self._to.write(struct.pack("=q", num_threads))

    def _read(self, num_bytes: int) -> bytes:
        data = self._back.read(num_bytes)
        assert len(data) == num_bytes, f"{self.name} ended with {self._program.wait()}"
        return data

    def run(self, operations: npt.NDArray[np.void]) -> None:
        regions = _merged(sorted(area for operation in operations for area in _areas(operation)))
        self._to.write(struct.pack("=qq", len(regions), len(operations)))
        for first, stop in regions:
            self._to.write(struct.pack("=qq", first, stop - first) + ctypes.string_at(first, stop - first))
        self._to.write(operations.tobytes())
        self._to.flush()
        assert struct.unpack("=q", self._read(8)) == (0,)
        for first, stop in regions:
            ctypes.memmove(first, self._read(stop - first), stop - first)

    def close(self) -> int:
        self._to.close()
        self._back.close()
        return self._program.wait()


def _areas(o: np.void) -> Iterator[tuple[int, int]]:
    """The memory that an operation reads or writes: first byte and the one after the last."""
    kind, height, width = int(o["kind"]), int(o["height"]), int(o["width"])
    stop, source_first, target_first = (int(o[name]) for name in ("stop", "source_first", "target_first"))
    stride, target_stride, channels_in, channels_out = (
        int(o[name]) for name in ("source_stride", "target_stride", "channels_in", "channels_out")
    )
    frame, rows = height * width, stop - target_first
    source_bytes = 2 if o["half_source"] else 4
    floats: dict[str, int] = {}
    if kind in POINTS:
        points, reach = POINTS[kind]
        floats["source"] = (min(height, stop + reach) - source_first) * width * stride
        floats["weights"], floats["bias"] = points * channels_in * channels_out, channels_out
        scale = 2 if o["store_as"] == library.TO_SHUFFLED_MAP else 1
        floats["target"] = floats["residual"] = rows * scale * width * scale * target_stride
    elif kind == library.CONV1:
        floats["source"] = floats["second"] = (stop - source_first) * width * channels_in
        floats["weights"], floats["bias"] = 2 * channels_in * channels_out, channels_out
        floats["target"] = rows * width * target_stride
    elif kind == library.GATHER:
        floats |= {"source": frame * stride, "second": 2 * frame, "residual": 3 * frame}
        floats["target"] = rows * width * target_stride
    elif kind == library.FLOW_INPUT:
        floats |= {"source": 3 * frame, "residual": 3 * frame, "second_target": 2 * frame}
        floats["second"], floats["target"] = 2 * (height // 2) * (width // 2), rows * width * target_stride
    elif kind == library.ENLARGE:
        floats |= {"source": 3 * frame, "target": 2 * target_stride + rows * 4 * width}
    else:
        taps, planes = (3, 3) if kind == library.DOT3 else (7, 2)
        floats["source"] = (min(height, stop + taps // 2) - source_first) * width * stride
        floats["weights"], floats["bias"] = planes * taps * taps * stride, planes
        floats["target"] = (planes - 1) * target_stride + rows * width
    for name, number in floats.items():
        halves = name == "source" or (name == "second" and kind == library.CONV1)
        if o[name]:
            yield int(o[name]), int(o[name]) + number * (source_bytes if halves else 4)


def _merged(areas: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Areas that overlap or touch, as one."""
    merged: list[tuple[int, int]] = []
    for first, stop in areas:
        if merged and first <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(stop, merged[-1][1])
        else:
            merged.append((first, stop))
    return merged
