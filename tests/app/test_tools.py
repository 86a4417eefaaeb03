"""`rbvsr benchmark` and `rbvsr train`: each runs what it says, and says what is wrong in one line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT, TIMEOUT_SECONDS
from tests.app.running import run
from vsrealbasicvsr.app.measuring import measure_sizes, parse_sizes

pytestmark = pytest.mark.long


def run_beside_others(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """`rbvsr` in a folder that may hold packages named like ours."""
    command = [sys.executable, "-P", "-m", "vsrealbasicvsr", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, env=environment, cwd=cwd, check=False
    )


def test_benchmark_measures_what_time_allows_and_estimates_the_rest(tiny_model: Path, tmp_path: Path) -> None:
    command = ("benchmark", "--sizes", "1920x1080,32x32", "--seconds", "0.5", "--model", tiny_model, "--device", "cpu")
    done = run(*command, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    small, large = json.loads(done.stdout)["sizes"]
    assert (small["width"], small["is_estimate"], small["num_frames"] >= 3) == (32, False, True)
    assert (large["width"], large["is_estimate"]) == (1920, True)
    assert large["fps"] == pytest.approx(small["fps"] * 32 * 32 / (1920 * 1080))
    assert small["hours_for_one_hour"] == pytest.approx(24 / small["fps"])


def test_sizes_are_measured_from_small_to_large(tiny_model: Path) -> None:
    sizes = parse_sizes("48x32, 32x32,33x17")
    assert sizes == ((33, 17), (32, 32), (48, 32))
    found = list(measure_sizes(sizes, {"model": str(tiny_model), "device": "cpu"}, seconds=600))
    assert [(one.width, one.is_estimate) for one in found] == [(33, False), (32, False), (48, False)]
    assert [one.num_frames for one in found[1:]] == [120, 120]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["benchmark", "--sizes", "big"], "--sizes takes WIDTHxHEIGHT"),
        (["benchmark", "--seconds", "0"], "--seconds must be above 0"),
        (["benchmark", "--device", "tpu"], "tpu"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(arguments: list[str], said: str, tmp_path: Path) -> None:
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("rbvsr: ")
    assert said in line


def test_train_is_the_training_commands_with_their_arguments_and_status(tmp_path: Path) -> None:
    (tmp_path / "training").mkdir()  # not this one
    (tmp_path / "training" / "__main__.py").write_text("print('another')")
    done = run_beside_others("train", "degrade", "nothing.mp4", "--seed", "3", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "nothing.mp4" in done.stderr
    listed = run_beside_others("train", "--help", cwd=tmp_path)
    assert listed.returncode == 0
    assert "prepare" in listed.stdout


def test_train_without_its_package_is_one_line(tmp_path: Path) -> None:
    program = (
        "import importlib.util as u; f = u.find_spec; u.find_spec = lambda n, *a: None if n == 'training' else f(n)"
    )
    program += "\nfrom vsrealbasicvsr.app.cli import main; main(['train', 'prepare'])"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, cwd=tmp_path, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("rbvsr: the package training is not installed")
    assert "pip install 'vapoursynth-rbvsr[train]'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_help_is_fast_because_it_imports_neither_torch_nor_vapoursynth(tmp_path: Path) -> None:
    program = "import sys, vsrealbasicvsr.app.cli; print({'torch', 'vapoursynth', 'av', 'jinja2'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "set()\n"
