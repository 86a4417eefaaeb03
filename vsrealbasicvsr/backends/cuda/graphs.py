"""Steps captured as CUDA graphs, each checked bit for bit against eager execution before it is used."""

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from .streams import index_of, streams_of

MAX_GRAPHS = 12
"""Maximum number of CUDA graphs per backend. A clip has one frame size, which needs seven: cleaning, flow and both
propagations; cleaning and flow of several concurrent frames; both propagations concurrently."""

NUM_WARM_UPS = 3
"""Runs of a step before its capture: libraries load their kernels, and allocate plans and workspaces, outside of it."""

type Step = Callable[..., Tensor]
"""From tensors to a new tensor, the same bits for the same arguments."""

type Arguments = tuple[Tensor, ...]


class Call(NamedTuple):
    """A step and the arguments of one call of it. `name` stands for the step, whatever its arguments."""

    name: str
    step: Step
    arguments: Arguments


type Replay = Callable[[Sequence[Arguments]], list[Tensor]]
"""From the arguments of each call to the result of each call."""


class Capture(Protocol):
    """Captures calls of steps, so that they are quick to repeat."""

    def __call__(self, calls: Sequence[Call]) -> Replay:
        """Capture calls as concurrent branches, for arguments of these shapes, strides and types.

        No call may need the result of another. The results of a replay share memory with nothing. Raises any exception
        if the calls cannot be captured.
        """
        ...


class StepGraphs:
    """Cache of CUDA graphs, at most `max_graphs`. A graph that differs from eager execution is never used.

    A step is captured at its first call, for arguments of one shape, layout and type, and checked against eager
    execution: with these arguments, and with others, for something of the first could be baked into the graph. On a
    single different bit, or if the capture fails, the step falls back to eager execution permanently. Concurrent calls
    are a graph of their own, checked against the same eager steps; where there is none, they are run one by one.
    """

    def __init__(self, capture: Capture, *, max_graphs: int = MAX_GRAPHS) -> None:
        self._capture = capture
        self._max_graphs = max_graphs
        self._graphs: dict[tuple[tuple[Any, ...], ...], Replay] = {}  # by name and layouts of each call
        self._eager: set[tuple[str, ...]] = set()
        # A rejected graph is kept all the same: torch lets no memory pool be used again whose only graph has gone.
        self._rejected: list[Replay] = []
        self._notes: list[str] = []

    @property
    def notes(self) -> list[str]:
        """Why steps are not captured, one line for each."""
        return list(self._notes)

    @property
    def is_capturing(self) -> bool:
        """Whether steps are captured at all; not after memory was short."""
        return self._max_graphs > 0

    def run(self, *calls: Call) -> list[Tensor]:
        """Return the result of each call, by a graph where there is one. No call may need the result of another."""
        key = tuple((call.name, *((x.shape, x.stride(), x.dtype, x.device) for x in call.arguments)) for call in calls)
        if graph := self._graphs.get(key):
            return graph([call.arguments for call in calls])
        results = self._one_by_one(calls)  # first: if there is no memory for this either, the caller should hear of it
        names = tuple(call.name for call in calls)
        if len(self._graphs) < self._max_graphs and not self._is_eager(names):
            try:
                graph = self._graphs[key] = self._capture(calls)
                is_right = _is_right(graph, calls, results)
            except Exception as error:  # whatever torch and its libraries raise where they cannot
                self._fall_back(names, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
                return results
            if not is_right:
                self._fall_back(names, "its results differed from eager execution")
        return results

    def _is_eager(self, names: tuple[str, ...]) -> bool:
        """Whether these steps together, or one of them alone, fell back to eager execution."""
        return names in self._eager or any((name,) in self._eager for name in names)

    def _one_by_one(self, calls: Sequence[Call]) -> list[Tensor]:
        if len(calls) == 1:
            return [calls[0].step(*calls[0].arguments)]
        return [result for call in calls for result in self.run(call)]

    def release(self) -> None:
        """Drop all graphs. Memory was short: no step is captured from now on."""
        self._graphs.clear()
        self._rejected.clear()
        self._max_graphs = 0

    def _fall_back(self, names: tuple[str, ...], reason: str) -> None:
        self._eager.add(names)
        for key in [key for key in self._graphs if self._is_eager(tuple(name for name, *_ in key))]:
            self._rejected.append(self._graphs.pop(key))
        counted = [f"{number} x {name}" if number > 1 else name for name, number in Counter(names).items()]
        self._notes.append(f"{' and '.join(counted)} runs without a CUDA graph ({reason})")


def _is_right(graph: Replay, calls: Sequence[Call], results: Sequence[Tensor]) -> bool:
    """Whether a graph gives the results of eager execution, with other arguments and with those of `results`."""
    others = [tuple(-1 - x for x in call.arguments) for call in calls]
    expected = [call.step(*other) for call, other in zip(calls, others, strict=True)]
    return all(map(_same_bits, graph(others), expected)) and all(
        map(_same_bits, graph([call.arguments for call in calls]), results)
    )


_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same for all that follows: signs of zeros, NaNs and the layout included."""
    if (a.shape, a.stride(), a.dtype) != (b.shape, b.stride(), b.dtype):
        return False
    bits = _INTEGERS[a.element_size()]
    return torch.equal(a.view(bits), b.view(bits))


CAPTURE_LOCK = threading.Lock()
"""Held while a graph is captured and while memory is freed: torch allows one capture in the process, and no device's
cache may be emptied meanwhile."""

_broken: list[torch.cuda.CUDAGraph] = []
"""Captures that could not be ended: torch's allocator has kept a pointer to each."""


class GraphCapture:
    """Captures steps on one device into CUDA graphs that share a memory pool. For the device's compute thread only.

    During a capture the host may wait for nothing and copy nothing to the device: a step that does so fails here.
    Concurrent calls become branches of the graph, each with the kernels that it has alone.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None  # torch's handle

    def __call__(self, calls: Sequence[Call]) -> Replay:
        """Capture the calls as a graph, with memory of its own for the arguments."""
        with CAPTURE_LOCK, torch.cuda.device(self._device):
            return self._captured(calls)

    def _captured(self, calls: Sequence[Call]) -> Replay:
        inputs = [tuple(x.clone() for x in call.arguments) for call in calls]
        for ours, call in zip(inputs, calls, strict=True):
            if any(one.stride() != x.stride() for one, x in zip(ours, call.arguments, strict=True)):
                raise ValueError("an argument has a layout that no copy of it has")
        streams = streams_of(self._device)
        steps = [(call.step, ours) for call, ours in zip(calls, inputs, strict=True)]
        graph = torch.cuda.CUDAGraph()
        # After a failure the next graph gets a new pool: who knows in which state this one was left.
        pool, self._pool = self._pool or torch.cuda.graph_pool_handle(), None
        work, side = torch.cuda.current_stream(), streams.capture
        # Where a capture fails torch leaves the thread on the side stream: this outer context takes it back.
        with torch.cuda.stream(side):
            side.wait_stream(work)
            try:
                for _ in range(NUM_WARM_UPS):
                    _branch(steps, side, streams.branches)
            except BaseException:
                torch.cuda.synchronize()  # other branches may still read the inputs, which go now
                raise
            # As torch.cuda.graph does, but for the cache of pinned memory, which copies of other threads go on using.
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            try:
                outputs = _recorded(graph, pool, lambda: _branch(steps, side, streams.branches))
            except BaseException:
                abandon(graph, self._device, pool)
                raise
        work.wait_stream(side)
        self._pool = pool
        for output in outputs:
            output.fill_(torch.nan)  # were the graph empty, what lies here could be a warm-up's right result

        def replay(arguments: Sequence[Arguments]) -> list[Tensor]:
            for ours, given in zip(inputs, arguments, strict=True):
                for one, x in zip(ours, given, strict=True):
                    one.copy_(x)
            graph.replay()
            return [output.clone() for output in outputs]  # the next replay of any graph in the pool may write here

        return replay


def _recorded[T](graph: torch.cuda.CUDAGraph, pool: Any, work: Callable[[], T]) -> T:
    """Return what `work` returns; what it launches on the current stream becomes the graph.

    "thread_local", for other threads go on using CUDA.
    """
    graph.capture_begin(pool=pool, capture_error_mode="thread_local")
    try:
        result = work()
    except BaseException:
        graph.capture_end()
        raise
    graph.capture_end()
    return result


def _branch(
    steps: Sequence[tuple[Step, Arguments]], stem: torch.cuda.Stream, branches: Sequence[torch.cuda.Stream]
) -> list[Tensor]:
    """Run the steps and return their results: the first on `stem`, the thread's stream, each other on its own branch.

    Intermediate tensors of a step are allocated on its branch and used there alone; its result is used on the stem,
    after the branches have joined it.
    """
    others = branches[: len(steps) - 1]
    for branch in others:
        branch.wait_stream(stem)
    results = []
    for (step, arguments), stream in zip(steps, (stem, *others), strict=True):
        with torch.cuda.stream(stream):
            results.append(step(*arguments))
    for branch in others:
        stem.wait_stream(branch)
    return results


def abandon(graph: torch.cuda.CUDAGraph, device: torch.device, pool: Any) -> None:
    """Clean up on the stream of a capture that failed.

    If the driver refuses to end the capture, torch's allocator is not told that there is none any more, and would take
    back no memory that two streams use, and raise when it is asked to empty its cache. Nor are the generators of random
    numbers, which (torch 2.11) would refuse to work outside of captures, until another capture is ended. torch's
    allocator of pinned memory cannot be told from here; it goes on asking the graph, which is kept, in vain.
    """
    try:
        graph.pool()
    except RuntimeError:  # it was not ended
        _broken.append(graph)
        with contextlib.suppress(Exception):  # raises where the allocator knows of no capture: all is well
            torch._C._cuda_endAllocateToPool(index_of(device), pool)
        x, another = torch.zeros(1, device=device), torch.cuda.CUDAGraph()
        try:
            _recorded(another, torch.cuda.graph_pool_handle(), lambda: x.add_(1))
        except Exception:  # whatever is broken stays so; the graph must outlive the allocator's pointer to it
            _broken.append(another)
