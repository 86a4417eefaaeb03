"""The benchmark: rows that can be trusted, a run that goes on, one line for what does not fit."""

import argparse
import json
import sys

import numpy as np
import pytest
import torch
from torch.nn import functional

from tests.training.benchmarking.videolq import (
    HEIGHT,
    LENGTHS,
    PROGRAMS,
    WIDTH,
    nearest,
    read_first,
    view,
    write_png,
    write_sequences,
)
from training.__main__ import main
from training.benchmarking.measured import Way, super_resolve_measured
from training.benchmarking.methods import Bicubic, SingleImage, named
from training.benchmarking.naturalness import niqe_of
from training.benchmarking.published import SCALE
from training.benchmarking.sequences import measured_frames
from training.commands import benchmark


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_sequences(tmp_path_factory.mktemp("videolq"))


@pytest.fixture(scope="module")
def clip(folder):
    return read_first(folder)


@pytest.fixture(scope="module")
def compact(tmp_path_factory):
    """A file that spandrel takes for a Real-ESRGAN of the compact sort; its network repeats every pixel 4x4 times."""
    return write_compact(tmp_path_factory.mktemp("spandrel") / "nearest.pth", scale=4)


def write_compact(path, *, scale):
    weights = {"body.0.weight": torch.ones(4, 3, 3, 3), "body.0.bias": torch.zeros(4), "body.1.weight": torch.ones(4)}
    weights |= {
        "body.2.weight": torch.zeros(3 * scale * scale, 4, 3, 3),
        "body.2.bias": torch.zeros(3 * scale * scale),
    }
    torch.save({"params": weights}, path)
    return path


def run(folder, out, *words):
    command = ["benchmark", folder, "--out", out, "--device", "cpu", *words]
    assert main([str(word) for word in command]) == 0
    return json.loads((out / "results.json").read_text())


# ---- rows ------------------------------------------------------------------------------------------------------------


def keys(distance):
    """The cubic of Keys 1981, a = -0.5, which is MATLAB's."""
    x = abs(distance)
    return 1.5 * x**3 - 2.5 * x**2 + 1 if x <= 1 else -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0


def test_bicubic_is_the_cubic_of_matlab(clip):
    made = Bicubic().enlarge(clip)
    for row, column in ((37, 41), (40, 90), (58, 163)):
        weights = [
            [keys(n - (place + 0.5) / SCALE + 0.5) for n in range(size)]
            for place, size in ((row, HEIGHT), (column, WIDTH))
        ]
        expected = np.einsum("y,yxc,x->c", weights[0], clip.frames[0].astype(np.float64), weights[1])
        assert made[0, :, row, column].numpy() * 255 == pytest.approx(expected.clip(0, 255), abs=0.51)


@pytest.mark.long
def test_frames_of_others_models_by_spandrel_and_networks_stand_beside_the_paper(
    folder, tmp_path, tiny_model, compact, capsys
):
    for name, length in LENGTHS.items():
        for t in measured_frames(length):  # the others are not needed
            write_png(tmp_path / "theirs" / name / f"{t:08d}.png", nearest(view(name, length)[t]))
    rows = ("--results", f"theirs={tmp_path / 'theirs'}", "--model", compact, "--weights", f"ours={tiny_model}")
    results = run(folder, tmp_path / "out", *rows)
    assert list(results["means"]) == ["bicubic", "theirs", "nearest", "ours"]
    assert results["means"]["theirs"] == results["means"]["nearest"]  # the same pictures by two ways
    assert [frame["frame"] for frame in results["frames"]["ours"]["001"]] == ["00000000", "00000002", "00000003"]
    frames = [frame["niqe"] for frames in results["frames"]["ours"].values() for frame in frames]
    assert len(set(frames)) == 6
    assert results["means"]["ours"]["niqe"] == pytest.approx(np.mean(frames))
    last = to_tensor(nearest(view("000", 7)[6]))
    assert results["frames"]["nearest"]["000"][2]["niqe"] == pytest.approx(niqe_of(last), rel=PROGRAMS)
    text = capsys.readouterr().out
    lines = text.splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith("method "))
    assert [line.split("  ")[0].strip() for line in lines[start + 1 : start + 5]] == list(results["means"])
    assert lines[start + 8].split() == ["paper:", "RealBasicVSR", "3.7662", "29.03", "6.0477", "3.8593", "150"]
    assert "other frames cannot stand beside them" in text
    assert (tmp_path / "out" / "table.txt").read_text() in text


def to_tensor(rgb):
    return torch.from_numpy(rgb.copy()).permute(2, 0, 1).float() / 255


def test_a_model_by_spandrel_gets_and_gives_rgb_in_0_to_1(compact, clip):
    made = SingleImage("nearest", compact, torch.device("cpu")).enlarge(clip)
    frames = torch.from_numpy(clip.frames[list(clip.measured)]).permute(0, 3, 1, 2).float() / 255
    assert torch.equal(made, functional.interpolate(frames, scale_factor=SCALE, mode="nearest"))


@pytest.mark.long
def test_a_row_for_each_value_that_is_swept(folder, tmp_path, tiny_model):
    ways = ("--sweep", "theta", "0,255", "--fixed-passes", "1,3,5", "--length", "1,30")
    results = run(folder, tmp_path, "--weights", f"net={tiny_model}", *ways, "--num-sequences", 1, "--theta", 255)
    names = ["theta 0", "theta 255", "1 pass", "3 passes", "5 passes", "length 1", "length 30"]
    assert list(results["means"]) == ["bicubic", *(f"net {name}" for name in names)]
    niqe = {name: results["means"][f"net {name}"]["niqe"] for name in names}
    assert niqe["theta 255"] == niqe["1 pass"] == niqe["length 30"]
    assert niqe["theta 0"] == pytest.approx(niqe["3 passes"], abs=1e-3)
    assert len({round(niqe[name], 4) for name in ("1 pass", "3 passes", "5 passes", "length 1")}) == 4


def test_detail_is_swept_over_a_file_of_two_sets(two_sets, folder):
    ways = ("--sweep", "detail", "0,1", "--cleaning", "0.5")
    parser = argparse.ArgumentParser()
    benchmark.add_arguments(parser)
    arguments = parser.parse_args([str(folder), "--weights", str(two_sets), *ways])
    _, faithful, sharp = benchmark.find_methods(arguments, torch.device("cpu"))
    assert [faithful.name, sharp.name] == ["two_sets detail 0", "two_sets detail 1"]
    assert faithful.way == sharp.way == Way(cleaning=0.5)
    assert faithful.digest != sharp.digest


@pytest.mark.long
def test_frames_that_are_written_are_a_row_of_another_benchmark(folder, tmp_path, tiny_model):
    run(folder, tmp_path / "a", "--weights", f"a net={tiny_model}", "--write-frames")
    again = run(folder, tmp_path / "b", "--results", f"again={tmp_path / 'a' / 'frames' / 'a_net'}")
    first = json.loads((tmp_path / "a" / "results.json").read_text())
    assert again["means"]["again"] == first["means"]["a net"]
    assert again["means"]["bicubic"] == first["means"]["bicubic"]


@pytest.mark.long
def test_frames_that_were_written_otherwise_or_in_part_are_written_again(folder, tmp_path, tiny_model):
    words = ("--weights", f"net={tiny_model}")
    run(folder, tmp_path / "a", *words, "--write-frames")
    run(folder, tmp_path / "a", *words, "--cleaning", "0")  # scores without frames
    run(folder, tmp_path / "a", *words, "--cleaning", "0", "--write-frames")
    run(folder, tmp_path / "b", *words, "--cleaning", "0", "--write-frames")
    written = {out: sorted((tmp_path / out / "frames" / "net").rglob("*.png")) for out in ("a", "b")}
    assert [path.read_bytes() for path in written["a"]] == [path.read_bytes() for path in written["b"]]
    last = written["b"][-1]
    last.unlink()
    last.parent.with_name(f"{last.parent.name}.json").unlink()  # as an interruption leaves it
    run(folder, tmp_path / "b", *words, "--cleaning", "0", "--write-frames")
    assert last.is_file()


def test_a_name_is_given_or_taken_from_the_path(tmp_path):
    (tmp_path / "run=1.5").mkdir()
    assert named(["default", "a/b.pth", "x=a/b.pth", str(tmp_path / "run=1.5")]) == [
        ("default", "default"),
        ("b", "a/b.pth"),
        ("x", "a/b.pth"),
        ("run=1.5", str(tmp_path / "run=1.5")),
    ]


# ---- going on --------------------------------------------------------------------------------------------------------


@pytest.fixture
def seen(monkeypatch):
    """The sequences that a network was run on, in order; `stop_at` one of them."""
    seen, original = [], super_resolve_measured

    def watched(model, clip, way):
        seen.append(clip.name)
        if clip.name == watched.stop_at:
            raise KeyboardInterrupt
        return original(model, clip, way)

    watched.stop_at = None
    monkeypatch.setattr("training.benchmarking.methods.super_resolve_measured", watched)
    return seen, watched


@pytest.mark.long
def test_a_run_that_was_interrupted_goes_on_with_the_sequence_it_was_at(folder, tmp_path, tiny_model, seen, capsys):
    names, network = seen
    words = ["benchmark", str(folder), "--out", str(tmp_path / "a"), "--weights", str(tiny_model), "--device", "cpu"]
    network.stop_at = "001"
    assert main(words) == 130
    assert not (tmp_path / "a" / "results.json").exists()
    network.stop_at = None
    names.clear()
    assert main(words) == 0
    assert names == ["001"]
    assert "1/2 000  tiny: NIQE" in capsys.readouterr().out
    names.clear()
    assert main(words) == 0
    assert names == []
    whole_run = run(folder, tmp_path / "b", "--weights", tiny_model)
    resumed = json.loads((tmp_path / "a" / "results.json").read_text())
    assert resumed["frames"] == whole_run["frames"]


@pytest.mark.long
def test_only_what_was_made_from_the_very_same_is_kept(folder, tmp_path, tiny_model, seen):
    names, _ = seen
    both = ["000", "001"]
    run(folder, tmp_path, "--weights", tiny_model)
    for words, expected in (
        (("--weights", tiny_model), []),
        (("--weights", tiny_model, "--theta", 255), both),
        (("--weights", tiny_model, "--theta", 255, "--num-frames", 5), both),
        (("--weights", tiny_model, "--theta", 255, "--num-frames", 5, "--fixed-passes", "2"), both),
    ):
        names.clear()
        run(folder, tmp_path, *words)
        assert names == expected
    damaged = tmp_path / "scores" / "tiny_2_passes" / "001.json"
    damaged.write_text(damaged.read_text()[:-20])
    names.clear()
    run(folder, tmp_path, *words)
    assert names == ["001"]


# ---- what does not fit -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--num-frames", "0"), "--num-frames must be at least 1, got 0"),
        (("--sweep", "beta", "1"), "--sweep: unknown 'beta'. Known are theta, cleaning, detail"),
        (("--sweep", "theta", "1,x"), "--sweep theta: expected numbers between commas, got '1,x'"),
        (("--sweep", "theta", "-1"), "theta must be at least 0, got -1"),
        (("--fixed-passes", "1.5"), "--fixed-passes: expected numbers between commas"),
        (("--fixed-passes", "-1"), "--fixed-passes must be at least 0"),
        (("--length", "0"), "--length must be at least 1, got 0"),
        (("--cleaning", "2"), "cleaning must be between 0 and 1, got 2"),
        (("--results", "FOLDER"), "give it a name. Write --results NAME="),
        (("--results", "=FOLDER"), "give it a name. Write --results NAME="),
        (("--results", "x=FOLDER/nowhere"), "--results x: there is no folder"),
        (("--results", "x=FOLDER/000"), "holds no folder 000. Name it as the input"),
        (("--results", "x=FOLDER"), "00000000.png is 52x26, four times the input is 208x104"),
        (("--results", "x=FOLDER", "--length", "3"), "are of networks. Give one by --weights"),
        (("--weights", "TINY", "--weights", "TINY"), "two rows are called 'tiny'. Give each a name of its own"),
        (("--weights", "bicubic=TINY"), "two rows are called 'bicubic'"),
        (("--model", "TINY"), "spandrel knows no model with such tensors. Give a network of RealBasicVSR by --weights"),
        (("--model", "nowhere.pth"), "--model nowhere.pth: there is no such file"),
        (("--model", "HALF"), "is RealESRGAN Compact, x2, 3 channels. Name a model x4 of single RGB pictures"),
        (("--model", "JUNK"), "cannot be read"),
        (("--weights", "=TINY"), "is neither a path nor NAME=PATH"),
    ],
)
@pytest.mark.long
def test_a_wrong_argument_gets_one_clear_line(words, message, folder, tmp_path, tiny_model, capsys):
    places = {"FOLDER": folder, "TINY": tiny_model, "HALF": tmp_path / "half.pth", "JUNK": tmp_path / "junk.pth"}
    write_compact(places["HALF"], scale=2)
    places["JUNK"].write_bytes(b"junk")
    for name, path in places.items():
        words = tuple(word.replace(name, str(path)) for word in words)
    assert main(["benchmark", str(folder), "--out", str(tmp_path / "out"), "--device", "cpu", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_spandrel_that_is_missing_is_one_line_with_the_command(monkeypatch, compact):
    monkeypatch.setitem(sys.modules, "spandrel", None)
    with pytest.raises(ValueError, match=r"--model .* needs spandrel: pip install -e '.\[benchmark\]'"):
        SingleImage("x", compact, torch.device("cpu"))
