"""The network on a CUDA device: its arithmetic fixed, its short steps as CUDA graphs, frames on their way to and fro.

Knows no windows and no host. Where everything runs: all work of a device goes through its default stream, whichever
thread asks for it, so each step sees what the steps before it made, also when another device's thread reads a frame
that was made here: torch copies between devices on the current streams of both. Only copies to the host have a stream
of their own.

What is bound to fail is not tried, and what fails is left to the plain steps of torch: a graph is an optimisation, and
no picture may depend on it.
"""

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import batched
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from vsrealbasicvsr.model import RealBasicVSR

from ..torch import Propagation, TorchNetwork
from .epilogue import Epilogue, by_triton, fuse, why_not

MAX_GRAPH_PX = 250_000
"""Low-resolution pixels of a frame whose steps are captured. A frame takes some 600 launches of 5 to 10 microseconds,
3 to 6 ms. By estimate an H100 has done the work of 320x180 in 1 to 2 ms and that of 640x360 (230,400) in 6 to 12 ms;
beyond that the launches hide behind the work, and a graph would only keep memory."""

MAX_GRAPHS = 12
"""Of a network. A clip has one size, which makes seven: cleaning, flow and both propagations; cleaning and flow of
several frames abreast, both propagations abreast."""

MAX_ABREAST = 8
"""Calls that are captured into one graph, side by side."""

BUSY_PX = 256
"""Low-resolution pixels that keep one of a GPU's multiprocessors busy: two tiles of a convolution, of 128 pixels each.
An H100 has 132, which makes 33,792: eight frames of 64x64, three of 128x96, one of 320x180."""

_MULTIPROCESSORS_ELSEWHERE = 64  # where the device tells no number: not CUDA, as in tests

NUM_WARM_UPS = 3
"""Runs of a step before its capture: libraries load their kernels, and make their plans and workspaces, outside of it.
"""

Step = Callable[..., Tensor]
"""Tensors to a new tensor, the same bits for the same arguments."""

type Arguments = tuple[Tensor, ...]


class Call(NamedTuple):
    """A step and what it is called with. `name` stands for the step, whatever its arguments."""

    name: str
    step: Step
    arguments: Arguments


Replay = Callable[[Sequence[Arguments]], list[Tensor]]
"""From the arguments of each call to what each gives."""


# ---- arithmetic ------------------------------------------------------------------------------------------------------


class _FixedConv2d(nn.Conv2d):
    """A convolution that is told how to compute, instead of asking the switches of the process.

    `torch.backends.cudnn` is one for all threads: to set and restore its switches around a step would change the
    results of whoever computes at the same time, and two threads that do so restore each other's values. torch takes
    the same switches as arguments here (what it calls itself, with the switches' values, in every convolution).

    benchmark is off and deterministic on: a benchmark chooses the algorithm that was the fastest this time, and
    algorithms differ in their rounding; cuDNN's heuristics choose by the sizes and the GPU alone. (Where there is no
    memory for the workspace of the one chosen, torch takes the next: short memory may show in the last bits.)
    """

    allow_tf32: bool
    cudnn_enabled: bool

    @classmethod
    def like(cls, conv: nn.Conv2d, *, allow_tf32: bool) -> "_FixedConv2d":
        """With the weights and the settings of `conv` itself, which pads with zeros."""
        made = cls.__new__(cls)  # a new one would first draw weights of its own
        made.__dict__.update(conv.__dict__)
        made.allow_tf32 = allow_tf32
        made.cudnn_enabled = torch.backends.cudnn.enabled
        return made

    def forward(self, x: Tensor) -> Tensor:
        """The convolution of x."""
        return torch._convolution(
            x,
            self.weight,
            self.bias,
            self.stride,
            self.padding,  # type: ignore[arg-type]
            self.dilation,
            False,  # transposed
            (0, 0),  # output_padding
            self.groups,
            False,  # benchmark
            True,  # deterministic
            self.cudnn_enabled,
            self.allow_tf32,
        )


def fix_arithmetic(model: RealBasicVSR) -> None:
    """From here on the model's convolutions compute the same bits at every run, whatever torch's switches say.

    TF32 rounds the factors of float32 products to 10 bits of mantissa. A network in float32 does without, to be one.
    In half precision it is allowed: only the flow network is in float32 then, which without tensor cores would take (by
    estimate, on an H100) as long as all the rest, and float16 has the same 10 bits. Its products add up in float32.
    """
    allow_tf32 = model.dtype != torch.float32
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Conv2d:
                setattr(parent, name, _FixedConv2d.like(child, allow_tf32=allow_tf32))


# ---- graphs ----------------------------------------------------------------------------------------------------------


class Capture(Protocol):
    """Makes steps of one size quick to call, several of them side by side."""

    def __call__(self, calls: Sequence[Call]) -> Replay:
        """The captured calls, for arguments of these shapes, strides and types. None may need what another gives.

        Its results share memory with nothing. Raises what it likes where they cannot be captured.
        """
        ...


class StepGraphs:
    """Which steps are captured, and which are not: at most `max_graphs`, and none that was ever seen to differ.

    A step is captured at its first call, for arguments of one shape, layout and type, and held against the plain step:
    with these arguments, and with others, for something of the first could be baked into it. If a bit differs, or the
    capture fails, the step stays plain for good. Calls abreast are one graph of their own, held against the same plain
    steps; where there is none, they are run one by one.
    """

    def __init__(self, capture: Capture, *, max_graphs: int = MAX_GRAPHS) -> None:
        self._capture = capture
        self._max_graphs = max_graphs
        self._graphs: dict[tuple[tuple[Any, ...], ...], Replay] = {}  # by name and layouts of each call
        self._plain: set[tuple[str, ...]] = set()
        # A refused graph is kept all the same: torch lets no memory pool be used again whose only graph has gone.
        self._refused: list[Replay] = []
        self._notes: list[str] = []

    @property
    def notes(self) -> list[str]:
        """Why steps are not captured, a line for each."""
        return list(self._notes)

    @property
    def is_capturing(self) -> bool:
        """Whether steps are captured at all, and not left plain because memory was short."""
        return self._max_graphs > 0

    def run(self, *calls: Call) -> list[Tensor]:
        """What each call gives, by a graph where there is one. Several run abreast: none may need another's result."""
        key = tuple((call.name, *((x.shape, x.stride(), x.dtype, x.device) for x in call.arguments)) for call in calls)
        if graph := self._graphs.get(key):
            return graph([call.arguments for call in calls])
        made = self._one_by_one(calls)  # first: if there is no memory for this either, the caller should hear of it
        names = tuple(call.name for call in calls)
        if len(self._graphs) < self._max_graphs and not self._is_plain(names):
            try:
                graph = self._graphs[key] = self._capture(calls)
                is_right = _is_right(graph, calls, made)
            except Exception as error:  # whatever torch and its libraries raise where they cannot
                self._leave_plain(names, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
                return made
            if not is_right:
                self._leave_plain(names, "it gave other values than the plain step")
        return made

    def _is_plain(self, names: tuple[str, ...]) -> bool:
        """Whether these steps, side by side, or one of them by itself, are left plain."""
        return names in self._plain or any((name,) in self._plain for name in names)

    def _one_by_one(self, calls: Sequence[Call]) -> list[Tensor]:
        if len(calls) == 1:
            return [calls[0].step(*calls[0].arguments)]
        return [made for call in calls for made in self.run(call)]

    def release(self) -> None:
        """Drop all graphs. Memory was short: no step is captured from here on."""
        self._graphs.clear()
        self._refused.clear()
        self._max_graphs = 0

    def _leave_plain(self, names: tuple[str, ...], reason: str) -> None:
        self._plain.add(names)
        for key in [key for key in self._graphs if self._is_plain(tuple(name for name, *_ in key))]:
            self._refused.append(self._graphs.pop(key))
        counted = [f"{number} x {name}" if number > 1 else name for name, number in Counter(names).items()]
        self._notes.append(f"{' and '.join(counted)} runs without a CUDA graph ({reason})")


def _is_right(graph: Replay, calls: Sequence[Call], made: Sequence[Tensor]) -> bool:
    """Whether a graph gives what the plain steps give, with other arguments first and then with those of `made`."""
    others = [tuple(-1 - x for x in call.arguments) for call in calls]
    expected = [call.step(*other) for call, other in zip(calls, others, strict=True)]
    return all(map(_same_bits, graph(others), expected)) and all(
        map(_same_bits, graph([call.arguments for call in calls]), made)
    )


_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether these are one tensor for all that follows: signs of zeros, NaNs and the layout included."""
    if (a.shape, a.stride(), a.dtype) != (b.shape, b.stride(), b.dtype):
        return False
    bits = _INTEGERS[a.element_size()]
    return torch.equal(a.view(bits), b.view(bits))


_one_at_a_time = threading.Lock()
"""Held while a graph is captured and while memory is given back: torch allows one capture in the process, and wants no
device's cache emptied meanwhile."""

_broken: list[torch.cuda.CUDAGraph] = []
"""Captures that could not be ended. torch's allocator has kept a pointer to each."""


class GraphCapture:
    """Captures steps on one device into CUDA graphs that share a memory pool. For the device's compute thread only.

    Inside of a capture the host may wait for nothing and copy nothing to the device: a step that does so fails here.
    Calls abreast become branches of the graph, each with the kernels that it has alone.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None  # torch's handle

    def __call__(self, calls: Sequence[Call]) -> Replay:
        """The calls as a graph, with memory of its own for the arguments."""
        with _one_at_a_time, torch.cuda.device(self._device):
            return self._captured(calls)

    def _captured(self, calls: Sequence[Call]) -> Replay:
        inputs = [tuple(x.clone() for x in call.arguments) for call in calls]
        for ours, call in zip(inputs, calls, strict=True):
            if any(one.stride() != x.stride() for one, x in zip(ours, call.arguments, strict=True)):
                raise ValueError("an argument has a layout that no copy of it has")
        streams = _streams_of(self._device)
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
            try:
                # "thread_local", for other threads go on using CUDA. The stream is given, for torch's own for captures
                # belongs to whichever device captured first.
                with torch.cuda.graph(graph, pool=pool, stream=side, capture_error_mode="thread_local"):
                    outputs = _branch(steps, side, streams.branches)
            except BaseException:
                _abandon(graph, self._device, pool)
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


def _branch(
    steps: Sequence[tuple[Step, Arguments]], stem: torch.cuda.Stream, branches: Sequence[torch.cuda.Stream]
) -> list[Tensor]:
    """What the steps give: the first on `stem`, the thread's stream, the others each on a branch of its own.

    What a step makes on the way is allocated on its branch and used there alone; what it gives is used on the stem,
    after the branches have come back to it.
    """
    others = branches[: len(steps) - 1]
    for branch in others:
        branch.wait_stream(stem)
    made = []
    for (step, arguments), stream in zip(steps, (stem, *others), strict=True):
        with torch.cuda.stream(stream):
            made.append(step(*arguments))
    for branch in others:
        stem.wait_stream(branch)
    return made


def _abandon(graph: torch.cuda.CUDAGraph, device: torch.device, pool: Any) -> None:
    """Clean up after a capture that failed.

    If the driver refuses to end the capture, torch's allocator is not told that there is none any more, and would take
    back no memory that two streams use, and raise when it is asked to empty its cache.
    """
    try:
        graph.pool()
    except RuntimeError:  # it was not ended
        _broken.append(graph)
        with contextlib.suppress(Exception):  # raises where the allocator knows of no capture: all is well
            torch._C._cuda_endAllocateToPool(_index(device), pool)


class CudaNetwork:
    """TorchNetwork's steps with fixed arithmetic, and on small frames with few launches, several frames abreast.

    Cleaning, flow and the propagation from a state are captured: 600 of a frame's 613 operations. The first step of a
    propagation is rare, and the reconstruction makes few launches with large maps, whose memory a graph would keep; at
    four and sixteen times the pixels it keeps a GPU busy by itself. What depends on values (how often a frame is
    cleaned) lies outside of the steps.

    Frames abreast are branches of one graph and no batch: the convolutions of a batch may be other ones, with another
    rounding, and then a frame's bits would depend on its company.
    """

    def __init__(
        self,
        model: RealBasicVSR,
        *,
        max_rows: int | None = None,
        capture: Capture | None = None,
        epilogue: Epilogue = by_triton,
        busy_px: int | None = None,
    ) -> None:
        """The model becomes the network's own. capture: how steps are captured, CUDA graphs if None. epilogue: what
        comes after a convolution, where it gives torch's values on this device. busy_px: low-resolution pixels that
        keep the device busy, by its size if None.
        """
        fix_arithmetic(model)
        self._device = model.basicvsr.fusion.weight.device
        self._notes: list[str] = []
        with place_of(self._device):
            if reason := why_not(epilogue, self._device, model.dtype):
                self._notes.append(f"bias, rectifier and sum are passes of their own ({reason})")
            else:
                fuse(model, epilogue)
        self._eager = TorchNetwork(model, max_rows=max_rows)
        self._graphs = StepGraphs(capture or GraphCapture(self._device))
        self._busy_px = BUSY_PX * _num_multiprocessors(self._device) if busy_px is None else busy_px

    @property
    def max_rows(self) -> int | None:
        """Rows of a frame that are cleaned or propagated at once, at most; None: as many as the frame's size allows."""
        return self._eager.max_rows

    @max_rows.setter
    def max_rows(self, rows: int | None) -> None:
        self._eager.max_rows = rows

    @property
    def notes(self) -> list[str]:
        """What does not run as fast as it could, and why, a line for each step."""
        return self._notes + self._graphs.notes

    def num_abreast(self, height: int, width: int) -> int:
        """As many frames as keep the device busy, where their steps are captured."""
        if not (self._graphs.is_capturing and self._is_small(height, width)):
            return 1
        return min(-(-self._busy_px // (height * width)), MAX_ABREAST)

    def cleaning_residue(self, frames: Tensor) -> Tensor:
        """What one cleaning pass adds to frames."""
        return self._each("cleaning", self._eager.cleaning_residue, frames)

    def flow(self, ref: Tensor, supp: Tensor) -> Tensor:
        """The flow that aligns what belongs to `supp` to `ref`."""
        return self._each("flow", self._eager.flow, ref, supp)

    def propagate_backward(self, cleaned: Tensor, state: Tensor | None, flow_px: Tensor | None) -> Tensor:
        """The backward state of a frame, from that of the frame after it."""
        if state is None or flow_px is None:
            return self._eager.propagate_backward(cleaned, state, flow_px)
        return self._run(self._backward_call(cleaned, state, flow_px))[0]

    def propagate_forward(self, cleaned: Tensor, state: Tensor | None, flow_px: Tensor | None) -> Tensor:
        """The forward state of a frame, from that of the frame before it."""
        if state is None or flow_px is None:
            return self._eager.propagate_forward(cleaned, state, flow_px)
        return self._run(self._forward_call(cleaned, state, flow_px))[0]

    def propagate_both(self, backward: Propagation, forward: Propagation) -> tuple[Tensor, Tensor]:
        """Both directions abreast, where both come from a state."""
        of_backward, of_forward = ([x for x in given if x is not None] for given in (backward, forward))
        if len(of_backward) < len(backward) or len(of_forward) < len(forward):
            return self.propagate_backward(*backward), self.propagate_forward(*forward)
        behind, ahead = self._run(self._backward_call(*of_backward), self._forward_call(*of_forward))
        return behind, ahead

    def reconstruct(
        self, cleaned: Tensor, backward_state: Tensor, forward_state: Tensor
    ) -> Iterator[tuple[int, Tensor]]:
        """The high-resolution frame, made in bands of rows."""
        return self._eager.reconstruct(cleaned, backward_state, forward_state)

    def release(self) -> None:
        """Drop all graphs, and give the memory that torch keeps for later back to the device."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # the memory that graphs work in goes with them
        self._graphs.release()
        with _one_at_a_time, place_of(self._device):
            self._eager.release()

    def _backward_call(self, *arguments: Tensor) -> Call:
        return Call("backward propagation", self._eager.propagate_backward, arguments)

    def _forward_call(self, *arguments: Tensor) -> Call:
        return Call("forward propagation", self._eager.propagate_forward, arguments)

    def _each(self, name: str, step: Step, *batches: Tensor) -> Tensor:
        """The step for each entry of the batches by itself, as many abreast as keep the device busy.

        A last group that is neither full nor a single entry is filled up with its last one: a graph is for one number
        of calls.
        """
        calls = [
            Call(name, step, entries) for entries in zip(*(torch.split(batch, 1) for batch in batches), strict=True)
        ]
        if len(calls) == 1:
            return self._run(calls[0])[0]
        num, made = self.num_abreast(*batches[0].shape[-2:]), list[Tensor]()
        for group in batched(calls, num):
            filled = group if len(group) == 1 else (*group, *group[-1:] * (num - len(group)))
            made += self._run(*filled)[: len(group)]
        return torch.cat(made)

    def _run(self, *calls: Call) -> list[Tensor]:
        # A graph's memory is of the kind that only inference mode may write to.
        if self._is_small(*calls[0].arguments[0].shape[-2:]) and torch.is_inference_mode_enabled():
            return self._graphs.run(*calls)
        return [call.step(*call.arguments) for call in calls]

    def _is_small(self, height: int, width: int) -> bool:
        """Whether steps of such frames are captured."""
        return height * width <= MAX_GRAPH_PX and self._eager.rows_at_once(height, width) >= height


def _num_multiprocessors(device: torch.device) -> int:
    """Of the device: how much it does at once."""
    if device.type != "cuda":
        return _MULTIPROCESSORS_ELSEWHERE
    return torch.cuda.get_device_properties(device).multi_processor_count


# ---- streams and copies ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Streams:
    """A device's streams besides the default one.

    Made once: torch hands out 32 of each priority in turns, and what anybody does on a stream that captures ends up in
    a graph. These are of high priority, which hardly anybody else asks for.
    """

    capture: torch.cuda.Stream
    branches: tuple[torch.cuda.Stream, ...]
    copies: torch.cuda.Stream


_streams: dict[int, _Streams] = {}
_streams_lock = threading.Lock()


def _streams_of(device: torch.device) -> _Streams:
    index = _index(device)
    with _streams_lock:
        if index not in _streams:
            made = [torch.cuda.Stream(index, priority=-1) for _ in range(MAX_ABREAST + 1)]  # type: ignore[no-untyped-call]
            _streams[index] = _Streams(capture=made[0], branches=tuple(made[1:-1]), copies=made[-1])
        return _streams[index]


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device == torch.device(device.type) else device.index


@contextlib.contextmanager
def place_of(device: torch.device) -> Iterator[None]:
    """While this lasts the thread works on the device and its default stream. On another kind of device: nothing."""
    if device.type != "cuda":
        yield
        return
    with torch.cuda.device(device), torch.cuda.stream(torch.cuda.default_stream(device)):
        yield


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on the CUDA device, for what the thread tells the device next. The thread itself waits not.

    From memory that is not pinned torch would wait until the device has done all that it was told.
    """
    pinned = _pinned_like(tensor)
    if pinned is None:
        return tensor.to(device)
    pinned.copy_(tensor)
    return pinned.to(device, non_blocking=True)  # torch keeps the pinned memory until the copy is done


def to_host(made: Sequence[Tensor]) -> list[Tensor]:
    """Tensors that were made on the default stream of one CUDA device, on the CPU. For any thread.

    It waits without holding the interpreter, and the device computes on meanwhile.
    """
    device = made[0].device
    with torch.inference_mode(), torch.cuda.device(device):
        ready = torch.cuda.default_stream(device).record_event()
        hosts = [_pinned_like(one) for one in made]
        copies = _streams_of(device).copies
        with torch.cuda.stream(copies):
            copies.wait_event(ready)
            # What is read lives until the copies are done, as locals: another stream may not have its memory before.
            dense = [one.contiguous() for one in made]
            for i, (host, one) in enumerate(zip(hosts, dense, strict=True)):
                if host is None:
                    hosts[i] = one.cpu()
                else:
                    host.copy_(one, non_blocking=True)
            done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            done.record(copies)
        done.synchronize()
    return [host for host in hosts if host is not None]


def _pinned_like(tensor: Tensor) -> Tensor | None:
    """Pinned memory for as many values, which torch keeps and hands out again; None where the system gives no more."""
    try:
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    except RuntimeError:
        return None
