"""The CPU backend: the network's steps with our own convolutions in C, equal to torch's but for rounding."""

import itertools
import weakref
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from vsrealbasicvsr.model import RealBasicVSR, SPyNet
from vsrealbasicvsr.model.cleaning_levels import residue_of_levels
from vsrealbasicvsr.model.network import ResidualTrunk

from ..base import PropagationInputs, Tile, even_rows, is_large, split_into_tiles
from ..memory import return_freed_memory
from ..torch import TorchBackend, create_torch_backend
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
    TO_SHUFFLED_MAP,
    Kernels,
    load_kernels,
)
from .operations import Operations, set_convolution, set_planes
from .packing import PackedConvolution, Packer
from .pages import drop_spare_pages, empty_pages

_SCALE = 4
"""Scale of the kernels: bilinear enlargement by 4 and two pixel shuffles by 2."""
MAX_RECONSTRUCTION_PX = 8_192
"""Maximum low-resolution pixels of a tile while frames are reconstructed: feature maps of S * S pixels for each of them
stay in the processor's caches."""

MIN_TILE_ROWS = 8
"""Minimum height of a tile in low-resolution rows, unless the caller asks for less: below, most of the work is halo."""

MAX_SCRATCH_BYTES = 512 * 2**20
"""Maximum memory for the feature maps of a trunk or of the flow network. Larger frames are tiled: 1920x1080 in 3."""


def create_cpu_backend(
    model: RealBasicVSR, device: torch.device, dtype: torch.dtype, *, max_tile_rows: int | None = None
) -> "CpuBackend | TorchBackend":
    """Create the CPU's backend: our own kernels for float32 where the processor has them, else torch's operations.

    See `BackendFactory`. Raises UserError if the variable RBVSR_KERNELS names kernels that do not exist.
    """
    kernels = load_kernels() if dtype == torch.float32 else None
    if kernels is None:
        return create_torch_backend(model, device, dtype, max_tile_rows=max_tile_rows)
    backend = CpuBackend(model, kernels, max_tile_rows=max_tile_rows)
    return_freed_memory()  # of the packing
    return backend


class CpuBackend:
    """The steps of a RealBasicVSR on the CPU in float32. See `Backend` for the contract.

    Hidden states are maps (H, W, C), with C padded to a multiple of the kernels' lanes. Frames are processed in tiles,
    so that scratch memory stays bounded; the tiles follow from the frame's size (or from `max_tile_rows`) alone.
    """

    notes: Sequence[str] = ()

    def __init__(self, model: RealBasicVSR, kernels: Kernels, *, max_tile_rows: int | None = None) -> None:
        """Pack the model's weights; the model itself is not kept.

        Args:
            model: The network.
            kernels: The compiled kernels to compute with.
            max_tile_rows: Maximum height of a tile for cleaning, flow and propagation. None: MAX_SCRATCH_BYTES decides.
        """
        sizes = model.sizes
        if sizes.scale != _SCALE:
            raise ValueError(f"CpuBackend: the kernels enlarge by {_SCALE}, got a network with scale {sizes.scale}")
        self._kernels = kernels
        self.max_tile_rows = max_tile_rows
        packer = Packer(kernels.lanes)
        # Of the flow network itself only the pyramid's sizes and constants are used.
        spynet = model.basicvsr.spynet
        self._flow_levels = [packer.flow_level(level) for level in spynet.basic_module]
        with torch.device("meta"):  # no weights, and no random numbers from the user's generator
            self._flow = SPyNet(len(self._flow_levels), stride=sizes.flow_stride)
        self._flow.mean, self._flow.std = spynet.mean.cpu().clone(), spynet.std.cpu().clone()
        cleaning, last = model.image_cleaning
        assert isinstance(cleaning, ResidualTrunk)
        assert isinstance(last, nn.Conv2d)
        self._cleaning = packer.trunk(cleaning, state_channels=0)
        self._cleaning_last = packer.to_planes(last)
        self._num_cleaning_levels = sizes.num_cleaning_levels
        vsr, channels = model.basicvsr, sizes.mid_channels
        self._backward = packer.trunk(vsr.backward_resblocks, state_channels=channels)
        self._forward = packer.trunk(vsr.forward_resblocks, state_channels=channels)
        self._fusion = packer.fusion(vsr.fusion, state_channels=channels)
        self._up = [packer.convolution(up.upsample_conv, groups=4) for up in (vsr.upsample1, vsr.upsample2)]
        self._hr, self._last = packer.convolution(vsr.conv_hr), packer.to_planes(vsr.conv_last)
        self._arena = torch.empty(0)
        self._pyramids: list[tuple[Tensor, list[Tensor]]] = []
        weakref.finalize(self, drop_spare_pages).atexit = False

    # ---- the contract ------------------------------------------------------------------------------------------------

    def num_concurrent_frames(self, height: int, width: int) -> int:
        """Return 1: a single frame of any size keeps a CPU busy."""
        return 1

    def num_cleaned_together(self, height: int, width: int) -> int:
        """Return 1: there is no device to wait for."""
        return 1

    def cleaning_residue(self, frames: Tensor) -> Tensor:
        """Return what one cleaning pass adds to frames (B, 3, H, W), shaped like them."""
        return residue_of_levels(frames, self._num_cleaning_levels, self._cleaning_residue_of_size)

    def _cleaning_residue_of_size(self, frames: Tensor) -> Tensor:
        residues = torch.zeros_like(frames, memory_format=torch.contiguous_format)
        _, _, height, width = frames.shape
        for frame, residue in zip(frames, residues, strict=True):
            planes = frame.contiguous()
            for tile in self._trunk_tiles(height, width, self._cleaning, more_halo=1):
                operations, features = self._trunk(self._cleaning, planes, None, None, tile)
                last = np.zeros(1, OPERATION)
                set_convolution(last, self._cleaning_last, DOT3)
                last["height"], last["width"] = tile.num_read, width
                last["first"], last["stop"] = tile.inner.start, tile.inner.stop
                last["source"], last["source_stride"] = features.data_ptr(), features.shape[-1]
                set_planes(last, residue, tile)
                self._kernels.run(np.concatenate((operations, last)))
        return residues

    def flow(self, ref: Tensor, supp: Tensor) -> Tensor:
        """Return the flow (1, 2, H, W) that aligns the state of `supp` to `ref`, two cleaned frames."""
        levels = list(zip(self._pyramid(ref), self._pyramid(supp), self._flow_levels, strict=True))
        tilings = [self._flow_tiles(layers, *level.shape[-2:]) for level, _, layers in levels]
        maps = self._scratch(*(max(sizes) for sizes in zip(*(sizes for _, sizes in tilings), strict=True)))
        flows: list[Tensor] = []
        operations: list[Operations] = []
        for (level_ref, level_supp, layers), (tiles, _) in zip(levels, tilings, strict=True):
            coarser = flows[-1] if flows else None
            flow = level_ref.new_empty(1, 2, *level_ref.shape[-2:])
            flows.append(flow)
            operations += [
                self._flow_level(layers, level_ref[0], level_supp[0], coarser, flow, tile, maps) for tile in tiles
            ]
        self._kernels.run(np.concatenate(operations))
        return self._flow.resized(flows[-1], *ref.shape[-2:])

    def propagate_backward(self, cleaned: Tensor, state: Tensor | None, flow_px: Tensor | None) -> Tensor:
        """Return the backward state of a frame (1, 3, H, W), from the state of the frame after it."""
        return self._propagate(self._backward, cleaned, state, flow_px)

    def propagate_forward(self, cleaned: Tensor, state: Tensor | None, flow_px: Tensor | None) -> Tensor:
        """Return the forward state of a frame (1, 3, H, W), from the state of the frame before it."""
        return self._propagate(self._forward, cleaned, state, flow_px)

    def propagate_both(self, backward: PropagationInputs, forward: PropagationInputs) -> tuple[Tensor, Tensor]:
        """Compute both directions, one after the other."""
        return self.propagate_backward(*backward), self.propagate_forward(*forward)

    def reconstruct(
        self, cleaned: Tensor, backward_state: Tensor, forward_state: Tensor
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield the high-resolution frame from top to bottom: (first row, (3, rows, S*W)), of a frame (1, 3, H, W)."""
        height, width = cleaned.shape[-2:]
        rows = max(MAX_RECONSTRUCTION_PX // width, MIN_TILE_ROWS)
        planes = cleaned[0].contiguous()
        for first in range(0, height, rows):
            stop = min(first + rows, height)
            hr = torch.empty(3, (stop - first) * _SCALE, width * _SCALE)
            self._reconstruct_tile(hr, planes, backward_state, forward_state, first, stop)
            yield first * _SCALE, hr

    def release(self) -> None:
        """Free the scratch memory; it is allocated again when it is needed."""
        self._arena = torch.empty(0)
        self._pyramids = []
        drop_spare_pages()

    # ---- tiles and memory --------------------------------------------------------------------------------------------

    def _trunk_tiles(
        self, height: int, width: int, trunk: list[PackedConvolution], *, more_halo: int = 0
    ) -> list[Tile]:
        """Return the tiles for a trunk, whose halo is a row per 3x3 convolution and more_halo for what follows."""
        channels = max(trunk[0].channels_in - 3 + self._kernels.lanes, trunk[0].channels_out) + trunk[0].channels_out
        return self._tiles(height, width, halo=len(trunk) + more_halo, floats_per_px=channels)

    def _tiles(self, height: int, width: int, *, halo: int, floats_per_px: int) -> list[Tile]:
        max_rows = max(MAX_SCRATCH_BYTES // (4 * floats_per_px * width) - 2 * halo, halo, MIN_TILE_ROWS)
        if self.max_tile_rows is not None:
            max_rows = min(max_rows, self.max_tile_rows)
        return split_into_tiles(height, even_rows(height, max_rows), halo)

    def _flow_tiles(
        self, layers: list[PackedConvolution], height: int, width: int
    ) -> tuple[list[Tile], tuple[int, int]]:
        """Return the tiles of a level, and the floats of the two places in which its feature maps take turns."""
        channels = [self._kernels.padded(8), *(layer.channels_out for layer in layers)]
        places = max(channels[0:-1:2]), max(channels[1:-1:2], default=0)
        tiles = self._tiles(height, width, halo=3 * len(layers), floats_per_px=sum(places))
        max_px = max(tile.num_read for tile in tiles) * width
        return tiles, (max_px * places[0], max_px * places[1])

    def _scratch(self, *sizes: int) -> list[Tensor]:
        """Scratch memory of so many floats each; the next step overwrites it."""
        if self._arena.numel() < sum(sizes):
            self._arena = torch.empty(0)  # first let go of the old one
            self._arena = empty_pages((sum(sizes),), torch.float32)
        ends = list(itertools.accumulate(sizes))
        return [self._arena[end - size : end] for size, end in zip(sizes, ends, strict=True)]

    # ---- the steps as operations of the kernels ----------------------------------------------------------------------

    def _propagate(
        self, trunk: list[PackedConvolution], cleaned: Tensor, state: Tensor | None, flow_px: Tensor | None
    ) -> Tensor:
        if state is not None and flow_px is None:
            flow_px = torch.zeros(1, 2, *cleaned.shape[-2:])
        height, width = cleaned.shape[-2:]
        dtype = torch.float16 if is_large(height, width) else torch.float32
        # Of large frames the memory counts more than the time, which is a smaller part there.
        new_state = empty_pages((height, width, trunk[0].channels_out), dtype, recycles=dtype == torch.float32)
        flow = flow_px.contiguous() if flow_px is not None and state is not None else None
        planes = cleaned[0].contiguous()
        tiles = self._trunk_tiles(height, width, trunk)
        if len(tiles) == 1 and dtype == torch.float32:
            self._kernels.run(self._trunk(trunk, planes, state, flow, tiles[0], into=new_state)[0])
            return new_state
        for tile in tiles:
            operations, features = self._trunk(trunk, planes, state, flow, tile)
            self._kernels.run(operations)
            new_state[tile.first : tile.stop] = features[tile.inner]
        return new_state

    def _trunk(
        self,
        trunk: list[PackedConvolution],
        frame: Tensor,
        state: Tensor | None,
        flow: Tensor | None,
        tile: Tile,
        into: Tensor | None = None,
    ) -> tuple[Operations, Tensor]:
        """Return the operations of a trunk on a frame and a hidden state, and their output (rows read, W, C).

        The output is `into`, or scratch memory.
        """
        height, width = frame.shape[-2:]
        rows = tile.num_read
        lanes, out = self._kernels.lanes, trunk[0].channels_out
        state_channels = trunk[0].channels_in - 3
        # The trunk's input and, once it was read, the maps inside of residual blocks.
        shared, scratch = self._scratch(
            rows * width * max(state_channels + lanes, out), 0 if into is not None else rows * width * out
        )
        features = scratch if into is None else into
        operations = np.zeros(1 + len(trunk), OPERATION)

        gather = operations[:1]
        gather["kind"], gather["height"], gather["width"] = GATHER, height, width
        gather["first"], gather["stop"], gather["target_first"] = tile.read_first, tile.read_stop, tile.read_first
        gather["channels_in"] = gather["source_stride"] = state_channels
        gather["target_stride"] = state_channels + lanes
        gather["residual"], gather["target"] = frame.data_ptr(), shared.data_ptr()
        if state is not None and flow is not None:
            gather["source"], gather["second"] = state.data_ptr(), flow.data_ptr()
            gather["half_source"] = state.dtype == torch.float16

        convolutions = operations[1:]
        set_convolution(convolutions, trunk, CONV3)
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
        """Return a frame at every level of the flow network.

        The last two frames are cached: the next flow is between one of them and its neighbour.
        """
        for known, levels in self._pyramids:
            if known is frame:
                return levels
        levels = self._flow.pyramid(frame.contiguous())
        if not is_large(*frame.shape[-2:]):  # large frames are unpacked anew each time
            self._pyramids = [(frame, levels), *self._pyramids[:1]]
        return levels

    def _flow_level(
        self,
        layers: list[PackedConvolution],
        ref: Tensor,
        supp: Tensor,
        coarser: Tensor | None,
        flow: Tensor,
        tile: Tile,
        maps: list[Tensor],
    ) -> Operations:
        """Return the operations that compute a tile of a level's `flow` (1, 2, h, w).

        They read two frames (3, h, w) and the flow of the level below.
        """
        _, height, width = ref.shape
        rows = tile.num_read
        channels = [self._kernels.padded(8), *(layer.channels_out for layer in layers)]
        operations = np.zeros(1 + len(layers), OPERATION)
        begin = operations[:1]
        begin["kind"], begin["height"], begin["width"] = FLOW_INPUT, height, width
        begin["first"], begin["stop"], begin["target_first"] = tile.read_first, tile.read_stop, tile.read_first
        begin["kept_first"], begin["kept_stop"], begin["second_target"] = tile.first, tile.stop, flow.data_ptr()
        begin["residual"], begin["source"] = ref.data_ptr(), supp.data_ptr()
        begin["second"] = coarser.data_ptr() if coarser is not None else 0
        begin["target"], begin["target_stride"] = maps[0].data_ptr(), channels[0]
        convolutions = operations[1:]
        set_convolution(convolutions, layers, CONV7)
        convolutions["height"], convolutions["width"], convolutions["stop"] = rows, width, rows
        convolutions["source"] = [maps[i % 2].data_ptr() for i in range(len(layers))]
        convolutions["target"] = [maps[(i + 1) % 2].data_ptr() for i in range(len(layers))]
        convolutions["source_stride"], convolutions["target_stride"] = channels[:-1], channels[1:]
        last = convolutions[-1:]
        last["kind"] = DOT7
        last["first"], last["stop"] = tile.inner.start, tile.inner.stop
        set_planes(last, flow[0], tile)
        return operations

    def _reconstruct_tile(
        self, hr: Tensor, cleaned: Tensor, backward: Tensor, forward: Tensor, first: int, stop: int
    ) -> None:
        """Compute rows [first, stop) of the low resolution into `hr`, (3, S*(stop - first), S*W)."""
        height, width = backward.shape[:2]
        everything = np.zeros(6, OPERATION)
        enlarge, operations = everything[:1], everything[1:]
        enlarge["kind"], enlarge["height"], enlarge["width"] = ENLARGE, height, width
        enlarge["first"] = enlarge["target_first"] = first * _SCALE
        enlarge["stop"], enlarge["target_stride"] = stop * _SCALE, hr[0].numel()
        enlarge["source"], enlarge["target"] = cleaned.data_ptr(), hr.data_ptr()
        self._set_reconstruction_maps(operations, height, width, first, stop)
        fusion, up, last = operations[:1], operations[1:3], operations[-1:]
        fusion["kind"], fusion["source_stride"] = CONV1, self._fusion.channels_in
        fusion["source"], fusion["second"] = backward.data_ptr(), forward.data_ptr()
        fusion["half_source"] = backward.dtype == torch.float16
        up["store_as"] = TO_SHUFFLED_MAP
        last["kind"], last["target"], last["target_stride"] = DOT3, hr.data_ptr(), hr[0].numel()
        self._kernels.run(everything)

    def _set_reconstruction_maps(self, operations: Operations, height: int, width: int, first: int, stop: int) -> None:
        """Set the five convolutions of the reconstruction, and scratch memory for the feature maps between them.

        Each map has as many rows more as the next convolution reads.
        """

        def rows(scale: int, more: int) -> tuple[int, int]:
            return max(first * scale - more, 0), min(stop * scale + more, height * scale)

        # The scale of each map, its computed rows, and its channels. A pixel shuffle gives pairs of rows.
        layers = (
            (1, self._fusion, self._fusion.channels_out, rows(1, 2)),
            (1, self._up[0], self._up[0].channels_out // 4, rows(1, 1)),
            (2, self._up[1], self._up[1].channels_out // 4, rows(2, 1)),
            (4, self._hr, self._hr.channels_out, rows(4, 1)),
            (4, self._last, 0, rows(4, 0)),
        )
        output_scales = (1, 2, 4, 4)
        maps = self._scratch(
            *(
                (end - begin) * (output // scale) * width * output * channels
                for (scale, _, channels, (begin, end)), output in zip(layers[:-1], output_scales, strict=True)
            )
        )
        for i, (scale, convolution, channels, (begin, end)) in enumerate(layers):
            operation = operations[i : i + 1]
            set_convolution(operation, convolution, CONV3)
            operation["height"], operation["width"] = height * scale, width * scale
            operation["first"], operation["stop"], operation["target_first"] = begin, end, begin
            operation["slope"] = 0.1
            if i > 0:
                _, _, source_channels, (source_begin, _) = layers[i - 1]
                operation["source"], operation["source_stride"] = maps[i - 1].data_ptr(), source_channels
                operation["source_first"] = source_begin * scale // layers[i - 1][0]
            if i < len(maps):
                operation["target"], operation["target_stride"] = maps[i].data_ptr(), channels
