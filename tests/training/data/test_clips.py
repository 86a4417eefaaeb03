"""Clips out of photographs and videos: smooth motion, no borders, clear words about files that cannot be read."""

from __future__ import annotations

import re
import struct
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import skimage.data

from tests.clips import MakeClip, moving_photograph
from tests.training.data.footage import Bytes, panned, write_pictures, write_video
from training.data import camera
from training.data.camera import CameraPath, moved_photograph
from training.data.scenes import has_scene_cut
from training.data.sources import (
    Gap,
    TimedFrame,
    find_sources,
    read_numbered_frames,
    read_photograph,
    read_video,
    read_video_facts,
    split_held_out,
)


@pytest.fixture(scope="module")
def photograph() -> Bytes:
    return np.asarray(skimage.data.coffee(), dtype=np.uint8)  # (400, 600, 3)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory, photograph: Bytes) -> Path:
    frames = panned(photograph, num_frames=60, height=360, width=480)
    return write_video(tmp_path_factory.mktemp("video") / "pan.mp4", frames)


def test_a_photograph_becomes_a_clip_of_the_size_asked_for(photograph: Bytes) -> None:
    for seed in range(12):
        clip = moved_photograph(
            photograph, num_frames=7, height=192, width=256, generator=np.random.default_rng(seed), foreground=None
        )
        assert clip.shape == (7, 192, 256, 3)
        assert clip.dtype == np.uint8


def test_the_same_generator_makes_the_same_clip(photograph: Bytes) -> None:
    first, again = (
        moved_photograph(photograph, num_frames=5, height=128, width=128, generator=np.random.default_rng(5))
        for _ in range(2)
    )
    assert np.array_equal(first, again)


@pytest.mark.long
def test_no_border_of_the_photograph_is_ever_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """A white photograph with a black rim of 2 pixels: clips of it stay white, with objects and without."""
    image = np.full((400, 600, 3), 255, dtype=np.uint8)
    image[:2] = image[-2:] = 0
    image[:, :2] = image[:, -2:] = 0
    monkeypatch.setattr(camera, "FOREGROUND_PROBABILITY", 0.0)
    for seed in range(12):
        clip = moved_photograph(image, num_frames=10, height=256, width=256, generator=np.random.default_rng(seed))
        assert clip.min() > 250, seed


def test_a_photograph_smaller_than_the_view_is_reflected_not_padded() -> None:
    image = np.full((100, 120, 3), 200, dtype=np.uint8)
    clip = moved_photograph(image, num_frames=3, height=128, width=128, generator=np.random.default_rng(0))
    assert clip.min() == clip.max() == 200


@pytest.mark.long
def test_a_camera_on_a_tripod_does_not_move(photograph: Bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for, all frames are one picture, and objects still move in front of it; not asked for, nothing is drawn."""

    def moved(seed: int, probability: float) -> Bytes:
        return moved_photograph(
            photograph,
            num_frames=6,
            height=128,
            width=160,
            generator=np.random.default_rng(seed),
            still_probability=probability,
        )

    monkeypatch.setattr(camera, "FOREGROUND_PROBABILITY", 0.0)
    for seed in range(6):
        clip = moved(seed, 1.0)
        assert all(np.array_equal(frame, clip[0]) for frame in clip), seed
    assert not np.array_equal(moved(0, 1.0)[0], moved(1, 1.0)[0])  # each at a place of its own
    still = sum(
        all(np.array_equal(frame, clip[0]) for frame in clip) for clip in (moved(seed, 0.25) for seed in range(80))
    )
    assert 10 <= still <= 32  # 20 expected, sigma 3.9; and the few that hardly move by themselves
    monkeypatch.setattr(camera, "_sample_path", lambda num_frames, generator: drawn_first.append(generator.random()))
    drawn_first: list[float] = []
    with pytest.raises(AttributeError):
        moved(3, 0.0)  # the path is the first thing drawn
    assert drawn_first == [np.random.default_rng(3).random()]
    monkeypatch.undo()
    monkeypatch.setattr(camera, "FOREGROUND_PROBABILITY", 1.0)
    with_objects = [moved(seed, 1.0) for seed in range(6)]
    moving = [np.mean(clip[0] != clip[-1]) for clip in with_objects]
    assert 0.01 < max(moving) < 0.9


def test_motion_is_smooth_and_no_faster_than_promised() -> None:
    """Speed and its change, over many paths; jitter (sigma up to 0.8 pixels) comes on top in one path of four."""
    speeds = []
    for seed in range(300):
        path = camera._sample_path(10, np.random.default_rng(seed))
        velocity = np.diff(path.centre_px, axis=0)
        speed = np.hypot(*velocity.T)
        speeds.append(float(np.median(speed)))
        assert speed.max() < camera.MAX_SPEED_PX + 6
        assert path.shrink.min() >= 1
        assert path.shrink.max() <= 1.25
        assert np.abs(np.diff(path.angle_radians)).max() < 0.03
        change = np.abs(np.diff(velocity, axis=0))
        assert change.max() < 8
    assert np.median(speeds) < 3, "many clips are slow"
    assert np.mean(np.array(speeds) < 0.3) > 0.1, "some hardly move"
    assert np.mean(np.array(speeds) > 5) > 0.1, "some are fast"


def test_the_ground_truth_stays_sharp(monkeypatch: pytest.MonkeyPatch) -> None:
    """White noise keeps much of its finest detail: shrinking by up to 1.5 and one resampling cost the rest."""
    monkeypatch.setattr(camera, "FOREGROUND_PROBABILITY", 0.0)
    noise = np.random.default_rng(0).integers(0, 256, (400, 600, 3), dtype=np.uint8)
    clip = moved_photograph(noise, num_frames=4, height=128, width=128, generator=np.random.default_rng(1))
    assert clip.astype(np.float64).std() > 0.35 * noise.std()


def test_a_path_without_motion_shows_the_image_itself(photograph: Bytes) -> None:
    still = CameraPath(np.array([[300.0, 200.0]]), np.zeros(1), np.ones(1))
    (matrix,) = still.matrices(101, 201)
    view = camera._warped(photograph, matrix, 101, 201, 0)
    assert np.array_equal(view, photograph[150:251, 200:401])


def test_the_path_matrices_follow_centre_turn_and_zoom() -> None:
    path = CameraPath(np.array([[10.0, 20.0]]), np.array([np.pi / 2]), np.array([2.0]))
    (matrix,) = path.matrices(11, 11)
    assert np.allclose(matrix @ [5, 5, 1], [10, 20])
    assert np.allclose(matrix @ [6, 5, 1], [10, 22])  # one to the right in the view: down by two in the source


def test_objects_move_in_front_of_the_photograph(monkeypatch: pytest.MonkeyPatch) -> None:
    black, white = np.zeros((400, 400, 3), dtype=np.uint8), np.full((400, 400, 3), 255, dtype=np.uint8)
    monkeypatch.setattr(camera, "FOREGROUND_PROBABILITY", 1.0)
    moved = 0
    for seed in range(10):
        clip = moved_photograph(
            black, num_frames=8, height=128, width=128, generator=np.random.default_rng(seed), foreground=white
        )
        covered = (clip[..., 0] > 127).mean(axis=(1, 2))
        assert 0.005 < covered[4] < 0.6
        assert len(np.unique(clip[4])) > 3, "the edge of the object is soft"
        moved += not np.array_equal(clip[0], clip[-1])
    assert moved >= 7


def pictures(path: Path) -> list[Bytes]:
    return [item.picture for item in read_video(path) if isinstance(item, TimedFrame)]


def test_video_frames_come_in_order_with_their_time_stamps(tmp_path: Path) -> None:
    greys = np.arange(20, 220, 5, dtype=np.uint8)
    frames = np.broadcast_to(greys[:, None, None, None], (40, 48, 64, 3))
    items = list(read_video(write_video(tmp_path / "greys.mp4", frames)))
    assert all(isinstance(item, TimedFrame) for item in items)
    levels = np.array([item.picture.mean() for item in items])
    assert np.abs(levels - greys).max() < 1.5, "rounded, not cut off"
    assert np.allclose([item.pts_seconds for item in items], np.arange(40) / 25)


VIDEOS = {
    "h264.mp4": {},
    "h265_10_bit.mkv": {
        "codec": "libx265",
        "pixel_format": "yuv420p10le",
        "options": {"crf": "8", "x265-params": "log-level=none"},
    },
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"b": "4000000", "cpu-used": "8"}},
    "av1_10_bit.mp4": {"codec": "libsvtav1", "pixel_format": "yuv420p10le", "options": {"crf": "10", "preset": "12"}},
    "mpeg4.avi": {"codec": "mpeg4", "options": {"b": "4000000"}},
    "lossless_444.mkv": {"codec": "ffv1", "pixel_format": "yuv444p"},
    "transport.ts": {},
}


@pytest.mark.parametrize("name", VIDEOS)
def test_videos_of_any_codec_and_depth_come_out_as_8_bit_rgb_in_the_right_colours(
    name: str, tmp_path: Path, make_clip: MakeClip
) -> None:
    path = make_clip(tmp_path / name, num_frames=6, width=64, height=48, **VIDEOS[name])
    frames = np.stack(pictures(path))
    assert frames.shape == (6, 48, 64, 3)
    truth = np.stack(list(moving_photograph(6, 64, 48)))
    difference = frames.astype(float) - truth
    assert np.abs(difference).mean() < 6
    assert np.abs(difference.mean(axis=(0, 1, 2))).max() < 1.5, "no colour is shifted"
    facts = read_video_facts(path)
    assert facts.is_lossless == (name == "lossless_444.mkv")
    assert facts.frames_per_second == pytest.approx(25)


def test_the_matrix_of_a_video_is_obeyed_and_guessed_from_its_height(tmp_path: Path) -> None:
    """Y 100, U 90, V 200 as BT.601 and as BT.709 are different reds; without a tag low frames are BT.601."""
    expected = {"601": (213, 53, 20), "709": (227, 67, 17)}
    for tag, height, matrix in ((5, 64, "601"), (1, 64, "709"), (2, 64, "601"), (2, 720, "709")):
        planes = np.full((height * 3 // 2, 64), 100, dtype=np.uint8)
        planes[height : height * 5 // 4], planes[height * 5 // 4 :] = 90, 200
        with av.open(str(tmp_path / "colour.mkv"), "w") as container:
            stream = container.add_stream("ffv1", rate=Fraction(25))
            stream.width, stream.height, stream.pix_fmt = 64, height, "yuv420p"
            stream.codec_context.colorspace = tag
            container.mux(stream.encode(av.VideoFrame.from_ndarray(planes, format="yuv420p")))
            container.mux(stream.encode(None))
        (frame,) = pictures(tmp_path / "colour.mkv")
        assert np.abs(frame[height // 2, 32].astype(int) - expected[matrix]).max() <= 2, (tag, height)


def test_a_video_that_is_to_be_turned_comes_out_upright(tmp_path: Path, make_clip: MakeClip) -> None:
    """The header's matrix is written over by the one of a telephone held upright: a quarter turn clockwise."""
    path = make_clip(tmp_path / "turned.mp4", num_frames=2, width=64, height=48)
    (upright, *_) = pictures(path)
    contents = path.read_bytes()
    one = 1 << 16
    matrices = [
        struct.pack(">9i", *values, 1 << 30) for values in ((one, 0, 0, 0, one, 0, 0, 0), (0, one, 0, -one, 0, 0, 0, 0))
    ]
    track = contents.index(b"tkhd")
    path.write_bytes(contents[:track] + contents[track:].replace(matrices[0], matrices[1], 1))
    (turned, *_) = pictures(path)
    assert turned.shape == (64, 48, 3)
    assert np.array_equal(turned, np.rot90(upright, -1))


def test_a_gap_stands_where_time_stamps_pause_and_nowhere_else(tmp_path: Path, make_clip: MakeClip) -> None:
    pts = [0, 40, 73, 140, 160, 200, 1400, 1440, 1480]  # milliseconds: uneven, then frames are missing
    path = make_clip(tmp_path / "uneven.mkv", pts=pts, time_base=Fraction(1, 1000))
    items = list(read_video(path))
    assert [number for number, item in enumerate(items) if isinstance(item, Gap)] == [6]
    times = [item.pts_seconds for item in items if isinstance(item, TimedFrame)]
    assert np.allclose(times, np.array(pts) / 1000, atol=0.002)
    slow = make_clip(tmp_path / "slow.mkv", num_frames=5, rate=Fraction(1))
    assert not any(isinstance(item, Gap) for item in read_video(slow)), "one frame a second is no pause"


def test_scene_cuts_are_told_from_motion(photograph: Bytes) -> None:
    light = np.full_like(photograph, 220)
    assert has_scene_cut(np.stack([photograph, photograph, light, light])), "nothing is left of the picture"
    flash = np.clip(photograph * 1.6, 0, 255).astype(np.uint8)
    assert not has_scene_cut(np.stack([photograph, flash, photograph])), "a flash is no cut"
    assert not has_scene_cut(panned(photograph, num_frames=6, height=360, width=480, step=12))
    fading = (photograph[None] * np.linspace(1, 0.3, 8)[:, None, None, None]).astype(np.uint8)
    assert not has_scene_cut(fading), "a fade is no cut"
    other = np.asarray(skimage.data.astronaut()[:400], dtype=np.uint8)
    two = np.stack([photograph[:, :512], other])
    assert has_scene_cut(two)
    assert has_scene_cut((two * 0.3).astype(np.uint8)), "at night as well"
    behind_bars = two * (np.abs(np.arange(512) - 256) < 80).astype(np.uint8)[:, None]
    assert has_scene_cut(behind_bars), "upright pictures between black bars as well"
    assert not has_scene_cut(photograph[None])


def test_broken_files_are_named(tmp_path: Path, video: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"this is no video" * 100)
    with pytest.raises(ValueError, match=r"read_video: cannot read .*broken\.mp4"):
        next(read_video(broken))
    cut_off = tmp_path / "cut_off.mp4"
    cut_off.write_bytes(video.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"cut_off\.mp4"):
        list(read_video(cut_off))
    for name, content in (("empty.png", b""), ("text.jpg", b"no picture")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=name):
            read_photograph(tmp_path / name)
    with pytest.raises(ValueError, match=r"missing\.png"):
        read_photograph(tmp_path / "missing.png")


@pytest.mark.parametrize("suffix", ["mkv", "ts", "mp4"])
def test_a_video_cut_short_gives_the_frames_before_the_break(suffix: str, tmp_path: Path, make_clip: MakeClip) -> None:
    whole = make_clip(tmp_path / f"whole.{suffix}", num_frames=40, options={"g": "10"})
    frames = pictures(whole)
    contents = bytearray(whole.read_bytes())
    if suffix == "mp4":  # its index is at the end, so it is damaged instead
        contents[len(contents) // 2 : len(contents) // 2 + 200] = bytes(200)
    else:
        contents = contents[: len(contents) * 6 // 10]
    broken = tmp_path / f"broken.{suffix}"
    broken.write_bytes(contents)
    before = pictures(broken)
    assert 8 < len(before) < 40
    if suffix == "mp4":
        gaps = [item for item in read_video(broken) if isinstance(item, Gap)]
        assert re.fullmatch(r"cannot be decoded further than \d+ frames: Invalid data.*", str(gaps[-1].reason))
    assert np.array_equal(np.stack(before)[:-1], np.stack(frames)[: len(before) - 1])


def found_kinds(folder: Path, **options: str) -> dict[str, str]:
    return {source.name: source.kind for source in find_sources(folder, **options).sources}


@pytest.fixture
def mixed(tmp_path: Path, photograph: Bytes) -> Path:
    """Frames of a walk, numbered photographs that show different things, and strangers."""
    write_pictures(tmp_path / "walk", panned(photograph, num_frames=12, height=96, width=128))
    others = [skimage.data.astronaut(), skimage.data.chelsea(), skimage.data.rocket(), photograph]
    turned = [np.rot90(other[:256, :256], k) for k in range(2) for other in others]
    write_pictures(tmp_path / "holiday", np.stack(turned), "IMG_{:04d}.jpg")
    (tmp_path / "walk" / "notes.txt").touch()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "v.mp4").touch()
    (tmp_path / "v.mp4").touch()
    return tmp_path


def test_frames_are_told_from_photographs(mixed: Path) -> None:
    kinds = found_kinds(mixed)
    assert kinds.pop("walk/frame_[001-012].png") == "frames"
    assert kinds.pop("v.mp4") == "video"
    assert set(kinds) == {f"holiday/IMG_{number:04d}.jpg" for number in range(1, 9)}
    assert set(kinds.values()) == {"photograph"}
    assert find_sources(mixed).num_ignored == {".txt": 1}


def test_what_pictures_are_can_be_said(mixed: Path) -> None:
    frames = find_sources(mixed, images="frames")
    assert [source.name for source in frames.sources if source.kind == "frames"] == [
        "holiday/IMG_[0001-0008].jpg",
        "walk/frame_[001-012].png",
    ]
    assert set(found_kinds(mixed, images="photographs").values()) == {"photograph", "video"}
    (mixed / "walk" / "frame_003.png").unlink()
    names = [source.name for source in find_sources(mixed, images="frames").sources]
    assert "walk/frame_[004-012].png" in names, "a missing number ends a run"
    assert [one.name for one in find_sources(mixed, images="frames").unused] == [
        "walk/frame_001.png",
        "walk/frame_002.png",
    ]


def test_frames_come_in_the_order_of_their_numbers_and_a_corrupt_one_is_a_gap(tmp_path: Path) -> None:
    frames = np.stack([np.full((32, 40, 3), 20 * number, np.uint8) for number in range(1, 12)])
    write_pictures(tmp_path, frames, "{}.png")
    (source,) = find_sources(tmp_path).sources
    assert source.name == "[1-11].png"
    (tmp_path / "4.png").write_bytes((tmp_path / "4.png").read_bytes()[:30])
    items = list(read_numbered_frames(source.paths))
    assert isinstance(items[3], Gap)
    assert items[3].reason == "4.png holds no readable picture"
    levels = [int(item.picture[0, 0, 0]) // 20 for item in items if isinstance(item, TimedFrame)]
    assert levels == [1, 2, 3, 5, 6, 7, 8, 9, 10, 11]


def test_a_folder_without_anything_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no videos and no pictures\. Name a folder that holds some"):
        find_sources(tmp_path)
    with pytest.raises(ValueError, match="there is no folder"):
        find_sources(tmp_path / "nowhere")


def test_folders_that_link_in_circles_end(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "circle").symlink_to(tmp_path)
    (tmp_path / "inside" / "v.mp4").touch()
    assert list(found_kinds(tmp_path)) == ["inside/v.mp4"]


def test_held_out_items_are_apart_and_all_are_accounted_for() -> None:
    train, held = split_held_out(list(range(30)), every=12)
    assert held == [0, 12, 24]
    assert sorted(train + held) == list(range(30))
    assert split_held_out(["only"], every=12) == (["only"], [])
    assert split_held_out(["a", "b"], every=12) == (["b"], ["a"])


def test_photographs_are_read_as_rgb(tmp_path: Path) -> None:
    red_in_bgr = np.zeros((8, 8, 3), dtype=np.uint8)
    red_in_bgr[:, :, 2] = 255
    cv2.imwrite(str(tmp_path / "red.png"), red_in_bgr)
    assert read_photograph(tmp_path / "red.png")[0, 0].tolist() == [255, 0, 0]
