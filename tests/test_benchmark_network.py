"""The benchmark of the network and of memory: all ways give the same picture, and what must add up does. No time is
asserted.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import benchmark  # noqa: E402 - scripts: they lie outside of every package
import benchmark_basicvsrpp  # noqa: E402
import benchmark_network  # noqa: E402
import benchmark_peers  # noqa: E402
import benchmark_process  # noqa: E402
import benchmark_subjects  # noqa: E402
import benchmark_turns  # noqa: E402
import benchmark_vspipe  # noqa: E402

pytestmark = pytest.mark.long

SAME_DB = 100
"""Rounding in float32 leaves some 130 dB; a picture in 8 bits would leave 59."""
TINY = ("network", "--sizes", "24x16", "--frames", "3", "--repeats", "1", "--models", "default", "--device", "cpu")


def run(*arguments: str, folder: Path) -> tuple[str, dict]:
    """What the command prints, and the JSON that it writes."""
    path = folder / "report.json"
    command = [sys.executable, str(ROOT / "scripts/benchmark.py"), *arguments, "--json", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
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
    return benchmark_vspipe.Vspipe.configured_in(tmp_path)


STAND_INS = (
    benchmark_peers.STAND_IN,
    benchmark_peers.STAND_IN + benchmark_peers.CHANNELS_LAST,
    benchmark_peers.BASICVSRPP_STAND_IN,
)


def test_every_way_has_a_row_and_every_other_upscaler_a_word(tiny, rows):
    text, report = tiny
    assert set(rows) == {"plain", "engine", "vspipe", *STAND_INS}, report["not_measured"]
    assert set(report["not_measured"]) == set(benchmark_peers.PEERS)
    assert set(report["not_measured"].values()) <= {"not installed", "needs CUDA"}
    for name in (*rows, *report["not_measured"], "peak in float32", "where the time goes"):
        assert name in text


def test_the_stand_in_for_basicvsrpp_has_the_papers_size_and_looks_both_ways():
    network = benchmark_basicvsrpp.BasicVSRPlusPlus()
    assert round(sum(parameter.numel() for parameter in network.parameters()) / 1e6, 1) == 7.3  # its Table 1
    clip = torch.rand(1, 4, 3, 16, 20, requires_grad=True)
    made = network(clip)
    assert made.shape == (1, 4, 3, 64, 80)
    (gradient,) = torch.autograd.grad(made[:, 1].sum(), clip)
    assert (gradient.abs().amax((0, 2, 3, 4)) > 0).all()
    assert network.half()(clip.detach().half()).shape == (1, 4, 3, 64, 80)


def test_the_json_has_the_machine_the_kernels_and_the_threads(tiny):
    _, report = tiny
    assert report["part"] == "network"
    assert {"processor", "versions", "commit", "kernels", "num_torch_threads", "device"} <= set(report["machine"])
    assert report["machine"]["versions"]["vapoursynth"] != "-"
    assert (report["num_frames"], report["num_repeats"]) == (3, 1)
    assert [peak["dtype"] for peak in report["peaks"]] == ["float32"]


def test_the_engine_and_vspipe_give_the_picture_of_the_plain_network(rows):
    for name in ("engine", "vspipe"):
        assert SAME_DB <= rows[name]["psnr_db"] <= benchmark_turns.MAX_PSNR_DB
    assert rows["plain"]["psnr_db"] is None


def test_numbers_are_possible_and_agree_with_each_other(rows):
    for row in rows.values():
        seconds = row["seconds_per_frame"]
        assert 0 < seconds["low"] <= seconds["median"] <= seconds["high"]
        assert row["frames_per_second"] == pytest.approx(1 / seconds["median"])
        if row["name"] != benchmark_peers.BASICVSRPP_STAND_IN:  # deformable convolutions are not counted
            assert row["flops_per_second"] > 0
            assert row["share_of_peak"] > 0
        assert row["times_plain"] > 0
    assert rows["plain"]["times_plain"] == 1
    ours = [rows[name] for name in ("plain", "engine", "vspipe")]
    flops = [row["flops_per_second"] * row["seconds_per_frame"]["median"] for row in ours]
    assert flops == pytest.approx([flops[0]] * 3)


def test_shares_of_the_time_make_the_whole(rows):
    steps = [*dict.fromkeys(benchmark_network.STEPS.values()), benchmark_network.REST]
    assert list(rows["engine"]["shares"]) == steps
    assert all(share > 0 for share in rows["engine"]["shares"].values())
    assert list(rows["vspipe"]["shares"]) == [benchmark_network.ENGINE_ALONE, benchmark_network.AROUND]
    for name in ("engine", "vspipe"):
        assert sum(rows[name]["shares"].values()) == pytest.approx(1)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no resource module")
def test_peaks_are_those_of_a_process_with_torch_in_it(rows):
    for name in ("plain", "engine", "vspipe"):
        assert 100 * 2**20 < rows[name]["rss_bytes"] < 4 * 2**30


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no resource module")
def test_a_child_is_not_charged_with_the_memory_of_its_parent():
    ours = bytearray(b"x" * (200 * 2**20))
    small = benchmark_process.run([sys.executable, "-c", "print('small')"])
    large = benchmark_process.run([sys.executable, "-c", "x = bytearray(b'x' * (100 * 2**20)); raise SystemExit(3)"])
    assert (small.returncode, small.stdout, large.returncode) == (0, "small\n", 3)
    assert small.peak_bytes < 100 * 2**20 < large.peak_bytes < len(ours) + 100 * 2**20


def test_memory_tells_the_peak_of_vspipe(tmp_path):
    text, report = run("memory", "--size", "32x24", "--frames", "3", "--length", "2", folder=tmp_path)
    assert "32x24 to 128x96, default, 3 frames, length 2: peak of the vspipe process" in text
    assert report["part"] == "memory"
    assert report["seconds_per_frame"] > 0
    if sys.platform != "win32":
        assert 100 * 2**20 < report["peak_bytes"] < 4 * 2**30


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
    with pytest.raises(benchmark_vspipe.VspipeError, match=words) as error:
        vspipe.run(script, {})
    assert "\n" not in str(error.value)


def test_the_seconds_are_those_of_the_better_known_of_two_numbers():
    assert benchmark_vspipe._exactly(10, 20.51, 0.49) == 20.51
    assert benchmark_vspipe._exactly(10, 0.03, 300.02) == 10 / 300.02


# ---- in turns --------------------------------------------------------------------------------------------------------


def test_ways_are_measured_in_turns_after_one_run_that_is_not_timed():
    done = []

    def way(name: str, fails_at: int = -1) -> benchmark_turns.Way:
        def first():
            done.append(f"{name} first")
            return benchmark_turns.First()

        def seconds():
            done.append(name)
            if done.count(name) == fails_at:
                raise RuntimeError("out of\nmemory")
            return float(len(done))

        return benchmark_turns.Way(
            name=name, model="", dtype=torch.float32, flops_per_frame=None, first=first, seconds=seconds
        )

    turns = benchmark_turns.measure_in_turns([way("a"), way("b", fails_at=2), way("c")], 3)
    assert done == ["a first", "b first", "c first", "a", "b", "c", "a", "b", "c", "a", "c"]
    assert turns.seconds == {0: [4.0, 7.0, 10.0], 2: [6.0, 9.0, 11.0]}
    assert turns.failed == {1: "out of memory"}


def test_psnr_is_known_for_a_known_error():
    clip = torch.rand(2, 3, 4, 5)
    assert benchmark_turns.psnr_db(clip, clip) == benchmark_turns.MAX_PSNR_DB
    assert benchmark_turns.psnr_db(clip + 0.01, clip) == pytest.approx(40, abs=1e-3)
    with pytest.raises(ValueError, match="shape"):
        benchmark_turns.psnr_db(clip, clip[:1])


# ---- what is measured ------------------------------------------------------------------------------------------------


def test_the_clip_is_the_same_every_time_and_moves():
    clip = benchmark_subjects.moving_clip(4, 40, 24)
    assert clip.shape == (4, 3, 24, 40)
    assert torch.equal(clip, benchmark_subjects.moving_clip(4, 40, 24))
    assert (clip[1, :, :, :-1] - clip[0, :, :, 1:]).abs().mean() < 0.05 < (clip[2] - clip[0]).abs().mean()


def test_the_flops_are_those_of_the_published_network():
    flops = benchmark_network.plain_flops_per_frame(benchmark_subjects.build_network("published"), 10, 64, 64)
    assert flops / (64 * 64) == pytest.approx(12.9e6, rel=0.01)  # as the README says
    weights = sum(p.numel() for p in benchmark_peers.CompactNetwork().body.parameters() if p.ndim == 4)
    assert benchmark_peers.compact_flops(8, 6) == 2 * weights * 8 * 6


def test_random_weights_are_the_same_every_time(tmp_path):
    path = Path(benchmark_subjects.weights_for_upscale("published", tmp_path))
    stored = benchmark_network.load_model(path).state_dict()
    built = benchmark_subjects.build_network("published").state_dict()
    assert all(torch.equal(stored[key], value) for key, value in built.items())


# ---- the command line ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["network", "--frames", "0"], "--frames must be above 0, got 0"),
        (["network", "--sizes", "64x64,12"], 'a size is written like 320x180, got "12"'),
        (["network", "--models", "default,best"], '--models must be of published, default, got "best"'),
        (["memory", "--size", "33x16"], "--size must be even, for YUV420P8 has half as much chroma, got 33x16"),
        (["memory", "--length", "0"], "--length must be above 0, got 0"),
    ],
)
def test_a_wrong_argument_gets_one_clear_line(capsys, arguments, line):
    assert benchmark.main(arguments) == 2
    assert capsys.readouterr().err == f"benchmark {arguments[0]}: {line}\n"


def test_network_and_memory_need_nothing_that_the_filter_does_not_need():
    program = "import sys; sys.path.insert(0, 'scripts'); import benchmark, benchmark_network, benchmark_memory; "
    program += "print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    modules = set(loaded.stdout.split())
    assert not modules & {"av", "cv2", "scipy", "skimage", "torchvision", "training", "benchmark_input"}
