"""The steps of RealBasicVSR with our own kernels: the same values but for rounding, three times as fast."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsrealbasicvsr.model import SCALE, RealBasicVSR, SPyNet
from vsrealbasicvsr.model.network import ResidualTrunk

from .library import (
    ADD_TO_PLANES,
    CONV1,
    CONV3,
    CONV7,
    FLOW_INPUT,
    GATHER,
    OPERATION,
    TO_MAP,
    TO_SHUFFLED_MAP,
    Kernels,
)

BAND_PX = 8_192
"""Low-resolution pixels reconstructed at once: their maps of S * S pixels stay near the processor."""
MIN_BAND_ROWS = 8

_WINOGRAD_G = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)

# The same for F(2x2, 7x7): a row holds the powers of a point, the last is the point at infinity.
_WINOGRAD_G7 = (
    *(
        tuple(scale * point**power for power in range(7))
        for point, scale in (
            (0.0, 1.0),
            (1.0, -2 / 9),
            (-1.0, -2 / 9),
            (2.0, 1 / 90),
            (-2.0, 1 / 90),
            (0.5, 32 / 45),
            (-0.5, 32 / 45),
        )
    ),
    (0, 0, 0, 0, 0, 0, 1),
)

_Operations = npt.NDArray[np.void]


@dataclass(frozen=True, slots=True)
class _Convolution:
    """A convolution's weights as the kernels want them, and its sizes: channels in, and padded channels out."""

    weights: Tensor
    bias: Tensor
    channels_in: int
    channels_out: int


class KernelNetwork:
    """The steps of a RealBasicVSR on the CPU in float32; those of the model, under the same names.

    States are maps: (H, W, C) with C padded as the kernels want it, so they are this network's own affair. One thread
    at a time may call.
    """

    def __init__(self, model: RealBasicVSR, kernels: Kernels) -> None:
        sizes = model.sizes
        self.dtype = torch.float32
        self._kernels = kernels
        self._sizes = sizes
        self._flow: SPyNet = model.basicvsr.spynet
        self._flow_levels = [self._pack_level(level) for level in self._flow.basic_module]
        cleaning, last = model.image_cleaning
        assert isinstance(cleaning, ResidualTrunk)
        assert isinstance(last, nn.Conv2d)
        self._cleaning = self._pack_trunk(cleaning, state_channels=0)
        self._cleaning_last = self._pack(last)
        vsr = model.basicvsr
        self._backward = self._pack_trunk(vsr.backward_resblocks, state_channels=sizes.mid_channels)
        self._forward = self._pack_trunk(vsr.forward_resblocks, state_channels=sizes.mid_channels)
        self._fusion = self._pack_fusion(vsr.fusion)
        self._up = [self._pack(up.upsample_conv, groups=4) for up in (vsr.upsample1, vsr.upsample2)]
        self._hr, self._last = self._pack(vsr.conv_hr), self._pack(vsr.conv_last)
        self._arena = torch.empty(0)

    # ---- the steps ---------------------------------------------------------------------------------------------------

    def cleaning_residue(self, frames: Tensor) -> Tensor:
        """What one cleaning pass adds: (B, 3, H, W) to the same."""
        residues = torch.zeros_like(frames, memory_format=torch.contiguous_format)
        height, width = frames.shape[-2:]
        channels = self._cleaning[0].channels_out
        features = torch.empty(height, width, channels)
        for frame, residue in zip(frames, residues, strict=True):
            operations = np.concatenate(
                (
                    self._trunk(self._cleaning, frame.contiguous(), None, None, features),
                    self._convolve(
                        self._cleaning_last, features, residue, height, width, store_as=ADD_TO_PLANES, slope=1.0
                    ),
                )
            )
            self._kernels.run(operations)
        return residues

    def flows(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Flow between neighbouring cleaned frames, as RealBasicVSR.flows."""
        levels = self._flow.pyramid(torch.cat((first, second)))
        height, width = first.shape[-2:]
        forward_flow, backward_flow = (
            self._flow.resized(flow, height, width)
            for flow in (self._estimate(levels, ref=1, supp=0), self._estimate(levels, ref=0, supp=1))
        )
        return forward_flow, backward_flow

    def propagate_backward(self, cleaned: Tensor, state: Tensor | None, flow_px: Tensor | None) -> Tensor:
        """The backward state of a frame (1, 3, H, W), from that of the frame after it."""
        return self._propagate(self._backward, cleaned, state, flow_px)

    def propagate_forward(self, cleaned: Tensor, state: Tensor | None, flow_px: Tensor | None) -> Tensor:
        """The forward state of a frame (1, 3, H, W), from that of the frame before it."""
        return self._propagate(self._forward, cleaned, state, flow_px)

    def reconstruct(self, cleaned: Tensor, backward_state: Tensor, forward_state: Tensor) -> Tensor:
        """The high-resolution frame (1, 3, S*H, S*W), contiguous, made in bands whose height follows from its size."""
        height, width = cleaned.shape[-2:]
        hr = F.interpolate(cleaned.contiguous(), scale_factor=SCALE, mode="bilinear", align_corners=False)
        rows = max(BAND_PX // width, MIN_BAND_ROWS)
        for first in range(0, height, rows):
            self._reconstruct_band(hr, backward_state, forward_state, first, min(first + rows, height))
        return hr

    # ---- how they are made -------------------------------------------------------------------------------------------

    def _propagate(
        self, trunk: list[_Convolution], cleaned: Tensor, state: Tensor | None, flow_px: Tensor | None
    ) -> Tensor:
        height, width = cleaned.shape[-2:]
        made = torch.empty(height, width, trunk[0].channels_out)
        flow = flow_px.contiguous() if flow_px is not None and state is not None else None
        self._kernels.run(self._trunk(trunk, cleaned[0].contiguous(), state, flow, made))
        return made

    def _estimate(self, levels: list[Tensor], *, ref: int, supp: int) -> Tensor:
        """The flow (1, 2, H, W) of the finest level, from frame `supp` of the pyramid to frame `ref`."""
        num_layers = len(self._flow_levels[0])
        widths = [self._kernels.padded(8), *(layer.channels_out for layer in self._flow_levels[0])]
        _, _, height, width = levels[-1].shape
        even, odd = (height * width * max(widths[side::2]) for side in (0, 1))
        spaces = self._space(even + odd)
        maps = (spaces, spaces + 4 * even)
        operations = np.zeros((len(levels), 1 + num_layers), OPERATION)
        flows: list[Tensor] = []
        for level, frames, layers in zip(operations, levels, self._flow_levels, strict=True):
            level["height"], level["width"], level["stop"] = frames.shape[2], frames.shape[3], frames.shape[2]
            begin, convolutions = level[0], level[1:]
            begin["kind"], begin["target"], begin["target_stride"] = FLOW_INPUT, maps[0], widths[0]
            begin["residual"], begin["source"] = frames[ref].data_ptr(), frames[supp].data_ptr()
            begin["second"] = flows[-1].data_ptr() if flows else 0
            flows.append(frames.new_empty(1, 2, *frames.shape[2:]))
            begin["second_target"] = flows[-1].data_ptr()
            convolutions["kind"], convolutions["store_as"] = CONV7, TO_MAP
            convolutions["weights"] = [layer.weights.data_ptr() for layer in layers]
            convolutions["bias"] = [layer.bias.data_ptr() for layer in layers]
            convolutions["channels_in"] = [layer.channels_in for layer in layers]
            convolutions["source_stride"] = widths[:-1]
            convolutions["channels_out"] = convolutions["target_stride"] = widths[1:]
            convolutions["source"] = [maps[i % 2] for i in range(num_layers)]
            convolutions["target"] = [maps[(i + 1) % 2] for i in range(num_layers)]
            last = convolutions[-1]
            last["store_as"], last["planes"], last["slope"] = ADD_TO_PLANES, 2, 1.0
            last["target"] = flows[-1].data_ptr()
        self._kernels.run(operations.ravel())
        return flows[-1]

    def _trunk(
        self, trunk: list[_Convolution], frame: Tensor, state: Tensor | None, flow: Tensor | None, target: Tensor
    ) -> _Operations:
        """From a frame's planes and the state it comes to: the trunk's output in `target`."""
        height, width = frame.shape[-2:]
        lanes, out = self._kernels.lanes, trunk[0].channels_out
        state_channels = trunk[0].channels_in - 3
        # The trunk's input and, after it was read, what is inside of a residual block.
        shared = self._space(height * width * max(state_channels + lanes, out))
        operations = np.zeros(1 + len(trunk), OPERATION)
        operations["height"], operations["width"], operations["stop"] = height, width, height

        gather = operations[0]
        gather["kind"] = GATHER
        gather["channels_in"] = gather["source_stride"] = state_channels
        gather["target_stride"] = state_channels + lanes
        gather["residual"], gather["target"] = frame.data_ptr(), shared
        if state is not None and flow is not None:
            gather["source"], gather["second"] = state.data_ptr(), flow.data_ptr()

        convolutions = operations[1:]
        convolutions["kind"], convolutions["store_as"] = CONV3, TO_MAP
        convolutions["weights"] = [one.weights.data_ptr() for one in trunk]
        convolutions["bias"] = [one.bias.data_ptr() for one in trunk]
        convolutions["channels_in"] = [one.channels_in for one in trunk]
        convolutions["channels_out"] = convolutions["target_stride"] = convolutions["source_stride"] = out
        first, inner, outer = convolutions[0], convolutions[1::2], convolutions[2::2]
        first["source"], first["source_stride"], first["slope"] = shared, state_channels + lanes, 0.1
        first["target"] = target.data_ptr()
        inner["source"], inner["target"], inner["slope"] = target.data_ptr(), shared, 0.0
        outer["source"], outer["target"], outer["slope"] = shared, target.data_ptr(), 1.0
        outer["residual"] = target.data_ptr()  # each value is read just before it is replaced
        return operations

    def _reconstruct_band(self, hr: Tensor, backward: Tensor, forward: Tensor, first: int, stop: int) -> None:
        """Rows [first, stop) of the low resolution. Each map has as many rows more as the next convolution sees."""
        height, width = backward.shape[:2]

        def rows(scale: int, more: int) -> tuple[int, int]:
            return max(first * scale - more, 0), min(stop * scale + more, height * scale)

        fused, quarter, shuffled, last = rows(1, 2), rows(1, 1), rows(2, 1), rows(4, 1)
        channels = (
            self._fusion.channels_out,
            self._up[0].channels_out // 4,
            self._up[1].channels_out // 4,
            self._hr.channels_out,
        )
        scales = (1, 2, 4, 4)
        first_rows = (fused[0], 2 * quarter[0], 2 * shuffled[0], last[0])
        num_rows = (
            fused[1] - fused[0],
            2 * (quarter[1] - quarter[0]),
            2 * (shuffled[1] - shuffled[0]),
            last[1] - last[0],
        )
        sizes = [n * width * s * c for n, s, c in zip(num_rows, scales, channels, strict=True)]
        address = self._space(sum(sizes))
        maps = []
        for size in sizes:
            maps.append(address)
            address += 4 * size

        operations = np.zeros(5, OPERATION)
        operations["slope"] = 0.1
        fusion, up1, up2, conv_hr, conv_last = operations
        fusion["kind"] = CONV1
        fusion["source"], fusion["second"] = backward.data_ptr(), forward.data_ptr()
        for operation, convolution, source_at, store_as in (
            (fusion, self._fusion, None, TO_MAP),
            (up1, self._up[0], 0, TO_SHUFFLED_MAP),
            (up2, self._up[1], 1, TO_SHUFFLED_MAP),
            (conv_hr, self._hr, 2, TO_MAP),
            (conv_last, self._last, 3, ADD_TO_PLANES),
        ):
            operation["store_as"] = store_as
            operation["weights"], operation["bias"] = convolution.weights.data_ptr(), convolution.bias.data_ptr()
            operation["channels_in"], operation["channels_out"] = convolution.channels_in, convolution.channels_out
            scale = 1 if source_at is None else scales[source_at]
            operation["height"], operation["width"] = height * scale, width * scale
            if source_at is not None:
                operation["source"], operation["source_first"] = maps[source_at], first_rows[source_at]
                operation["source_stride"] = channels[source_at]
        fusion["source_stride"] = fusion["channels_in"]
        for operation, (begin, end), target in (
            (fusion, fused, 0),
            (up1, quarter, 1),
            (up2, shuffled, 2),
            (conv_hr, last, 3),
        ):
            operation["first"] = operation["target_first"] = begin
            operation["stop"], operation["target"], operation["target_stride"] = end, maps[target], channels[target]
        conv_last["slope"] = 1.0
        conv_last["first"], conv_last["stop"] = first * SCALE, stop * SCALE
        conv_last["target"], conv_last["planes"] = hr.data_ptr(), 3
        self._kernels.run(operations)

    def _convolve(
        self,
        convolution: _Convolution,
        source: Tensor,
        target: Tensor,
        height: int,
        width: int,
        *,
        store_as: int,
        slope: float,
    ) -> _Operations:
        operations = np.zeros(1, OPERATION)
        operation = operations[0]
        operation["kind"], operation["store_as"], operation["slope"] = CONV3, store_as, slope
        operation["height"], operation["width"], operation["stop"] = height, width, height
        operation["channels_in"], operation["source_stride"] = convolution.channels_in, source.shape[-1]
        operation["channels_out"] = convolution.channels_out
        operation["planes"] = 3
        operation["weights"], operation["bias"] = convolution.weights.data_ptr(), convolution.bias.data_ptr()
        operation["source"], operation["target"] = source.data_ptr(), target.data_ptr()
        return operations

    def _space(self, num_floats: int) -> int:
        """The address of so much scratch memory; it is overwritten by the next step."""
        if self._arena.numel() < num_floats:
            self._arena = torch.empty(0)  # first let go of the old one
            self._arena = torch.empty(num_floats)
        return self._arena.data_ptr()

    # ---- weights -----------------------------------------------------------------------------------------------------

    def _pack(self, conv: nn.Conv2d, *, groups: int = 1, state_channels: int | None = None) -> _Convolution:
        """Winograd weights of a 3x3 or 7x7 convolution, (36 or 64, panels, channels in, lanes).

        groups=4: its output is shuffled, and comes quarter by quarter. state_channels: its input is the frame and a
        state of so many channels, and the map that `gather` makes has the padded state first.
        """
        weight, bias = conv.weight.detach().double(), conv.bias
        assert bias is not None
        if state_channels is not None:
            frame, state = weight[:, :3], weight[:, 3:]
            more = self._kernels.padded(state_channels) - state_channels
            weight = torch.cat((F.pad(state, (0, 0, 0, 0, 0, more)), frame), dim=1)
        bias = bias.detach()
        channels_in = weight.shape[1]
        if groups > 1:
            weight = weight.view(-1, groups, *weight.shape[1:]).transpose(0, 1)
            bias = bias.view(-1, groups).transpose(0, 1)
        else:
            weight, bias = weight[None], bias[None]
        more = self._kernels.padded(weight.shape[1]) - weight.shape[1]
        weight = F.pad(weight, (0, 0, 0, 0, 0, 0, 0, more)).flatten(0, 1)
        bias = F.pad(bias, (0, more)).flatten()
        matrix = _WINOGRAD_G if weight.shape[-1] == 3 else _WINOGRAD_G7
        transform = torch.tensor(matrix, dtype=torch.float64)
        points = torch.einsum("ay,nkyx,bx->abnk", transform, weight, transform).flatten(0, 1)
        panels = points.view(len(points), -1, self._kernels.lanes, channels_in).transpose(2, 3)
        return _Convolution(panels.float().contiguous(), bias.float().contiguous(), channels_in, len(bias))

    def _pack_trunk(self, trunk: ResidualTrunk, *, state_channels: int) -> list[_Convolution]:
        first, _, blocks = trunk.main
        assert isinstance(first, nn.Conv2d)
        assert isinstance(blocks, nn.Sequential)
        inside: list[nn.Conv2d] = [conv for block in blocks for conv in (block.conv1, block.conv2)]  # type: ignore[misc]
        return [self._pack(first, state_channels=state_channels), *(self._pack(conv) for conv in inside)]

    def _pack_level(self, level: nn.Module) -> list[_Convolution]:
        convolutions = [module for module in level.modules() if isinstance(module, nn.Conv2d)]
        return [self._pack(conv) for conv in convolutions]

    def _pack_fusion(self, conv: nn.Conv2d) -> _Convolution:
        """The weights of the two maps, (2, panels, padded channels of one, lanes)."""
        assert conv.bias is not None
        lanes, mid = self._kernels.lanes, self._sizes.mid_channels
        weight = conv.weight.detach().view(-1, 2, mid)
        more_out, more_in = self._kernels.padded(len(weight)) - len(weight), self._kernels.padded(mid) - mid
        weight = F.pad(weight, (0, more_in, 0, 0, 0, more_out))
        panels = weight.view(-1, lanes, 2, mid + more_in).permute(2, 0, 3, 1)
        bias = F.pad(conv.bias.detach(), (0, more_out))
        return _Convolution(panels.float().contiguous(), bias.float().contiguous(), mid + more_in, len(bias))
