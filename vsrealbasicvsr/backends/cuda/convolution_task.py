"""What a convolution's kernel is given (convolution.py), and how it divides the work."""

from dataclasses import dataclass

from torch import Tensor

CHANNEL_MULTIPLE = 8
"""Channels of a map that is read: 8 of 16 bits are what a thread copies at once."""


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
