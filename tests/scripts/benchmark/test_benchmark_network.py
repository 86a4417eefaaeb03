"""The benchmark of the network and of memory: all ways give the same picture, and what must add up does. No time is
asserted.
"""

import dataclasses
import inspect
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from scripts.benchmark import (
    __main__,
    basicvsrpp,
    engine_runs,
    network_report,
    peers,
    process,
    subjects,
    turns,
    ways,
)
from scripts.benchmark import (
    vspipe as through_vspipe,
)
from tests import ROOT
from tests.forked import run_module
from vsrealbasicvsr import refine
from vsrealbasicvsr.engine import choose_device
from vsrealbasicvsr.filter import entry

pytestmark = pytest.mark.long

SAME_DB = 100
"""Rounding in float32 leaves some 130 dB; a picture in 8 bits would leave 59."""
TINY = ("network", "--sizes", "24x16", "--frames", "3", "--repeats", "1", "--models", "default", "--device", "cpu")


def run(*arguments: str, folder: Path) -> tuple[str, dict]:
    """What the command prints, and the JSON that it writes."""
    path = folder / "report.json"
    done = run_module(
        "scripts.benchmark", *arguments, "--json", path, cwd=ROOT,
        loads=("scripts.benchmark.memory", "scripts.benchmark.network"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(path.read_text())


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return run(*TINY, folder=tmp_path_factory.mktemp("benchmark"))


@pytest.fixture(scope="module")
def rows(tiny):
    return {row["name"]: row for row in tiny[1]["rows"]}


@pytest.fixture
def vspipe(tmp_path):
    return through_vspipe.Vspipe.configured_in(tmp_path)


STAND_INS = (
    peers.STAND_IN,
    peers.STAND_IN + peers.CHANNELS_LAST,
    peers.BASICVSRPP_STAND_IN,
)


def test_every_way_has_a_row_and_every_other_upscaler_a_word(tiny, rows):
    text, report = tiny
    assert set(rows) == {"plain", "engine", "vspipe", *STAND_INS}, report["not_measured"]
    assert set(report["not_measured"]) == set(peers.PEERS)
    assert set(report["not_measured"].values()) <= {"not installed", "needs CUDA"}
    for name in (*rows, *report["not_measured"], "peak in float32", "where the time goes"):
        assert name in text


def test_the_stand_in_for_basicvsrpp_has_the_papers_size_and_looks_both_ways():
    plusplus = basicvsrpp.BasicVSRPlusPlus()
    assert round(sum(parameter.numel() for parameter in plusplus.parameters()) / 1e6, 1) == 7.3  # its Table 1
    clip = torch.rand(1, 4, 3, 16, 20, requires_grad=True)
    made = plusplus(clip)
    assert made.shape == (1, 4, 3, 64, 80)
    (gradient,) = torch.autograd.grad(made[:, 1].sum(), clip)
    assert (gradient.abs().amax((0, 2, 3, 4)) > 0).all()
    assert plusplus.half()(clip.detach()[:, :2, :, :8, :8].half()).shape == (1, 2, 3, 32, 32)


def test_the_json_has_the_machine_the_kernels_and_the_threads(tiny):
    _, report = tiny
    assert report["part"] == "network"
    assert {"processor", "versions", "commit", "kernels", "num_torch_threads", "device"} <= set(report["machine"])
    assert report["machine"]["versions"]["vapoursynth"] != "-"
    assert (report["num_frames"], report["num_repeats"]) == (3, 1)
    assert [peak["dtype"] for peak in report["peaks"]] == ["float32"]


def test_the_engine_and_vspipe_give_the_picture_of_the_plain_network(rows):
    for name in ("engine", "vspipe"):
        assert SAME_DB <= rows[name]["psnr_db"] <= turns.MAX_PSNR_DB
    assert rows["plain"]["psnr_db"] is None


def test_numbers_are_possible_and_agree_with_each_other(rows):
    for row in rows.values():
        seconds = row["seconds_per_frame"]
        assert 0 < seconds["low"] <= seconds["median"] <= seconds["high"]
        assert row["frames_per_second"] == pytest.approx(1 / seconds["median"])
        if row["name"] != peers.BASICVSRPP_STAND_IN:  # deformable convolutions are not counted
            assert row["flops_per_second"] > 0
            assert row["share_of_peak"] > 0
        assert row["times_plain"] > 0
    assert rows["plain"]["times_plain"] == 1
    ours = [rows[name] for name in ("plain", "engine", "vspipe")]
    flops = [row["flops_per_second"] * row["seconds_per_frame"]["median"] for row in ours]
    assert flops == pytest.approx([flops[0]] * 3)


def test_shares_of_the_time_make_the_whole(rows):
    steps = [*dict.fromkeys(engine_runs.STEPS.values()), engine_runs.REST]
    assert list(rows["engine"]["shares"]) == steps
    assert all(share > 0 for share in rows["engine"]["shares"].values())
    assert list(rows["vspipe"]["shares"]) == [network_report.ENGINE_ALONE, network_report.AROUND]
    for name in ("engine", "vspipe"):
        assert sum(rows[name]["shares"].values()) == pytest.approx(1)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no resource module")
def test_peaks_are_those_of_a_process_with_torch_in_it(rows):
    for name in ("plain", "engine", "vspipe"):
        assert 100 * 2**20 < rows[name]["rss_bytes"] < 4 * 2**30


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no resource module")
def test_a_child_is_not_charged_with_the_memory_of_its_parent():
    ours = bytearray(b"x" * (200 * 2**20))
    small = process.run([sys.executable, "-c", "print('small')"])
    large = process.run([sys.executable, "-c", "x = bytearray(b'x' * (100 * 2**20)); raise SystemExit(3)"])
    assert (small.returncode, small.stdout, large.returncode) == (0, "small\n", 3)
    assert small.peak_bytes < 100 * 2**20 < large.peak_bytes < len(ours) + 100 * 2**20


def test_memory_tells_the_peak_of_vspipe(tmp_path):
    text, report = run("memory", "--size", "32x24", "--frames", "3", "--length", "2", folder=tmp_path)
    assert "32x24 to 128x96, default, 3 frames, length 2: peak of the vspipe process" in text
    assert report["part"] == "memory"
    assert report["seconds_per_frame"] > 0
    if sys.platform != "win32":
        assert 100 * 2**20 < report["peak_bytes"] < 4 * 2**30


# ---- as a user has it ------------------------------------------------------------------------------------------------


def test_what_is_timed_are_the_arguments_of_a_user_who_names_none():
    usual = {name: parameter.default for name, parameter in inspect.signature(entry.upscale).parameters.items()}
    arguments = dataclasses.asdict(engine_runs.USUAL)
    assert arguments == {name: usual[name] for name in arguments}


def test_the_engine_is_asked_for_several_frames_at_once_and_tells_its_passes_and_waits(rows, tiny):
    text, report = tiny
    engine = rows["engine"]
    assert report["num_requests"] >= 1
    assert 1 <= engine["passes_per_frame"] <= 3
    assert engine["steady_frames_per_second"] > 0
    assert list(engine["waits"]) == [engine_runs.IDLE, engine_runs.COPIES]
    assert all(0 <= seconds < engine["seconds_per_frame"]["high"] * 3 for seconds in engine["waits"].values())
    assert "cleaning passes a frame; compute thread idle" in text


def test_as_many_frames_are_in_flight_as_are_asked_for(tiny_model):
    clip, model = subjects.moving_clip(6, 24, 16), ways.load_model(tiny_model)
    together = threading.Barrier(3)  # broken by a timeout if fewer than three requests wait at once
    upscaler = engine_runs.make_upscaler(model, choose_device("cpu", "fp32"), len(clip))
    made: dict[int, torch.Tensor] = {}

    def keep(n, frame):
        together.wait(60)
        made[n] = frame

    run = engine_runs.run_engine(upscaler, clip, 3, keep)
    assert sorted(made) == list(range(6))
    assert len(run.ends) == 6
    alone = engine_runs.make_upscaler(model, choose_device("cpu", "fp32"), len(clip))
    assert torch.equal(engine_runs.engine_clip(alone, clip, 1), torch.stack([made[n] for n in range(6)]))


def test_a_quick_run_leaves_other_upscalers_and_vspipe_out(tmp_path):
    text, report = run(*TINY, "--no-stand-ins", "--no-vspipe", "--no-peaks", "--requests", "2", folder=tmp_path)
    assert [row["name"] for row in report["rows"]] == ["plain", "engine"]
    assert report["not_measured"] == {}
    assert report["peaks"] == []
    assert all(row["rss_bytes"] is row["share_of_peak"] is None for row in report["rows"])
    assert "2 requests in flight" in text


# ---- vspipe ----------------------------------------------------------------------------------------------------------

SLEEPY = """
    import time
    import vapoursynth as vs

    time.sleep(float(seconds))
    vs.core.std.BlankClip(width=16, height=16, length=4).set_output()
"""


def test_the_evaluation_of_the_script_is_not_on_the_clock_of_vspipe(vspipe, tmp_path):
    piped = vspipe.run(SLEEPY, {"seconds": "0.6"}, output=tmp_path / "frames.raw")
    assert piped.num_frames == 4
    assert piped.seconds < 0.5
    assert (tmp_path / "frames.raw").stat().st_size == 4 * 3 * 16 * 16


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("raise ValueError('of this')", "of this"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "SIGKILL"),
        ("import vapoursynth as vs\nvs.core.std.BlankClip().std.ModifyFrame([], 0)", "ModifyFrame"),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_failure_of_vspipe_is_told_with_its_reason(vspipe, script, words):
    with pytest.raises(through_vspipe.VspipeError, match=words) as error:
        vspipe.run(script, {})
    assert "\n" not in str(error.value)


def test_the_seconds_are_those_of_the_better_known_of_two_numbers():
    assert through_vspipe._exactly(10, 20.51, 0.49) == 20.51
    assert through_vspipe._exactly(10, 0.03, 300.02) == 10 / 300.02


# ---- in turns --------------------------------------------------------------------------------------------------------


def test_ways_are_measured_in_turns_after_one_run_that_is_not_timed():
    done = []

    def way(name: str, fails_at: int = -1) -> turns.Way:
        def first():
            done.append(f"{name} first")
            return turns.First()

        def seconds():
            done.append(name)
            if done.count(name) == fails_at:
                raise RuntimeError("out of\nmemory")
            return float(len(done))

        return turns.Way(
            name=name, model="", dtype=torch.float32, num_frames=1, flops_per_frame=None, first=first, seconds=seconds
        )

    measured = turns.measure_in_turns([way("a"), way("b", fails_at=2), way("c")], 3)
    assert done == ["a first", "b first", "c first", "a", "b", "c", "a", "b", "c", "a", "c"]
    assert measured.seconds == {0: [4.0, 7.0, 10.0], 2: [6.0, 9.0, 11.0]}
    assert measured.failed == {1: "out of memory"}


def test_psnr_is_known_for_a_known_error():
    clip = torch.rand(2, 3, 4, 5)
    assert turns.psnr_db(clip, clip) == turns.MAX_PSNR_DB
    assert turns.psnr_db(clip + 0.01, clip) == pytest.approx(40, abs=1e-3)
    with pytest.raises(ValueError, match="shape"):
        turns.psnr_db(clip, clip[:1])


# ---- what is measured ------------------------------------------------------------------------------------------------


def test_the_clip_is_the_same_every_time_and_moves():
    clip = subjects.moving_clip(4, 40, 24)
    assert clip.shape == (4, 3, 24, 40)
    assert torch.equal(clip, subjects.moving_clip(4, 40, 24))
    assert (clip[1, :, :, :-1] - clip[0, :, :, 1:]).abs().mean() < 0.05 < (clip[2] - clip[0]).abs().mean()


def test_the_flops_are_those_of_the_published_network():
    flops = engine_runs.plain_flops_per_frame(subjects.build_network("published"), 10, 64, 64)
    assert flops / (64 * 64) == pytest.approx(12.9e6, rel=0.01)  # as the README says
    weights = sum(p.numel() for p in peers.CompactNetwork().body.parameters() if p.ndim == 4)
    assert peers.compact_flops(8, 6) == 2 * weights * 8 * 6


@pytest.mark.parametrize("model", subjects.MODELS)
def test_a_frame_is_cleaned_once_as_with_trained_weights_and_footage(model):
    with torch.inference_mode():
        _, num_passes = refine(subjects.build_network(model), subjects.moving_clip(2, 64, 48)[None], theta=5)
    assert (num_passes == 1).all()


def test_random_weights_are_the_same_every_time(tmp_path):
    path = Path(subjects.weights_for_upscale("published", tmp_path))
    stored = ways.load_model(path).state_dict()
    built = subjects.build_network("published").state_dict()
    assert all(torch.equal(stored[key], value) for key, value in built.items())


# ---- the command line ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["network", "--frames", "0"], "--frames must be above 0, got 0"),
        (["network", "--requests", "0"], "--requests must be above 0, got 0"),
        (["network", "--sizes", "64x64,12"], 'a size is written like 320x180, got "12"'),
        (["network", "--models", "default,best"], '--models must be of published, default, got "best"'),
        (["memory", "--size", "33x16"], "--size must be even, for YUV420P8 has half as much chroma, got 33x16"),
        (["memory", "--length", "0"], "--length must be above 0, got 0"),
    ],
)
def test_a_wrong_argument_gets_one_clear_line(capsys, arguments, line):
    assert __main__.main(arguments) == 2
    assert capsys.readouterr().err == f"benchmark {arguments[0]}: {line}\n"


def test_network_and_memory_need_nothing_that_the_filter_does_not_need():
    program = "import sys; from scripts.benchmark import __main__, memory, network; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    modules = set(loaded.stdout.split())
    assert not modules & {"av", "cv2", "scipy", "skimage", "torchvision", "training", "scripts.benchmark.input"}
