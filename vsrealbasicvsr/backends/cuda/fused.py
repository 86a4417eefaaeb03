"""The network's steps on a GPU with kernels of our own for all convolutions: 16 bits, channels last from end to end.

What remains of torch are a frame's image pyramid, the joining of two states before the reconstruction, and the size of
a flow. States never leave their layout and their type.
"""

import itertools
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vsrealbasicvsr.model import RealBasicVSR
from vsrealbasicvsr.model.network import ResidualBlock, ResidualTrunk

from ..torch import TorchBackend
from . import convolution, half_flow, join
from .convolution import Convolve, pack
from .convolution_task import CHANNEL_MULTIPLE, Task
from .half_flow import HalfSPyNet, PrepareLevel, can_be_half
from .join import FRAME_CHANNELS, Join, order_of

SCALE = 4
"""Scale of the kernels: two pixel shuffles by 2, and an image of a quarter of the size that is added."""


@dataclass(frozen=True, slots=True)
class Kernels:
    """The operations that the steps consist of.

    Attributes:
        convolve: A convolution and what comes after it.
        join: The input of a trunk.
        prepare: The input of a level of the flow network.
    """

    convolve: Convolve
    join: Join
    prepare: PrepareLevel


BY_TRITON = Kernels(convolution.by_triton, join.by_triton, half_flow.prepare_by_triton)
BY_TORCH = Kernels(convolution.by_torch, join.by_torch, half_flow.prepare_by_torch)
"""The reference, and for tests without a GPU."""


@dataclass(frozen=True, slots=True)
class LayerKind:
    """What a convolution's kernel is compiled for.

    Attributes:
        channels: Channels that are read for each pixel.
        channels_out: Output channels.
        side: Rows and columns of the filter.
        slope: See `Task`.
        residual: What is added: "none", "map", or "small", an image of a quarter of the size.
        shuffle: See `Task`.
        planar: See `Task`; the result is then float32.
        limit: See `Task`.
    """

    channels: int
    channels_out: int
    side: int
    slope: float
    residual: str = "none"
    shuffle: bool = False
    planar: bool = False
    limit: bool = False


class FusedConvolution(nn.Module):
    """A convolution and what comes after it, by one kernel."""

    def __init__(
        self,
        conv: nn.Conv2d,
        convolve: Convolve,
        *,
        slope: float,
        residual: str = "none",
        order: Tensor | None = None,
        shuffle: bool = False,
        planar: bool = False,
    ) -> None:
        super().__init__()
        assert conv.bias is not None
        self.conv = conv  # what counts a trunk's convolutions finds it; its weights tell the model's type and device
        self.packed = pack(conv.weight, conv.bias, conv.weight.dtype, order=order, shuffle=shuffle)
        packed = self.packed
        self.kind = LayerKind(
            packed.channels, packed.channels_out, packed.side, slope, residual, shuffle=shuffle, planar=planar
        )
        self._convolve = convolve

    @property
    def weight(self) -> Tensor:
        """The convolution's weight."""
        return self.conv.weight

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        kind = self.kind
        num, _, height, width = x.shape
        channels = kind.channels_out
        if kind.shuffle:
            channels, height, width = channels // 4, 2 * height, 2 * width
        out = torch.empty(
            (num, channels, height, width),
            dtype=torch.float32 if kind.planar else x.dtype,
            device=x.device,
            memory_format=torch.contiguous_format if kind.planar else torch.channels_last,
        )
        self._convolve(
            Task(
                x=x.contiguous(memory_format=torch.channels_last),
                packed=self.packed,
                slope=kind.slope,
                out=out,
                residual=residual,
                residual_is_small=kind.residual == "small",
                shuffle=kind.shuffle,
                planar=kind.planar,
            )
        )
        return out


class _Block(nn.Module):
    """A ResidualBlock of two kernels."""

    def __init__(self, block: ResidualBlock, convolve: Convolve) -> None:
        super().__init__()
        self.inner = FusedConvolution(block.conv1, convolve, slope=0.0)
        self.outer = FusedConvolution(block.conv2, convolve, slope=1.0, residual="map")

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.inner(x), x)  # type: ignore[no-any-return]


class FusedBackend(TorchBackend):
    """The steps of a model whose layers `fuse_convolutions` has replaced."""

    def __init__(self, model: RealBasicVSR, kernels: Kernels, *, max_tile_rows: int | None = None) -> None:
        super().__init__(model, max_tile_rows=max_tile_rows)
        self._join = kernels.join

    def _cleaning_residue_of_size(self, frames: Tensor) -> Tensor:
        return self._tiled(self._cleaned, frames, halo=self._model.cleaning_halo_rows)

    def _cleaned(self, frames: Tensor) -> Tensor:
        joined = self._join(frames, None, None, self._model.dtype)
        return self._model.image_cleaning(joined).to(frames.dtype)  # type: ignore[no-any-return]

    def _trunk_input(self, cleaned: Tensor, state: Tensor | None, flow_px: Tensor | None) -> Tensor:
        dtype = self._model.dtype
        if state is None:
            shape = (cleaned.shape[0], self._model.sizes.mid_channels, *cleaned.shape[-2:])
            state = torch.zeros(shape, dtype=dtype, device=cleaned.device)
        return self._join(cleaned, state.to(dtype), flow_px, dtype)


def fuse_convolutions(model: RealBasicVSR, kernels: Kernels) -> None:
    """Replace the model's convolutions by fused ones, for `FusedBackend`; for inference only. See `unfit_reason`.

    The flow network then computes in float16 whatever the type of the others is: bfloat16 is too coarse for it.
    """
    convolve, vsr = kernels.convolve, model.basicvsr
    for trunk in [module for module in model.modules() if isinstance(module, ResidualTrunk)]:
        first, _, blocks = trunk.main
        assert isinstance(first, nn.Conv2d)
        assert isinstance(blocks, nn.Sequential)
        trunk.main[0] = FusedConvolution(first, convolve, slope=0.1, order=order_of(first.in_channels - 3))
        trunk.main[1] = nn.Identity()
        for i, block in enumerate(blocks):
            assert isinstance(block, ResidualBlock)
            blocks[i] = _Block(block, convolve)
    last = model.image_cleaning[1]
    assert isinstance(last, nn.Conv2d)
    model.image_cleaning[1] = FusedConvolution(last, convolve, slope=1.0, planar=True)
    replaced: dict[str, Any] = {
        "fusion": FusedConvolution(vsr.fusion, convolve, slope=0.1),
        "upsample1": FusedConvolution(vsr.upsample1.upsample_conv, convolve, slope=0.1, shuffle=True),
        "upsample2": FusedConvolution(vsr.upsample2.upsample_conv, convolve, slope=0.1, shuffle=True),
        "conv_hr": FusedConvolution(vsr.conv_hr, convolve, slope=0.1),
        "conv_last": FusedConvolution(vsr.conv_last, convolve, slope=1.0, residual="small", planar=True),
        "activation": nn.Identity(),
        "reconstruct": _Reconstruct(vsr),
    }
    if can_be_half(vsr.spynet):
        replaced["spynet"] = HalfSPyNet(vsr.spynet, convolve, kernels.prepare)
    for name, part in replaced.items():
        setattr(vsr, name, part)


class _Reconstruct:
    """BasicVSR.reconstruct with the enlarged frame added by the last convolution's kernel.

    By count, for a pixel of the large frame, from 64 channels: torch enlarges the frame (12 B written), convolves into
    16 bits (128 B read, 6 B written), adds the bias (12 B), converts to float32 (18 B) and adds both (36 B): 212 B.
    Here 128 B are read and 12 written; 9 * 128 B come from the second-level cache. At 720x480 there are 5.5 million
    pixels: 212 B are 0.40 ms at 2.95 TB/s, 140 B 0.26 ms, 1.15 kB from the cache 0.85 ms at 7.5 TB/s. cuDNN's
    convolution to three channels took an H100 0.104 ms for a map of 720x480, which makes 1.7 ms here, the rest 0.2 ms.
    Predicted: 0.9 ms instead of 1.9.
    """

    def __init__(self, vsr: nn.Module) -> None:
        self._vsr = weakref.ref(vsr)  # which holds this: a circle would keep the weights on the GPU

    def __call__(self, cleaned: Tensor, backward_features: Tensor, forward_features: Tensor) -> Tensor:
        vsr: Any = self._vsr()
        x = vsr.fusion(torch.cat((backward_features, forward_features), dim=1))
        x = vsr.conv_hr(vsr.upsample2(vsr.upsample1(x)))
        return vsr.conv_last(x, cleaned.float().contiguous())  # type: ignore[no-any-return]


def unfit_reason(model: RealBasicVSR) -> str | None:
    """Return why the model's layers cannot be fused; None if they can."""
    sizes = model.sizes
    if sizes.scale != SCALE:
        return f"they enlarge by {SCALE}, the network by {sizes.scale}"
    counted = (
        sizes.cleaning_channels,
        sizes.mid_channels,
        sizes.fusion_channels,
        sizes.quarter_channels,
        sizes.hr_channels,
        sizes.hr_out_channels,
    )
    if any(channels % CHANNEL_MULTIPLE for channels in counted):
        return f"a layer's channels are no multiple of {CHANNEL_MULTIPLE}"
    return None


def kinds_of(model: RealBasicVSR) -> set[LayerKind]:
    """Return the kinds of all convolutions of a model that was not yet fused. See `unfit_reason`."""
    sizes = model.sizes
    mid, cleaning = sizes.mid_channels, sizes.cleaning_channels
    kinds = {
        LayerKind(FRAME_CHANNELS, cleaning, 3, 0.1),
        LayerKind(cleaning, 3, 3, 1.0, planar=True),
        LayerKind(mid + FRAME_CHANNELS, mid, 3, 0.1),
        LayerKind(2 * mid, sizes.fusion_channels, 1, 0.1),
        LayerKind(sizes.fusion_channels, 4 * sizes.quarter_channels, 3, 0.1, shuffle=True),
        LayerKind(sizes.quarter_channels, 4 * sizes.hr_channels, 3, 0.1, shuffle=True),
        LayerKind(sizes.hr_channels, sizes.hr_out_channels, 3, 0.1),
        LayerKind(sizes.hr_out_channels, 3, 3, 1.0, "small", planar=True),
    }
    for channels in (mid, cleaning):
        kinds |= {LayerKind(channels, channels, 3, 0.0), LayerKind(channels, channels, 3, 1.0, "map")}
    return kinds


def flow_kinds_of(model: RealBasicVSR) -> set[LayerKind]:
    """Return the kinds of the flow network's convolutions, which are in float16; none if it stays in float32."""
    if not can_be_half(model.basicvsr.spynet):
        return set()
    widths = (half_flow.INPUT_CHANNELS, *model.sizes.flow_channels)
    hidden = {LayerKind(a, b, 7, 0.0, limit=True) for a, b in itertools.pairwise(widths)}
    return hidden | {LayerKind(widths[-1], 2, 7, 1.0, "map", planar=True)}
