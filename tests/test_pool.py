"""The pool of clips: the same clips for the same seed, whoever makes them and however often it is interrupted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data
from test_clips import panned, write_video

from training.degradations import Recipe, apply, moderate_recipe
from training.pool import PoolPlan, clip_path, fill_pool, held_out, main, make_clip, write_clip


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three photographs and one video."""
    folder = tmp_path_factory.mktemp("material")
    pictures = {"a": skimage.data.astronaut(), "b": skimage.data.chelsea(), "c": skimage.data.coffee()}
    for name, image in pictures.items():
        cv2.imwrite(str(folder / f"{name}.png"), np.ascontiguousarray(image[:, :, ::-1]))
    write_video(folder / "v.mp4", panned(skimage.data.coffee(), num_frames=24, height=256, width=320))
    return folder


@pytest.fixture
def plan(material: Path) -> PoolPlan:
    photographs = tuple(material / f"{name}.png" for name in "abc")
    return PoolPlan(
        photographs=photographs, videos=(material / "v.mp4",), num_frames=4, size_px=24, seed=0, recipe="random"
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_clip_is_what_its_recipe_makes_of_its_ground_truth(plan: PoolPlan, tmp_path: Path) -> None:
    for index in (0, 6):
        assert write_clip(plan, tmp_path, index) is None
        lr, hr = (np.load(clip_path(tmp_path, index, suffix)) for suffix in ("lr.npy", "hr.npy"))
        assert lr.shape == (4, 24, 24, 3)
        assert hr.shape == (4, 96, 96, 3)
        note = json.loads(clip_path(tmp_path, index, "json").read_text())
        assert np.array_equal(apply(Recipe.from_json(json.dumps(note["recipe"])), hr), lr)
        assert note["source"] == ("v.mp4" if index == 6 else "a.png")


def test_one_clip_in_seven_comes_from_a_video(plan: PoolPlan) -> None:
    sources = [make_clip(plan, index)[3] for index in range(14)]
    assert [index for index, source in enumerate(sources) if source == "v.mp4"] == [6, 13]
    assert {source: sources.count(source) for source in ("a.png", "b.png", "c.png")} == dict.fromkeys(
        ("a.png", "b.png", "c.png"), 4
    )


def test_clips_depend_on_seed_and_index_alone(plan: PoolPlan) -> None:
    first, again = make_clip(plan, 3), make_clip(plan, 3)
    assert np.array_equal(first[0], again[0])
    assert first[2] == again[2]
    assert not np.array_equal(first[0], make_clip(plan, 0)[0])
    assert not np.array_equal(first[0], make_clip(replace(plan, seed=1), 3)[0])


def test_an_interrupted_pool_goes_on_to_the_same_end(plan: PoolPlan, tmp_path: Path) -> None:
    whole, interrupted = tmp_path / "whole", tmp_path / "interrupted"
    assert fill_pool(plan, whole, num_clips=4, num_workers=2) == 0
    assert fill_pool(plan, interrupted, num_clips=2, num_workers=1) == 0
    clip_path(interrupted, 1, "lr.npy").unlink()  # as if it had been killed between the files of clip 1
    stamp = clip_path(interrupted, 0, "hr.npy").stat().st_mtime_ns
    assert fill_pool(plan, interrupted, num_clips=4, num_workers=1) == 0
    assert clip_path(interrupted, 0, "hr.npy").stat().st_mtime_ns == stamp, "what is there is not made again"
    assert contents(whole) == contents(interrupted)
    assert not list(whole.glob("*.unfinished"))


def test_a_pool_made_otherwise_is_not_continued(plan: PoolPlan, tmp_path: Path) -> None:
    fill_pool(plan, tmp_path, num_clips=0, num_workers=1)
    with pytest.raises(ValueError, match="made otherwise"):
        fill_pool(replace(plan, seed=1), tmp_path, num_clips=0, num_workers=1)


def test_an_unreadable_source_is_reported_and_skipped(
    plan: PoolPlan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    out = tmp_path / "pool"
    reason = write_clip(replace(plan, videos=(broken,)), tmp_path, 6)
    assert reason is not None
    assert "broken.mp4" in reason
    assert not list(tmp_path.glob("*.npy"))
    assert fill_pool(replace(plan, videos=(broken,)), out, num_clips=7, num_workers=1) == 1
    assert "clip 6 skipped" in capsys.readouterr().err
    assert len(list(out.glob("*.lr.npy"))) == 6


def test_held_out_sources_are_apart_and_all_are_accounted_for() -> None:
    photographs = [Path("p") / f"{number:03d}.webp" for number in range(30)]
    videos = [Path("v") / name for name in ("sam2_01_dog.mp4", "sam2_04_coffee.mp4")]
    train, held = held_out([*videos, *reversed(photographs)])
    assert not set(train) & set(held)
    assert sorted(train + held) == sorted(photographs + videos)
    assert [path.name for path in held] == ["000.webp", "012.webp", "024.webp", "sam2_04_coffee.mp4"]
    assert held_out(photographs)[1] == held[:3]


def test_the_command_line_makes_an_evaluation_pool_of_held_out_sources(material: Path, tmp_path: Path) -> None:
    out = tmp_path / "eval"
    command = ["--images", str(material), "--out", str(out), "--clips", "2", "--frames", "2", "--size", "16"]
    assert main([*command, "--workers", "1", "--held-out", "--recipe", "moderate"]) == 0
    for index in range(2):
        note = json.loads(clip_path(out, index, "json").read_text())
        assert note["source"] == "a.png"
        assert note["recipe"] == moderate_recipe(index).to_plain()


def test_the_command_line_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--images", str(tmp_path), "--out", str(tmp_path / "pool"), "--clips", "1"]) == 2
    assert "no photographs" in capsys.readouterr().err
