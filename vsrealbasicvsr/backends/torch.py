"""The reference backend: torch's own operations, on any device and in any precision."""

import copy
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsrealbasicvsr.model import RealBasicVSR
from vsrealbasicvsr.model.cleaning_levels import residue_of_levels
from vsrealbasicvsr.model.network import ResidualTrunk

from .base import PropagationInputs, is_large, rows_per_tile, split_into_tiles
from .memory import empty_device_cache

MAX_RECONSTRUCTION_PX_CPU = 32_768
MAX_RECONSTRUCTION_PX_GPU = 131_072
"""Maximum low-resolution pixels of a tile while frames are reconstructed. With the published 64 channels each pixel
takes 4 kB per feature map in float32 (S * S pixels), and a handful of maps are alive. A GPU needs larger tiles to be
busy."""

MAX_TRUNK_PX_CPU = 600_000
MAX_TRUNK_PX_GPU = 4_000_000
"""Maximum low-resolution pixels of a tile while frames are cleaned or propagated: torch keeps some four feature maps of
256 bytes a pixel in float32."""


class TorchBackend:
    """The model's own steps. Hidden states are (1, C, H, W). See `Backend` for the contract."""

    def __init__(self, model: RealBasicVSR, *, max_tile_rows: int | None = None, notes: Sequence[str] = ()) -> None:
        """Take over a model that is on its device, in its precision; it becomes the backend's own."""
        self.max_tile_rows = max_tile_rows
        self.notes = notes
        self._model = model

    def num_concurrent_frames(self, height: int, width: int) -> int:
        """Return 1: torch's convolutions may round differently in a batch."""
        return 1

    def num_cleaned_together(self, height: int, width: int) -> int:
        """Return 1: for the same reason."""
        return 1

    def cleaning_residue(self, frames: Tensor) -> Tensor:
        """Return what one cleaning pass adds to frames."""
        return residue_of_levels(frames, self._model.sizes.num_cleaning_levels, self._cleaning_residue_of_size)

    def _cleaning_residue_of_size(self, frames: Tensor) -> Tensor:
        frames = frames.contiguous(memory_format=torch.channels_last)
        return self._tiled(self._model.cleaning_residue_of_size, frames, halo=self._model.cleaning_halo_rows)

    def flow(self, ref: Tensor, supp: Tensor) -> Tensor:
        """Return the flow that aligns what belongs to `supp` to `ref`."""
        return self._model.basicvsr.spynet(ref, supp)  # type: ignore[no-any-return]

    def propagate_backward(self, cleaned: Tensor, state: Tensor | None, flow_px: Tensor | None) -> Tensor:
        """Return the backward state of a frame, from the state of the frame after it."""
        return self._propagate(self._model.basicvsr.backward_resblocks, cleaned, state, flow_px)

    def propagate_forward(self, cleaned: Tensor, state: Tensor | None, flow_px: Tensor | None) -> Tensor:
        """Return the forward state of a frame, from the state of the frame before it."""
        return self._propagate(self._model.basicvsr.forward_resblocks, cleaned, state, flow_px)

    def propagate_both(self, backward: PropagationInputs, forward: PropagationInputs) -> tuple[Tensor, Tensor]:
        """Compute both directions, one after the other."""
        return self.propagate_backward(*backward), self.propagate_forward(*forward)

    def reconstruct(
        self, cleaned: Tensor, backward_state: Tensor, forward_state: Tensor
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield the high-resolution frame, tile by tile."""
        height, width = cleaned.shape[-2:]
        max_px = MAX_RECONSTRUCTION_PX_CPU if cleaned.device.type == "cpu" else MAX_RECONSTRUCTION_PX_GPU
        rows = rows_per_tile(height, width, max_px)
        maps = (cleaned, backward_state.to(self._model.dtype), forward_state.to(self._model.dtype))
        for first, tile in self._model.reconstruct_in_tiles(*maps, rows=rows):
            yield first, tile[0]

    def release(self) -> None:
        """Return the memory that torch keeps for later to the device."""
        empty_device_cache(self._model.basicvsr.fusion.weight.device)

    def tile_rows(self, height: int, width: int) -> int:
        """Return the height of the tiles in which frames of this size are cleaned and propagated.

        If it is `height` or more, frames are processed whole.
        """
        is_cpu = self._model.basicvsr.fusion.weight.device.type == "cpu"
        rows = rows_per_tile(height, width, MAX_TRUNK_PX_CPU if is_cpu else MAX_TRUNK_PX_GPU)
        return rows if self.max_tile_rows is None else min(rows, self.max_tile_rows)

    def _propagate(self, trunk: ResidualTrunk, cleaned: Tensor, state: Tensor | None, flow_px: Tensor | None) -> Tensor:
        return _as_cached(self._tiled(trunk, self._trunk_input(cleaned, state, flow_px), halo=trunk.halo_rows))

    def _trunk_input(self, cleaned: Tensor, state: Tensor | None, flow_px: Tensor | None) -> Tensor:
        return self._model.trunk_input(cleaned, None if state is None else state.to(self._model.dtype), flow_px)

    def _tiled(self, step: Callable[[Tensor], Tensor], x: Tensor, *, halo: int) -> Tensor:
        """Return step(x), computed tile by tile; the halo is what an output row depends on, on each side."""
        height, rows = x.shape[-2], self.tile_rows(*x.shape[-2:])
        if rows >= height:
            return step(x)
        parts = [
            step(x[:, :, tile.read_first : tile.read_stop])[:, :, tile.inner]
            for tile in split_into_tiles(height, rows, halo)
        ]
        return torch.cat(parts, dim=2)


def _as_cached(state: Tensor) -> Tensor:
    return state.half() if is_large(*state.shape[-2:]) and state.dtype == torch.float32 else state


def create_torch_backend(
    model: RealBasicVSR, device: torch.device, dtype: torch.dtype, *, max_tile_rows: int | None = None
) -> TorchBackend:
    """Create the reference backend with a copy of the model. See `BackendFactory`."""
    model = copy.deepcopy(model).to(device, dtype)
    if device.type == "cpu":
        model.basicvsr.fusion = as_3x3(model.basicvsr.fusion)
    notes = () if device.type == "cpu" else ("torch's own operations, without graphs and kernels of ours, are in use",)
    return TorchBackend(model.to(memory_format=torch.channels_last), max_tile_rows=max_tile_rows, notes=notes)


def as_3x3(conv: nn.Conv2d) -> nn.Conv2d:
    """Return a 1x1 convolution as one of 3x3, with zeros around its weights.

    On a CPU torch may compute a 1x1 convolution as a matrix product, whose bits depend on the number of threads (seen
    with 8 and with 3 channels). It was never seen of larger convolutions: 1,440 of them, at 12 sizes and in 3 types.
    The only one of a RealBasicVSR then takes 1 % of the network's time instead of 0.1 %.
    """
    padded = nn.Conv2d(conv.in_channels, conv.out_channels, 3, padding=1, device="meta")
    padded.weight = nn.Parameter(F.pad(conv.weight.detach(), (1, 1, 1, 1)), requires_grad=False)
    padded.bias = conv.bias
    return padded
