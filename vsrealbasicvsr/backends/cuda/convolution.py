"""Convolutions on a GPU as one kernel each: an implicit matrix product, and what comes after it in the same pass.

What it costs, by count, for a pixel of a 3x3 convolution from 64 to 64 channels in 16 bits, on an H100 (measured there:
products at 708 TFLOP/s, copies at 2.95 TB/s):

    operations              2 * 9 * 64 * 64 = 73.7 kFLOP, 104 ps
    memory, cuDNN           128 B read and 128 written, and again by the epilogue (epilogue.py), with a residual 128
                            more: 512 to 640 B, 174 to 217 ps
    memory, here            256 to 384 B, 87 to 130 ps
    second-level cache      each tap reads its pixels, 9 * 128 B, and each program of 128 pixels the weights, 9 * 64 B
                            a pixel: 1.73 kB, 230 ps at an estimated 7.5 TB/s

So the cache decides. At 720x480 an H100 took 0.107 ms for cuDNN's convolution and 0.070 to 0.074 ms for the epilogue;
the prediction is 0.08 to 0.10 ms for both. From 64 to 256 channels (128 output channels a program) a pixel takes 295
kFLOP, 417 ps, and 2 * (1.15 + 1.15) kB from the cache, 610 ps: 0.21 to 0.26 ms instead of 0.31 and an epilogue.

The matrix product has the channels of a filter's taps as its inner dimension: side * side * channels, in the order row,
column, channel. On Hopper the output channels are the rows of the product, if there are 64 or more, and the pixels its
columns: with 64 columns its tensor cores would wait for the shared memory. Elsewhere the pixels are the rows.

The only kernel (convolution_triton.py) is written in Triton. Where it is missing, or does not give torch's values,
cuDNN's convolutions stay: results never differ beyond floating-point rounding.
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .convolution_task import CHANNEL_MULTIPLE, Packed, Task, out_block_of, plan_for, step_of

MAX_FLOAT16 = 65504.0


def pack(
    weight: Tensor, bias: Tensor, dtype: torch.dtype, *, order: Tensor | None = None, shuffle: bool = False
) -> Packed:
    """Pack the weights of a convolution.

    Args:
        weight: (O, C, side, side).
        bias: (O).
        dtype: Type of the factors, 16 bits.
        order: Channel of the convolution for each channel of the map that is read, -1 for none. None: as they are.
        shuffle: Whether a pixel shuffle by 2 follows; the output channels are put in the order row, column, channel.

    Returns:
        The packed weights, on the device of `weight`.
    """
    weight, bias = weight.detach().float(), bias.detach().float()
    if shuffle:
        weight, bias = (
            values.reshape(-1, 4, *values.shape[1:]).transpose(0, 1).flatten(0, 1) for values in (weight, bias)
        )
    channels_out, channels, side, _ = weight.shape
    order = torch.arange(channels) if order is None else order
    order = F.pad(order, (0, -len(order) % CHANNEL_MULTIPLE), value=-1).to(weight.device)
    weight = F.pad(weight, (0, 0, 0, 0, 0, 1))[:, order]  # the last one, -1, is the channel of zeros
    rows = weight.permute(0, 2, 3, 1).flatten(1)
    rows = F.pad(rows, (0, -rows.shape[1] % step_of(len(order)), 0, -channels_out % out_block_of(channels_out)))
    return Packed(rows.to(dtype).contiguous(), bias.contiguous(), side, len(order), channels_out)


class Convolve(Protocol):
    """Computes a task into its `out`."""

    def __call__(self, task: Task) -> None: ...


def by_torch(task: Task) -> None:
    """Compute a task with torch's operations in float32: the reference for the kernel, and for tests without a GPU."""
    packed = task.packed
    num_values = packed.side**2 * packed.channels
    weight = packed.weight[: packed.channels_out, :num_values].float()
    weight = weight.view(packed.channels_out, packed.side, packed.side, packed.channels).permute(0, 3, 1, 2)
    y = F.conv2d(task.x.float(), weight, packed.bias, padding=packed.side // 2)
    y = F.relu(y) if task.slope == 0 else F.leaky_relu(y, task.slope)
    if task.residual is not None:
        residual = task.residual.float()
        if task.residual_is_small:
            residual = F.interpolate(residual, size=y.shape[-2:], mode="bilinear")
        y = y + residual
    if task.limit:
        y = y.clamp(-MAX_FLOAT16, MAX_FLOAT16)
    if task.shuffle:
        num, channels, height, width = y.shape
        y = y.view(num, 2, 2, channels // 4, height, width).permute(0, 3, 4, 1, 5, 2)
        y = y.reshape(num, channels // 4, 2 * height, 2 * width)
    task.out.copy_(y)


def by_triton(task: Task) -> None:
    """Compute a task with one kernel, on the thread's current device, which x is on, and its current stream."""
    from .convolution_triton import launch  # not above: loading Triton takes long, and only a GPU has a use for it

    launch(task, plan_for(task.packed, capability_of(task.x.device)))


def capability_of(device: torch.device) -> int:
    """Return the compute capability of a CUDA device, 90 for 9.0; of others 80, in Triton's interpreter.

    It is 0 for AMD's GPUs, whose numbers mean something else: 9.0 is no Hopper, and 10.3 has no matrix products.
    """
    if device.type != "cuda":
        return 80
    if torch.version.hip is not None:
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor
