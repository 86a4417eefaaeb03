"""Whether bfloat16 is worth its while on a CPU."""

import sys
import time

import torch
import torch.nn.functional as F

from training.networks import autocast_dtype_of
from training.processes import Processes
from training.settings import Settings

LARGEST_SLOWNESS_OF_BF16 = 1.5
"""Times as long as float32 beyond which the run says that float32 is the better choice."""


def warn_of_slow_bf16(settings: Settings, processes: Processes) -> None:
    """Warn if bfloat16 is requested on a CPU that is slow at it."""
    if processes.device.type != "cpu" or autocast_dtype_of(settings, processes.device) is None:
        return
    slowness = slowness_of_bf16()
    if slowness > LARGEST_SLOWNESS_OF_BF16:
        print(
            f"training train: bf16 takes {slowness:.3g} times as long as fp32 on this CPU: --precision fp32 is faster",
            file=sys.stderr,
        )


def slowness_of_bf16() -> float:
    """Return the time of a convolution and its backward pass in bfloat16 on this CPU, relative to float32."""
    x, weight = torch.rand(1, 64, 48, 48), torch.rand(64, 64, 3, 3)

    def seconds(dtype: torch.dtype) -> float:
        inputs = [tensor.to(dtype).requires_grad_() for tensor in (x, weight)]
        started = time.perf_counter()
        made = F.conv2d(inputs[0], inputs[1], padding=1)
        torch.autograd.grad(made, inputs, torch.ones_like(made))
        return time.perf_counter() - started

    shortest = {dtype: min(seconds(dtype) for _ in range(3)) for dtype in (torch.float32, torch.bfloat16)}
    return shortest[torch.bfloat16] / shortest[torch.float32]
