"""The benchmark of the command: both ways write the same number of frames, and the report has what it promises."""

import json

import pytest

from scripts.benchmark import __main__
from tests import ROOT
from tests.forked import run_module

pytestmark = pytest.mark.long


def test_both_ways_are_measured_and_reported(tmp_path):
    path = tmp_path / "command.json"
    done = run_module(
        "scripts.benchmark", *("command", "--size", "32x16", "--frames", "9", "--repeats", "2", "--json", path),
        cwd=ROOT, loads=("scripts.benchmark.command",),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(path.read_text())
    ours, theirs = report["runs"]["rbvsr upscale"], report["runs"]["vspipe | ffmpeg"]
    assert len(ours) == len(theirs) == len(report["overheads"]) == 2
    for run in (*ours, *theirs):
        assert run["cpu_seconds"] > 0
        assert run["peak_bytes"] > 2**27  # torch is in it
    assert 0 < report["first_message_seconds"] < report["first_frame_seconds"]
    for row in ("vspipe | ffmpeg", "rbvsr upscale", "overhead of each turn", "peak with 3 frames", "first message"):
        assert any(line.startswith(row) for line in done.stdout.splitlines()), row


def test_a_wrong_argument_gets_one_clear_line(capsys):
    assert __main__.main(["command", "--frames", "2"]) == 2
    assert capsys.readouterr().err == "benchmark command: --frames is too small, got 2\n"
