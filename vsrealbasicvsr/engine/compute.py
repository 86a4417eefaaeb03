"""Where and how exactly to compute: the one place that decides device and precision, and the thread that computes."""

import copy
import importlib.metadata
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from vsrealbasicvsr.devices import DeviceError, find_device
from vsrealbasicvsr.errors import UserError, printable
from vsrealbasicvsr.kernel import ENVIRONMENT, KernelNetwork, Kernels, load_kernels
from vsrealbasicvsr.model import RealBasicVSR

from .cuda import CudaNetwork, place_of, to_device, to_host
from .limits import memory_cure
from .memory import is_out_of_memory, return_freed_memory
from .network import Network, TorchNetwork, as_3x3

Precision = Literal["auto", "fp32", "fp16", "bf16"]

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class ComputeError(UserError):
    """A device or a precision that this machine does not have; the text says what it has."""


@dataclass(frozen=True, slots=True)
class Compute:
    """A device and the type in which the convolutions run on it. Flow and warp coordinates are float32 always."""

    device: torch.device
    dtype: torch.dtype

    def prepare(self, model: RealBasicVSR, *, max_rows: int | None = None) -> Network:
        """The steps of a copy of the model on the device, in this precision (its flow network stays in float32).

        On the CPU in float32 they are those of our own kernels, where the processor has them; elsewhere torch's, on
        CUDA with graphs.
        """
        if kernels := self.kernels():
            # Has weights of its own. On the thread that computes: the caller's may have been forked, and there torch
            # waits for workers that the child does not have.
            network = self.run(lambda: KernelNetwork(model, kernels, max_rows=max_rows))
            return_freed_memory()
            return network
        with place_of(self.device):
            model = copy.deepcopy(model).to(self.device, self.dtype)
            if self.device.type == "cpu":
                model.basicvsr.fusion = as_3x3(model.basicvsr.fusion)
            model = model.to(memory_format=torch.channels_last)
        if self.device.type == "cuda":
            return CudaNetwork(model, max_rows=max_rows)
        return TorchNetwork(model, max_rows=max_rows)

    def kernels(self) -> Kernels | None:
        """Our own kernels, if this is where they compute."""
        return load_kernels() if self.device.type == "cpu" and self.dtype == torch.float32 else None

    def run[T](self, job: Callable[[], T]) -> T:
        """What `job` returns, computed on the one thread that this process computes on for this device.

        One thread, because torch keeps a pool of workers for every thread that calls it, and so that jobs from any
        number of callers come one after the other. The caller waits without holding the interpreter.
        """

        def work() -> T:
            with torch.inference_mode(), place_of(self.device):
                return job()

        return _thread_of(str(self.device)).submit(work).result()

    def to_device(self, tensor: Tensor) -> Tensor:
        """A tensor of the CPU on this device, for the job that calls it, which goes on while the copy is made."""
        return to_device(tensor, self.device) if self.device.type == "cuda" else tensor.to(self.device)

    def on_host(self, made: Sequence[Tensor]) -> list[Tensor]:
        """What a job returned, on the CPU. For any thread: it waits, and the compute thread works on."""
        return to_host(made) if self.device.type == "cuda" else [one.cpu() for one in made]


def choose_compute(device: str, precision: str) -> Compute:
    """The device and precision that these names mean here.

    device: "auto" (the first CUDA device, else the CPU) or any torch device; precision: "auto" (fp16 on CUDA, fp32
    elsewhere: CPUs compute half precision many times slower), "fp32", "fp16", "bf16". Raises ComputeError.
    """
    if precision not in get_args(Precision):
        given = printable(precision, 100)
        raise ComputeError(f'precision must be one of {", ".join(get_args(Precision))}, got "{given}".')
    try:
        chosen = find_device(device)
    except DeviceError as error:
        raise ComputeError(f"device {error}. {_what_there_is()}") from None
    if precision == "auto":
        precision = "fp16" if chosen.type == "cuda" else "fp32"
    compute = Compute(chosen, _DTYPES[precision])
    try:
        compute.kernels()
    except UserError as error:
        raise ComputeError(str(error)) from None
    except (OSError, AttributeError) as error:
        short = is_out_of_memory(error) or "failed to map segment" in str(error)
        cure = memory_cure() if short else f"{ENVIRONMENT}=off computes without them."
        raise ComputeError(f"the kernels cannot be loaded ({printable(str(error), 300)}). {cure}") from None
    return compute


def choose_computes(devices: str, precision: str) -> list[Compute]:
    """The same for a list of devices with commas between them, such as "cuda:0,cuda:1". Raises ComputeError."""
    chosen = [choose_compute(name.strip(), precision) for name in devices.split(",")]
    given = printable(devices, 100)
    if len(set(chosen)) < len(chosen):
        raise ComputeError(f'device "{given}" names the same device twice. Name each once.')
    if len({_kind(one.device) for one in chosen}) > 1:
        raise ComputeError(f'device "{given}" mixes kinds of devices, which give other pixels. Name one kind.')
    return chosen


def _kind(device: torch.device) -> str:
    """Devices of one kind give the same bits."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def available_devices() -> list[str]:
    """The devices that torch can use here, as `device` takes them, with a GPU's name and memory."""
    devices = ["cpu"]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        devices.append(f"cuda:{index} ({properties.name}, {properties.total_memory / 2**30:.0f} GiB)")
    return devices


def cpu_kernels() -> str:
    """What computes on the CPU in float32: the instruction set of our own kernels, or "torch"."""
    try:
        kernels = load_kernels()
    except (UserError, OSError, AttributeError) as error:
        return f"none ({error})"
    return kernels.name if kernels else "torch"


def triton_version() -> str:
    """Of the compiler of the GPU's epilogues; "none" where torch came without."""
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return "none"


def _what_there_is() -> str:
    found = ", ".join(available_devices())
    return f"This torch ({torch.__version__}) has: {found}. Use one of these."


_threads: dict[str, ThreadPoolExecutor] = {}
_threads_lock = threading.Lock()


def _thread_of(device: str) -> ThreadPoolExecutor:
    with _threads_lock:  # of two callers at once, functools.cache would give each a thread
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
