"""The CUDA backend: fused kernels, or torch's operations with fixed arithmetic, and steps as CUDA graphs.

An optimization that is bound to fail is not tried, and one that fails falls back to torch's eager operations: no
picture may depend on it.
"""

import copy
import sys
from collections.abc import Iterator
from itertools import batched

import torch
from torch import Tensor

from vsrealbasicvsr.model import RealBasicVSR

from ..base import PropagationInputs
from ..memory import free_device_bytes
from .arithmetic import fix_arithmetic
from .epilogue import Epilogue, by_triton
from .fused import BY_TRITON, Kernels
from .graphs import CAPTURE_LOCK, Call, Capture, GraphCapture, Step, StepGraphs
from .steps import choose_steps
from .streams import MAX_CONCURRENT_CALLS, place_of

GRAPH_SHARE = 0.15
"""Maximum share of the device's free memory that graphs may take: half of what the engine's budget leaves to the steps.

Graphs pay at every size: on an H100 the flow of 720x480 took 7.2 ms eagerly and that of 1280x720, 2.7 times the pixels,
11.1 ms; 164 launches a direction waited for the host. That of 320x180 took 1.9 ms as a graph."""

_GRAPH_STATES, _GRAPH_FLOW_BYTES_PX = 12, 640
"""Memory of the graphs of one frame size for each low-resolution pixel: hidden states, in the network's type, and bytes
of the flow network in float32. By count of what is alive at once in torch's steps, which share a pool, and of the
arguments and results of four graphs: 11 states with the published network, the flow's 611 bytes included. Fused steps
take less (1,392 of 2,176 B with the published network in float16), and are counted as torch's."""

MIN_CLEANED_TOGETHER = 4
"""Minimum number of frames that are cleaned before the host waits to know whether they are cleaned again. Their
memory is three values a pixel. A GPU idles while it waits for the host, and the launches after that begin with none
ahead of them."""

BUSY_PX = 256
"""Low-resolution pixels that keep one of a GPU's multiprocessors busy: two tiles of a convolution, of 128 pixels each.
An H100 has 132, which makes 33,792: eight frames of 64x64, three of 128x96, one of 320x180."""

_MULTIPROCESSORS_ELSEWHERE = 64  # where the device tells no number: not CUDA, as in tests


def create_cuda_backend(
    model: RealBasicVSR, device: torch.device, dtype: torch.dtype, *, max_tile_rows: int | None = None
) -> "CudaBackend":
    """Create the backend of a CUDA device. See `BackendFactory`."""
    with place_of(device):
        model = copy.deepcopy(model).to(device, dtype).to(memory_format=torch.channels_last)
    return CudaBackend(model, max_tile_rows=max_tile_rows)


class CudaBackend:
    """The steps of a RealBasicVSR on a CUDA device. See `Backend` for the contract.

    They are FusedBackend's, or TorchBackend's with fixed arithmetic (steps.py); where memory allows they need few
    launches, and several small frames are processed concurrently. Cleaning, flow and the propagation from a state are
    captured: 600 of the 613 operations that torch needs for a frame. The first step of a propagation is rare, and the
    reconstruction needs few launches with large feature maps, whose memory a graph would keep; at four and sixteen
    times the pixels it keeps a GPU busy by itself. What depends on values (how often a frame is cleaned) lies outside
    of the steps.

    Concurrent frames are branches of one graph and no batch: the convolutions of a batch may be different ones, with
    different rounding, and then a frame's bits would depend on the other frames.
    """

    def __init__(
        self,
        model: RealBasicVSR,
        *,
        max_tile_rows: int | None = None,
        capture: Capture | None = None,
        kernels: Kernels | None = BY_TRITON,
        epilogue: Epilogue = by_triton,
        busy_px: int | None = None,
        free_bytes: int | None = None,
    ) -> None:
        """Take over a model that is on its device, in its precision; it becomes the backend's own.

        Args:
            model: The network.
            max_tile_rows: See `Backend.max_tile_rows`.
            capture: How steps are captured. None: as CUDA graphs.
            kernels: Operations for fused convolutions, used where they give torch's values on this device. None: none.
            epilogue: The operations after a convolution, used likewise where convolutions are not fused.
            busy_px: Low-resolution pixels that keep the device busy. None: by the device's size.
            free_bytes: Memory of which graphs may take a share. None: what is free on the device at the first step.
        """
        fix_arithmetic(model)
        self._device = model.basicvsr.fusion.weight.device
        with place_of(self._device):
            self._eager, self._notes = choose_steps(
                model, kernels=kernels, epilogue=epilogue, max_tile_rows=max_tile_rows
            )
        self._graphs = StepGraphs(capture or GraphCapture(self._device))
        self._graph_bytes_px = graph_bytes_px(model)
        self._free_bytes = free_bytes
        self._busy_px = BUSY_PX * _num_multiprocessors(self._device) if busy_px is None else busy_px

    @property
    def max_tile_rows(self) -> int | None:
        """Maximum height of a tile while frames are cleaned or propagated. None: as the frame's size allows."""
        return self._eager.max_tile_rows

    @max_tile_rows.setter
    def max_tile_rows(self, rows: int | None) -> None:
        self._eager.max_tile_rows = rows

    @property
    def notes(self) -> list[str]:
        """Diagnostics about disabled optimizations, one line for each."""
        return self._notes + self._graphs.notes

    def num_concurrent_frames(self, height: int, width: int) -> int:
        """Return as many frames as keep the device busy, where their steps are captured; else 1."""
        if not (self._graphs.is_capturing and self._is_captured(height, width)):
            return 1
        return min(-(-self._busy_px // (height * width)), MAX_CONCURRENT_CALLS)

    def num_cleaned_together(self, height: int, width: int) -> int:
        """Return a multiple of the concurrent frames, MIN_CLEANED_TOGETHER at least; 1 once memory was short."""
        if not self._graphs.is_capturing:
            return 1
        num = self.num_concurrent_frames(height, width)
        return num * -(-MIN_CLEANED_TOGETHER // num)

    def cleaning_residue(self, frames: Tensor) -> Tensor:
        """Return what one cleaning pass adds to frames."""
        return self._each("cleaning", self._eager.cleaning_residue, frames)

    def flow(self, ref: Tensor, supp: Tensor) -> Tensor:
        """Return the flow that aligns what belongs to `supp` to `ref`."""
        return self._each("flow", self._eager.flow, ref, supp)

    def propagate_backward(self, cleaned: Tensor, state: Tensor | None, flow_px: Tensor | None) -> Tensor:
        """Return the backward state of a frame, from the state of the frame after it."""
        if state is None or flow_px is None:
            return self._eager.propagate_backward(cleaned, state, flow_px)
        return self._run(self._backward_call(cleaned, state, flow_px))[0]

    def propagate_forward(self, cleaned: Tensor, state: Tensor | None, flow_px: Tensor | None) -> Tensor:
        """Return the forward state of a frame, from the state of the frame before it."""
        if state is None or flow_px is None:
            return self._eager.propagate_forward(cleaned, state, flow_px)
        return self._run(self._forward_call(cleaned, state, flow_px))[0]

    def propagate_both(self, backward: PropagationInputs, forward: PropagationInputs) -> tuple[Tensor, Tensor]:
        """Compute both directions, concurrently where both start from a state."""
        of_backward, of_forward = ([x for x in given if x is not None] for given in (backward, forward))
        if len(of_backward) < len(backward) or len(of_forward) < len(forward):
            return self.propagate_backward(*backward), self.propagate_forward(*forward)
        behind, ahead = self._run(self._backward_call(*of_backward), self._forward_call(*of_forward))
        return behind, ahead

    def reconstruct(
        self, cleaned: Tensor, backward_state: Tensor, forward_state: Tensor
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield the high-resolution frame, tile by tile."""
        return self._eager.reconstruct(cleaned, backward_state, forward_state)

    def release(self) -> None:
        """Drop all graphs, and return the memory that torch keeps for later to the device."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # the memory that graphs work in goes with them
        self._graphs.release()
        with CAPTURE_LOCK, place_of(self._device):
            self._eager.release()

    def _backward_call(self, *arguments: Tensor) -> Call:
        return Call("backward propagation", self._eager.propagate_backward, arguments)

    def _forward_call(self, *arguments: Tensor) -> Call:
        return Call("forward propagation", self._eager.propagate_forward, arguments)

    def _each(self, name: str, step: Step, *batches: Tensor) -> Tensor:
        """Run the step for each entry of the batches separately, as many concurrently as keep the device busy.

        A last group that is neither full nor a single entry is filled up with its last entry: a graph is for one number
        of calls.
        """
        calls = [
            Call(name, step, entries) for entries in zip(*(torch.split(batch, 1) for batch in batches), strict=True)
        ]
        if len(calls) == 1:
            return self._run(calls[0])[0]
        num, results = self.num_concurrent_frames(*batches[0].shape[-2:]), list[Tensor]()
        for group in batched(calls, num):
            filled = group if len(group) == 1 else (*group, *group[-1:] * (num - len(group)))
            results += self._run(*filled)[: len(group)]
        return torch.cat(results)

    def _run(self, *calls: Call) -> list[Tensor]:
        # A graph's memory is of the kind that only inference mode may write to.
        if self._is_captured(*calls[0].arguments[0].shape[-2:]) and torch.is_inference_mode_enabled():
            return self._graphs.run(*calls)
        return [call.step(*call.arguments) for call in calls]

    def _is_captured(self, height: int, width: int) -> bool:
        """Return whether the steps of frames of this size are captured: processed whole, and with memory for graphs.

        A captured step gives the bits of an eager one, so that the memory that is free decides no picture.
        """
        if self._eager.tile_rows(height, width) < height:
            return False
        if self._free_bytes is None:
            free = free_device_bytes(self._device)
            self._free_bytes = sys.maxsize if free is None else free
        return height * width * self._graph_bytes_px <= GRAPH_SHARE * self._free_bytes


def graph_bytes_px(model: RealBasicVSR) -> int:
    """Return the memory that graphs of all steps of one frame size take for each low-resolution pixel, in bytes."""
    return _GRAPH_STATES * model.sizes.mid_channels * model.dtype.itemsize + _GRAPH_FLOW_BYTES_PX


def _num_multiprocessors(device: torch.device) -> int:
    """Return the number of the device's multiprocessors, a measure of how much it computes at once."""
    if device.type != "cuda":
        return _MULTIPROCESSORS_ELSEWHERE
    return torch.cuda.get_device_properties(device).multi_processor_count
