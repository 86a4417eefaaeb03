"""The engine on a small random network: whatever is asked, and in whatever order, frame n is the same to the bit."""

import copy
import random
import re
import threading
import time

import pytest
import torch

from tests.fake_capture import FakeCapture
from tests.networks import TINY
from tests.tolerances import REGROUPED
from vsrealbasicvsr.backends import base, is_out_of_memory
from vsrealbasicvsr.backends import torch as torch_backend
from vsrealbasicvsr.backends.base import rows_per_tile
from vsrealbasicvsr.backends.cpu import ENVIRONMENT, pages
from vsrealbasicvsr.backends.cpu import backend as cpu_backend
from vsrealbasicvsr.backends.cuda.backend import CudaBackend
from vsrealbasicvsr.engine import DeviceConfig, Grid, SourceFrame, WindowUpscaler, cleaning, thumbnail
from vsrealbasicvsr.engine.memory import Budget
from vsrealbasicvsr.engine.worker import Worker
from vsrealbasicvsr.model import RealBasicVSR, refine

CPU = DeviceConfig(torch.device("cpu"), torch.float32)


WAYS = ["our kernels", *(pytest.param(way, marks=pytest.mark.long) for way in ("concurrent", "torch"))]


def counts(test):
    """Mark a test of what is kept and how often it is computed: torch is called where our kernels are, and left out."""
    test.counts = True
    return test


def pytest_generate_tests(metafunc):
    """Everything holds with our own kernels, where the processor has them, and without; and with several frames at
    once, as on a GPU.
    """
    metafunc.parametrize("kernels", WAYS[:2] if hasattr(metafunc.function, "counts") else WAYS, indirect=True)


@pytest.fixture(autouse=True)
def kernels(request, monkeypatch):
    """Compute in the way that the parameter says."""
    monkeypatch.setenv(ENVIRONMENT, "" if request.param == "our kernels" else "off")
    if request.param == "concurrent":
        monkeypatch.setattr(
            DeviceConfig,
            "prepare",
            lambda _, model, max_tile_rows=None: ConcurrentBackend(copy.deepcopy(model), max_tile_rows=max_tile_rows),
        )


class ConcurrentBackend(CudaBackend):
    """CUDA's way to run the steps, three frames concurrently, without a GPU."""

    def __init__(self, model, *, max_tile_rows=None):
        super().__init__(model, max_tile_rows=max_tile_rows, capture=FakeCapture(), busy_px=3 * 24 * 32)


def worker_of(engine: WindowUpscaler) -> Worker:
    """The state of its first device."""
    return engine._pipelines[0].worker


def network() -> RealBasicVSR:
    torch.manual_seed(0)
    return RealBasicVSR(TINY).eval()


def clip(num_frames: int, seed: int = 1) -> torch.Tensor:
    """A smooth picture that drifts: (T, 3, 24, 32)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 12, 14, generator=generator)
    big = torch.nn.functional.interpolate(coarse, size=(48, 56 + num_frames), mode="bicubic")[0].clamp(0, 1)
    return torch.stack([big[:, 10:34, i : i + 32] for i in range(num_frames)])


def upscaler(
    num_frames: int, *, length=6, overlap=2, theta=5.0, cleaning=1.0, scene_cuts="off", max_tile_rows=None
) -> WindowUpscaler:
    grid = Grid(num_frames=num_frames, length=length, overlap=overlap)
    return WindowUpscaler(
        network(), CPU, grid, theta=theta, cleaning=cleaning, scene_cuts=scene_cuts, max_tile_rows=max_tile_rows
    )


def get(engine: WindowUpscaler, frames: torch.Tensor, n: int, **cuts) -> torch.Tensor:
    """What the host does for one frame."""
    number = engine.cache.acquire(n)
    try:
        missing = engine.cache.missing(number)
        begins, ends = cuts.get("begins", {}), cuts.get("ends", {})
        engine.cache.supply(
            number, {i: SourceFrame(frames[i].clone(), begins.get(i), ends.get(i), user_data=i) for i in missing}
        )
        hr, user_data = engine.upscale(n)
        assert user_data == n
        return hr
    finally:
        engine.cache.release(n)


@pytest.fixture(scope="module")
def made() -> dict[object, list[torch.Tensor]]:
    """What `fresh` has computed so far."""
    return {}


@pytest.fixture
def fresh(request, made):
    """Frames as engines without any history make them, for tests to compare with; kept from test to test.

    fresh(num_frames, each=True, **settings of `upscaler`): the frames of clip(num_frames), each from an engine of its
    own, or all from one that reads forwards.
    """

    def frames_of(num_frames: int, *, each: bool = True, **settings) -> list[torch.Tensor]:
        key = (request.node.callspec.params["kernels"], num_frames, each, *sorted(settings.items()))
        if key not in made:
            frames, engine = clip(num_frames), upscaler(num_frames, **settings)
            made[key] = [
                get(upscaler(num_frames, **settings) if each else engine, frames, n) for n in range(num_frames)
            ]
        return [frame.clone() for frame in made[key]]

    return frames_of


@pytest.mark.long
def test_any_order_gives_the_same_bytes_as_reading_forwards(fresh):
    frames, forwards = clip(16), fresh(16)

    for order in (list(range(16)), list(reversed(range(16))), random.Random(0).sample(range(16), 16) * 2):
        engine = upscaler(16)
        for n in order:
            assert torch.equal(get(engine, frames, n), forwards[n]), f"frame {n} in the order {order}"


@counts
def test_what_may_run_concurrently_does(request):
    if request.node.callspec.params["kernels"] != "concurrent":
        pytest.skip("networks that take one frame at a time")
    engine, frames = upscaler(12), clip(12)
    for n in range(12):
        get(engine, frames, n)
    capture = worker_of(engine).backend._graphs._capture
    both = ["backward propagation", "forward propagation"]
    assert [names for names in capture.captured if len(names) > 1] == [["cleaning"] * 3, ["flow"] * 3, both]
    # Each graph is run twice to be checked against plain steps, for which its calls are run singly once. Of the 12 + 10
    # flows of two windows one is left over; of the 14 steps in each direction 2 have no state to come from, and 1 is
    # what they are checked against.
    assert capture.done[("flow",) * 3] == 2 + 6
    assert capture.done[("flow",)] == 2 + 2 + 1
    assert capture.done[tuple(both)] == 2 + 9
    assert [capture.done[(name,)] for name in both] == [2 + 2, 2 + 2]


def test_the_host_waits_once_for_several_large_frames_to_know_which_are_cleaned_again(request, monkeypatch):
    if request.node.callspec.params["kernels"] != "concurrent":
        pytest.skip("devices that nobody has to wait for")
    asked = []

    def counted(backend, lr, **given):
        asked.append(lr.shape[1])
        return refine(backend, lr, **given)

    monkeypatch.setattr(cleaning, "refine", counted)
    frames, made = clip(12), []
    for busy_px in (1, 3 * 24 * 32):
        asked.clear()
        engine = upscaler(12, theta=1.5)
        worker_of(engine).backend._busy_px = busy_px
        made.append([get(engine, frames, n) for n in range(12)])
        # Of each window's first frames the last one tells the size; the second shares four frames with the first.
        assert asked == {1: [1, 4, 3, 1, 3], 3 * 24 * 32: [1, 6, 1, 1, 3]}[busy_px]
    assert all(map(torch.equal, *made))


@counts
def test_two_devices_that_clean_the_same_frames_at_once_do_not_wait_for_each_other():
    frames, engine = clip(40), upscaler(40)
    sources = [SourceFrame(frame.clone()) for frame in frames]
    cleaner = engine._pipelines[0].cleaner
    clean = cleaner._clean
    cleaner._clean = lambda *arguments: (time.sleep(0.002), clean(*arguments))

    def work(first):
        with torch.inference_mode():
            cleaner.clean_concurrently(sources[first : first + 30], 3 if first else 4)

    threads = [threading.Thread(target=work, args=(first,), daemon=True) for first in (0, 7, 0, 10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads)
    assert engine.statistics.frames_cleaned == 40


@pytest.mark.parametrize(("cleaning", "max_tile_rows"), [(1.0, None), (0.5, None), (0.5, 7), (0.0, None)])
def test_one_long_window_is_the_network_on_the_whole_sequence(cleaning, max_tile_rows):
    frames = clip(9)
    engine = upscaler(9, length=100, overlap=0, theta=1.5, cleaning=cleaning, max_tile_rows=max_tile_rows)
    ours = torch.stack([get(engine, frames, n) for n in range(9)])

    model = network()
    with torch.inference_mode():
        cleaned, num_passes = refine(model, frames[None], theta=1.5, cleaning=cleaning)
        whole = model.super_resolve(cleaned)[0]
    assert (ours - whole).abs().max() < 1e-5
    assert engine.statistics.cleaning_passes == num_passes.sum()
    assert (num_passes.sum() == 0) == (cleaning == 0)


def test_a_frame_larger_than_a_tile_is_the_same_frame(monkeypatch):
    frames = clip(3)
    whole = [get(upscaler(3), frames, n) for n in range(3)]

    monkeypatch.setattr(torch_backend, "MAX_RECONSTRUCTION_PX_CPU", 160)
    monkeypatch.setattr(cpu_backend, "MAX_RECONSTRUCTION_PX", 160)
    monkeypatch.setattr(cpu_backend, "MIN_TILE_ROWS", 1)
    assert rows_per_tile(24, 32, 160) == 5
    tiled = [get(upscaler(3), frames, n) for n in range(3)]
    assert max((a - b).abs().max().item() for a, b in zip(tiled, whole, strict=True)) < REGROUPED


@counts
@pytest.mark.parametrize("size", [(1, 1), (48, 64), (180, 320), (1080, 1920), (33, 100_000), (100_000, 33)])
@pytest.mark.parametrize("most", [32_768, 131_072])
def test_tiles_cover_a_frame_evenly_and_hold_no_more_than_they_may(size, most):
    height, width = size
    rows = rows_per_tile(height, width, most)
    assert 1 <= rows <= height
    assert rows * width <= max(most, 4 * width)  # less than 4 rows would be mostly halo
    num_tiles = -(-height // rows)
    assert height - (num_tiles - 1) * rows > rows - num_tiles  # the last tile is no sliver


@pytest.mark.long
@pytest.mark.parametrize("rows", [1, 5, 11, 23, 24, 1000])
def test_frames_computed_in_tiles_are_the_same_frames(rows, fresh):
    frames, whole = clip(8), fresh(8, theta=1.5)
    engine = upscaler(8, theta=1.5, max_tile_rows=rows)
    tiled = [get(engine, frames, n) for n in range(8)]
    assert max((a - b).abs().max().item() for a, b in zip(tiled, whole, strict=True)) < REGROUPED


def test_the_number_of_cleaning_passes_is_decided_on_whole_frames():
    """A frame half of which changes much: its tiles alone would decide otherwise."""
    frames = clip(1)
    frames[:, :, :12] = 0.5
    model = network()
    with torch.inference_mode():
        change = model.cleaning_residue(frames).abs()
    theta = 255 * change.mean().item()
    halves = [change[:, :, rows].mean().item() * 255 for rows in (slice(0, 12), slice(12, 24))]
    assert min(halves) < 0.98 * theta < 1.02 * theta < max(halves)
    for factor, passes in ((0.98, 2), (1.02, 1)):
        engine = upscaler(1, theta=theta * factor, max_tile_rows=6)
        get(engine, frames, 0)
        assert min(engine.statistics.cleaning_passes, 2) == passes


# ---- memory ----------------------------------------------------------------------------------------------------------


@counts
@pytest.mark.long
@pytest.mark.parametrize(
    ("num_states", "order"),
    [(2, "forwards"), (2, "backwards"), (2, "shuffled"), (3, "backwards"), (5, "shuffled"), (9, "forwards")],
)
def test_what_may_be_held_shows_in_no_bit(num_states, order, fresh):
    frames, expected = clip(20), fresh(20, each=False, length=10, overlap=2)
    engine = upscaler(20, length=10, overlap=2)
    worker_of(engine).budget = Budget(num_states=num_states, holds_flows=False)
    numbers = list(range(20))
    if order == "backwards":
        numbers.reverse()
    elif order == "shuffled":
        random.Random(num_states).shuffle(numbers)
    for n in numbers:
        assert torch.equal(get(engine, frames, n), expected[n]), n
        for live in engine.cache._windows.values():
            for scene in live.scenes or ():
                assert scene.num_states() <= num_states + 3


@counts
@pytest.mark.long
@pytest.mark.parametrize(("num_states", "most"), [(30, 1.0), (12, 1.5), (5, 2.1), (3, 3.1), (2, 4.7)])
def test_with_few_states_the_backward_pass_is_walked_again_but_not_often(num_states, most):
    frames = clip(38)
    engine = upscaler(38, length=30, overlap=8)
    worker_of(engine).budget = Budget(num_states=num_states, holds_flows=True)
    for n in range(30):
        get(engine, frames, n)
    assert engine.statistics.backward_steps <= most * 38
    assert engine.statistics.forward_steps == 30
    assert engine.statistics.frames_cleaned == 38


@counts
@pytest.mark.parametrize("size", [(180, 320), (480, 720), (720, 1280), (1080, 1920), (2160, 3840)])
def test_a_budget_never_says_more_than_there_is(size):
    height, width = size
    for free in (0, 10**9, 5 * 10**9, 50 * 10**9):
        budget = Budget.of(height=height, width=width, channels=64, num_frames=46, free_bytes=free)
        assert budget.num_states >= 2
        state_bytes = height * width * 64 * (4 if height * width <= 500_000 else 2)
        held = budget.num_states * state_bytes + budget.holds_flows * height * width * 46 * 16
        assert held <= max(free, 2 * state_bytes)


def test_large_frames_are_held_in_16_bits_and_hardly_show_it(monkeypatch):
    frames = clip(9)
    whole = [get(upscaler(9), frames, n) for n in range(9)]
    monkeypatch.setattr(base, "LARGE_PX", 100)
    engine = upscaler(9)
    large = [get(engine, frames, n) for n in range(8)]
    error = torch.stack(large) - torch.stack(whole[:8])
    assert 0 < error.abs().max() < 2e-4
    scene = engine.cache._windows[1].scenes[0]
    assert {state.dtype for state in (scene.forward_state, *scene.backward.values())} == {torch.float16}
    assert {source.cleaned.dtype for source in engine.cache._windows[1].sources.values()} == {torch.int16}


def test_pages_that_cannot_be_had_are_memory_that_is_short(monkeypatch):
    monkeypatch.setattr(pages, "MIN_BYTES", 1)
    frames = clip(6)
    expected = get(upscaler(6), frames, 0)
    asked = []
    real = pages.mmap.mmap

    def mmap(*arguments, **options):
        asked.append(arguments)
        if len(asked) == 4:
            raise OSError(12, "Cannot allocate memory")
        return real(*arguments, **options)

    monkeypatch.setattr(pages.mmap, "mmap", mmap)
    engine = upscaler(6)
    assert torch.equal(get(engine, frames, 0), expected)
    assert engine.statistics.times_out_of_memory == (1 if asked else 0)  # torch's states have no pages of their own


@pytest.mark.long
def test_after_a_failure_of_another_kind_every_frame_can_still_be_had(fresh):
    frames, expected = clip(12), fresh(12, each=False, length=12)
    engine = upscaler(12, length=12)
    worker = worker_of(engine)
    worker.budget = Budget(num_states=2, holds_flows=False)
    inner, calls = worker.backend.propagate_forward, []

    def fails_once(*arguments):
        calls.append(arguments)
        if len(calls) == 9:
            raise OSError("the device was unplugged")
        return inner(*arguments)

    worker.backend.propagate_forward = fails_once
    with pytest.raises(OSError, match="unplugged"):
        get(engine, frames, 9)
    for n in (3, 9, 0, 11, 5):
        assert torch.equal(get(engine, frames, n), expected[n])


@counts
@pytest.mark.parametrize("is_tight", [False, True])
def test_reading_one_frame_after_another_reads_the_source_once_however_tight_memory_is(is_tight):
    frames = clip(30)
    engine = upscaler(30, length=6, overlap=2)
    worker_of(engine).budget = Budget(num_states=4, holds_flows=True, is_tight=is_tight)
    for n in range(30):
        get(engine, frames, n)
    done = engine.statistics
    assert done.frames_supplied == done.frames_cleaned == 30
    assert done.flows == 2 * 29


STEPS = ["cleaning_residue", "flow", "propagate_backward", "propagate_forward", "reconstruct"]


class Failing:
    """A network that runs out of memory in the calls that it is told to."""

    def __init__(self, network, fails):
        self._network, self._fails, self.num_calls = network, fails, 0

    def __getattr__(self, name):
        value = getattr(self._network, name)
        if name not in (*STEPS, "propagate_both"):
            return value

        def step(*arguments):
            self.num_calls += 1
            if self._fails(name, self.num_calls):
                raise random.Random(self.num_calls).choice(OUT_OF_MEMORY)
            return value(*arguments)

        return step

    def __setattr__(self, name, value):
        if name == "max_tile_rows":
            self._network.max_tile_rows = value
        else:
            super().__setattr__(name, value)


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: not enough memory: you tried to allocate 8"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
]


@pytest.mark.long
@pytest.mark.parametrize("step", range(1, 38, 3))
def test_out_of_memory_at_any_step_the_frames_come_all_the_same(step, fresh):
    frames, expected = clip(6), fresh(6, length=4)
    engine = upscaler(6, length=4)
    failing = worker_of(engine).backend = Failing(worker_of(engine).backend, lambda _, call: call == step)
    assert all(torch.equal(get(engine, frames, n), expected[n]) for n in range(6))
    if failing.num_calls < step:
        pytest.skip(f"concurrently there are only {failing.num_calls} steps")
    assert engine.statistics.times_out_of_memory == 1
    warning = r"out of memory at frame \d on cpu: cached data was dropped, and is computed again where it is needed"
    assert re.fullmatch(warning, *engine.messages.take_warnings())
    assert engine.messages.take_warnings() == []


@pytest.mark.long
@pytest.mark.parametrize("name", STEPS)
def test_while_memory_stays_short_the_tiles_are_halved(name, request, made):
    frames = clip(6, seed=3)
    frames = torch.nn.functional.interpolate(frames, size=(96, 32))
    key = (request.node.callspec.params["kernels"], "tall")
    if key not in made:
        made[key] = [get(upscaler(6, length=4), frames, n) for n in range(6)]
    expected = made[key]
    engine = upscaler(6, length=4)
    inner = worker_of(engine).backend
    worker_of(engine).backend = Failing(inner, lambda step, _: step == name and (inner.max_tile_rows or 96) > 30)
    ours = [get(engine, frames, n) for n in range(6)]
    assert max((a - b).abs().max().item() for a, b in zip(ours, expected, strict=True)) < REGROUPED
    assert inner.max_tile_rows == 24
    shows = "processing in tiles of %d rows from now on (differences within rounding); tile=%d does so from the start"
    assert [text.split(": ")[1] for text in engine.messages.take_warnings()] == [
        "cached data was dropped, and is computed again where it is needed",
        f"{shows % (48, 48)}",
        f"{shows % (24, 24)}",
    ]


def test_when_nothing_helps_the_error_is_torchs():
    engine = upscaler(2)
    worker_of(engine).backend = Failing(worker_of(engine).backend, lambda *_: True)
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        get(engine, clip(2), 0)
    assert is_out_of_memory(caught.value)


def test_another_error_is_not_tried_again():
    engine = upscaler(2)

    def step(*_):
        raise RuntimeError("CUDA error: device-side assert triggered")

    worker_of(engine).backend.propagate_backward = step
    with pytest.raises(RuntimeError, match="device-side assert"):
        get(engine, clip(2), 0)
    assert engine.statistics.times_out_of_memory == 0


def test_a_frame_is_written_where_the_host_wants_it():
    frames = clip(3)
    expected = get(upscaler(3), frames, 1)
    engine = upscaler(3)
    engine.cache.supply(engine.cache.acquire(1), {i: SourceFrame(frames[i].clone(), user_data=i) for i in range(3)})
    padded = torch.full((3, 96, 150), -7.0)
    assert engine.upscale_into(1, lambda: [plane[:, :128] for plane in padded]) == 1
    assert torch.equal(padded[:, :, :128], expected)
    assert (padded[:, :, 128:] == -7).all()


@counts
@pytest.mark.long
def test_two_devices_share_the_windows_and_give_the_bytes_of_one():
    frames = clip(30)
    alone = upscaler(30, length=5)
    expected = [get(alone, frames, n) for n in range(30)]
    grid = Grid(num_frames=30, length=5, overlap=2)
    engine = WindowUpscaler(network(), [CPU, CPU], grid, theta=5.0, scene_cuts="off")
    seen = []
    for number, pipeline in enumerate(engine._pipelines):
        worker = pipeline.worker
        inner = worker.backend.reconstruct
        worker.backend.reconstruct = lambda *a, inner=inner, number=number: seen.append(number) or inner(*a)
    assert all(torch.equal(get(engine, frames, n), expected[n]) for n in range(30))
    assert seen == [n // 5 % 2 for n in range(30)]
    done = engine.statistics
    assert done.frames_supplied == done.frames_cleaned == done.frames_reconstructed == 30


@counts
def test_when_memory_is_short_finished_windows_go_at_once():
    frames = clip(30)
    engine = upscaler(30)
    for n in range(28):
        get(engine, frames, n)
    assert sorted(engine.cache._windows) == [2, 3, 4]
    engine.cache.acquire(28)
    engine.cache.release(28, is_memory_short=True)
    assert sorted(engine.cache._windows) == [4]  # its frames 28 and 29 are not given yet


@pytest.mark.long
def test_more_overlap_comes_closer_to_the_whole_sequence():
    frames = clip(24)
    whole = [get(engine, frames, n) for engine in [upscaler(24, length=100)] for n in range(24)]

    def worst(overlap):
        engine = upscaler(24, length=6, overlap=overlap)
        return max((get(engine, frames, n) - whole[n]).abs().max().item() for n in range(24))

    errors = [worst(overlap) for overlap in (0, 2, 6)]
    assert errors[0] > errors[1] > errors[2]


@counts
def test_reading_in_order_does_no_work_twice():
    frames = clip(30)
    engine = upscaler(30, length=6, overlap=2)
    for n in range(30):
        get(engine, frames, n)

    done = engine.statistics
    assert done.windows_computed == 5
    # frames that two windows share are asked for, cleaned and matched once
    assert done.frames_supplied == done.frames_cleaned == done.frames_reconstructed == 30
    assert done.flows == 2 * 29
    # each direction runs over the kept frames and over the context on its own side
    assert done.forward_steps == done.backward_steps == 30 + 2 * 4


@counts
def test_reading_backwards_is_at_most_twice_the_work():
    frames = clip(30)

    def work(numbers):
        engine = upscaler(30, length=6, overlap=2)
        for n in numbers:
            get(engine, frames, n)
        done = engine.statistics
        return done.frames_cleaned, done.flows, done.backward_steps, done.forward_steps, done.frames_supplied

    forwards, backwards = work(range(30)), work(reversed(range(30)))
    assert all(b <= 2 * f for f, b in zip(forwards, backwards, strict=True)), (forwards, backwards)


@counts
@pytest.mark.parametrize("order", ["forwards", "backwards", "shuffled"])
def test_within_a_window_any_order_computes_it_once(order):
    frames = clip(12)
    engine = upscaler(12, length=6, overlap=2)
    numbers = list(range(12))
    if order == "backwards":
        numbers.reverse()
    elif order == "shuffled":
        random.Random(1).shuffle(numbers)
    for n in numbers:
        get(engine, frames, n)

    assert engine.statistics.windows_computed == 2
    assert engine.statistics.forward_steps == 12 + 2


@counts
@pytest.mark.long
def test_a_long_clip_holds_no_more_than_a_short_one():
    def held(num_frames):
        engine = upscaler(num_frames)
        frames = clip(num_frames)
        most = 0
        for n in range(num_frames):
            get(engine, frames, n)
            windows = engine.cache._windows.values()
            sources = {id(source) for window in windows for source in window.sources.values()}
            most = max(most, len(windows), len(sources) // 4)
        return most

    assert held(100) == held(40)


@counts
def test_a_window_somebody_waits_for_survives_any_number_of_others():
    frames = clip(60)
    engine = upscaler(60)
    number = engine.cache.acquire(0)
    engine.cache.supply(number, {i: SourceFrame(frames[i]) for i in engine.cache.missing(number)})
    for n in range(59, 10, -1):
        get(engine, frames, n)

    assert engine.cache.missing(number) == []
    engine.cache.release(0)


@counts
def test_missing_source_frames_are_named():
    engine = upscaler(10)
    engine.cache.acquire(0)
    with pytest.raises(LookupError, match=r"frame 0 needs source frames \[0, 1"):
        engine.upscale(0)


@pytest.mark.long
def test_many_threads_at_once_get_the_same_bytes(fresh):
    frames, alone = clip(16), fresh(16)
    engine = upscaler(16)
    wrong: list[int] = []

    def work(numbers):
        wrong.extend(n for n in numbers if not torch.equal(get(engine, frames, n), alone[n]))

    threads = [threading.Thread(target=work, args=(random.Random(seed).sample(range(16), 16),)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.long
def test_a_cut_told_by_the_host_parts_two_scenes_completely():
    first, second = clip(5), clip(4, seed=2)
    joined = torch.cat((first, second))
    told = {"begins": {5: True}, "ends": {4: True}}

    parted = upscaler(9, length=20, scene_cuts="auto")
    for n in range(9):
        scene, i = (first, n) if n < 5 else (second, n - 5)
        alone = get(upscaler(len(scene), length=20), scene, i)
        assert torch.equal(get(parted, joined, n, **told), alone), f"frame {n}"

    together = upscaler(9, length=20, scene_cuts="off")
    assert not torch.equal(get(together, joined, 4, **told), get(upscaler(5, length=20), first, 4))


@counts
@pytest.mark.parametrize(
    ("scene_cuts", "told", "num_looked_at"),
    [("auto", (None, None), 25), ("auto", (False, False), 0), ("props", (None, None), 0), ("off", (None, None), 0)],
)
def test_a_source_frame_is_copied_once_and_looked_at_only_where_it_does_not_say_where_scenes_end(
    monkeypatch, scene_cuts, told, num_looked_at
):
    frames, copied, looked_at = clip(25), [], []

    def look(picture):
        looked_at.append(picture)
        return thumbnail(picture)

    def source(i: int) -> SourceFrame:
        def copy_of_frame():
            copied.append(i)
            return frames[i].clone()

        return SourceFrame(copy_of_frame, *told)

    monkeypatch.setattr("vsrealbasicvsr.engine.scene_cuts.thumbnail", look)
    engine = upscaler(25, scene_cuts=scene_cuts)
    for n in range(25):
        number = engine.cache.acquire(n)
        engine.cache.supply(number, {i: source(i) for i in engine.cache.missing(number)})
        engine.upscale(n)
        engine.cache.release(n)
    assert sorted(copied) == list(range(25))
    assert len(looked_at) == num_looked_at


def test_where_memory_is_short_while_frames_are_supplied_the_device_looks_for_cuts_itself(monkeypatch):
    joined, engine = torch.cat((clip(3), 1 - clip(3, seed=7))), upscaler(6, length=20, scene_cuts="auto")
    frames = {i: SourceFrame(lambda i=i: joined[i].clone()) for i in range(6)}
    monkeypatch.setattr("vsrealbasicvsr.engine.scene_cuts.thumbnail", lambda _: torch.empty(2**60))
    engine.cache.supply(engine.cache.acquire(0), frames)
    monkeypatch.setattr("vsrealbasicvsr.engine.scene_cuts.thumbnail", thumbnail)
    engine.upscale(0)
    assert [scene.frames for scene in engine.cache._windows[0].scenes] == [range(3), range(3, 6)]


@counts
def test_props_rule_over_the_detector_only_where_there_are_any():
    joined = torch.cat((clip(3), 1 - clip(3, seed=7)))

    def scenes(scene_cuts, **told):
        engine = upscaler(6, length=20, scene_cuts=scene_cuts)
        get(engine, joined, 0, **told)
        return [scene.frames for scene in engine.cache._windows[0].scenes]

    both = [range(3), range(3, 6)]
    assert scenes("auto") == both  # our detector
    assert scenes("props") == [range(6)]
    assert scenes("off") == [range(6)]
    assert scenes("auto", begins={3: False}) == [range(6)]  # the clip says that there is none
    assert scenes("props", ends={2: True}) == both
    assert scenes("props", begins={3: True}, ends={2: False}) == both
    assert scenes("auto", begins={5: True}) == [*both[:1], range(3, 5), range(5, 6)]


@pytest.mark.parametrize("first_asked", [0, 5, 9])
def test_without_a_source_frame_the_others_are_what_they_are_beside_a_cut(first_asked):
    frames = clip(10)
    left, right = upscaler(4, length=20), upscaler(5, length=20)
    alone = [get(left, frames[:4], n) for n in range(4)] + [None] + [get(right, frames[5:], n) for n in range(5)]
    engine = upscaler(10, length=20)
    engine.cache.lose(4)
    for n in (first_asked, *range(10)):
        if n != 4:
            assert torch.equal(get(engine, frames, n), alone[n]), n
    with pytest.raises(LookupError, match="source frame 4 is lost"):
        get(engine, frames, 4)
    assert engine.messages.take_warnings() == []
    engine.cache.lose(4, "the disk is full")
    engine.cache.lose(4, "another reason")
    assert engine.cache.why_lost(4) == "the disk is full"
    assert engine.messages.take_warnings() == [
        "source frame 4 could not be read (the disk is full): its neighbours are upscaled without it"
    ]


@pytest.mark.long
@pytest.mark.parametrize(("value", "taken_for", "scene_cuts"), [
    (float("nan"), 0.0, "auto"), (float("nan"), 0.0, "off"), (float("inf"), 3.0, "auto"), (float("-inf"), -2.0, "off"),
    (50.0, 3.0, "auto"), (50.0, 3.0, "off"), (-1e30, -2.0, "auto"),
])  # fmt: skip
def test_a_sample_that_is_no_number_or_absurd_is_replaced_and_its_frame_named_once(value, taken_for, scene_cuts):
    bad, replaced = clip(9), clip(9)
    bad[5, 1, 7, 9], replaced[5, 1, 7, 9] = value, taken_for
    engine, expected = (upscaler(9, scene_cuts=scene_cuts) for _ in range(2))
    for n in (8, *range(9)):
        assert torch.equal(get(engine, bad, n), get(expected, replaced, n)), n
    assert expected.messages.take_warnings() == []
    assert engine.messages.take_warnings() == [
        "source frame 5 has 1 pixel that is no number or beyond -2 to 3: NaN is taken for 0, the others for the limits"
    ]


@counts
def test_a_clip_of_bad_frames_does_not_fill_the_log():
    frames = clip(30)
    frames[:, 0, 0, 0] = float("nan")
    engine = upscaler(30)
    for n in range(30):
        assert torch.isfinite(get(engine, frames, n)).all()
    warnings = engine.messages.take_warnings()
    assert len(warnings) == 20
    assert warnings[-1].endswith("; further frames are not named")


def test_super_white_and_saturated_colours_are_left_alone():
    frames = clip(3) * 3.5 - 1.25  # from -1.25 to 2.25
    unlimited, engine = upscaler(3), upscaler(3)
    unlimited._pipelines[0].cleaner._scene_cuts.image = lambda source: source.rgb
    for n in range(3):
        assert torch.equal(get(engine, frames, n), get(unlimited, frames, n))
    assert engine.messages.take_warnings() == []


def test_no_torch_setting_of_the_process_changes():
    before = (torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype())
    get(upscaler(3), clip(3), 0)
    assert (torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype()) == before


def test_half_precision_holds_the_picture_itself_in_full():
    ramp = torch.linspace(0, 1, 64 * 64).view(1, 64, 64).expand(3, 64, 64)[None]
    grid = Grid(num_frames=1, length=1, overlap=0)
    model = network()
    for convolution in (model.basicvsr.conv_last, model.image_cleaning[1]):
        torch.nn.init.zeros_(convolution.weight)
        torch.nn.init.zeros_(convolution.bias)
    half = WindowUpscaler(model, DeviceConfig(torch.device("cpu"), torch.bfloat16), grid, theta=5.0)
    whole = WindowUpscaler(model, CPU, grid, theta=5.0)
    assert (get(half, ramp, 0) - get(whole, ramp, 0)).abs().max() < 0.1 / 255
