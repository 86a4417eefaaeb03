"""Devices and precisions: what the user's names mean on this machine, and the threads that compute."""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor

from vsrealbasicvsr import backends, devices
from vsrealbasicvsr.backends import KERNELS_VARIABLE, Backend, Kernels, Launched, load_kernels
from vsrealbasicvsr.devices import available_devices, device_name, find_device
from vsrealbasicvsr.errors import UserError, printable
from vsrealbasicvsr.model import RealBasicVSR

from .limits import memory_cure

Precision = Literal["auto", "fp32", "fp16", "bf16"]

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class DeviceError(UserError):
    """A device or a precision that this machine does not have; the text says what it has."""


@dataclass(frozen=True, slots=True)
class DeviceConfig:
    """A device and the type in which the convolutions run on it.

    Attributes:
        device: The device, with its index if there may be several.
        dtype: Type of the convolutions. Flows and sampling coordinates are float32 whatever it is.
        notes: What the user may not expect of the choice, a line each.
    """

    device: torch.device
    dtype: torch.dtype
    notes: Sequence[str] = field(default=(), compare=False)

    def prepare(self, model: RealBasicVSR, *, max_tile_rows: int | None = None) -> Backend:
        """Create a backend with a copy of the model's weights on this device.

        Args:
            model: The network; it is not changed.
            max_tile_rows: See `Backend.max_tile_rows`.

        Returns:
            On the CPU in float32 our own kernels where the processor has them; elsewhere torch, on CUDA with graphs.
        """
        create = partial(backends.create_backend, model, self.device, self.dtype, max_tile_rows=max_tile_rows)
        # Kernels pack their weights on the compute thread: the caller's may have been forked, and there torch waits for
        # workers that the child does not have.
        return self.run(create) if self.kernels() else create()

    def kernels(self) -> Kernels | None:
        """Return our own kernels if this device computes with them, else None."""
        return load_kernels() if self.device.type == "cpu" and self.dtype == torch.float32 else None

    def run[T](self, job: Callable[[], T]) -> T:
        """Return what `job` returns, computed on the one thread of this process that computes on this device.

        One thread, because torch keeps a pool of workers for every thread that calls it, and so that jobs from any
        number of callers run one after the other. The caller waits without holding the interpreter.
        """

        def work() -> T:
            with torch.inference_mode(), backends.place_of(self.device):
                return job()

        return _thread_of(str(self.device)).submit(work).result()

    def to_device(self, tensor: Tensor) -> Tensor:
        """Return a CPU tensor on this device, for the job that calls this, which goes on during the copy."""
        return backends.to_device(tensor, self.device)

    def run_to_host(self, job: Callable[[], Sequence[Tensor]]) -> list[Tensor]:
        """Return the tensors that `job` returns, see `run`, on the CPU.

        The compute thread goes on with the next job while the caller waits for the copy.
        """
        # Marked on the compute thread: on the caller's, the next job may have been launched already, and the copy would
        # wait for it.
        return self.on_host(self.run(lambda: backends.launched(job())))

    def on_host(self, results: Sequence[Tensor] | Launched) -> list[Tensor]:
        """Return the results of a job on the CPU. Any thread may call it: it waits while the compute thread goes on."""
        return backends.to_host(results)


def choose_device(device: str, precision: str) -> DeviceConfig:
    """Return the device and type that these names mean on this machine.

    Args:
        device: "auto" (the first CUDA device if torch can use it, else the CPU) or any torch device.
        precision: "auto" (fp16 on a GPU that is right and, on CUDA, fast in it, else fp32: CPUs compute half precision
            many times slower), "fp32", "fp16" or "bf16".

    Raises:
        DeviceError: This machine cannot compute so; the text says what it has.
    """
    if precision not in get_args(Precision):
        given = printable(precision, 100)
        raise DeviceError(f'precision must be one of {", ".join(get_args(Precision))}, got "{given}".')
    notes: list[str] = []
    try:
        chosen = find_device(device, tell=notes.append)
    except devices.DeviceError as error:
        raise DeviceError(f"device {error}. {_available_text()}") from None
    if precision == "auto":
        flaw = None if chosen.type == "cpu" else backends.float16_flaw(chosen)
        precision = "fp32" if chosen.type == "cpu" or flaw else "fp16"
        notes += [f'{chosen}: precision="auto" is fp32 ({flaw})'] if flaw else []
    elif precision == "bf16" and (flaw := backends.bfloat16_flaw(chosen)):
        raise DeviceError(f'precision "bf16" cannot be used ({flaw}). Use "auto", "fp16" or "fp32".')
    config = DeviceConfig(chosen, _DTYPES[precision], tuple(notes))
    try:
        config.kernels()
    except UserError as error:
        raise DeviceError(str(error)) from None
    except (OSError, AttributeError) as error:
        short = backends.is_out_of_memory(error) or "failed to map segment" in str(error)
        cure = memory_cure() if short else f"{KERNELS_VARIABLE}=off computes without them."
        raise DeviceError(f"the kernels cannot be loaded ({printable(str(error), 300)}). {cure}") from None
    return config


def choose_devices(devices: str, precision: str) -> list[DeviceConfig]:
    """Return the devices of a list with commas, such as "cuda:0,cuda:1". See `choose_device`.

    Raises:
        DeviceError: As `choose_device`, and if a device is named twice or the devices are of different kinds.
    """
    chosen = [choose_device(name.strip(), precision) for name in devices.split(",")]
    given = printable(devices, 100)
    if len(set(chosen)) < len(chosen):
        raise DeviceError(f'device "{given}" names the same device twice. Name each once.')
    if len({device_name(one.device) for one in chosen}) > 1:  # of one name they give the same bits
        raise DeviceError(f'device "{given}" mixes kinds of devices, which give different pixels. Name one kind.')
    return chosen


def cpu_kernels() -> str:
    """Return what computes on the CPU in float32: the instruction set of our own kernels, or "torch"."""
    try:
        kernels = load_kernels()
    except (UserError, OSError, AttributeError) as error:
        return f"none ({error})"
    return kernels.name if kernels else "torch"


def _available_text() -> str:
    found = ", ".join(available_devices())
    return f"This torch ({torch.__version__}) has: {found}. Use one of these."


_threads: dict[str, ThreadPoolExecutor] = {}
"""The compute thread of each device. One for the whole process and as long as it: filters share it."""

_threads_lock = threading.Lock()


def _thread_of(device: str) -> ThreadPoolExecutor:
    with _threads_lock:  # functools.cache would give two callers at once a thread each
        if device not in _threads:
            _threads[device] = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"rbvsr-{device}")
        return _threads[device]


def _after_fork() -> None:
    """Forget the threads in a child, which does not have them, and the lock that one of them may hold."""
    global _threads_lock
    _threads.clear()
    _threads_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
