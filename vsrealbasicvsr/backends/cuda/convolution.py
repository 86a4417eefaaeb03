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

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

CHANNEL_MULTIPLE = 8
"""Channels of a map that is read: 8 of 16 bits are what a thread copies at once."""

MAX_FLOAT16 = 65504.0


@dataclass(frozen=True, slots=True)
class Packed:
    """A convolution's weights as the kernel reads them.

    Attributes:
        weight: (output channels, K): rounded up to whole blocks with zeros.
        bias: (output channels), float32.
        side: Rows and columns of the filter, odd.
        channels: Channels that are read for each pixel, a multiple of 8. Those that the convolution does not have are
            multiplied by zero.
        channels_out: Output channels.
    """

    weight: Tensor
    bias: Tensor
    side: int
    channels: int
    channels_out: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One convolution of one map, act(conv(x) + bias) + residual, padded with zeros at the borders.

    Attributes:
        x: (N, channels, H, W), 16 bits, channels last.
        packed: The weights.
        slope: What act multiplies values below zero by.
        out: Where the result goes: (N, channels_out, H, W), channels last or, with `planar`, contiguous; with `shuffle`
            (N, channels_out / 4, 2H, 2W), channels last, and the order of the output channels is row, column, channel.
        residual: What is added, shaped and laid out like `out`, of any type.
        residual_is_small: The residual is (N, channels_out, H/4, W/4), contiguous, and enlarged bilinearly.
        shuffle: See `out`.
        planar: See `out`.
        limit: Whether values beyond those of float16 become the largest ones.
    """

    x: Tensor
    packed: Packed
    slope: float
    out: Tensor
    residual: Tensor | None = None
    residual_is_small: bool = False
    shuffle: bool = False
    planar: bool = False
    limit: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """How the kernel divides a task. It depends on the layer and the kind of GPU alone, never on a measurement.

    Attributes:
        out_block: Output channels of one program.
        step: Values of the inner dimension that are multiplied at once.
        tile_height: Rows of one program.
        tile_width: Columns of one program.
        pixels_are_columns: Whether the pixels are the columns of the product.
        num_warps: Warps of one program.
        num_stages: Steps whose values are on their way at the same time.
    """

    out_block: int
    step: int
    tile_height: int
    tile_width: int
    pixels_are_columns: bool
    num_warps: int
    num_stages: int


def plan_for(packed: Packed, capability: int) -> Plan:
    """Return how a convolution is divided on GPUs of this capability (90: Hopper).

    A program makes 128 pixels of 64 channels (or of 128, with twice the warps). Each stage takes 24 kB of shared
    memory, and an H100's multiprocessor has room for three programs of three stages.
    """
    block = out_block_of(packed.channels_out)
    num_warps = 8 if block == 128 else 4
    return Plan(block, step_of(packed.channels), 8, 16, block >= 64 and capability == 90, num_warps, 3)


def out_block_of(channels_out: int) -> int:
    """Return the output channels of one program."""
    return 128 if channels_out % 128 == 0 else min(64, max(16, 1 << (channels_out - 1).bit_length()))


def step_of(channels: int) -> int:
    """Return how many values of the inner dimension are multiplied at once: of one tap, where that is possible."""
    return 32 if channels % 64 == 32 else 64


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
    """Return the compute capability of a CUDA device, 90 for 9.0; of others 80, in Triton's interpreter."""
    if device.type != "cuda":
        return 80
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor
