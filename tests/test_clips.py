"""Clips out of photographs and videos: smooth motion, no borders, clear words about files that cannot be read."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest
import skimage.data

from training import clips
from training.clips import (
    CameraPath,
    cut_video,
    has_scene_cut,
    moved_photograph,
    read_photograph,
    read_photographs,
    read_video,
    read_videos,
)

Bytes = npt.NDArray[np.uint8]


@pytest.fixture(scope="module")
def photograph() -> Bytes:
    return np.asarray(skimage.data.coffee(), dtype=np.uint8)  # (400, 600, 3)


def write_video(path: Path, frames: Bytes, *, crf: int = 12) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(25))
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        stream.options = {"crf": str(crf), "preset": "veryfast", "g": "12"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode(None))
    return path


def panned(image: Bytes, *, num_frames: int, height: int, width: int, step: int = 2) -> Bytes:
    return np.stack([image[:height, step * t : step * t + width] for t in range(num_frames)])


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


def test_no_border_of_the_photograph_is_ever_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """A white photograph with a black rim of 2 pixels: clips of it stay white, with objects and without."""
    image = np.full((400, 600, 3), 255, dtype=np.uint8)
    image[:2] = image[-2:] = 0
    image[:, :2] = image[:, -2:] = 0
    monkeypatch.setattr(clips, "FOREGROUND_PROBABILITY", 0.0)
    for seed in range(40):
        clip = moved_photograph(image, num_frames=10, height=256, width=256, generator=np.random.default_rng(seed))
        assert clip.min() > 250, seed


def test_a_photograph_smaller_than_the_view_is_reflected_not_padded() -> None:
    image = np.full((100, 120, 3), 200, dtype=np.uint8)
    clip = moved_photograph(image, num_frames=3, height=128, width=128, generator=np.random.default_rng(0))
    assert clip.min() == clip.max() == 200


def test_motion_is_smooth_and_no_faster_than_promised() -> None:
    """Speed and its change, over many paths; jitter (sigma up to 0.8 pixels) comes on top in one path of four."""
    speeds = []
    for seed in range(300):
        path = clips._sample_path(10, np.random.default_rng(seed))
        velocity = np.diff(path.centre_px, axis=0)
        speed = np.hypot(*velocity.T)
        speeds.append(float(np.median(speed)))
        assert speed.max() < clips.MAX_SPEED_PX + 6
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
    monkeypatch.setattr(clips, "FOREGROUND_PROBABILITY", 0.0)
    noise = np.random.default_rng(0).integers(0, 256, (400, 600, 3), dtype=np.uint8)
    clip = moved_photograph(noise, num_frames=4, height=128, width=128, generator=np.random.default_rng(1))
    assert clip.astype(np.float64).std() > 0.35 * noise.std()


def test_a_path_without_motion_shows_the_image_itself(photograph: Bytes) -> None:
    still = CameraPath(np.array([[300.0, 200.0]]), np.zeros(1), np.ones(1))
    (matrix,) = still.matrices(101, 201)
    view = clips._warped(photograph, matrix, 101, 201, 0)
    assert np.array_equal(view, photograph[150:251, 200:401])


def test_the_path_matrices_follow_centre_turn_and_zoom() -> None:
    path = CameraPath(np.array([[10.0, 20.0]]), np.array([np.pi / 2]), np.array([2.0]))
    (matrix,) = path.matrices(11, 11)
    assert np.allclose(matrix @ [5, 5, 1], [10, 20])
    assert np.allclose(matrix @ [6, 5, 1], [10, 22])  # one to the right in the view: down by two in the source


def test_objects_move_in_front_of_the_photograph(monkeypatch: pytest.MonkeyPatch) -> None:
    black, white = np.zeros((400, 400, 3), dtype=np.uint8), np.full((400, 400, 3), 255, dtype=np.uint8)
    monkeypatch.setattr(clips, "FOREGROUND_PROBABILITY", 1.0)
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


def test_video_frames_come_in_order_and_from_the_time_asked_for(tmp_path: Path) -> None:
    greys = np.arange(20, 220, 5, dtype=np.uint8)
    frames = np.broadcast_to(greys[:, None, None, None], (40, 48, 64, 3))
    path = write_video(tmp_path / "greys.mp4", frames)
    levels = np.array([frame.mean() for frame in read_video(path)])
    assert np.abs(levels - greys).max() < 3
    late = np.array([frame.mean() for frame in read_video(path, start_seconds=17 / 25)])
    assert np.abs(late - greys[17:]).max() < 3


def test_a_cut_of_a_video_is_a_piece_of_it(video: Path) -> None:
    for seed in range(4):
        clip = cut_video(video, num_frames=6, height=128, width=160, generator=np.random.default_rng(seed))
        assert clip.shape == (6, 128, 160, 3)
        assert np.abs(np.diff(clip.astype(np.float64), axis=0)).mean() > 0.1, "it moves"
    again = cut_video(video, num_frames=6, height=128, width=160, generator=np.random.default_rng(seed))
    assert np.array_equal(clip, again)


def test_a_cut_as_large_as_the_video_still_fits(video: Path) -> None:
    clip = cut_video(video, num_frames=2, height=360, width=360, generator=np.random.default_rng(0))
    assert clip.shape == (2, 360, 360, 3)


def test_no_clip_goes_across_a_scene_cut(tmp_path: Path, photograph: Bytes) -> None:
    dark, light = np.full((1, 96, 96, 3), 20, np.uint8), np.full((1, 96, 96, 3), 220, np.uint8)
    assert has_scene_cut(np.concatenate([dark, dark, light, light]))
    assert not has_scene_cut(panned(photograph, num_frames=6, height=360, width=480, step=12))
    path = write_video(tmp_path / "scenes.mp4", np.concatenate([dark] * 20 + [light] * 20))
    for seed in range(8):
        clip = cut_video(path, num_frames=8, height=48, width=48, generator=np.random.default_rng(seed))
        assert np.ptp(clip.mean(axis=(1, 2, 3))) < 10
    flicker = write_video(tmp_path / "flicker.mp4", np.concatenate([dark, light, light] * 10))
    with pytest.raises(ValueError, match=r"change of scene.*flicker\.mp4"):
        cut_video(flicker, num_frames=8, height=48, width=48, generator=np.random.default_rng(0))


def test_videos_too_short_or_too_small_are_named(video: Path) -> None:
    with pytest.raises(ValueError, match=r"pan\.mp4"):
        cut_video(video, num_frames=200, height=64, width=64, generator=np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"pan\.mp4 is 480x360, smaller"):
        cut_video(video, num_frames=4, height=400, width=64, generator=np.random.default_rng(0))


def test_broken_files_are_named(tmp_path: Path, video: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"this is no video" * 100)
    with pytest.raises(ValueError, match=r"read_video: cannot read .*broken\.mp4"):
        next(read_video(broken))
    with pytest.raises(ValueError, match=r"broken\.mp4"):
        cut_video(broken, num_frames=4, height=64, width=64, generator=np.random.default_rng(0))
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


def test_folders_are_listed_by_name_and_empty_ones_refused(tmp_path: Path) -> None:
    for name in ("b.png", "a.WEBP", "c.jpg", "notes.txt", "v.mp4"):
        (tmp_path / name).touch()
    assert [path.name for path in read_photographs(tmp_path)] == ["a.WEBP", "b.png", "c.jpg"]
    assert [path.name for path in read_videos(tmp_path)] == ["v.mp4"]
    with pytest.raises(ValueError, match="no photographs"):
        read_photographs(tmp_path / "nowhere")


def test_photographs_are_read_as_rgb(tmp_path: Path) -> None:
    import cv2

    red_in_bgr = np.zeros((8, 8, 3), dtype=np.uint8)
    red_in_bgr[:, :, 2] = 255
    cv2.imwrite(str(tmp_path / "red.png"), red_in_bgr)
    assert read_photograph(tmp_path / "red.png")[0, 0].tolist() == [255, 0, 0]
