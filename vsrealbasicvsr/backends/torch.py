"""The steps of the network as the engine takes them, and torch's way to do them."""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsrealbasicvsr.model import RealBasicVSR
from vsrealbasicvsr.model.network import ResidualTrunk

from .cpu.pages import is_large

MAX_BAND_PX_CPU = 32_768
MAX_BAND_PX_GPU = 131_072
"""Low-resolution pixels reconstructed at once. With the published 64 channels each takes 4 kB a map in float32 (S * S
pixels), and a handful of maps are alive. A GPU wants larger ones, to be busy."""

MAX_TRUNK_PX_CPU = 600_000
MAX_TRUNK_PX_GPU = 4_000_000
"""Low-resolution pixels cleaned or propagated at once: torch holds some four maps of them, of 256 bytes a pixel in
float32."""


type Propagation = tuple[Tensor, Tensor | None, Tensor | None]
"""What a step of a propagation is made from: the cleaned frame, the state that comes to it and the flow that aligns it
(None: there is no such state)."""


class Network(Protocol):
    """The steps of a RealBasicVSR on one device. Called by one thread at a time.

    Frames are (1, 3, H, W) float32, flows (1, 2, H, W) float32 in pixels. A state is a tensor whose layout is the
    network's own affair. Each step gives the same bits for the same arguments, whatever ran before.
    """

    max_rows: int | None
    """Rows of a frame that are cleaned or propagated at once, at most; None: as many as the frame's size allows."""

    @property
    def notes(self) -> Sequence[str]:
        """What it does otherwise than it might, and why; nothing that shows in more than the picture's last bits."""
        ...

    def num_abreast(self, height: int, width: int) -> int:
        """How many frames of this size should be worked on at once, for small ones leave a GPU idle; 1: one by one.

        If it is more, `cleaning_residue` and `flow` take batches too, (N, 3, H, W), of any N, and give each frame the
        bits that it has alone.
        """
        ...

    def cleaning_residue(self, frames: Tensor) -> Tensor:
        """What one cleaning pass adds to frames."""
        ...

    def flow(self, ref: Tensor, supp: Tensor) -> Tensor:
        """The flow that aligns what belongs to `supp` to `ref`, two cleaned frames."""
        ...

    def propagate_backward(self, cleaned: Tensor, state: Tensor | None, flow_px: Tensor | None) -> Tensor:
        """The backward state of a frame, from that of the frame after it (None: there is none)."""
        ...

    def propagate_forward(self, cleaned: Tensor, state: Tensor | None, flow_px: Tensor | None) -> Tensor:
        """The forward state of a frame, from that of the frame before it (None: there is none)."""
        ...

    def propagate_both(self, backward: Propagation, forward: Propagation) -> tuple[Tensor, Tensor]:
        """What `propagate_backward` and `propagate_forward` give, to the bit: neither needs the other."""
        ...

    def reconstruct(
        self, cleaned: Tensor, backward_state: Tensor, forward_state: Tensor
    ) -> Iterator[tuple[int, Tensor]]:
        """The high-resolution frame from top to bottom: (first row, (3, rows, S*W) float32)."""
        ...

    def release(self) -> None:
        """Give back all memory that can be made again."""
        ...


class TorchNetwork:
    """The model's own steps, on any device and in any precision. States are (1, C, H, W)."""

    notes: Sequence[str] = ()

    def __init__(self, model: RealBasicVSR, *, max_rows: int | None = None) -> None:
        self.max_rows = max_rows
        self._model = model

    def num_abreast(self, height: int, width: int) -> int:
        """One: in a batch, torch's convolutions may round otherwise."""
        return 1

    def cleaning_residue(self, frames: Tensor) -> Tensor:
        """What one cleaning pass adds to frames."""
        frames = frames.contiguous(memory_format=torch.channels_last)
        return self._in_bands(self._model.cleaning_residue, frames, reach=self._model.cleaning_reach_rows)

    def flow(self, ref: Tensor, supp: Tensor) -> Tensor:
        """The flow that aligns what belongs to `supp` to `ref`."""
        return self._model.basicvsr.spynet(ref, supp)  # type: ignore[no-any-return]

    def propagate_backward(self, cleaned: Tensor, state: Tensor | None, flow_px: Tensor | None) -> Tensor:
        """The backward state of a frame, from that of the frame after it."""
        return self._propagate(self._model.basicvsr.backward_resblocks, cleaned, state, flow_px)

    def propagate_forward(self, cleaned: Tensor, state: Tensor | None, flow_px: Tensor | None) -> Tensor:
        """The forward state of a frame, from that of the frame before it."""
        return self._propagate(self._model.basicvsr.forward_resblocks, cleaned, state, flow_px)

    def propagate_both(self, backward: Propagation, forward: Propagation) -> tuple[Tensor, Tensor]:
        """Both directions, one after the other."""
        return self.propagate_backward(*backward), self.propagate_forward(*forward)

    def reconstruct(
        self, cleaned: Tensor, backward_state: Tensor, forward_state: Tensor
    ) -> Iterator[tuple[int, Tensor]]:
        """The high-resolution frame, made in bands of rows."""
        height, width = cleaned.shape[-2:]
        most = MAX_BAND_PX_CPU if cleaned.device.type == "cpu" else MAX_BAND_PX_GPU
        rows = band_rows(height, width, most)
        maps = (cleaned, backward_state.to(self._model.dtype), forward_state.to(self._model.dtype))
        for first, band in self._model.reconstruct_in_bands(*maps, rows=rows):
            yield first, band[0]

    def release(self) -> None:
        """Give the memory that torch keeps for later back to the device."""
        torch.cuda.empty_cache()  # does nothing where CUDA was never used

    def rows_at_once(self, height: int, width: int) -> int:
        """How many rows of a frame are cleaned or propagated at a time; `height` or more: it is not cut."""
        is_cpu = self._model.basicvsr.fusion.weight.device.type == "cpu"
        rows = band_rows(height, width, MAX_TRUNK_PX_CPU if is_cpu else MAX_TRUNK_PX_GPU)
        return rows if self.max_rows is None else min(rows, self.max_rows)

    def _propagate(self, trunk: ResidualTrunk, cleaned: Tensor, state: Tensor | None, flow_px: Tensor | None) -> Tensor:
        if state is None:
            for _ in range(self._model.sizes.start_passes):
                state = self._step(trunk, cleaned, state, None)
        return self._step(trunk, cleaned, state, flow_px)

    def _step(self, trunk: ResidualTrunk, cleaned: Tensor, state: Tensor | None, flow_px: Tensor | None) -> Tensor:
        return self._held(self._in_bands(trunk, self._input(cleaned, state, flow_px), reach=trunk.reach_rows))

    def _input(self, cleaned: Tensor, state: Tensor | None, flow_px: Tensor | None) -> Tensor:
        return self._model.trunk_input(cleaned, None if state is None else state.to(self._model.dtype), flow_px)

    @staticmethod
    def _held(state: Tensor) -> Tensor:
        return state.half() if is_large(*state.shape[-2:]) and state.dtype == torch.float32 else state

    def _in_bands(self, step: Callable[[Tensor], Tensor], x: Tensor, *, reach: int) -> Tensor:
        """step(x), made some rows at a time; each band sees `reach` rows more on both sides."""
        height, rows = x.shape[-2], self.rows_at_once(*x.shape[-2:])
        if rows >= height:
            return step(x)
        parts = []
        for first in range(0, height, rows):
            stop = min(first + rows, height)
            seen_first = max(first - reach, 0)
            part = step(x[:, :, seen_first : stop + reach])
            parts.append(part[:, :, first - seen_first : stop - seen_first])
        return torch.cat(parts, dim=2)


def band_rows(height: int, width: int, max_px: int) -> int:
    """How many rows of a frame to work on at a time: bands of equal height that hold so much and no more.

    It depends on the size of the frame alone, never on the memory that happens to be free, so that a frame has the same
    bytes every time.
    """
    most = max(max_px, 4 * width) // width
    num_bands = -(-height // most)
    return -(-height // num_bands)


def as_3x3(conv: nn.Conv2d) -> nn.Conv2d:
    """A 1x1 convolution as one of 3x3, with zeros around its weights.

    On a CPU torch may hand a 1x1 convolution over to a matrix product, whose bits depend on the number of threads (seen
    with 8 and with 3 channels). Of the larger ones it was never seen: 1,440 of them, at 12 sizes and in 3 types. The
    one of a RealBasicVSR then takes 1 % of the network's time instead of 0.1 %.
    """
    made = nn.Conv2d(conv.in_channels, conv.out_channels, 3, padding=1, device="meta")
    made.weight = nn.Parameter(F.pad(conv.weight.detach(), (1, 1, 1, 1)), requires_grad=False)
    made.bias = conv.bias
    return made
