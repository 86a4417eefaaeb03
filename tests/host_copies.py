"""Copies from the host, which no step that becomes a CUDA graph may make."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class HostCopies(TorchDispatchMode):
    """Notes where numbers of the host become a tensor: on a GPU that is a copy that everybody waits for."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.detach_.default, torch.ops.aten.lift_fresh.default):
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))
