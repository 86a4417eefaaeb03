"""Samples and batches: pure functions of their number, in exact order, whoever makes them and wherever one begins."""

from __future__ import annotations

import contextlib
import copy
import itertools
import logging
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import scipy.ndimage
import skimage.data
import torch
import torch.nn.functional as F

from tests.training.data.footage import panned
from training.data.cost import InputCost, measure_input
from training.data.dataset import Clip, ClipDataset, ClipError, Index, write_clip_file, write_index
from training.data.loader import Batch, Loader, make_feeder, make_loader
from training.data.pool import make_sample, pool_clip, pool_clip_path
from training.data.resident_pool import ResidentPool, cuts_of
from training.data.sampler import Sample, SampleError, degrade, draw, draw_piece, mirror
from training.data.settings import DataSettings
from training.data.workers import DataError, Failure
from training.degradations import MODERATE, apply, unsharp

Bytes = npt.NDArray[np.uint8]
CPU = torch.device("cpu")
OPTIONS = DataSettings(crop_px=16, num_frames=6)


def write_store(folder: Path, clips: dict[str, Bytes]) -> ClipDataset:
    """A prepared folder of these clips (T, H, W, 3); one frame is a photograph."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for name, frames in clips.items():
        write_clip_file(folder / f"{name}.npy", frames)
        num_frames, height, width, _ = frames.shape
        entries.append(
            Clip(
                file=f"{name}.npy",
                kind="photograph" if num_frames == 1 else "video",
                source=name,
                first_frame=0,
                num_frames=num_frames,
                height=height,
                width=width,
                top=0,
                left=0,
                frames_per_second=25.0,
            )
        )
    write_index(folder, Index({}, {}, tuple(entries)))
    return ClipDataset.open(folder)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ClipDataset:
    coffee, astronaut = skimage.data.coffee(), skimage.data.astronaut()
    clips = {
        "coffee": panned(coffee, num_frames=12, height=90, width=110),
        "astronaut": panned(astronaut, num_frames=8, height=80, width=80),
        "short": panned(astronaut, num_frames=2, height=80, width=80),
        "cat": skimage.data.chelsea()[None, :200, :240],
    }
    return write_store(tmp_path_factory.mktemp("store"), clips)


@pytest.fixture
def damaged(store: ClipDataset, tmp_path: Path) -> ClipDataset:
    """The same with one clip cut short."""
    shutil.copytree(store.path(0).parent, tmp_path / "damaged")
    path = tmp_path / "damaged" / "coffee.npy"
    path.write_bytes(path.read_bytes()[:-100])
    return ClipDataset.open(tmp_path / "damaged")


def take(loader: Loader, num_batches: int) -> list[Batch]:
    with loader:
        return list(itertools.islice(loader, num_batches))


def assert_equal(one: Batch, other: Batch) -> None:
    assert torch.equal(one.lr, other.lr)
    assert torch.equal(one.gt, other.gt)
    assert (one.gt_unsharp is None) == (other.gt_unsharp is None)
    if one.gt_unsharp is not None and other.gt_unsharp is not None:
        assert torch.equal(one.gt_unsharp, other.gt_unsharp)


# ---- samples ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_frames", "stochastic", "num_unique"), [(6, True, 3), (5, True, 3), (4, False, 4)])
def test_a_sample_has_the_frames_asked_for(
    store: ClipDataset, num_frames: int, stochastic: bool, num_unique: int
) -> None:
    options = replace(OPTIONS, num_frames=num_frames, stochastic=stochastic)
    for index in range(3):
        sample = make_sample(store, options, index)
        assert sample.lr.shape == (num_frames, 3, 16, 16)
        assert sample.gt.shape == (num_unique, 3, 64, 64)
        assert sample.gt_unsharp is not None
        assert sample.gt_unsharp.shape == sample.gt.shape
        assert {sample.lr.dtype, sample.gt.dtype, sample.gt_unsharp.dtype} == {torch.uint8}
    assert make_sample(store, replace(options, unsharp=False), 0).gt_unsharp is None


def test_a_sample_depends_on_the_seed_and_its_number_alone(store: ClipDataset) -> None:
    first, again, next_one = (make_sample(store, OPTIONS, index) for index in (3, 3, 4))
    assert torch.equal(first.lr, again.lr)
    assert torch.equal(first.gt, again.gt)
    assert not torch.equal(first.gt, next_one.gt)
    assert not torch.equal(first.gt, make_sample(store, replace(OPTIONS, seed=1), 3).gt)


def test_frames_are_mirrored_in_time() -> None:
    x = torch.arange(6).view(2, 3)
    assert mirror(x, 6).tolist() == [[0, 1, 2, 2, 1, 0], [3, 4, 5, 5, 4, 3]]
    assert mirror(x, 5).tolist() == [[0, 1, 2, 2, 1], [3, 4, 5, 5, 4]]
    assert mirror(x.T, 6, axis=0).tolist() == mirror(x, 6).T.tolist()
    with pytest.raises(ValueError, match="8 frames are mirrored from half as many, got 3"):
        mirror(x, 8)


def test_sharpening_before_mirroring_changes_nothing(store: ClipDataset) -> None:
    for index in range(3):
        drawn, sample = draw(store, OPTIONS, index), make_sample(store, OPTIONS, index)
        assert torch.equal(sample.gt, drawn.gt)
        assert torch.equal(sample.lr, apply(drawn.recipe, unsharp(mirror(drawn.gt, 6, axis=0))))
        blunt = make_sample(store, replace(OPTIONS, unsharp=False), index)
        assert torch.equal(blunt.lr, apply(drawn.recipe, mirror(drawn.gt, 6, axis=0)))


def test_a_piece_of_a_video_is_frames_in_order_at_one_place_in_all_eight_turns(tmp_path: Path) -> None:
    """The values of the clip are (x, y, time), so that the piece says where it comes from."""
    y, x = np.mgrid[:70, :90].astype(np.uint8)
    clip = np.stack([np.stack([x, y, np.full_like(x, 10 * t)], axis=2) for t in range(8)])
    store = write_store(tmp_path, {"places": clip})
    steps, turns, corners = set(), set(), set()
    for seed in range(80):
        piece = draw_piece(store, 0, np.random.default_rng(seed), num_frames=3, side_px=32)
        piece = piece.transpose(0, 2, 3, 1).astype(int)
        times = piece[..., 2]
        assert (times == times[:, :1, :1]).all()
        steps |= set(np.diff(times[:, 0, 0]) // 10)
        assert (piece[:, :, :, :2] == piece[:1, :, :, :2]).all(), "the same place in every frame"
        right, down = piece[0, 0, 1, :2] - piece[0, 0, 0, :2], piece[0, 1, 0, :2] - piece[0, 0, 0, :2]
        turns.add((tuple(right), tuple(down)))
        corners.add(tuple(piece[0].min(axis=(0, 1))[:2]))
        assert np.ptp(piece[0, ..., 0]) == np.ptp(piece[0, ..., 1]) == 31
    assert steps == {1, 2}
    assert len(turns) == 8
    assert len(corners) > 50
    long = draw_piece(store, 0, np.random.default_rng(0), num_frames=8, side_px=70)
    assert len(long) == 8, "all of it, where every second frame would not do"


def test_photographs_are_set_in_motion(tmp_path: Path) -> None:
    store = write_store(tmp_path, {"cat": skimage.data.chelsea()[None, :200, :240]})
    moving = [make_sample(store, OPTIONS, index).gt.float() for index in range(6)]
    assert sum(bool((clip[0] - clip[-1]).abs().mean() > 0.5) for clip in moving) >= 4
    standing = [make_sample(store, replace(OPTIONS, still_probability=1.0), index).gt for index in range(6)]
    corners = [torch.equal(clip[0, :, :8, :8], clip[-1, :, :8, :8]) for clip in standing]
    assert sum(corners) >= 4, "an object may pass, the camera stands"


def test_soft_footage_is_blurred_before_it_is_degraded(store: ClipDataset, pooled: DataSettings) -> None:
    """The truth and the input are both soft, one Gaussian for a clip; all else is drawn as without."""

    def detail(frames: torch.Tensor) -> float:
        return float(frames.float().diff(dim=-1).abs().mean())

    soft = {"soft_probability": 1.0, "soft_sigma_px": (3.0, 3.0)}
    for options in (OPTIONS, pooled):
        sharp, blurred = make_sample(store, options, 3), make_sample(store, replace(options, **soft), 3)
        assert detail(blurred.gt) < 0.6 * detail(sharp.gt)
        assert detail(blurred.lr) < detail(sharp.lr)
        assert (blurred.gt.float().mean() - sharp.gt.float().mean()).abs() < 1
    frames = draw(store, replace(OPTIONS, **soft), 3).gt.permute(0, 2, 3, 1).numpy()
    source = draw(store, OPTIONS, 3).gt.permute(0, 2, 3, 1).numpy()
    expected = np.stack(
        [scipy.ndimage.gaussian_filter(frame.astype(float), (3, 3, 0), mode="mirror") for frame in source]
    )
    np.testing.assert_allclose(frames[:, 12:-12, 12:-12], expected[:, 12:-12, 12:-12], atol=1.5)

    half = replace(OPTIONS, soft_probability=0.5, soft_sigma_px=(0.5, 3.0))
    changed = [not torch.equal(draw(store, half, i).gt, draw(store, OPTIONS, i).gt) for i in range(40)]
    assert 10 <= sum(changed) <= 30, "half of the clips; the others are the same to the bit"


@pytest.mark.long
def test_a_clip_that_cannot_be_read_is_replaced_the_same_way_every_time(
    damaged: ClipDataset, store: ClipDataset
) -> None:
    samples = [make_sample(damaged, OPTIONS, index) for index in range(12)]
    hit = [index for index, sample in enumerate(samples) if sample.notes]
    assert 0 < len(hit) < 12
    for index, sample in enumerate(samples):
        same = torch.equal(sample.gt, make_sample(store, OPTIONS, index).gt)
        assert same == (index not in hit)
        assert torch.equal(sample.gt, make_sample(damaged, OPTIONS, index).gt)
        assert all("coffee.npy is cut short" in note for note in sample.notes)


def test_clips_too_small_for_the_options_are_named_before_anything_starts(store: ClipDataset, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none of the 4 clips has 3 frames of 256x256 pixels.*--min-px 256"):
        make_loader(store, replace(OPTIONS, crop_px=64), batch=1)
    video = write_store(tmp_path, {"video": store.read(0)})
    with pytest.raises(ValueError, match=r"none of the 1 clips has 13 frames.*--min-frames 13"):
        make_loader(video, replace(OPTIONS, num_frames=26), batch=1)
    with pytest.raises(ValueError, match=r"none of the 1 clips has 13 frames"):
        make_loader(video, replace(OPTIONS, num_frames=13, stochastic=False), batch=1)


# ---- batches ---------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_workers_change_nothing(store: ClipDataset) -> None:
    state = torch.get_rng_state()
    here = take(make_loader(store, OPTIONS, batch=2), 4)
    beside = take(make_loader(store, OPTIONS, batch=2, num_workers=2), 4)
    for one, other in zip(here, beside, strict=True):
        assert_equal(one, other)
        assert one.wait_seconds > 0
        assert other.wait_seconds > 0
        assert one.mirrored
    assert torch.equal(torch.get_rng_state(), state), "training's random numbers are its own"
    assert not multiprocessing.active_children()


def test_two_processes_see_together_what_one_sees_with_twice_the_batch(store: ClipDataset) -> None:
    whole = take(make_loader(store, OPTIONS, batch=2), 3)
    parts = [take(make_loader(store, OPTIONS, batch=1, num_processes=2, rank=rank), 3) for rank in (0, 1)]
    for batch, *halves in zip(whole, *parts, strict=True):
        assert torch.equal(batch.lr, torch.cat([half.lr for half in halves]))
        assert torch.equal(batch.gt, torch.cat([half.gt for half in halves]))


def test_a_run_that_goes_on_sees_what_an_uninterrupted_one_sees(store: ClipDataset) -> None:
    whole = take(make_loader(store, OPTIONS, batch=1, num_iterations=5), 100)
    assert len(whole) == 5
    rest = take(make_loader(store, OPTIONS, batch=1, first_iteration=3, num_iterations=5), 100)
    for one, other in zip(whole[3:], rest, strict=True):
        assert_equal(one, other)


def test_a_bad_clip_is_reported_once(damaged: ClipDataset, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert len(take(make_loader(damaged, OPTIONS, batch=3, num_iterations=3), 9)) == 3
    (message,) = caplog.messages
    assert "coffee.npy is cut short" in message
    assert message.endswith("Another clip takes its place.")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_error_of_a_worker_is_one_line_that_names_the_file(
    store: ClipDataset, tmp_path: Path, num_workers: int
) -> None:
    only = write_store(tmp_path, {"only": store.read(0)})
    only.path(0).write_bytes(b"")
    with pytest.raises(DataError, match=r"^sample 0: 20 clips in a row.*only\.npy is no prepared clip") as caught:
        take(make_loader(only, OPTIONS, batch=1, num_workers=num_workers), 1)
    assert len(str(caught.value).splitlines()) == 1
    assert not multiprocessing.active_children()


def test_an_error_in_a_degradation_names_the_sample_and_the_clip(tmp_path: Path) -> None:
    store = write_store(tmp_path, {"empty": np.zeros((6, 64, 64, 3), dtype=np.uint8)})
    drawn = draw(store, OPTIONS, 5)
    with pytest.raises(ValueError, match=r"^sample 5 \(empty\.npy\): cannot be degraded: ValueError: "):
        degrade(replace(drawn, gt=drawn.gt[..., :63]), OPTIONS)


@pytest.mark.long
def test_a_worker_that_dies_is_an_error_and_no_hang(store: ClipDataset) -> None:
    with make_loader(store, OPTIONS, batch=1, num_workers=1) as loader:
        next(loader)
        (worker,) = multiprocessing.active_children()
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(DataError, match="a data worker has died"):
            list(itertools.islice(loader, 1000))


# ---- the feeder ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_drawing", "num_codecs"), [(0, 0), (1, 1)])
def test_the_feeder_gives_the_same_bits(store: ClipDataset, num_drawing: int, num_codecs: int) -> None:
    num_threads = torch.get_num_threads()
    plain = take(make_loader(store, OPTIONS, batch=2, num_iterations=3), 9)
    feeder = make_feeder(
        store, OPTIONS, batch=2, num_iterations=3, num_drawing=num_drawing, num_codecs=num_codecs, device=CPU
    )
    for one, other in zip(plain, take(feeder, 9), strict=True):
        assert_equal(one, other)
    assert not multiprocessing.active_children()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("degrade", "hand out"))]
    assert torch.get_num_threads() == num_threads


def test_the_feeder_can_be_left_at_any_time(store: ClipDataset) -> None:
    with (
        contextlib.suppress(KeyboardInterrupt),
        make_feeder(store, OPTIONS, batch=1, num_drawing=0, num_codecs=1, device=CPU) as feeder,
    ):
        next(feeder)
        raise KeyboardInterrupt
    feeder.close()
    assert not multiprocessing.active_children()
    assert threading.active_count() == 1 or not [t for t in threading.enumerate() if t.name.startswith("degrade")]


def test_an_error_in_the_feeder_is_the_same_line(store: ClipDataset, tmp_path: Path) -> None:
    only = write_store(tmp_path, {"only": store.read(0)})
    only.path(0).unlink()
    with pytest.raises(DataError, match=r"^sample 0: 20 clips in a row.*only\.npy"):
        take(make_feeder(only, OPTIONS, batch=1, num_drawing=0, num_codecs=0, device=CPU), 1)


# ---- the pool --------------------------------------------------------------------------------------------------------


@pytest.fixture
def pooled(store: ClipDataset, tmp_path: Path) -> DataSettings:
    store.pool_folder = tmp_path / "pool"
    return replace(
        OPTIONS,
        num_frames=4,
        degradations=MODERATE,
        pool_clips=2,
        pool_crop_px=18,
        pool_num_frames=6,
    )


def test_a_pool_clip_is_made_once_and_again_if_it_is_damaged(store: ClipDataset, pooled: DataSettings) -> None:
    path = pool_clip_path(store, pooled, 1)
    made = pool_clip(store, pooled, 1)
    content, stamp = path.read_bytes(), path.stat().st_mtime_ns
    read = pool_clip(store, pooled, 1)
    assert path.stat().st_mtime_ns == stamp
    assert torch.equal(made.lr, read.lr)
    assert torch.equal(made.gt, read.gt)
    flipped = bytearray(content)
    flipped[-100] ^= 1
    for damage in (content[:-50], b"", bytes(flipped)):
        path.write_bytes(damage)
        assert torch.equal(pool_clip(store, pooled, 1).lr, made.lr)
        assert path.read_bytes() == content


@pytest.mark.parametrize("stochastic", [True, False])
def test_samples_of_a_pool_are_cuts_whose_input_shows_their_ground_truth(
    store: ClipDataset, pooled: DataSettings, stochastic: bool
) -> None:
    options = replace(pooled, stochastic=stochastic, num_frames=3)
    kinds = set()
    for index in range(16):
        sample = make_sample(store, options, index)
        assert sample.lr.shape == (3, 3, 16, 16)
        truth = mirror(sample.gt, 3, axis=0) if stochastic else sample.gt
        small = F.avg_pool2d(truth.float(), 4)
        error = (sample.lr.float() - small).abs().mean()
        for wrong in (small.flip(-1), small.flip(-2), small.transpose(-1, -2)):
            assert error < (sample.lr.float() - wrong).abs().mean()
        kinds.add(bytes(sample.lr.numpy()))
    assert len(kinds) > 12


def test_a_pool_s_samples_do_not_depend_on_who_fills_it(store: ClipDataset, pooled: DataSettings) -> None:
    elsewhere = copy.copy(store)
    elsewhere.pool_folder = store.pool_folder and store.pool_folder / "elsewhere"
    one_by_one = take(make_loader(store, pooled, batch=1), 6)
    together = take(make_loader(elsewhere, pooled, batch=1, num_workers=2), 6)
    for one, other in zip(one_by_one, together, strict=True):
        assert_equal(one, other)
    assert store.pool_folder is not None
    assert not list(store.pool_folder.rglob("*.partial"))


def test_the_names_of_pools_never_change(store: ClipDataset, pooled: DataSettings) -> None:
    """Or the clips of running trainings, which take hours, would be computed again. Seen at revision 4ab7c33."""
    mixed = replace(pooled, degradation_mix=("usual:0.5", "clean:0.5"), hold_probability=0.3, still_probability=0.5)
    names = [pool_clip_path(store, options, 7).relative_to(str(store.pool_folder)) for options in (pooled, mixed)]
    assert [str(name) for name in names] == ["8fd4efe3692e1c72/000007.npy", "abce535aed9982fb/000007.npy"]


def test_other_options_have_other_pool_clips(store: ClipDataset, pooled: DataSettings) -> None:
    changes: list[dict[str, Any]] = [{"seed": 1}, {"unsharp": False}, {"pool_crop_px": 17}, {"still_probability": 0.5}]
    changes += [{"soft_probability": 0.5}, {"soft_probability": 0.5, "soft_sigma_px": (1.0, 2.0)}]
    others = [replace(pooled, **change) for change in changes]
    paths = {pool_clip_path(store, options, 0) for options in (pooled, *others)}
    assert len(paths) == 7
    assert pool_clip_path(store, replace(pooled, crop_px=8, pool_clips=9), 0) in paths, "cuts share the clips"


def test_a_pool_that_cannot_be_is_refused(store: ClipDataset, pooled: DataSettings) -> None:
    homeless = copy.copy(store)
    homeless.pool_folder = None
    with pytest.raises(ValueError, match="needs a pool_folder"):
        make_sample(homeless, pooled, 0)
    with pytest.raises(ValueError, match=r"smaller than the crops \(30 frames"):
        DataSettings(pool_clips=4)
    with pytest.raises(ValueError, match=r"still_probability must be from 0 to 1, got 1\.5"):
        DataSettings(still_probability=1.5)
    with pytest.raises(
        ValueError, match=r"soft_sigma_px must be two numbers above 0, the smaller first, got .2\.0, 1\.0"
    ):
        DataSettings(soft_sigma_px=(2.0, 1.0))


# ---- cost ------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="only Linux counts the bytes that a process reads")
def test_the_stochastic_scheme_reads_half_the_bytes(tmp_path: Path) -> None:
    """What it costs in time, scripts/benchmark measures: a busy machine is no place to assert that."""
    store = write_store(tmp_path, {"video": np.zeros((60, 96, 128, 3), dtype=np.uint8)})

    def num_bytes(*, stochastic: bool) -> int:
        options = replace(OPTIONS, num_frames=30, stochastic=stochastic)
        before = Path("/proc/self/io").read_text()
        for index in range(10):
            draw(store, options, index)
        after = Path("/proc/self/io").read_text()
        return int(after.split()[1]) - int(before.split()[1])  # the line "rchar: N" comes first

    assert 0 < num_bytes(stochastic=True) <= 0.51 * num_bytes(stochastic=False)


def test_the_cost_of_the_input_says_how_many_workers_it_takes(store: ClipDataset) -> None:
    measured = measure_input(store, OPTIONS, num_samples=2)
    assert min(measured.load_seconds, measured.other_seconds) > 0
    assert measured.clips_per_second_per_core == pytest.approx(1 / measured.seconds)
    cost = InputCost(load_seconds=0.02, codec_seconds=0.18, other_seconds=0.3)
    assert cost.num_workers(batch=16, step_seconds=0.5) == 16
    assert cost.num_workers(batch=16, step_seconds=0.5, with_gpu=True) == 7
    assert cost.num_workers(batch=1, step_seconds=100) == 1
    text = cost.describe(batch=16, step_seconds=0.5)
    assert "2.00 clips per second per core; 16 workers feed 16 clips every 0.50 s" in text


def test_a_loader_for_the_cpu_device_is_the_plain_one(store: ClipDataset) -> None:
    (plain,), (named,) = (take(make_loader(store, OPTIONS, batch=1, device=device), 1) for device in (None, CPU))
    assert_equal(plain, named)
    for wrong in ({"batch": 0}, {"batch": 1, "rank": 1}, {"batch": 1, "first_iteration": -1}):
        with pytest.raises(ValueError, match="make_loader: batch must be"):
            make_loader(store, OPTIONS, **wrong)


@pytest.mark.parametrize("stochastic", [False, True])
def test_a_pool_held_on_a_device_gives_the_samples_of_a_pool_on_disk(
    store: ClipDataset, pooled: DataSettings, stochastic: bool
) -> None:
    options = replace(
        pooled,
        stochastic=stochastic,
        num_frames=3,
        pool_clips=5,
        pool_start_clips=1,
        pool_growth=0.5,
        hold_probability=0.3,
        degradation_mix=("clean:1", "usual:2"),
    )
    clips = (pool_clip(store, options, number) for number in range(options.pool_clips))
    cuts = cuts_of(ResidentPool(clips, CPU), options, iter(range(12)))
    for index, cut in enumerate(cuts):
        wanted = make_sample(store, options, index)
        assert torch.equal(cut.lr, wanted.lr)
        assert torch.equal(cut.gt, wanted.gt)
    assert [options.num_pool_clips(index) for index in (0, 1, 2, 7, 8, 100)] == [1, 1, 2, 4, 5, 5]


def test_what_goes_wrong_with_a_clip_of_a_held_pool_reaches_the_one_who_waits(
    store: ClipDataset, pooled: DataSettings
) -> None:
    def broken() -> Iterator[Sample]:
        yield pool_clip(store, pooled, 0)
        raise DataError("the disk is gone")

    pool = ResidentPool(broken(), CPU)  # type: ignore[arg-type]
    assert pool.clip(0).lr.shape[0] == 6
    with pytest.raises(DataError, match="the disk is gone"):
        pool.clip(1)
    pool.close()


def test_a_held_sample_shows_one_frame_all_the_time(store: ClipDataset) -> None:
    options = replace(OPTIONS, hold_probability=1.0, unsharp=False)
    for stochastic in (False, True):
        made = make_sample(store, replace(options, stochastic=stochastic), 3)
        assert (made.lr == made.lr[:1]).all()
        assert (made.gt == made.gt[:1]).all()
        moving = make_sample(store, replace(options, stochastic=stochastic, hold_probability=0.0), 3)
        assert any(torch.equal(made.lr[0], frame) for frame in moving.lr), "it is one of the frames that there were"


def test_of_what_goes_wrong_in_a_worker_a_bug_keeps_its_traceback(store: ClipDataset) -> None:
    sample = draw(store, OPTIONS, 0)
    with pytest.raises(SampleError) as caught:
        degrade(replace(sample, gt=sample.gt.float()), OPTIONS)  # no clip of bytes: a bug of ours
    note = Failure.of(caught.value, 0).error().__notes__
    assert "Traceback" in note[0]
    assert not hasattr(Failure.of(ClipError("x.npy is cut short. Prepare it again."), 0).error(), "__notes__")


@pytest.mark.parametrize(
    ("load", "codec", "num_workers", "shares"),
    [
        (0.18, 0.12, 15, (9, 6)),
        (0.70, 0.06, 15, (14, 1)),
        (0.01, 0.90, 15, (1, 14)),
        (0.5, 0.5, 2, (1, 1)),
        (0.5, 0.5, 1, (1, 1)),
        (0.0, 0.0, 4, (1, 3)),
    ],
)
def test_workers_beside_a_gpu_are_shared_as_drawing_and_codecs_cost(load, codec, num_workers, shares):
    assert InputCost(load, codec, 0.7).shares_of(num_workers) == shares
