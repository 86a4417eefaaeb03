"""The steps of RealBasicVSR with our own kernels: the same values but for rounding, three times as fast."""

import itertools
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsrealbasicvsr.model import SCALE, RealBasicVSR, SPyNet
from vsrealbasicvsr.model.network import ResidualTrunk

from .library import (
    CONV1,
    CONV3,
    CONV7,
    DOT3,
    DOT7,
    ENLARGE,
    FLOW_INPUT,
    GATHER,
    OPERATION,
    TO_MAP,
    TO_SHUFFLED_MAP,
    Kernels,
)
from .pages import drop_spare_pages, empty_pages, is_large

BAND_PX = 8_192
"""Low-resolution pixels reconstructed at once: their maps of S * S pixels stay near the processor."""
MIN_BAND_ROWS = 8

MAX_SCRATCH_BYTES = 512 * 2**20
"""Of the maps of a trunk or of the flow network. Frames beyond are worked on in bands: 1920x1080 in three parts."""

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


@dataclass(frozen=True, slots=True)
class _Band:
    """Rows [first, stop) of a frame, and those that are seen to make them."""

    first: int
    stop: int
    seen_first: int
    seen_stop: int


type _Propagation = tuple[Tensor, Tensor | None, Tensor | None]


class KernelNetwork:
    """The steps of a RealBasicVSR on the CPU in float32; those of the model, under the same names.

    States are maps: (H, W, C) with C padded as the kernels want it, so they are this network's own affair. Frames are
    worked on in bands of rows, each with as many rows more on both sides as its convolutions see, so that the scratch
    memory stays bounded; in which bands follows from the frame's size (or from `max_rows`) alone. One thread at a time
    may call.
    """

    notes: Sequence[str] = ()

    def __init__(self, model: RealBasicVSR, kernels: Kernels, *, max_rows: int | None = None) -> None:
        """max_rows: rows of a band at most, for cleaning, flow and propagation; None: as MAX_SCRATCH_BYTES allows."""
        sizes = model.sizes
        self._kernels = kernels
        self._sizes = sizes
        self.max_rows = max_rows
        # Of the flow network itself only the pyramid's sizes and constants are used.
        spynet = model.basicvsr.spynet
        self._flow_levels = [self._pack_level(level) for level in spynet.basic_module]
        with torch.device("meta"):  # no weights, and no random numbers from the user's generator
            self._flow = SPyNet(len(self._flow_levels), stride=sizes.flow_stride)
        self._flow.mean, self._flow.std = spynet.mean.cpu(), spynet.std.cpu()
        cleaning, last = model.image_cleaning
        assert isinstance(cleaning, ResidualTrunk)
        assert isinstance(last, nn.Conv2d)
        self._cleaning = self._pack_trunk(cleaning, state_channels=0)
        self._cleaning_last = self._pack_dot(last)
        vsr = model.basicvsr
        self._backward = self._pack_trunk(vsr.backward_resblocks, state_channels=sizes.mid_channels)
        self._forward = self._pack_trunk(vsr.forward_resblocks, state_channels=sizes.mid_channels)
        self._fusion = self._pack_fusion(vsr.fusion)
        self._up = [self._pack(up.upsample_conv, groups=4) for up in (vsr.upsample1, vsr.upsample2)]
        self._hr, self._last = self._pack(vsr.conv_hr), self._pack_dot(vsr.conv_last)
        self._arena = torch.empty(0)
        self._pyramids: list[tuple[Tensor, list[Tensor]]] = []
        weakref.finalize(self, drop_spare_pages).atexit = False

    # ---- the steps ---------------------------------------------------------------------------------------------------

    def num_abreast(self, height: int, width: int) -> int:
        """One frame at a time, of any size, keeps a CPU busy."""
        return 1

    def cleaning_residue(self, frames: Tensor) -> Tensor:
        """What one cleaning pass adds: (B, 3, H, W) to the same."""
        residues = torch.zeros_like(frames, memory_format=torch.contiguous_format)
        _, _, height, width = frames.shape
        for frame, residue in zip(frames, residues, strict=True):
            planes = frame.contiguous()
            for band in self._bands(height, width, self._cleaning, more_reach=1):
                operations, features = self._trunk(self._cleaning, planes, None, None, band)
                last = np.zeros(1, OPERATION)
                self._set_convolution(last, self._cleaning_last, DOT3)
                last["height"], last["width"] = band.seen_stop - band.seen_first, width
                last["first"], last["stop"] = band.first - band.seen_first, band.stop - band.seen_first
                last["source"], last["source_stride"] = features.data_ptr(), features.shape[-1]
                self._set_planes(last, residue, band)
                self._kernels.run(np.concatenate((operations, last)))
        return residues

    def flow(self, ref: Tensor, supp: Tensor) -> Tensor:
        """The flow (1, 2, H, W) that aligns the state of `supp` to `ref`, two cleaned frames."""
        levels = list(zip(self._pyramid(ref), self._pyramid(supp), self._flow_levels, strict=True))
        bands = [self._flow_bands(layers, *level.shape[-2:]) for level, _, layers in levels]
        maps = self._space(*(max(sizes) for sizes in zip(*(sizes for _, sizes in bands), strict=True)))
        flows: list[Tensor] = []
        operations: list[_Operations] = []
        for (level_ref, level_supp, layers), (cut, _) in zip(levels, bands, strict=True):
            coarser = flows[-1] if flows else None
            flow = level_ref.new_empty(1, 2, *level_ref.shape[-2:])
            flows.append(flow)
            operations += [
                self._flow_level(layers, level_ref[0], level_supp[0], coarser, flow, band, maps) for band in cut
            ]
        self._kernels.run(np.concatenate(operations))
        return self._flow.resized(flows[-1], *ref.shape[-2:])

    def propagate_backward(self, cleaned: Tensor, state: Tensor | None, flow_px: Tensor | None) -> Tensor:
        """The backward state of a frame (1, 3, H, W), from that of the frame after it."""
        return self._propagate(self._backward, cleaned, state, flow_px)

    def propagate_forward(self, cleaned: Tensor, state: Tensor | None, flow_px: Tensor | None) -> Tensor:
        """The forward state of a frame (1, 3, H, W), from that of the frame before it."""
        return self._propagate(self._forward, cleaned, state, flow_px)

    def propagate_both(self, backward: _Propagation, forward: _Propagation) -> tuple[Tensor, Tensor]:
        """Both directions, one after the other."""
        return self.propagate_backward(*backward), self.propagate_forward(*forward)

    def reconstruct(
        self, cleaned: Tensor, backward_state: Tensor, forward_state: Tensor
    ) -> Iterator[tuple[int, Tensor]]:
        """The high-resolution frame from top to bottom: (first row, (3, rows, S*W)), of a frame (1, 3, H, W)."""
        height, width = cleaned.shape[-2:]
        rows = max(BAND_PX // width, MIN_BAND_ROWS)
        planes = cleaned[0].contiguous()
        for first in range(0, height, rows):
            stop = min(first + rows, height)
            hr = torch.empty(3, (stop - first) * SCALE, width * SCALE)
            self._reconstruct_band(hr, planes, backward_state, forward_state, first, stop)
            yield first * SCALE, hr

    def release(self) -> None:
        """Give the scratch memory back; it is made again when it is needed."""
        self._arena = torch.empty(0)
        self._pyramids = []
        drop_spare_pages()

    # ---- how they are made -------------------------------------------------------------------------------------------

    def _bands(self, height: int, width: int, trunk: list[_Convolution], *, more_reach: int = 0) -> list[_Band]:
        """The bands for a trunk: each 3x3 convolution sees one row more. more_reach: of what comes after it."""
        channels = max(trunk[0].channels_in - 3 + self._kernels.lanes, trunk[0].channels_out) + trunk[0].channels_out
        return self._cut(height, width, reach=len(trunk) + more_reach, floats_per_px=channels)

    def _cut(self, height: int, width: int, *, reach: int, floats_per_px: int) -> list[_Band]:
        most = max(MAX_SCRATCH_BYTES // (4 * floats_per_px * width) - 2 * reach, reach, MIN_BAND_ROWS)
        if self.max_rows is not None:
            most = min(most, self.max_rows)
        num = -(-height // most)
        rows = -(-height // num)
        return [
            _Band(first, stop, max(first - reach, 0), min(stop + reach, height))
            for first in range(0, height, rows)
            for stop in (min(first + rows, height),)
        ]

    def _propagate(
        self, trunk: list[_Convolution], cleaned: Tensor, state: Tensor | None, flow_px: Tensor | None
    ) -> Tensor:
        if state is None and self._sizes.start_passes:
            no_motion = torch.zeros(1, 2, *cleaned.shape[-2:])
            for _ in range(self._sizes.start_passes):
                state = self._step(trunk, cleaned, state, no_motion)
            flow_px = no_motion
        return self._step(trunk, cleaned, state, flow_px)

    def _step(self, trunk: list[_Convolution], cleaned: Tensor, state: Tensor | None, flow_px: Tensor | None) -> Tensor:
        height, width = cleaned.shape[-2:]
        dtype = torch.float16 if is_large(height, width) else torch.float32
        # Of large frames the memory counts more than the time, which is a smaller part there.
        made = empty_pages((height, width, trunk[0].channels_out), dtype, recycles=dtype == torch.float32)
        flow = flow_px.contiguous() if flow_px is not None and state is not None else None
        planes = cleaned[0].contiguous()
        bands = self._bands(height, width, trunk)
        if len(bands) == 1 and dtype == torch.float32:
            self._kernels.run(self._trunk(trunk, planes, state, flow, bands[0], into=made)[0])
            return made
        for band in bands:
            operations, features = self._trunk(trunk, planes, state, flow, band)
            self._kernels.run(operations)
            made[band.first : band.stop] = features[band.first - band.seen_first : band.stop - band.seen_first]
        return made

    def _trunk(
        self,
        trunk: list[_Convolution],
        frame: Tensor,
        state: Tensor | None,
        flow: Tensor | None,
        band: _Band,
        into: Tensor | None = None,
    ) -> tuple[_Operations, Tensor]:
        """From a frame's planes and the state it comes to: the trunk's output, (rows seen, W, C).

        It is made in `into`, or else in scratch memory.
        """
        height, width = frame.shape[-2:]
        rows = band.seen_stop - band.seen_first
        lanes, out = self._kernels.lanes, trunk[0].channels_out
        state_channels = trunk[0].channels_in - 3
        # The trunk's input and, after it was read, what is inside of a residual block.
        shared, scratch = self._space(
            rows * width * max(state_channels + lanes, out), 0 if into is not None else rows * width * out
        )
        features = scratch if into is None else into
        operations = np.zeros(1 + len(trunk), OPERATION)

        gather = operations[:1]
        gather["kind"], gather["height"], gather["width"] = GATHER, height, width
        gather["first"], gather["stop"], gather["target_first"] = band.seen_first, band.seen_stop, band.seen_first
        gather["channels_in"] = gather["source_stride"] = state_channels
        gather["target_stride"] = state_channels + lanes
        gather["residual"], gather["target"] = frame.data_ptr(), shared.data_ptr()
        if state is not None and flow is not None:
            gather["source"], gather["second"] = state.data_ptr(), flow.data_ptr()
            gather["half_source"] = state.dtype == torch.float16

        convolutions = operations[1:]
        self._set_convolution(convolutions, trunk, CONV3)
        convolutions["height"], convolutions["width"], convolutions["stop"] = rows, width, rows
        convolutions["target_stride"] = convolutions["source_stride"] = out
        first, inner, outer = convolutions[:1], convolutions[1::2], convolutions[2::2]
        first["source"], first["source_stride"], first["slope"] = shared.data_ptr(), state_channels + lanes, 0.1
        first["target"] = features.data_ptr()
        inner["source"], inner["target"], inner["slope"] = features.data_ptr(), shared.data_ptr(), 0.0
        outer["source"], outer["target"], outer["slope"] = shared.data_ptr(), features.data_ptr(), 1.0
        outer["residual"] = features.data_ptr()  # each value is read just before it is replaced
        return operations, features.view(rows, width, out)

    def _pyramid(self, frame: Tensor) -> list[Tensor]:
        """What each level of the flow network sees of a frame. Those of the last two frames are held: the next flow is
        one of their neighbours'.
        """
        for known, levels in self._pyramids:
            if known is frame:
                return levels
        levels = self._flow.pyramid(frame.contiguous())
        if not is_large(*frame.shape[-2:]):  # large frames are unpacked anew each time
            self._pyramids = [(frame, levels), *self._pyramids[:1]]
        return levels

    def _flow_bands(self, layers: list[_Convolution], height: int, width: int) -> tuple[list[_Band], tuple[int, int]]:
        """The bands of a level, and the floats of its maps: they are held in turns, in two places."""
        channels = [self._kernels.padded(8), *(layer.channels_out for layer in layers)]
        places = max(channels[0:-1:2]), max(channels[1:-1:2], default=0)
        bands = self._cut(height, width, reach=3 * len(layers), floats_per_px=sum(places))
        most_px = max(band.seen_stop - band.seen_first for band in bands) * width
        return bands, (most_px * places[0], most_px * places[1])

    def _flow_level(
        self,
        layers: list[_Convolution],
        ref: Tensor,
        supp: Tensor,
        coarser: Tensor | None,
        flow: Tensor,
        band: _Band,
        maps: list[Tensor],
    ) -> _Operations:
        """From two frames (3, h, w) and the flow of the level below: a band of this level's `flow` (1, 2, h, w)."""
        _, height, width = ref.shape
        rows = band.seen_stop - band.seen_first
        channels = [self._kernels.padded(8), *(layer.channels_out for layer in layers)]
        operations = np.zeros(1 + len(layers), OPERATION)
        begin = operations[:1]
        begin["kind"], begin["height"], begin["width"] = FLOW_INPUT, height, width
        begin["first"], begin["stop"], begin["target_first"] = band.seen_first, band.seen_stop, band.seen_first
        begin["kept_first"], begin["kept_stop"], begin["second_target"] = band.first, band.stop, flow.data_ptr()
        begin["residual"], begin["source"] = ref.data_ptr(), supp.data_ptr()
        begin["second"] = coarser.data_ptr() if coarser is not None else 0
        begin["target"], begin["target_stride"] = maps[0].data_ptr(), channels[0]
        convolutions = operations[1:]
        self._set_convolution(convolutions, layers, CONV7)
        convolutions["height"], convolutions["width"], convolutions["stop"] = rows, width, rows
        convolutions["source"] = [maps[i % 2].data_ptr() for i in range(len(layers))]
        convolutions["target"] = [maps[(i + 1) % 2].data_ptr() for i in range(len(layers))]
        convolutions["source_stride"], convolutions["target_stride"] = channels[:-1], channels[1:]
        last = convolutions[-1:]
        last["kind"] = DOT7
        last["first"], last["stop"] = band.first - band.seen_first, band.stop - band.seen_first
        self._set_planes(last, flow[0], band)
        return operations

    def _reconstruct_band(
        self, hr: Tensor, cleaned: Tensor, backward: Tensor, forward: Tensor, first: int, stop: int
    ) -> None:
        """Rows [first, stop) of the low resolution, in `hr`, (3, S*(stop - first), S*W).

        Each map on the way has as many rows more as the next convolution sees.
        """
        height, width = backward.shape[:2]

        def rows(scale: int, more: int) -> tuple[int, int]:
            return max(first * scale - more, 0), min(stop * scale + more, height * scale)

        # Of each map: its scale, the rows of it that are made, and its channels. Those that a pixel shuffle makes are
        # made in pairs of rows.
        layers = (
            (1, self._fusion, self._fusion.channels_out, rows(1, 2)),
            (1, self._up[0], self._up[0].channels_out // 4, rows(1, 1)),
            (2, self._up[1], self._up[1].channels_out // 4, rows(2, 1)),
            (4, self._hr, self._hr.channels_out, rows(4, 1)),
            (4, self._last, 0, rows(4, 0)),
        )
        scales_made = (1, 2, 4, 4)
        maps = self._space(
            *(
                (end - begin) * (made // scale) * width * made * channels
                for (scale, _, channels, (begin, end)), made in zip(layers[:-1], scales_made, strict=True)
            )
        )
        everything = np.zeros(1 + len(layers), OPERATION)
        enlarge, operations = everything[:1], everything[1:]
        enlarge["kind"], enlarge["height"], enlarge["width"] = ENLARGE, height, width
        enlarge["first"] = enlarge["target_first"] = first * SCALE
        enlarge["stop"], enlarge["target_stride"] = stop * SCALE, hr[0].numel()
        enlarge["source"], enlarge["target"] = cleaned.data_ptr(), hr.data_ptr()
        for i, (scale, convolution, channels, (begin, end)) in enumerate(layers):
            operation = operations[i : i + 1]
            self._set_convolution(operation, convolution, CONV3)
            operation["height"], operation["width"] = height * scale, width * scale
            operation["first"], operation["stop"], operation["target_first"] = begin, end, begin
            operation["slope"] = 0.1
            if i > 0:
                _, _, source_channels, (source_begin, _) = layers[i - 1]
                operation["source"], operation["source_stride"] = maps[i - 1].data_ptr(), source_channels
                operation["source_first"] = source_begin * scale // layers[i - 1][0]
            if i < len(maps):
                operation["target"], operation["target_stride"] = maps[i].data_ptr(), channels
        fusion, up, last = operations[:1], operations[1:3], operations[-1:]
        fusion["kind"], fusion["source_stride"] = CONV1, self._fusion.channels_in
        fusion["source"], fusion["second"] = backward.data_ptr(), forward.data_ptr()
        fusion["half_source"] = backward.dtype == torch.float16
        up["store_as"] = TO_SHUFFLED_MAP
        last["kind"], last["target"], last["target_stride"] = DOT3, hr.data_ptr(), hr[0].numel()
        self._kernels.run(everything)

    def _set_convolution(
        self, operations: _Operations, convolutions: _Convolution | list[_Convolution], kind: int
    ) -> None:
        """Kind, weights and numbers of channels of as many operations, ReLUs (slope 0) that write maps."""
        several = convolutions if isinstance(convolutions, list) else [convolutions]
        operations["kind"], operations["store_as"] = kind, TO_MAP
        operations["weights"] = [one.weights.data_ptr() for one in several]
        operations["bias"] = [one.bias.data_ptr() for one in several]
        operations["channels_in"] = [one.channels_in for one in several]
        operations["channels_out"] = [one.channels_out for one in several]

    def _set_planes(self, operation: _Operations, planes: Tensor, band: _Band) -> None:
        """The operation, whose rows are counted in what the band sees, adds to these planes (3 or 2, H, W)."""
        _, height, width = planes.shape
        operation["target_stride"] = height * width
        operation["target"], operation["target_first"] = planes.data_ptr(), -band.seen_first

    def _space(self, *sizes: int) -> list[Tensor]:
        """Scratch memory of so many floats each; the next step overwrites it."""
        if self._arena.numel() < sum(sizes):
            self._arena = torch.empty(0)  # first let go of the old one
            self._arena = empty_pages((sum(sizes),), torch.float32)
        ends = list(itertools.accumulate(sizes))
        return [self._arena[end - size : end] for size, end in zip(sizes, ends, strict=True)]

    # ---- weights -----------------------------------------------------------------------------------------------------

    def _pack(self, conv: nn.Conv2d, *, groups: int = 1, state_channels: int | None = None) -> _Convolution:
        """Winograd weights of a 3x3 or 7x7 convolution, (36 or 64, panels, channels in, lanes).

        groups=4: its output is shuffled, and comes quarter by quarter. state_channels: its input is the frame and a
        state of so many channels, and the map that `gather` makes has the padded state first.
        """
        weight, bias = conv.weight.detach().cpu().double(), conv.bias
        assert bias is not None
        if state_channels is not None:
            frame, state = weight[:, :3], weight[:, 3:]
            more = self._kernels.padded(state_channels) - state_channels
            weight = torch.cat((F.pad(state, (0, 0, 0, 0, 0, more)), frame), dim=1)
        bias = bias.detach().cpu()
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
        *inner, last = (module for module in level.modules() if isinstance(module, nn.Conv2d))
        return [*(self._pack(conv) for conv in inner), self._pack_dot(last)]

    def _pack_dot(self, conv: nn.Conv2d) -> _Convolution:
        """The weights of a convolution to planes, (planes, taps, taps, padded channels in)."""
        assert conv.bias is not None
        weight = conv.weight.detach().cpu().permute(0, 2, 3, 1)
        more = self._kernels.padded(weight.shape[-1]) - weight.shape[-1]
        weight = F.pad(weight, (0, more)).float().contiguous()
        return _Convolution(weight, conv.bias.detach().cpu().float().contiguous(), weight.shape[-1], len(weight))

    def _pack_fusion(self, conv: nn.Conv2d) -> _Convolution:
        """The weights of the two maps, (2, panels, padded channels of one, lanes)."""
        assert conv.bias is not None
        lanes, mid = self._kernels.lanes, self._sizes.mid_channels
        weight = conv.weight.detach().cpu().reshape(-1, 2, mid)
        more_out, more_in = self._kernels.padded(len(weight)) - len(weight), self._kernels.padded(mid) - mid
        weight = F.pad(weight, (0, more_in, 0, 0, 0, more_out))
        panels = weight.view(-1, lanes, 2, mid + more_in).permute(2, 0, 3, 1)
        bias = F.pad(conv.bias.detach().cpu(), (0, more_out))
        return _Convolution(panels.float().contiguous(), bias.float().contiguous(), mid + more_in, len(bias))
