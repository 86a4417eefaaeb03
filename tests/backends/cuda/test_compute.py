"""What can be held of the GPU's path without a GPU: which steps are captured, the arithmetic, the compute threads."""

import copy
import gc
import threading
from types import SimpleNamespace

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.backends.cuda.fake_cuda import FakeCuda
from tests.backends.cuda.stepping import steps
from tests.fake_capture import FakeCapture
from tests.host_copies import HostCopies
from tests.networks import smooth_frames
from vsrealbasicvsr.backends.cuda import backend as cuda
from vsrealbasicvsr.backends.cuda import streams
from vsrealbasicvsr.backends.cuda.arithmetic import fix_arithmetic
from vsrealbasicvsr.backends.cuda.backend import CudaBackend
from vsrealbasicvsr.backends.cuda.fused import FusedBackend, Kernels, fuse_convolutions
from vsrealbasicvsr.backends.cuda.graphs import Call, GraphCapture, StepGraphs
from vsrealbasicvsr.backends.cuda.join import FRAME_CHANNELS
from vsrealbasicvsr.backends.torch import TorchBackend
from vsrealbasicvsr.engine import Grid, SourceFrame, WindowUpscaler, choose_device, is_out_of_memory
from vsrealbasicvsr.engine import device as compute
from vsrealbasicvsr.model import Architecture, RealBasicVSR
from vsrealbasicvsr.weights import load_model

CPU = torch.device("cpu")


class Counted:
    """A step that knows what it was called with."""

    def __init__(self):
        self.calls = []

    def __call__(self, *arguments):
        self.calls.append(arguments)
        return sum(arguments) * 2


def on(*values: float) -> torch.Tensor:
    return torch.tensor(values)


def run(graphs: StepGraphs, name, step, *arguments) -> torch.Tensor:
    (made,) = graphs.run(Call(name, step, arguments))
    return made


# ---- which steps are captured ----------------------------------------------------------------------------------------


def test_a_step_is_captured_once_checked_and_then_replayed():
    capture, step = FakeCapture(), Counted()
    graphs = StepGraphs(capture)
    for value in range(10):
        x = on(value, 1)
        assert torch.equal(run(graphs, "step", step, x), x * 2)
        assert any(arguments[0] is x for arguments in step.calls) == (value == 0)  # else by the graph, on its own
    assert len(capture.captured) == 1
    assert capture.num_replays == 2 + 9
    assert graphs.notes == []


def test_each_shape_type_and_layout_has_a_graph_of_its_own():
    capture, step = FakeCapture(), Counted()
    graphs = StepGraphs(capture)
    x = torch.rand(1, 3, 4, 5)
    kinds = [x, x[:, :, :3].contiguous(), x.half(), x.contiguous(memory_format=torch.channels_last), x.double()]
    for _ in range(3):
        for one in kinds:
            assert torch.equal(run(graphs, "step", step, one), one * 2)
    assert len(capture.captured) == len(kinds)


def test_there_are_no_more_graphs_than_may_be():
    capture, step = FakeCapture(), Counted()
    graphs = StepGraphs(capture, max_graphs=2)
    for _ in range(3):
        for size in range(1, 6):
            assert torch.equal(run(graphs, "step", step, torch.ones(size)), torch.full((size,), 2.0))
    assert len(capture.captured) == 2
    assert graphs.notes == []


def other_value(made, _):
    made[0] += 1e-7
    return made


def nan(made, _):
    return torch.full_like(made, torch.nan)


def first_value_for_ever(made, _):
    return torch.zeros_like(made)


def other_layout(made, _):
    return made.t().contiguous().t() if made.ndim == 2 else made[None]


def other_zero(made, _):
    return -made if not made.any() else made


@pytest.mark.parametrize("wrong", [other_value, nan, first_value_for_ever, other_layout, other_zero])
def test_a_graph_that_gives_anything_else_is_never_used(wrong):
    capture, step = FakeCapture(wrong), Counted()
    graphs = StepGraphs(capture)
    for value in (0.0, 1.0, 2.0, 3.0, 0.0):
        x = torch.full((2, 3), value)
        assert torch.equal(run(graphs, "flow", step, x).view(torch.int32), (x * 2).view(torch.int32))
        assert run(graphs, "flow", step, x).stride() == x.stride()
    assert len(capture.captured) == 1
    assert graphs.notes == ["flow runs without a CUDA graph (its results differed from eager execution)"]


def test_a_nan_that_the_plain_step_makes_too_is_right():
    graphs = StepGraphs(FakeCapture())
    assert run(graphs, "step", Counted(), on(torch.nan)).isnan().all()
    assert graphs.notes == []


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: operation not permitted when stream is capturing"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
        TypeError("graph.__init__() got an unexpected keyword argument 'capture_error_mode'"),
    ],
)
@pytest.mark.parametrize("fails", ["capture", "replay"])
def test_what_cannot_be_captured_stays_plain_for_good_and_nothing_else_does(error, fails):
    inner = FakeCapture()
    num_failures = 0

    def fail():
        nonlocal num_failures
        num_failures += 1
        raise error

    def capture(calls):
        if calls[0].step is not bad:
            return inner(calls)
        return fail() if fails == "capture" else lambda *_: fail()

    bad, good = Counted(), Counted()
    graphs = StepGraphs(capture)
    for value in range(6):
        x = on(value)
        for name, step in (("bad", bad), ("good", good)):
            assert torch.equal(run(graphs, name, step, x), x * 2)
    x = on(1, 2, 3)
    assert torch.equal(run(graphs, "bad", bad, x), x * 2)  # nor in another size
    assert num_failures == 1
    assert len(inner.captured) == 1
    (note,) = graphs.notes
    assert note.startswith(f"bad runs without a CUDA graph ({type(error).__name__}: {str(error)[:20]}")


def test_memory_that_is_too_short_for_the_plain_step_is_the_callers_affair():
    capture = FakeCapture()
    graphs = StepGraphs(capture)

    def step(_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(RuntimeError) as caught:
        run(graphs, "step", step, on(1))
    assert is_out_of_memory(caught.value)
    assert capture.captured == graphs.notes == []
    assert torch.equal(run(graphs, "step", Counted(), on(1)), on(2))  # and the step is not held to be unfit
    assert len(capture.captured) == 1


def test_once_memory_was_short_there_are_no_graphs():
    capture, step = FakeCapture(), Counted()
    graphs = StepGraphs(capture)
    for _ in range(3):
        run(graphs, "step", step, on(1))
    graphs.release()
    step.calls.clear()
    for _ in range(3):
        assert torch.equal(run(graphs, "step", step, on(3)), on(6))
    assert len(step.calls) == 3
    assert len(capture.captured) == 1


# ---- concurrent calls -----------------------------------------------------------------------------------------------


def test_concurrent_calls_are_one_graph_that_is_checked_against_the_plain_steps():
    capture, double, sum_up = FakeCapture(), Counted(), Counted()
    graphs = StepGraphs(capture)
    for value in range(6):
        calls = [Call("double", double, (on(value),)), Call("sum", sum_up, (on(value, 1), on(2, value)))]
        made = graphs.run(*calls)
        assert [one.tolist() for one in made] == [[2 * value], [2 * value + 4, 2 * value + 2]]
    assert capture.captured == [["double"], ["sum"], ["double", "sum"]]  # one by one at first, to be checked
    assert capture.num_replays == 3 * 2 + 5
    assert graphs.notes == []


def test_as_many_of_a_step_as_are_concurrent_make_a_graph_of_their_own():
    capture, step = FakeCapture(), Counted()
    graphs = StepGraphs(capture)
    for num in (1, 2, 3, 2, 1, 3):
        made = graphs.run(*(Call("step", step, (on(i),)) for i in range(num)))
        assert [one.item() for one in made] == [2 * i for i in range(num)]
    assert [len(names) for names in capture.captured] == [1, 2, 3]


@pytest.mark.parametrize("fails", ["the capture", "one value"])
def test_calls_that_are_not_concurrent_are_run_one_by_one(fails):
    inner, step = FakeCapture(), Counted()

    def capture(calls):
        if len(calls) == 1:
            return inner(calls)
        if fails == "the capture":
            raise RuntimeError("unjoined work")
        replay = FakeCapture()(calls)
        return lambda arguments: [one + (i == len(calls) - 1) for i, one in enumerate(replay(arguments))]

    graphs = StepGraphs(capture)
    for value in range(4):
        made = graphs.run(*(Call("step", step, (on(value + i),)) for i in range(3)))
        assert [one.item() for one in made] == [2 * (value + i) for i in range(3)]
    (note,) = graphs.notes
    assert note.startswith("3 x step runs without a CUDA graph")
    assert inner.captured == [["step"]]  # alone it is captured as ever
    assert inner.num_replays > 9


def test_a_step_whose_graph_was_wrong_is_not_concurrent_either():
    step, wrong = Counted(), FakeCapture(other_value)
    inner = FakeCapture()
    graphs = StepGraphs(lambda calls: (wrong if len(calls) == 1 else inner)(calls))
    for value in range(3):
        assert torch.equal(run(graphs, "step", step, on(value)), on(2 * value))
        made = graphs.run(*(Call("step", step, (on(value + i),)) for i in range(3)))
        assert [one.item() for one in made] == [2 * (value + i) for i in range(3)]
    assert inner.captured == []
    assert len(graphs.notes) == 1


def test_the_order_of_concurrent_calls_counts():
    double, sum_up, graphs = Counted(), lambda x: x + 1, StepGraphs(FakeCapture())
    for order in ("dsd", "dds", "sdd") * 2:
        calls = [Call(which, double if which == "d" else sum_up, (on(i),)) for i, which in enumerate(order)]
        expected = [2 * i if which == "d" else i + 1 for i, which in enumerate(order)]
        assert [one.item() for one in graphs.run(*calls)] == expected


# ---- the network -----------------------------------------------------------------------------------------------------


@pytest.fixture
def model(tiny_model) -> RealBasicVSR:
    return load_model(tiny_model)


def assert_same_bits(ours: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for index, (a, b) in enumerate(zip(ours, expected, strict=True)):
        assert a.stride() == b.stride()
        assert torch.equal(a, b), index


def graph_notes(network: CudaBackend) -> list[str]:
    """Without the one that there is no Triton for a CPU."""
    return [note for note in network.notes if "CUDA graph" in note]


@pytest.mark.parametrize("size", [(32, 64), (45, 67), (1, 5)])
def test_captured_or_not_the_steps_give_the_same_bits(model, size):
    frames = smooth_frames(6, *size)
    capture = FakeCapture()
    network = CudaBackend(copy.deepcopy(model), capture=capture)
    with torch.inference_mode():
        assert_same_bits(steps(network, frames), steps(TorchBackend(model), frames))
    assert len(capture.captured) == 4  # cleaning, flow, and both propagations from a state
    assert graph_notes(network) == []


@pytest.mark.parametrize(("size", "num"), [((32, 64), 3), ((45, 67), 2)])
def test_concurrently_every_frame_is_what_it_is_alone(model, size, num):
    frames, capture = smooth_frames(7, *size), FakeCapture()
    network = CudaBackend(copy.deepcopy(model), capture=capture, busy_px=num * size[0] * size[1])
    plain = TorchBackend(model)
    assert network.num_concurrent_frames(*size) == num
    with torch.inference_mode():
        for batch in (frames, frames[:num], frames[:1]):
            alone = [plain.cleaning_residue(frame) for frame in batch]
            assert torch.equal(network.cleaning_residue(torch.cat(batch)), torch.cat(alone))
        refs, supps = torch.cat(frames[1:]), torch.cat(frames[:-1])
        flows = [plain.flow(*pair) for pair in zip(frames[1:], frames[:-1], strict=True)]
        assert torch.equal(network.flow(refs, supps), torch.cat(flows))
        behind = ahead = None
        for step, flow in enumerate([None, *flows]):
            backward, forward = (frames[step], behind, flow), (frames[-1 - step], ahead, flow)
            expected = [plain.propagate_backward(*backward), plain.propagate_forward(*forward)]
            behind, ahead = network.propagate_both(backward, forward)
            assert_same_bits([behind, ahead], expected)
    both = ["backward propagation", "forward propagation"]
    assert [names for names in capture.captured if len(names) > 1] == [["cleaning"] * num, ["flow"] * num, both]
    assert graph_notes(network) == []


def test_only_small_frames_that_are_captured_are_concurrent(model):
    network = CudaBackend(copy.deepcopy(model), capture=FakeCapture(), busy_px=33_792)
    sizes = [(64, 64), (96, 128), (180, 320), (16, 16), (720, 1280)]
    assert [network.num_concurrent_frames(*size) for size in sizes] == [8, 3, 1, 8, 1]
    assert [network.num_cleaned_together(*size) for size in sizes] == [8, 6, 4, 8, 4]
    network.max_tile_rows = 48
    assert network.num_concurrent_frames(64, 64) == 1  # in tiles
    assert network.num_concurrent_frames(48, 64) == 8
    network.release()
    assert network.num_concurrent_frames(48, 64) == 1  # memory was short
    assert network.num_cleaned_together(48, 64) == 1


def test_a_wrong_graph_shows_in_no_picture(model):
    frames = smooth_frames(6, 45, 67)
    network = CudaBackend(copy.deepcopy(model), capture=FakeCapture(nan))
    with torch.inference_mode():
        assert_same_bits(steps(network, frames), steps(TorchBackend(model), frames))
    assert len(graph_notes(network)) == 4


def test_frames_whose_graphs_have_no_memory_and_frames_in_tiles_are_not_captured(model):
    frames, gib = smooth_frames(3, 45, 67), 2**30
    bytes_wanted = 45 * 67 * cuda.graph_bytes_px(model) / cuda.GRAPH_SHARE
    with torch.inference_mode():
        for max_tile_rows, free_bytes in ((None, int(bytes_wanted) - 1), (20, gib)):
            capture = FakeCapture()
            network = CudaBackend(
                copy.deepcopy(model), max_tile_rows=max_tile_rows, capture=capture, free_bytes=free_bytes
            )
            assert_same_bits(steps(network, frames), steps(TorchBackend(model, max_tile_rows=max_tile_rows), frames))
            assert capture.captured == []
        network.max_tile_rows = 45
        steps(network, frames)
    assert len(capture.captured) > 0


class Alive(TorchDispatchMode):
    """Notes the most bytes that the tensors made within it took at once."""

    def __init__(self):
        super().__init__()
        self.most, self._storages = 0, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for x in tree_leaves(made):
            if isinstance(x, torch.Tensor):
                storage = x.untyped_storage()
                self._storages[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self._storages = {key: one for key, one in self._storages.items() if not one[0].expired()}
        self.most = max(self.most, sum(num_bytes for _, num_bytes in self._storages.values()))
        return made


@pytest.mark.long
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("name", ["published", "default"])
def test_graphs_take_no_more_memory_than_is_counted_for_them(monkeypatch, name, dtype):
    monkeypatch.setattr(torch, "_convolution", lambda *given: torch.ops.aten.convolution(*given[:9]))
    sizes = Architecture() if name == "published" else load_model("default").sizes
    with torch.device("meta"):
        network = TorchBackend(RealBasicVSR(sizes).to(dtype).to(memory_format=torch.channels_last))
    counted = cuda.graph_bytes_px(network._model) * 96 * 128
    assert 0.5 * counted < most_alive_bytes(network) < counted


@pytest.mark.parametrize("name", ["published", "default"])
@pytest.mark.long
def test_graphs_of_fused_steps_take_no_more_than_those_of_torchs(name):
    """With kernels that compute nothing: what they read and write is all that is alive."""

    def join(frame, state, flow_px, dtype):
        channels = FRAME_CHANNELS + (0 if state is None else state.shape[1])
        return torch.empty((1, channels, *frame.shape[-2:]), dtype=dtype, device="meta")

    def prepare(frames, coarse):
        size = frames.shape[-2:]
        joined = torch.empty((1, 8, *size), dtype=torch.float16, device="meta")
        return joined, torch.empty((1, 2, *size), device="meta")

    sizes = Architecture() if name == "published" else load_model("default").sizes
    kernels = Kernels(lambda task: None, join, prepare)
    with torch.device("meta"):
        model = RealBasicVSR(sizes).half().to(memory_format=torch.channels_last)
        counted = cuda.graph_bytes_px(model) * 96 * 128
        fuse_convolutions(model, kernels)
    assert 0.25 * counted < most_alive_bytes(FusedBackend(model, kernels)) < counted


def most_alive_bytes(network) -> int:
    """Return the most that is alive at once in any captured step of a frame of 128x96, and all graphs' buffers."""
    frame = torch.empty(1, 3, 96, 128, device="meta")
    most, buffers = 0, 0
    with torch.inference_mode():
        state, flow = network.propagate_backward(frame, None, None), network.flow(frame, frame)
        for step, *arguments in (
            (network.cleaning_residue, frame),
            (network.flow, frame, frame),
            (network.propagate_backward, frame, state, flow),
            (network.propagate_forward, frame, state, flow),
        ):
            with Alive() as alive:
                result = step(*arguments)
            most = max(most, alive.most)
            buffers += sum(x.nbytes for x in (*arguments, result))
    return most + buffers


@pytest.mark.parametrize(
    ("free_gib", "captured"),
    [(78, ["720x480", "1280x720", "1920x1080"]), (22, ["720x480", "1280x720"]), (7, ["720x480"]), (4, [])],
)
def test_frames_of_every_size_are_captured_where_memory_allows(monkeypatch, free_gib, captured):
    """The published network in float16: an H100, and cards of 24, 8 and 4 GB."""
    monkeypatch.setattr(torch, "_convolution", lambda *given: torch.ops.aten.convolution(*given[:9]))
    with torch.device("meta"):
        model = RealBasicVSR().half().to(memory_format=torch.channels_last)
    seen = []

    def capture(calls):
        _, _, height, width = calls[0].arguments[0].shape
        seen.append(f"{width}x{height}")
        raise NotImplementedError("only looking")

    for width, height in ((720, 480), (1280, 720), (1920, 1080)):
        network = CudaBackend(copy.deepcopy(model), capture=capture, free_bytes=free_gib * 2**30)
        with torch.inference_mode():
            network.cleaning_residue(torch.empty(1, 3, height, width, device="meta"))
    assert seen == captured


def test_a_capture_leaves_the_cache_of_pinned_memory_as_it_is(monkeypatch):
    fake = FakeCuda(monkeypatch)
    replay = GraphCapture(CPU)([Call("double", lambda x: x * 2, (torch.ones(2, 3),))])
    assert fake.events == ["device cache emptied", "begin", "end"]
    assert replay([(torch.ones(2, 3),)])[0].shape == (2, 3)


def test_after_a_capture_that_the_driver_does_not_end_another_one_is_ended(monkeypatch):
    """Or torch 2.11 believes that its generators of random numbers still capture."""
    fake = FakeCuda(monkeypatch, refuses=True)

    def step(x):
        if "begin" in fake.events:
            fake.invalidate()
        return x * 2

    with pytest.raises(RuntimeError, match="previous error during capture"):
        GraphCapture(CPU)([Call("double", step, (torch.ones(2, 3),))])
    assert fake.events == ["device cache emptied", "begin", "refused", "pool closed", "begin", "end"]


def test_outside_of_inference_mode_nothing_is_captured(model):
    capture = FakeCapture()
    with torch.no_grad():
        steps(CudaBackend(model, capture=capture), smooth_frames(2, 32, 32))
    assert capture.captured == []


@pytest.mark.long
def test_no_step_that_is_captured_waits_for_the_host_or_copies_from_it(monkeypatch):
    """On the meta device, where all that depends on values raises."""
    # Up to torch 2.11 `_convolution` is not there for this device; `convolution` is, and the switches decide no shape.
    monkeypatch.setattr(torch, "_convolution", lambda *given: torch.ops.aten.convolution(*given[:9]))
    with torch.device("meta"):
        model = RealBasicVSR().half().to(memory_format=torch.channels_last)
    taken = []

    def capture(calls):
        taken.extend((call.step, call.arguments) for call in calls)
        raise NotImplementedError("only looking")

    network = CudaBackend(model, capture=capture)
    frame = torch.empty(1, 3, 180, 320, device="meta")
    with torch.inference_mode():
        state = network.propagate_backward(frame, None, None)
        flow = network.flow(frame, frame)
        network.propagate_backward(frame, state, flow)
        network.propagate_forward(frame, state, flow)
        network.cleaning_residue(frame)
        assert len(taken) == 4
        for step, arguments in taken:
            with HostCopies() as copies:
                step(*arguments)
            assert copies.seen == []
        for from_the_host in (lambda: frame.new_tensor((1.0, 2.0)), lambda: torch.tensor([1.0], device="meta")):
            with HostCopies() as copies:
                from_the_host()
            assert copies.seen != []
        with pytest.raises((RuntimeError, NotImplementedError)):
            frame[frame > 0]


# ---- arithmetic ------------------------------------------------------------------------------------------------------


def test_fixed_arithmetic_is_torchs_arithmetic_on_the_same_weights(model):
    fixed = copy.deepcopy(model)
    weights = {name: id(parameter) for name, parameter in fixed.named_parameters()}
    fix_arithmetic(fixed)
    assert {name: id(parameter) for name, parameter in fixed.named_parameters()} == weights
    assert fixed.cleaning_halo_rows == model.cleaning_halo_rows
    assert list(fixed.state_dict()) == list(model.state_dict())
    lr = torch.rand(1, 3, 3, 24, 40)
    with torch.inference_mode():
        assert torch.equal(fixed(lr), model(lr))


@pytest.mark.parametrize(("dtype", "allows_tf32"), [(torch.float32, False), (torch.float16, True)])
def test_each_convolution_is_told_how_to_compute_whatever_the_switches_say(model, monkeypatch, dtype, allows_tf32):
    told = []

    def convolution(*arguments):
        told.append(arguments[-4:])  # benchmark, deterministic, cudnn_enabled, allow_tf32
        return plain(*arguments)

    plain = torch._convolution
    monkeypatch.setattr(torch, "_convolution", convolution)
    model.to(dtype)
    fix_arithmetic(model)
    assert {parameter.dtype for parameter in model.basicvsr.spynet.parameters()} == {torch.float32}
    num_convolutions = sum(isinstance(module, torch.nn.Conv2d) for module in model.modules())
    with torch.inference_mode(), torch.backends.cudnn.flags(benchmark=True, deterministic=False, allow_tf32=True):
        model(torch.rand(1, 1, 3, 8, 8))
        model.flows(torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8))
    assert len(told) >= num_convolutions - 2  # the blocks are used once, the flow network too
    assert set(told) == {(False, True, True, allows_tf32)}


def test_where_cudnn_has_no_deterministic_algorithm_for_a_shape_another_is_taken_and_remembered(model, monkeypatch):
    told, plain = [], torch._convolution

    def convolution(*arguments):
        x, weight, deterministic = arguments[0], arguments[1], arguments[-3]
        if weight.shape[-1] == 7:
            told.append((x.shape[-1], deterministic))
            if deterministic:
                raise RuntimeError("GET was unable to find an engine to execute this computation")
        return plain(*arguments)

    fixed = copy.deepcopy(model)
    fix_arithmetic(fixed)
    frames = torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        expected = model.flows(*frames)
        monkeypatch.setattr(torch, "_convolution", convolution)
        assert all(map(torch.equal, fixed.flows(*frames), expected))
        assert {deterministic for _, deterministic in told} == {True, False}
        told.clear()
        fixed.flows(*frames)
    assert {deterministic for _, deterministic in told} == {False}


def test_where_cudnn_finds_no_algorithm_at_all_memory_is_short(model, monkeypatch):
    def convolution(*_):
        raise RuntimeError("GET was unable to find an engine to execute this computation")

    fix_arithmetic(model)
    monkeypatch.setattr(torch, "_convolution", convolution)
    with torch.inference_mode(), pytest.raises(RuntimeError) as caught:
        model.cleaning_residue(torch.rand(1, 3, 8, 8))
    assert is_out_of_memory(caught.value)


# ---- threads and copies ----------------------------------------------------------------------------------------------


def test_however_many_ask_at_once_a_device_has_one_thread(monkeypatch):
    monkeypatch.setattr(compute, "_threads", {})
    barrier = threading.Barrier(16)
    found = []

    def ask():
        barrier.wait()
        found.append(compute._thread_of("cpu"))

    threads = [threading.Thread(target=ask) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 16
    assert len(set(map(id, found))) == 1


def test_on_the_cpu_nothing_is_copied():
    cpu = choose_device("cpu", "fp32")
    x = torch.rand(3, 4, 5)
    assert cpu.to_device(x) is x
    (same,) = cpu.on_host([x])
    assert same is x


def test_what_a_copy_waits_for_is_marked_before_the_next_job_is_launched(model, monkeypatch):
    """On the compute thread, which does one thing after the other; a request's own thread may come too late."""
    marking, plain = [], compute.backends.launched

    def watched(tensors):
        marking.append(threading.current_thread().name)
        return plain(tensors)

    monkeypatch.setattr(compute.backends, "launched", watched)
    grid = Grid(num_frames=1, length=1, overlap=0)
    upscaler = WindowUpscaler(model, choose_device("cpu", "fp32"), grid, theta=5.0)
    frame = torch.rand(3, 8, 8)
    (hr,) = upscaler.upscale_frames([frame])
    upscaler.cache.supply(upscaler.cache.acquire(0), {0: SourceFrame(frame)})
    planes = [torch.empty(32, 32) for _ in range(3)]
    upscaler.upscale_into(0, lambda: planes, convert=list)
    assert torch.equal(torch.stack(planes), hr)
    assert marking == ["rbvsr-cpu_0"] * 2


@pytest.fixture
def page_locked(monkeypatch):
    """Memory that a driver, which is not here, would lock; with the sizes that it was asked for."""
    sizes = []
    driver = SimpleNamespace(cudaHostRegister=lambda _, size, flags: sizes.append(size) or flags)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: driver)
    return streams.PageLocked(), sizes


def test_memory_for_copies_is_as_large_as_the_frame_and_used_again(page_locked):
    memory, sizes = page_locked
    frame = torch.empty(3, 2880, 5120, device="meta")
    for _ in range(3):
        host = memory.like(frame)
        assert (host.shape, host.dtype) == (frame.shape, torch.float32)
        del host
    assert sizes == [169 * 2**20]
    small = [memory.like(torch.empty(540, 960, dtype=torch.uint8, device="meta")) for _ in range(2)]
    assert sizes[1:] == [2**20] * 2
    assert small[0].data_ptr() != small[1].data_ptr()


def test_memory_for_copies_is_not_used_again_while_any_tensor_lies_in_it(page_locked):
    memory, sizes = page_locked
    frame = torch.empty(3, 100, 100, dtype=torch.float16, device="meta")
    plane = memory.like(frame).fill_(1)[2]
    gc.collect()
    other = memory.like(frame).fill_(2)
    assert len(sizes) == 2
    assert (plane == 1).all()
    del plane, other
    memory.like(frame)
    assert len(sizes) == 2


def test_where_the_driver_locks_no_more_memory_there_is_none(page_locked):
    memory, _ = page_locked
    torch.cuda.cudart().cudaHostRegister = lambda *_: 2
    assert memory.like(torch.empty(3, 4)) is None


# ---- want of memory --------------------------------------------------------------------------------------------------

SHORT = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    OSError(12, "Cannot allocate memory"),
    *map(
        RuntimeError,
        (
            "CUDA error: out of memory",
            "MPS backend out of memory (MPS allocated: 18.00 GB)",
            "Native API failed. Native API returns: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)",
            "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
            "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
            "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
            "GET was unable to find an engine to execute this computation",
            "FIND was unable to find an engine to execute this computation",
            "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: not enough memory: you tried to allocate",
            "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to",
            "unable to mmap 4096 bytes from file </torch_1>: Cannot allocate memory (12)",
            "std::bad_alloc",
        ),
    ),
]
NOT_SHORT = [
    ValueError("out of memory"),
    OSError(2, "No such file or directory"),
    *map(
        RuntimeError,
        (
            '!handles_.at(i) INTERNAL ASSERT FAILED at "/pytorch/c10/cuda/CUDACachingAllocator.cpp":411, please report',
            "The allocator was not initialized",
            "Expected all tensors to be on the same device, allocated on cuda:0 and cpu",
            "CUDA error: an illegal memory access was encountered",
            "shape '[2, 3]' is invalid for input of size 5",
            "reallocation of a storage that is not resizable",
        ),
    ),
]


@pytest.mark.parametrize("error", [*SHORT, *NOT_SHORT], ids=str)
def test_want_of_memory_is_known_by_what_is_said_and_nothing_else_is_taken_for_it(error):
    assert is_out_of_memory(error) == (error in SHORT)


def test_torch_s_own_words_for_too_large_a_tensor_are_want_of_memory():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
