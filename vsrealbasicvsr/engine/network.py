"""The steps of the network as the engine takes them, and torch's way to do them."""

from typing import Protocol

import torch
from torch import Tensor

from vsrealbasicvsr.model import RealBasicVSR


class Network(Protocol):
    """The steps of a RealBasicVSR on one device. Called by one thread at a time.

    Frames are (1, 3, H, W) float32, flows (1, 2, H, W) float32 in pixels. A state is a tensor whose layout is the
    network's own affair. Each step gives the same bits for the same arguments, whatever ran before.
    """

    def cleaning_residue(self, frames: Tensor) -> Tensor:
        """What one cleaning pass adds to frames."""
        ...

    def flows(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """(forward, backward) flow between two neighbouring cleaned frames."""
        ...

    def propagate_backward(self, cleaned: Tensor, state: Tensor | None, flow_px: Tensor | None) -> Tensor:
        """The backward state of a frame, from that of the frame after it (None: there is none)."""
        ...

    def propagate_forward(self, cleaned: Tensor, state: Tensor | None, flow_px: Tensor | None) -> Tensor:
        """The forward state of a frame, from that of the frame before it (None: there is none)."""
        ...

    def reconstruct(self, cleaned: Tensor, backward_state: Tensor, forward_state: Tensor) -> Tensor:
        """The high-resolution frame, (1, 3, S*H, S*W) float32."""
        ...


MAX_BAND_PX_CPU = 32_768
MAX_BAND_PX_GPU = 131_072
"""Low-resolution pixels reconstructed at once. With the published 64 channels each takes 4 kB a map in float32 (S * S
pixels), and a handful of maps are alive. A GPU wants larger ones, to be busy."""


class TorchNetwork:
    """The model's own steps, on any device and in any precision. States are (1, C, H, W)."""

    def __init__(self, model: RealBasicVSR) -> None:
        self._model = model
        self.flows = model.flows
        self.propagate_backward = model.propagate_backward
        self.propagate_forward = model.propagate_forward

    def cleaning_residue(self, frames: Tensor) -> Tensor:
        """What one cleaning pass adds to frames."""
        return self._model.cleaning_residue(frames.contiguous(memory_format=torch.channels_last))

    def reconstruct(self, cleaned: Tensor, backward_state: Tensor, forward_state: Tensor) -> Tensor:
        """The high-resolution frame, made in bands of rows."""
        height, width = cleaned.shape[-2:]
        rows = band_rows(height, width, cleaned.device)
        return self._model.reconstruct_in_bands(cleaned, backward_state, forward_state, rows=rows)


def band_rows(height: int, width: int, device: torch.device) -> int:
    """How many rows of a frame to reconstruct at a time: bands of equal height that hold so much and no more.

    It depends on the size of the frame and the kind of device alone, never on the memory that happens to be free, so
    that a frame has the same bytes every time.
    """
    most = max(MAX_BAND_PX_CPU if device.type == "cpu" else MAX_BAND_PX_GPU, 4 * width) // width
    num_bands = -(-height // most)
    return -(-height // num_bands)
