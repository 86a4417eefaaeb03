"""The engine on a small random network: whatever is asked, and in whatever order, frame n is the same to the bit."""

import random
import threading

import pytest
import torch
from tolerances import REGROUPED

from vsrealbasicvsr.engine import Compute, Grid, SourceFrame, WindowUpscaler
from vsrealbasicvsr.engine import network as torch_network
from vsrealbasicvsr.engine.network import MAX_BAND_PX_CPU, MAX_BAND_PX_GPU, band_rows
from vsrealbasicvsr.kernel import ENVIRONMENT
from vsrealbasicvsr.kernel import network as kernel_network
from vsrealbasicvsr.model import Architecture, RealBasicVSR, refine

SMALL = Architecture(
    cleaning_channels=8,
    num_cleaning_blocks=1,
    mid_channels=8,
    num_backward_blocks=2,
    num_forward_blocks=2,
    fusion_channels=8,
    quarter_channels=8,
    hr_channels=8,
    hr_out_channels=8,
    flow_channels=(8, 8, 8, 8),
)
CPU = Compute(torch.device("cpu"), torch.float32)


@pytest.fixture(autouse=True, params=["our kernels", "torch"])
def kernels(request, monkeypatch):
    """Everything holds with our own kernels, where the processor has them, and without."""
    monkeypatch.setenv(ENVIRONMENT, "off" if request.param == "torch" else "")


def network() -> RealBasicVSR:
    torch.manual_seed(0)
    return RealBasicVSR(SMALL).eval()


def clip(num_frames: int, seed: int = 1) -> torch.Tensor:
    """A smooth picture that drifts: (T, 3, 24, 32)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 12, 14, generator=generator)
    big = torch.nn.functional.interpolate(coarse, size=(48, 56 + num_frames), mode="bicubic")[0].clamp(0, 1)
    return torch.stack([big[:, 10:34, i : i + 32] for i in range(num_frames)])


def upscaler(num_frames: int, *, length=6, overlap=2, theta=5.0, scene_cuts="off") -> WindowUpscaler:
    grid = Grid(num_frames=num_frames, length=length, overlap=overlap)
    return WindowUpscaler(network(), CPU, grid, theta=theta, scene_cuts=scene_cuts)


def get(engine: WindowUpscaler, frames: torch.Tensor, n: int, **cuts) -> torch.Tensor:
    """What the host does for one frame."""
    number = engine.expect(n)
    try:
        missing = engine.missing(number)
        begins, ends = cuts.get("begins", {}), cuts.get("ends", {})
        engine.supply(number, {i: SourceFrame(frames[i].clone(), begins.get(i), ends.get(i), host=i) for i in missing})
        hr, host = engine.upscale(n)
        assert host == n
        return hr
    finally:
        engine.release(n)


def test_any_order_gives_the_same_bytes_as_reading_forwards():
    frames = clip(25)
    forwards = [get(upscaler(25), frames, n) for n in range(25)]  # each from a fresh engine: no history at all

    for order in (list(range(25)), list(reversed(range(25))), random.Random(0).sample(range(25), 25) * 2):
        engine = upscaler(25)
        for n in order:
            assert torch.equal(get(engine, frames, n), forwards[n]), f"frame {n} in the order {order}"


def test_one_long_window_is_the_network_on_the_whole_sequence():
    frames = clip(9)
    engine = upscaler(9, length=100, overlap=0, theta=1.5)
    ours = torch.stack([get(engine, frames, n) for n in range(9)])

    model = network()
    with torch.inference_mode():
        whole = model.super_resolve(refine(model, frames[None], theta=1.5)[0])[0]
    assert (ours - whole).abs().max() < 1e-5


def test_a_frame_larger_than_a_band_is_the_same_frame(monkeypatch):
    frames = clip(3)
    whole = [get(upscaler(3), frames, n) for n in range(3)]

    monkeypatch.setattr(torch_network, "MAX_BAND_PX_CPU", 160)
    monkeypatch.setattr(kernel_network, "BAND_PX", 160)
    monkeypatch.setattr(kernel_network, "MIN_BAND_ROWS", 1)
    assert band_rows(24, 32, CPU.device) == 5
    banded = [get(upscaler(3), frames, n) for n in range(3)]
    assert max((a - b).abs().max().item() for a, b in zip(banded, whole, strict=True)) < REGROUPED


@pytest.mark.parametrize("size", [(1, 1), (48, 64), (180, 320), (1080, 1920), (33, 100_000), (100_000, 33)])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_bands_cover_a_frame_evenly_and_hold_no_more_than_they_may(size, device):
    height, width = size
    rows = band_rows(height, width, torch.device(device))
    most = MAX_BAND_PX_CPU if device == "cpu" else MAX_BAND_PX_GPU
    assert 1 <= rows <= height
    assert rows * width <= max(most, 4 * width)  # less than 4 rows would be mostly halo
    num_bands = -(-height // rows)
    assert height - (num_bands - 1) * rows > rows - num_bands  # the last band is no sliver


def test_more_overlap_comes_closer_to_the_whole_sequence():
    frames = clip(24)
    whole = [get(engine, frames, n) for engine in [upscaler(24, length=100)] for n in range(24)]

    def worst(overlap):
        engine = upscaler(24, length=6, overlap=overlap)
        return max((get(engine, frames, n) - whole[n]).abs().max().item() for n in range(24))

    errors = [worst(overlap) for overlap in (0, 2, 6)]
    assert errors[0] > errors[1] > errors[2]


def test_reading_in_order_does_no_work_twice():
    frames = clip(30)
    engine = upscaler(30, length=6, overlap=2)
    for n in range(30):
        get(engine, frames, n)

    done = engine.statistics
    assert done.windows_computed == 5
    # frames that two windows share are asked for, cleaned and matched once
    assert done.frames_supplied == done.frames_cleaned == done.frames_reconstructed == 30
    assert done.flow_pairs == 29
    # each direction runs over the kept frames and over the context on its own side
    assert done.forward_steps == done.backward_steps == 30 + 2 * 4


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


def test_a_long_clip_holds_no_more_than_a_short_one():
    def held(num_frames):
        engine = upscaler(num_frames)
        frames = clip(num_frames)
        most = 0
        for n in range(num_frames):
            get(engine, frames, n)
            most = max(most, len(engine._live), len(engine._sources) // 4)
        return most

    assert held(200) == held(40)


def test_a_window_somebody_waits_for_survives_any_number_of_others():
    frames = clip(60)
    engine = upscaler(60)
    number = engine.expect(0)
    engine.supply(number, {i: SourceFrame(frames[i]) for i in engine.missing(number)})
    for n in range(59, 10, -1):
        get(engine, frames, n)

    assert engine.missing(number) == []
    engine.release(0)


def test_missing_source_frames_are_named():
    engine = upscaler(10)
    engine.expect(0)
    with pytest.raises(LookupError, match=r"frame 0 needs source frames \[0, 1"):
        engine.upscale(0)


def test_many_threads_at_once_get_the_same_bytes():
    frames = clip(24)
    alone = [get(upscaler(24), frames, n) for n in range(24)]
    engine = upscaler(24)
    wrong: list[int] = []

    def work(numbers):
        wrong.extend(n for n in numbers if not torch.equal(get(engine, frames, n), alone[n]))

    threads = [threading.Thread(target=work, args=(random.Random(seed).sample(range(24), 24),)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


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


def test_props_rule_over_the_detector_only_where_there_are_any():
    joined = torch.cat((clip(3), 1 - clip(3, seed=7)))

    def segments(scene_cuts, **told):
        engine = upscaler(6, length=20, scene_cuts=scene_cuts)
        get(engine, joined, 0, **told)
        return [segment.frames for segment in engine._live[0].segments]

    both = [range(3), range(3, 6)]
    assert segments("auto") == both  # our detector
    assert segments("props") == [range(6)]
    assert segments("off") == [range(6)]
    assert segments("auto", begins={3: False}) == [range(6)]  # the clip says that there is none
    assert segments("props", ends={2: True}) == both
    assert segments("props", begins={3: True}, ends={2: False}) == both
    assert segments("auto", begins={5: True}) == [*both[:1], range(3, 5), range(5, 6)]


def test_no_torch_setting_of_the_process_changes():
    before = (torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype())
    get(upscaler(3), clip(3), 0)
    assert (torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype()) == before


def test_a_window_that_failed_half_way_is_begun_again_by_whoever_comes_next(monkeypatch):
    frames = clip(6)
    expected = get(upscaler(6), frames, 5)
    engine = upscaler(6)
    steps = []

    def out_of_memory(*arguments):
        steps.append(arguments)
        if len(steps) == 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return propagate(*arguments)

    propagate = engine._network.propagate_backward
    monkeypatch.setattr(engine._network, "propagate_backward", out_of_memory)
    with pytest.raises(torch.OutOfMemoryError):
        get(engine, frames, 0)
    assert torch.equal(get(engine, frames, 5), expected)


def test_half_precision_holds_the_picture_itself_in_full():
    ramp = torch.linspace(0, 1, 64 * 64).view(1, 64, 64).expand(3, 64, 64)[None]
    grid = Grid(num_frames=1, length=1, overlap=0)
    model = network()
    for convolution in (model.basicvsr.conv_last, model.image_cleaning[1]):
        torch.nn.init.zeros_(convolution.weight)
        torch.nn.init.zeros_(convolution.bias)
    half = WindowUpscaler(model, Compute(torch.device("cpu"), torch.bfloat16), grid, theta=5.0)
    whole = WindowUpscaler(model, CPU, grid, theta=5.0)
    assert (get(half, ramp, 0) - get(whole, ramp, 0)).abs().max() < 0.1 / 255
