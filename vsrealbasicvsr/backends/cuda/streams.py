"""CUDA streams, and copies between the host and a CUDA device.

All work of a device goes through its default stream, whichever thread asks for it, so each step sees the results of the
steps before it. That also holds when another device's thread reads a frame that was computed here: torch copies between
devices on the current streams of both. Only copies to the host have a stream of their own.
"""

import contextlib
import mmap
import threading
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

MAX_CONCURRENT_CALLS = 8
"""Maximum number of calls that are captured into one graph, as concurrent branches."""


@dataclass(frozen=True, slots=True)
class _Streams:
    """A device's streams besides the default one.

    Created once: torch hands out 32 of each priority in turns, and whatever anybody does on a stream that captures ends
    up in a graph. These are of high priority, which hardly anybody else asks for.
    """

    capture: torch.cuda.Stream
    branches: tuple[torch.cuda.Stream, ...]
    copies: torch.cuda.Stream


_streams: dict[int, _Streams] = {}
_streams_lock = threading.Lock()


def streams_of(device: torch.device) -> _Streams:
    """Return the device's streams, created by the first call."""
    index = index_of(device)
    with _streams_lock:
        if index not in _streams:
            created = [torch.cuda.Stream(index, priority=-1) for _ in range(MAX_CONCURRENT_CALLS + 1)]  # type: ignore[no-untyped-call]
            _streams[index] = _Streams(capture=created[0], branches=tuple(created[1:-1]), copies=created[-1])
        return _streams[index]


def index_of(device: torch.device) -> int:
    """Return the index of a CUDA device."""
    return torch.cuda.current_device() if device == torch.device(device.type) else device.index


def capture_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the device's stream for captures, which no other code gets from torch."""
    return streams_of(device).capture


@contextlib.contextmanager
def place_of(device: torch.device) -> Iterator[None]:
    """Let the thread work on the device and its default stream; do nothing for another kind of device."""
    if device.type != "cuda":
        yield
        return
    with torch.cuda.device(device), torch.cuda.stream(torch.cuda.default_stream(device)):
        yield


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a CPU tensor on the CUDA device, for what the thread launches next; the thread itself does not wait.

    From memory that is not pinned torch would wait until the device has done all that was launched.
    """
    pinned = _pinned_like(tensor)
    if pinned is None:
        return tensor.to(device)
    pinned.copy_(tensor)
    return pinned.to(device, non_blocking=True)  # torch keeps the pinned memory until the copy is done


def mark(device: torch.device) -> torch.cuda.Event:
    """Return an event after all that was launched on the device so far. For the thread that launched it."""
    event: torch.cuda.Event = torch.cuda.default_stream(device).record_event()
    return event


def to_host(tensors: Sequence[Tensor], ready: torch.cuda.Event | None = None) -> list[Tensor]:
    """Return tensors that were computed on the default stream of one CUDA device on the CPU. Any thread may call it.

    It waits without holding the interpreter, and the device goes on computing meanwhile.

    Args:
        tensors: The tensors.
        ready: From `mark`, after they were launched. None: they are copied after all that has been launched by now,
            which may be the next frame.
    """
    device = tensors[0].device
    with torch.inference_mode(), torch.cuda.device(device):
        ready = ready or mark(device)
        hosts = [_page_locked.like(one) for one in tensors]
        copies = streams_of(device).copies
        with torch.cuda.stream(copies):
            copies.wait_event(ready)
            # What is read lives until the copies are done, as locals: another stream may not have its memory before.
            dense = [one.contiguous() for one in tensors]
            for i, (host, one) in enumerate(zip(hosts, dense, strict=True)):
                if host is None:
                    hosts[i] = one.cpu()
                else:
                    host.copy_(one, non_blocking=True)
            done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            done.record(copies)
        done.synchronize()
    return [host for host in hosts if host is not None]


def _pinned_like(tensor: Tensor) -> Tensor | None:
    """Pinned memory for as many values, which torch caches and hands out again; None where the system has no more."""
    try:
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    except RuntimeError:
        return None


class PageLocked:
    """Page-locked memory for copies from devices. Any thread may take some.

    Not torch's: that is rounded up to powers of two (256 MiB for a frame of 5120x2880 in float32, which has 169), and
    no cache of it survives a capture by others. What was taken is used again once no tensor lies in it.
    """

    def __init__(self) -> None:
        self._free: deque[npt.NDArray[np.uint8]] = deque()
        self._lock = threading.Lock()

    def like(self, tensor: Tensor) -> Tensor | None:
        """Return memory for as many values, of any content; None where the system has no more."""
        memory = self._take(tensor.nbytes)
        if memory is None:
            return None
        # torch holds this view of the block as long as any tensor lies in it.
        view = memory[: tensor.nbytes]
        weakref.finalize(view, self._free.append, memory).atexit = False
        return torch.from_numpy(view).view(tensor.dtype).view(tensor.shape)

    def _take(self, num_bytes: int) -> npt.NDArray[np.uint8] | None:
        with self._lock:
            # Others may add to the right end meanwhile, even this thread: finalizers run between any two lines.
            blocks = [self._free.popleft() for _ in range(len(self._free))]
            fitting = [block for block in blocks if num_bytes <= len(block) <= max(2 * num_bytes, _BLOCK_BYTES)]
            best = min(fitting, key=len, default=None)
            self._free.extend(block for block in blocks if block is not best)
            if best is not None:
                return best
        size = -(-max(num_bytes, 1) // _BLOCK_BYTES) * _BLOCK_BYTES
        try:
            block = np.frombuffer(mmap.mmap(-1, size), dtype=np.uint8)
            driver = torch.cuda.cudart()  # type: ignore[no-untyped-call]
            if int(driver.cudaHostRegister(block.ctypes.data, size, 0)) != 0:
                return None
        except (OSError, ValueError, RuntimeError, AttributeError):  # no memory; a torch without that function
            return None
        return block


_BLOCK_BYTES = 2**20

_page_locked = PageLocked()
