"""The contract that every backend fulfils, and the rules for tiles and storage that all backends share."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vsrealbasicvsr.model import RealBasicVSR

type PropagationInputs = tuple[Tensor, Tensor | None, Tensor | None]
"""Inputs of one propagation step: the cleaned frame, the neighbour's hidden state, and the flow that aligns the state
to the frame (both None at the end of a sequence)."""

LARGE_PX = 500_000
"""Frames with more low-resolution pixels than this (1280x720 and more) are cached in 16-bit precision."""


def is_large(height: int, width: int) -> bool:
    """Return whether frames and hidden states of this size are cached in 16-bit precision."""
    return height * width > LARGE_PX


class Backend(Protocol):
    """The steps of a RealBasicVSR on one device.

    Frames are (1, 3, H, W) float32 on the backend's device, flows (1, 2, H, W) float32 in pixels. The layout of a
    hidden state is the backend's own. Each step returns the same bits for the same arguments, whatever ran before. Only
    one thread at a time may call a backend.

    Attributes:
        max_tile_rows: Maximum height of a tile in low-resolution rows while frames are cleaned or propagated. None: as
            many rows as the size of the frame allows. May be changed between two steps.
    """

    max_tile_rows: int | None

    @property
    def notes(self) -> Sequence[str]:
        """Diagnostics about disabled optimizations. They never change results beyond floating-point rounding."""
        ...

    def num_concurrent_frames(self, height: int, width: int) -> int:
        """Return how many frames of this size to process concurrently; more than 1 if one would underuse the device.

        If it is more than 1, `cleaning_residue` and `flow` take batches (N, 3, H, W) of any N too, and each frame gets
        the bits that it has alone.
        """
        ...

    def num_cleaned_together(self, height: int, width: int) -> int:
        """Return for how many frames of this size to decide together whether they are cleaned again.

        Who decides waits for the device. If it is more than 1, `cleaning_residue` takes batches, as above.
        """
        ...

    def cleaning_residue(self, frames: Tensor) -> Tensor:
        """Return what one cleaning pass adds to frames, shaped like them."""
        ...

    def flow(self, ref: Tensor, supp: Tensor) -> Tensor:
        """Return the flow that aligns what belongs to `supp` to `ref`, two cleaned frames."""
        ...

    def propagate_backward(self, cleaned: Tensor, state: Tensor | None, flow_px: Tensor | None) -> Tensor:
        """Return the backward state of a frame, from the state of the frame after it.

        Without a state the frame is the last of its sequence. A state without a flow stays where it is.
        """
        ...

    def propagate_forward(self, cleaned: Tensor, state: Tensor | None, flow_px: Tensor | None) -> Tensor:
        """Return the forward state of a frame, from the state of the frame before it.

        Without a state the frame is the first of its sequence. A state without a flow stays where it is.
        """
        ...

    def propagate_both(self, backward: PropagationInputs, forward: PropagationInputs) -> tuple[Tensor, Tensor]:
        """Return the results of `propagate_backward` and `propagate_forward`, bit for bit; neither needs the other."""
        ...

    def reconstruct(
        self, cleaned: Tensor, backward_state: Tensor, forward_state: Tensor
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield the high-resolution frame from top to bottom: (first row, (3, rows, S*W) float32)."""
        ...

    def release(self) -> None:
        """Free caches and scratch memory. Called when memory is short; every step still works afterwards."""
        ...


class BackendFactory(Protocol):
    """Creates the backend of one device type."""

    def __call__(
        self, model: RealBasicVSR, device: torch.device, dtype: torch.dtype, *, max_tile_rows: int | None = None
    ) -> Backend:
        """Create a backend with a copy of the model's weights.

        Args:
            model: The network, in float32 on the CPU. It is not changed.
            device: Where to compute.
            dtype: Type of the convolutions; flows and sampling coordinates are float32 whatever it is.
            max_tile_rows: See `Backend.max_tile_rows`.

        Returns:
            The backend, ready to compute.
        """
        ...


@dataclass(frozen=True, slots=True)
class Tile:
    """Rows [first, stop) of a frame, computed from rows [read_first, read_stop): those rows and a halo around them."""

    first: int
    stop: int
    read_first: int
    read_stop: int

    @property
    def num_read(self) -> int:
        """Number of rows read, the halo included."""
        return self.read_stop - self.read_first

    @property
    def inner(self) -> slice:
        """The tile's own rows among those read."""
        return slice(self.first - self.read_first, self.stop - self.read_first)


def split_into_tiles(height: int, rows: int, halo: int) -> list[Tile]:
    """Split a frame into tiles of full width.

    Args:
        height: Rows of the frame.
        rows: Rows of each tile but the last, which may have fewer.
        halo: Rows read on each side of a tile besides its own, as far as the frame has them.

    Returns:
        The tiles from top to bottom.
    """
    return [
        Tile(first, stop, max(first - halo, 0), min(stop + halo, height))
        for first in range(0, height, rows)
        for stop in (min(first + rows, height),)
    ]


def rows_per_tile(height: int, width: int, max_px: int) -> int:
    """Return the height of tiles of equal height with at most `max_px` pixels each, but at least four rows.

    It depends on the frame's size alone, never on the memory that happens to be free, so that a frame has the same
    bytes every time.
    """
    return even_rows(height, max(max_px, 4 * width) // width)


def even_rows(height: int, max_rows: int) -> int:
    """Return the height of the fewest tiles of at most `max_rows` rows that share a frame's rows evenly."""
    num_tiles = -(-height // max_rows)
    return -(-height // num_tiles)
