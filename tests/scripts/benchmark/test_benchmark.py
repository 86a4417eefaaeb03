"""The benchmark of the input: both pipelines do the same work, and the tables say so. No time is asserted."""

import itertools
import json

import numpy as np
import pytest
import torch

from scripts.benchmark import __main__, plain_pipeline
from scripts.benchmark import input as of_input
from scripts.benchmark.cpu_clock import Watch
from tests import ROOT
from tests.forked import run_module
from training import degradations
from training.data import pool
from training.data.settings import DataSettings
from training.degradations import PUBLISHED

TINY = ("--num-clips", "2", "--repeats", "2", "--num-frames", "4", "--crop", "16")


pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """What the command prints and writes in a tiny setting."""
    path = tmp_path_factory.mktemp("benchmark") / "input.json"
    done = run_module(
        "scripts.benchmark", "input", *TINY, "--json", path, cwd=ROOT, loads=("scripts.benchmark.input",)
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(path.read_text())


def test_the_table_has_every_degradation_the_whole_and_the_reading(tiny):
    text, _ = tiny
    for row in (
        *of_input.ROWS,
        "whole input, CPU alone",
        "what a GPU leaves to it",
        "PNG frames",
        "H.264 video",
    ):
        assert any(line.startswith(row) for line in text.splitlines()), row
    assert "4 frames, ms" in text
    assert "2 frames, ms" in text
    assert "clips per second per core" in text
    assert "workers feed 16 clips every 0.5 s" in text


def test_the_json_has_the_machine_the_versions_and_the_commit(tiny):
    _, plain = tiny
    assert plain["part"] == "input"
    assert {"processor", "num_cores", "system", "versions", "commit", "date"} <= set(plain["machine"])
    assert plain["machine"]["versions"]["torch"] == torch.__version__.split("+")[0]
    assert (plain["num_clips"], plain["num_repeats"], plain["num_frames"], plain["num_read"]) == (2, 2, 4, 2)


def test_the_parts_make_the_whole(tiny):
    _, plain = tiny
    for side, name in ((1, "plain"), (2, "ours")):
        lowest = sum(plain["parts"][part][side]["low"] for part in of_input.PARTS)
        highest = sum(plain["parts"][part][side]["high"] for part in of_input.PARTS)
        assert lowest <= plain[name]["median"] + 1e-9
        assert plain[name]["median"] <= highest + 1e-9


def test_a_wrong_argument_gets_one_clear_line(capsys):
    assert __main__.main(["input", "--num-clips", "0"]) == 2
    assert capsys.readouterr().err == "benchmark input: --num-clips must be above 0, got 0\n"


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return of_input.make_clips(tmp_path_factory.mktemp("made") / "clips", num_frames=8, side_px=128)


OPTIONS = DataSettings(crop_px=32, num_frames=8)


def test_ours_part_by_part_is_what_training_gets(clips):
    for index in range(3):
        expected = pool.make_sample(clips, OPTIONS, index).lr
        found = of_input.our_clip(clips, OPTIONS, index, Watch(1))
        assert np.array_equal(found, expected.permute(0, 2, 3, 1).numpy())


def test_the_plain_unsharp_mask_is_ours(clips):
    clip = torch.from_numpy(clips.read(0, num_frames=1)).permute(0, 3, 1, 2)
    plain = plain_pipeline.plain_bytes(
        plain_pipeline.plain_unsharp(plain_pipeline.plain_floats(clips.read(0, num_frames=1)[0]))
    )
    ours = degradations.unsharp(clip)[0].permute(1, 2, 0).numpy()
    difference = np.abs(plain.astype(int) - ours)
    assert difference.mean() < 0.1
    assert np.abs(plain.astype(int) - clips.read(0, num_frames=1)[0]).mean() > 0.3


def recipe_steps(kinds):
    """Steps of these kinds out of published recipes for eight frames."""
    recipes = (degradations.sample(PUBLISHED, np.random.default_rng(seed), num_frames=8) for seed in itertools.count())
    return (step for recipe in recipes for step in recipe.steps if isinstance(step, kinds))


def both(step, clip):
    """The frames after one step by the plain pipeline and by ours, as floats; all of one size only."""
    frames = [plain_pipeline.plain_floats(frame) for frame in clip.permute(0, 2, 3, 1).numpy()]
    size = (clip.shape[2] // 4, clip.shape[3] // 4)
    plain = np.stack(plain_pipeline.plain_step(step, frames, size, Watch(1)))
    _, pieces = next(degradations.apply_steps(degradations.Recipe((step,)), clip))
    ours = torch.cat([piece.float() / 255 if piece.dtype == torch.uint8 else piece for piece in pieces])
    return plain, ours.permute(0, 2, 3, 1).numpy()


@pytest.fixture(scope="module")
def clip(clips):
    return torch.from_numpy(clips.read(1)).permute(0, 3, 1, 2).contiguous()


@pytest.mark.parametrize("kind", [degradations.Blur, degradations.SincBlur])
def test_plain_blurs_are_ours(kind, clip):
    for step in itertools.islice(recipe_steps(kind), 6):
        plain, ours = both(step, clip)
        assert np.abs(plain - ours).max() < 2e-3, step


def test_plain_resizes_are_ours(clip):
    steps = (step for step in recipe_steps(degradations.Resize) if step.scale is None)
    for step in itertools.islice(steps, 6):
        plain, ours = both(step, clip)
        assert np.abs(plain - ours).mean() < 5e-3, step


@pytest.mark.parametrize("kind", [degradations.GaussianNoise, degradations.PoissonNoise])
def test_plain_noise_has_our_strength(kind, clip):
    for step in itertools.islice(recipe_steps(kind), 4):
        plain, ours = both(step, clip)
        clean = clip.permute(0, 2, 3, 1).numpy() / 255
        assert (plain - clean).std() == pytest.approx((ours - clean).std(), rel=0.1)


@pytest.mark.parametrize("kind", [degradations.Jpeg, degradations.VideoCodec])
def test_plain_compression_damages_as_much_as_ours(kind, clip):
    for step in itertools.islice(recipe_steps(kind), 3):
        plain, ours = both(step, clip)
        clean = clip.permute(0, 2, 3, 1).numpy() / 255
        errors = [np.square(after - clean).mean() for after in (plain, ours)]
        assert 0.5 < errors[0] / errors[1] < 2, step
