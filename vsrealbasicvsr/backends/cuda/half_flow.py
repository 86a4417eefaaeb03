"""The flow network in half precision; coordinates, sampled values and the sum of the levels' flows stay in float32.

In float32 the flow network was the largest part of a frame on an H100: 14.5 of 34.4 ms at 720x480 with the published
network, two flows of 7.2 ms. Its operations are few (480 kFLOP for a pixel of the finest level, and a third more for
all others); its time went into TF32 products at half the rate, into passes for bias and rectifier over float32 maps,
and into some 200 launches.

Here a level is six kernels. The first (flow_triton.py) enlarges the flow of the level below, samples the second frame
along it and writes the input of the convolutions, 16 B a pixel; each 7x7 convolution is one kernel with its rectifier
(convolution.py), and the last one adds the enlarged flow in float32. By count, for a pixel of a level with the
published widths:

    operations    2 * 49 * (8 * 32 + 32 * 64 + 64 * 32 + 32 * 16 + 16 * 2)   480 kFLOP, 0.7 ns at 708 TFLOP/s
    memory        48 B and 16 B of input, 2 * (64 + 128 + 64 + 32) B of maps, 16 B of flow    0.66 kB, 0.22 ns
    to the products, from the second-level cache: 49 * (8 + 32 + 64 + 32 + 16) * 2 B          14.9 kB, 2 ns at 7.5 TB/s

So the last of the three decides: 0.7 ms for the finest level of 720x480, 0.9 ms for all six, and about 0.4 ms for what
the four coarsest wait for (26 kernels of 10 to 20 microseconds whatever their size). Predicted: 1.4 ms instead of 7.2,
which is 11.6 of the frame's 34.4 ms.

What half precision costs in accuracy is measured by scripts/measure_half_flow.py (docs/performance.md).
"""

from collections.abc import Collection, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from vsrealbasicvsr.model import SPyNet, flow_warp
from vsrealbasicvsr.model.flow import resize

from .convolution import MAX_FLOAT16, Convolve, pack
from .convolution_task import CHANNEL_MULTIPLE, Packed, Task

INPUT_CHANNELS = 8
"""Channels of a level's input: the first frame, the second one as sampled along the flow, the flow."""


class PrepareLevel(Protocol):
    """Prepares one level's refinement of the flow."""

    def __call__(self, frames: Tensor, coarse: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the input of a level's convolutions and the flow that they correct.

        Args:
            frames: (2N, 3, h, w) float32, contiguous: N first frames, then N second ones.
            coarse: The flow of the level below, (N, 2, h/2, w/2) float32, contiguous. None: there is none.

        Returns:
            (N, 8, h, w) float16, channels last, and (N, 2, h, w) float32, contiguous, in pixels.
        """
        ...


def prepare_by_torch(frames: Tensor, coarse: Tensor | None) -> tuple[Tensor, Tensor]:
    """Prepare a level with torch's operations: the reference for the kernel, and for tests without a GPU."""
    joined, flow = join_float(frames, coarse)
    joined = joined.clamp(-MAX_FLOAT16, MAX_FLOAT16).half()
    return joined.contiguous(memory_format=torch.channels_last), flow


def join_float(frames: Tensor, coarse: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the same in float32: (N, 8, h, w) and (N, 2, h, w). See `PrepareLevel`."""
    ref, supp = frames.chunk(2)
    if coarse is None:
        flow = ref.new_zeros(ref.shape[0], 2, *ref.shape[-2:])
    else:
        flow = resize(coarse, *ref.shape[-2:], align_corners=True) * 2.0
    return torch.cat((ref, flow_warp(supp, flow, padding="border"), flow), dim=1), flow


def prepare_by_triton(frames: Tensor, coarse: Tensor | None) -> tuple[Tensor, Tensor]:
    """Prepare a level with one kernel, on the thread's current device, which `frames` is on, and its current stream."""
    from .flow_triton import launch  # not above: loading Triton takes long, and only a GPU has a use for it

    num, _, height, width = frames.shape
    flow = torch.empty(num // 2, 2, height, width, dtype=torch.float32, device=frames.device)
    joined = _new_map(flow, INPUT_CHANNELS)
    launch(frames, coarse, joined, flow)
    return joined, flow


class HalfSPyNet(nn.Module):
    """An SPyNet whose convolutions are computed in half precision. For inference only."""

    def __init__(
        self, spynet: SPyNet, convolve: Convolve, prepare: PrepareLevel, *, float_levels: Collection[int] = ()
    ) -> None:
        """Pack the weights of a network.

        Args:
            spynet: The network, on its device. See `can_be_half`.
            convolve: Computes the convolutions.
            prepare: Prepares the levels.
            float_levels: Levels that stay in float32; 0 is the coarsest.
        """
        super().__init__()
        self.spynet = spynet
        self._convolve = convolve
        self._prepare = prepare
        self._levels = [
            None if index in float_levels else packed_level(level) for index, level in enumerate(spynet.basic_module)
        ]

    def forward(self, ref: Tensor, supp: Tensor) -> Tensor:
        """Return the flow with which `supp` looks like `ref`. See `SPyNet`."""
        flow: Tensor | None = None
        frames = self.spynet.pyramid(torch.cat((ref, supp)))
        for layers, level, of_level in zip(self._levels, self.spynet.basic_module, frames, strict=True):
            if layers is None:
                joined, enlarged = join_float(of_level, flow)
                flow = enlarged + level(joined)
            else:
                flow = self._refined(layers, of_level.contiguous(), flow)
        assert flow is not None
        return self.spynet.resized(flow, *ref.shape[-2:])

    def _refined(self, layers: Sequence[Packed], frames: Tensor, coarse: Tensor | None) -> Tensor:
        """Return the flow of a level, (N, 2, h, w) float32, from the flow of the level below."""
        x, flow = self._prepare(frames, coarse)
        *hidden, last = layers
        for packed in hidden:
            out = _new_map(x, packed.channels_out)
            self._convolve(Task(x=x, packed=packed, slope=0.0, out=out, limit=True))
            x = out
        refined = torch.empty_like(flow)
        self._convolve(Task(x=x, packed=last, slope=1.0, out=refined, residual=flow, planar=True))
        return refined


def can_be_half(spynet: SPyNet) -> bool:
    """Return whether the network's maps need no padding, and float16 holds its weights."""
    convolutions = [module for module in spynet.modules() if isinstance(module, nn.Conv2d)]
    return all(
        conv.in_channels % CHANNEL_MULTIPLE == 0 and (conv.weight.is_meta or conv.weight.abs().max() <= MAX_FLOAT16)
        for conv in convolutions
    )


def packed_level(level: nn.Module) -> list[Packed]:
    """Return the packed weights of a level's five convolutions."""
    packed = []
    for conv in [module for module in level.modules() if isinstance(module, nn.Conv2d)]:
        assert conv.bias is not None
        packed.append(pack(conv.weight, conv.bias, torch.float16))
    return packed


def _new_map(like: Tensor, channels: int) -> Tensor:
    shape = (like.shape[0], channels, *like.shape[-2:])
    return torch.empty(shape, dtype=torch.float16, device=like.device, memory_format=torch.channels_last)
