"""Programs that are run by hand, on input that is small: each ends with its table."""

import math
import re
import sys

import pytest
import skimage.data
import vapoursynth as vs
from PIL import Image

from scripts import draw_graphics, measure_hdr, measure_scenes, measure_windows, simulate_cluster
from tests.forked import run_module
from tests.training.data.footage import panned, write_video
from vsrealbasicvsr.backends.cpu import load_kernels

pytestmark = pytest.mark.long


def lines_of(program, monkeypatch, capsys, *words: object) -> list[str]:
    """What the program prints."""
    monkeypatch.setattr(sys, "argv", [program.__name__, *map(str, words)])
    assert not program.main()
    return capsys.readouterr().out.splitlines()


@pytest.mark.skipif(not hasattr(vs.core, "bs"), reason="needs BestSource")
def test_hdr_is_measured_as_it_is_and_in_the_networks_gamma(monkeypatch, capsys):
    size = ["--photographs", "astronaut", "--frames", 2, "--width", 128, "--height", 96]
    _, *rows = lines_of(measure_hdr, monkeypatch, capsys, *size, "--detail", 0)
    found = {(name[0], " ".join(name[1:])): row for *name, row, _, _ in (re.split(r" +", row) for row in rows)}
    assert len(found) == 2 * 5
    assert all(20 < float(psnr_db) < 50 for psnr_db in found.values())
    for transfer in ("PQ", "HLG"):
        assert float(found[transfer, "gamma, 1.0 = 1000"]) > float(found[transfer, "direct"])


def test_more_overlap_brings_windows_nearer_to_the_whole_clip(monkeypatch, capsys, tmp_path, tiny_model):
    video = write_video(tmp_path / "pan.mp4", panned(skimage.data.astronaut()[60:], num_frames=8, height=96, width=128))
    wanted = ["--width", 32, "--lengths", 4, "--overlaps", 0, 2, "--model", tiny_model, "--device", "cpu"]
    said, _, _, without, with_two = lines_of(measure_windows, monkeypatch, capsys, video, *wanted)
    assert said == "pan.mp4: 8 frames of 32x24, against one sequence"
    worst_db = [float(row.split("|")[3].removesuffix(" dB ")) for row in (without, with_two)]
    assert worst_db[0] < worst_db[1] < math.inf
    assert without.endswith("| +0% |")
    assert with_two.endswith("| +25% |")


def test_a_video_that_cannot_be_read_is_named(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["measure_windows", str(tmp_path / "none.mp4")])
    assert measure_windows.main() == 1
    assert "none.mp4 cannot be read" in capsys.readouterr().err


def test_the_frames_of_make_sanitize_are_whole_without_a_sanitizer_too():
    kernels = load_kernels()
    wanted = (2, kernels.name if kernels else "off")
    done = run_module("scripts.sanitized_frames", *wanted, loads=("vsrealbasicvsr.filter.entry",))
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"\d\d frames are whole, 2 threads\n", done.stdout)


def test_drawn_images_are_the_same_for_the_same_seed(monkeypatch, capsys, tmp_path):
    for out, seed in (("a", 0), ("b", 0), ("c", 1)):
        lines_of(draw_graphics, monkeypatch, capsys, tmp_path / out, "--num", 4, "--seed", seed)
    first, again, other = ([path.read_bytes() for path in sorted((tmp_path / out).iterdir())] for out in "abc")
    assert len(set(first)) == 4  # shapes, titles, both, a screen
    assert first == again
    assert not set(first) & set(other)


def test_missed_and_false_cuts_are_counted_for_each_framing(monkeypatch, capsys, tmp_path):
    pictures, videos = tmp_path / "pictures", tmp_path / "videos"
    pictures.mkdir()
    videos.mkdir()
    for name in ("astronaut", "coffee", "rocket"):
        Image.fromarray(getattr(skimage.data, name)()).save(pictures / f"{name}.png")
    write_video(videos / "pan.mp4", panned(skimage.data.astronaut(), num_frames=5, height=240, width=320))
    wanted = ["--photographs", pictures, "--videos", videos, "--pairs", 3]
    said = lines_of(measure_scenes, monkeypatch, capsys, *wanted)
    assert said[0] == "Missed cuts, of 3 pairs of 3 photographs each:"
    missed = {row.split("|")[1].strip(): row for row in said[4 : 4 + len(measure_scenes.FRAMINGS)]}
    assert missed.keys() == measure_scenes.FRAMINGS.keys()
    assert missed["16:9"].count(" 0.0% ") == len(measure_scenes.LOOKS)
    assert said[-2:] == ["| pan.mp4 | 1 | 16 | 0.0% |", "| pan.mp4 | 3 | 8 | 0.0% |"]


@pytest.mark.skipif(not hasattr(vs.core, "bs"), reason="needs BestSource")
def test_a_cluster_is_simulated_with_the_times_of_this_machine(monkeypatch, capsys, tmp_path):
    video = write_video(
        tmp_path / "pan.mp4", panned(skimage.data.astronaut(), num_frames=70, height=16, width=20, step=1)
    )
    said = lines_of(simulate_cluster, monkeypatch, capsys, "--measure", video, "--frames", 3000, "--workers", 8)
    seconds = [float(number) for number in re.findall(r"\d+\.?\d*", said[0])]
    assert all(number > 0 for number in seconds)
    assert len(said) == 2 + 15
    assert said[2].split()[:5] == ["segments", "of", "240", "frames", "13"]
