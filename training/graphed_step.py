"""A whole training step as one CUDA graph: forward, backward and both optimisers, without waiting for the device.

Launching the thousands of kernels of a step from Python takes longer than a small network computes. The only difference
from the eager step: gradients are not checked before they are applied, so non-finite losses are noticed when they are
read.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from vsrealbasicvsr.backends import abandon_capture, capture_stream

type Step = Callable[[Tensor, Tensor, Tensor], dict[str, Tensor]]
"""A function of (input, ground truth, the discriminator's real frames) that trains the networks and returns the
losses."""

MAX_STEPS_AHEAD = 2
"""Steps that may be queued on the device before Python waits."""
WARM_UP_STEPS = 3
"""Steps on another stream before a capture, as torch requires: libraries initialise themselves in them."""


class GraphedStep:
    """A step, captured once for batches of one shape and replayed. The warm-up steps and the captured step train too.

    The step must not wait for the device and must change tensors in place only: optimisers are `capturable`, learning
    rates are tensors.
    """

    def __init__(self, step: Step) -> None:
        self._step = step
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: tuple[Tensor, ...] = ()
        self._names: list[str] = []
        self._losses = torch.empty(0)
        self._launched: list[torch.cuda.Event] = []

    def __call__(self, *batch: Tensor) -> tuple[list[str], Tensor]:
        """Take one step.

        Returns:
            Names of the losses, and their values as one tensor on the device, which the next step overwrites.
        """
        if self._graph is None:
            return self._capture(batch)
        if len(self._launched) == MAX_STEPS_AHEAD:
            self._launched.pop(0).synchronize()
        copied: set[int] = set()
        for own, given in zip(self._inputs, batch, strict=True):
            if id(own) not in copied:
                own.copy_(given)
                copied.add(id(own))
        self._graph.replay()
        self._launched.append(torch.cuda.current_stream().record_event())
        return self._names, self._losses

    def _capture(self, batch: tuple[Tensor, ...]) -> tuple[list[str], Tensor]:
        buffers = {id(given): given.clone() for given in batch}  # a tensor that is given twice gets one buffer
        self._inputs = tuple(buffers[id(given)] for given in batch)
        device = batch[0].device
        # Not one of those that torch deals out in turns: what another thread does there would end up in the graph.
        current, side = torch.cuda.current_stream(device), capture_stream(device)
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for _ in range(WARM_UP_STEPS):
                self._step(*self._inputs)
        current.wait_stream(side)
        graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        try:
            # "thread_local": other threads copy clips to the device meanwhile
            with torch.cuda.graph(graph, pool=pool, stream=side, capture_error_mode="thread_local"):
                losses = self._step(*self._inputs)
                self._names, self._losses = list(losses), torch.stack([loss.detach() for loss in losses.values()])
        except BaseException:
            with torch.cuda.stream(side):
                abandon_capture(graph, device, pool)
            torch.cuda.set_stream(current)  # torch.cuda.graph does not, where the driver refuses to end the capture
            raise
        graph.replay()
        self._graph = graph
        return self._names, self._losses


def clip_gradients(parameters: list[nn.Parameter], max_norm: float) -> None:
    """Scale the gradients down to a norm of at most `max_norm` (0: no limit), without waiting for the device."""
    if max_norm <= 0:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = nn.utils.get_total_norm(gradients, foreach=True)
    nn.utils.clip_grads_with_norm_(parameters, max_norm, norm, foreach=True)
