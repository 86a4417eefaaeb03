"""The processes that share the work of a run, as torchrun starts them, and the device of each."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

import torch
from torch import distributed, nn

from vsrealbasicvsr.devices import DeviceError, find_device
from vsrealbasicvsr.errors import UserError


class TrainingError(UserError):
    """A run cannot begin or continue. The text says what is wrong and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Processes:
    """The processes that share a run's work, and this one's rank and device.

    Attributes:
        num: Number of processes.
        rank: Index of this one; 0 is the main process.
        device: Where this one computes.
    """

    num: int
    rank: int
    device: torch.device

    @property
    def is_main_process(self) -> bool:
        """Whether this process writes the run's files and talks to the user."""
        return self.rank == 0

    def average(self, parameters: list[nn.Parameter]) -> None:
        """Replace the gradients by their mean over the processes."""
        if self.num == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(flat)
        flat /= self.num
        for gradient, mean in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set in any process."""
        if self.num == 1:
            return flag
        raised = torch.tensor([float(flag)], device=self.device)
        distributed.all_reduce(raised, distributed.ReduceOp.MAX)
        return bool(raised.item())


def start_processes(device_name: str) -> Processes:
    """Join the processes that torchrun started, if there are any.

    Args:
        device_name: "auto", or a torch device; with several processes "cuda" means a GPU for each.

    Raises:
        TrainingError: torch has no such device.
    """
    num = int(os.environ.get("WORLD_SIZE", "1"))
    name = device_name
    if name == "auto" and num > 1:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" or (num > 1 and name.startswith("cuda:")):  # each process has a GPU of its own
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    try:
        device = find_device(name, tell=lambda text: print(text, file=sys.stderr))
    except DeviceError as error:
        raise TrainingError(f"--device {error}: use auto, cpu, cuda or cuda:1") from None
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if num > 1:
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return Processes(num=num, rank=distributed.get_rank() if num > 1 else 0, device=device)


def num_workers_of(given: int | None) -> int:
    """Return the number of worker processes: `given`, or else this process's share of all cores but one.

    Raises:
        TrainingError: The number is negative.
    """
    if given is not None:
        if given < 0:
            raise TrainingError(f"--workers must be at least 0, got {given}")
        return given
    return max(1, ((os.cpu_count() or 2) - 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
