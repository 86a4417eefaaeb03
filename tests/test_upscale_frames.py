"""A whole clip in order, without a host's calls: the filter's bytes, few frames read ahead, nothing left over."""

import gc
import weakref

import numpy as np
import pytest
import torch
import vapoursynth as vs

from vsrealbasicvsr.engine import Grid, SourceFrame, WindowUpscaler, choose_device
from vsrealbasicvsr.engine.memory import Budget
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


def test_frames_may_say_themselves_where_scenes_end(make):
    frames = images(8)
    sources = [SourceFrame(frame, begins_scene=i == 3) for i, frame in enumerate(frames)]
    cut = list(make(8).upscale_frames(sources))
    whole = list(make(8, scene_cuts="off").upscale_frames(frames))
    assert not torch.equal(cut[3], whole[3])


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
