"""A whole clip in order, without a host's calls: the filter's bytes, few frames read ahead, nothing left over."""

import gc
import weakref

import numpy as np
import pytest
import torch
import vapoursynth as vs

from vsrealbasicvsr.engine import Grid, SourceFrame, WindowUpscaler, choose_device
from vsrealbasicvsr.engine.memory import Budget
from vsrealbasicvsr.model import RealBasicVSR
from vsrealbasicvsr.weights import load_model


def images(num_frames: int) -> list[torch.Tensor]:
    """A smooth picture that drifts, and from frame 9 on another one: (3, 20, 26)."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(2, 3, 10, 14, generator=generator)
    first, second = torch.nn.functional.interpolate(coarse, size=(40, 56 + num_frames), mode="bicubic").clamp(0, 1)
    return [(first if i < 9 else second)[:, 10:30, i : i + 26].clone() for i in range(num_frames)]


@pytest.fixture
def make(tiny_model):
    """Creates the upscaler of a clip."""

    def make(num_frames: int, **options) -> WindowUpscaler:
        grid = Grid(num_frames=num_frames, length=4, overlap=2)
        return WindowUpscaler(load_model(tiny_model), choose_device("cpu", "fp32"), grid, theta=5.0, **options)

    return make


@pytest.mark.long
def test_a_clip_in_order_has_the_filters_bytes(core, tiny_model, make):
    frames = images(14)
    blank = core.std.BlankClip(format=vs.RGBS, width=26, height=20, length=14)

    def fill(n, f):
        filled = f.copy()
        for plane in range(3):
            np.copyto(np.asarray(filled[plane]), frames[n][plane].numpy())
        return filled

    clip = core.std.ModifyFrame(blank, blank, fill).rbvsr.Upscale(model=tiny_model, length=4, overlap=2, device="cpu")
    engine = make(14)
    num = 0
    for hr, f in zip(engine.upscale_frames(frames), clip.frames(close=True), strict=True):
        assert torch.equal(hr, torch.from_numpy(np.stack([np.asarray(f[plane]) for plane in range(3)])))
        num += 1
    assert num == 14
    done = engine.statistics
    assert done.frames_supplied == done.frames_cleaned == done.frames_reconstructed == 14


@pytest.mark.parametrize("is_tight", [False, True])
def test_frames_are_read_in_order_once_and_no_further_than_the_window_needs(make, is_tight):
    frames, num_read = images(14), 0
    engine = make(14)
    if is_tight:
        engine._pipelines[0].worker.budget = Budget(num_states=4, holds_flows=False, is_tight=True)

    def read():
        nonlocal num_read
        for frame in frames:
            num_read += 1
            yield frame

    expected = list(make(14).upscale_frames(frames))
    for n, hr in enumerate(engine.upscale_frames(read())):
        assert torch.equal(hr, expected[n])
        assert num_read == engine.grid.window(n // 4).read_stop
    assert engine.statistics.frames_cleaned == 14


@pytest.mark.parametrize("kernels", ["", "off"])
@pytest.mark.parametrize("tile", [None, 7])
def test_a_scene_starts_and_ends_with_as_many_passes_as_the_network_wants(tiny_model, monkeypatch, kernels, tile):
    monkeypatch.setenv("RBVSR_KERNELS", kernels)
    model = load_model(tiny_model)
    model = RealBasicVSR.from_state_dict(model.state_dict() | {"basicvsr.start_passes": torch.tensor(3.0)}).eval()
    frames, options = images(14), {"theta": 255.0, "max_tile_rows": tile, "scene_cuts": "props"}
    grid = Grid(num_frames=14, length=7, overlap=7)  # both windows read the whole clip
    sources = [SourceFrame(frame, begins_scene=i == 9) for i, frame in enumerate(frames)]
    upscaler = WindowUpscaler(model, choose_device("cpu", "fp32"), grid, **options)
    with torch.inference_mode():
        scenes = [torch.stack(frames[part])[None] for part in (slice(0, 9), slice(9, 14))]
        expected = torch.cat([model(scene)[0] for scene in scenes])
    for n, hr in enumerate(upscaler.upscale_frames(sources)):
        assert (hr - expected[n]).abs().max() < 1e-4


def test_where_a_window_starts_inside_a_scene_one_pass_is_enough(tiny_model, monkeypatch):
    monkeypatch.setenv("RBVSR_KERNELS", "off")
    state_dict = load_model(tiny_model).state_dict()
    frames, grid = images(8), Grid(num_frames=8, length=4, overlap=2)
    options = {"theta": 255.0, "scene_cuts": "off"}

    def upscaled(start_passes: int) -> list[torch.Tensor]:
        model = RealBasicVSR.from_state_dict(
            state_dict | {"basicvsr.start_passes": torch.tensor(float(start_passes))}
        ).eval()
        return list(WindowUpscaler(model, choose_device("cpu", "fp32"), grid, **options).upscale_frames(frames))

    def eager(part: slice, backward_passes: int, forward_passes: int) -> list[torch.Tensor]:
        model, cleaned = RealBasicVSR.from_state_dict(state_dict).eval(), torch.stack(frames[part])[None]
        with torch.inference_mode():
            cleaned = cleaned + model.cleaning_residue(cleaned[0])
            cleaned = cleaned[0]
            walks = []
            for propagate, passes, order in (
                (model.propagate_backward, backward_passes, range(len(cleaned))[::-1]),
                (model.propagate_forward, forward_passes, range(len(cleaned))),
            ):
                state, states, before = None, {}, None
                for i in order:
                    frame = cleaned[i : i + 1]
                    for _ in range(passes if before is None else 0):
                        state = propagate(frame, state, None)
                    flow = None if before is None else model.basicvsr.spynet(frame, cleaned[before : before + 1])
                    state = states[i] = propagate(frame, state, flow)
                    before = i
                walks.append(states)
            return [model.reconstruct(cleaned[i : i + 1], walks[0][i], walks[1][i])[0] for i in range(len(cleaned))]

    many = upscaled(5)
    for n, expected in enumerate(eager(slice(0, 6), 1, 5)[:4]):
        assert (many[n] - expected).abs().max() < 1e-4
    for n, expected in enumerate(eager(slice(2, 8), 5, 1)[2:], 4):
        assert (many[n] - expected).abs().max() < 1e-4
    assert (many[0] - upscaled(1)[0]).abs().max() > 1e-3, "the passes do something"


def test_frames_may_say_themselves_where_scenes_end(make):
    frames = images(8)
    sources = [SourceFrame(frame, begins_scene=i == 3) for i, frame in enumerate(frames)]
    cut = list(make(8).upscale_frames(sources))
    whole = list(make(8, scene_cuts="off").upscale_frames(frames))
    assert not torch.equal(cut[3], whole[3])


@pytest.mark.long
def test_closing_it_early_frees_what_is_cached_and_it_can_begin_again(make):
    engine, frames = make(14), images(14)
    expected = list(make(14).upscale_frames(frames))
    sources = [SourceFrame(frame.clone()) for frame in frames]
    iterator = engine.upscale_frames(iter(sources))
    assert torch.equal(next(iterator), expected[0])
    assert torch.equal(next(iterator), expected[1])
    window = weakref.ref(next(iter(engine.cache._windows.values())).scenes[0].backward[2])
    iterator.close()
    gc.collect()
    assert window() is None
    assert not engine.cache._windows
    with pytest.raises(StopIteration):
        next(iterator)
    assert all(map(torch.equal, engine.upscale_frames(frames), expected))


def test_at_its_end_nothing_is_cached(make):
    engine = make(6)
    for _ in engine.upscale_frames(images(6)):
        pass
    assert not engine.cache._windows
    assert not engine.cache._inherited


def test_a_closed_upscaler_holds_nothing_and_still_works(make):
    engine, frames = make(6), images(6)
    expected = list(engine.upscale_frames(frames))
    engine.cache.supply(engine.cache.acquire(0), {i: SourceFrame(frame) for i, frame in enumerate(frames)})
    engine.upscale(0)
    engine.close()
    assert not engine.cache._windows
    assert all(map(torch.equal, engine.upscale_frames(frames), expected))


def test_too_few_frames_are_an_error_that_counts_them(make):
    engine = make(14)
    iterator = engine.upscale_frames(images(7))
    assert len([next(iterator) for _ in range(4)]) == 4  # window 0 needs 6 frames
    with pytest.raises(ValueError, match="upscale_frames: expected 14 frames, got 7"):
        next(iterator)
    assert not engine.cache._windows


@pytest.mark.parametrize(
    "bad", [torch.rand(3, 20, 27), torch.rand(20, 26), torch.rand(1, 20, 26), torch.rand(3, 20, 26).half()]
)
def test_a_frame_of_another_kind_is_an_error_that_names_it(make, bad):
    engine, frames = make(8), images(8)
    frames[5] = bad
    with pytest.raises(ValueError, match=r"frames must be \(3, H, W\) float32 of one size, got .* at frame 5"):
        list(engine.upscale_frames(frames))
    assert not engine.cache._windows


def test_an_error_of_the_reader_comes_through(make):
    engine = make(14)

    def read():
        yield from images(8)
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        list(engine.upscale_frames(read()))
    assert not engine.cache._windows


def test_asking_what_is_missing_changes_nothing(make):
    engine, frames = make(14), images(14)
    cache = engine.cache
    assert cache.missing(1) == list(range(2, 10))
    assert not cache._windows
    cache.supply(cache.acquire(0), {i: SourceFrame(frames[i]) for i in range(6)})
    assert cache.missing(0) == []
    assert cache.missing(1) == [6, 7, 8, 9]
    assert list(cache._windows) == [0]
    cache.acquire(4)
    before = [list(window.sources) for window in cache._windows.values()]
    for index in (0, 1, 0, 2, 3):
        cache.missing(index)
    assert list(cache._windows) == [0, 1]
    assert [list(window.sources) for window in cache._windows.values()] == before


def test_windows_that_overlap_share_each_frame_whichever_it_is_supplied_to(make):
    cache, frames = make(14).cache, images(14)
    for n in (0, 4, 8):
        cache.acquire(n)
    cache.supply(1, {i: SourceFrame(frames[i]) for i in range(2, 10)})
    assert cache.missing(0) == [0, 1]
    assert cache.missing(2) == [10, 11, 12, 13]
    cache.supply(0, {i: SourceFrame(frames[i]) for i in range(6)})
    assert cache.num_supplied == 10
    assert all(cache._windows[0].sources[i] is cache._windows[1].sources[i] for i in range(2, 6))
