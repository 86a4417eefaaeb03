"""scripts/gpu: what is packed fits, what runs there ends in time and keeps what it has; and a dry run of all of it."""

import json
import os
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest
import skimage.data
from PIL import Image

from scripts.gpu import __main__, footage, pack, parts
from scripts.gpu.program_stages import copy_run, run_program
from scripts.gpu.results import NAME, Results, read_results
from scripts.gpu.runner import STAGES, Stage, run_stages, start_server
from scripts.gpu.setting import Setting
from tests import ROOT
from tests.clips import MakeClip
from training.run_folder import EMA, LOG

# ---- parts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_bytes", [0, 1, 10, 11, 35])
def test_a_file_in_parts_is_put_together_again(tmp_path, num_bytes):
    content = os.urandom(num_bytes)
    (tmp_path / "last.pt").write_bytes(content)
    made = parts.copy_in_parts(tmp_path / "last.pt", tmp_path / "out" / "deep", part_bytes=10)
    assert len(made) == max(1, -(-num_bytes // 10))
    assert all(path.stat().st_size <= 10 for path in made)
    parts.join_parts(tmp_path / "out")
    assert [path.name for path in (tmp_path / "out" / "deep").iterdir()] == ["last.pt"]
    assert (tmp_path / "out" / "deep" / "last.pt").read_bytes() == content


def test_of_a_run_the_settings_the_log_the_weights_and_the_last_checkpoint_come_back(tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    for name in (EMA, LOG, "settings.json", "origin.json", "checkpoints/000000001.pt", "checkpoints/000000002.pt"):
        (run / name).write_text(name)
    (run / "checkpoints" / "000000002.pt").write_bytes(os.urandom(parts.PART_BYTES + 1))
    copied = {path.relative_to(tmp_path / "out").as_posix() for path in copy_run(run, tmp_path / "out")}
    last = {f"checkpoints/000000002.pt.part0{number}" for number in range(2)}
    assert copied == {EMA, LOG, "settings.json", "origin.json", *last}


# ---- pack ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    for name in ("astronaut", "coffee", "chelsea", "rocket"):
        Image.fromarray(getattr(skimage.data, name)()).save(folder / f"{name}.png")
    return folder


@pytest.mark.long
def test_photographs_are_taken_up_to_the_budget_and_from_all_over(photographs, tmp_path):
    everything = footage.copy_photographs([photographs], tmp_path / "all", max_bytes=10**9, quality=88)
    assert everything == (4, 4)
    sizes = {path.name[5:]: path.stat().st_size for path in (tmp_path / "all").iterdir()}
    assert sum(sizes.values()) < sum(path.stat().st_size for path in photographs.iterdir()) / 4
    budget = sizes["astronaut.webp"] + sizes["coffee.webp"]  # numbers 0 and 2 of the sorted list
    taken, _ = footage.copy_photographs([photographs], tmp_path / "some", max_bytes=budget, quality=88)
    assert pack.size_of(tmp_path / "some") <= budget
    assert taken >= 1


@pytest.mark.long
def test_what_is_packed_is_the_footage_the_start_and_the_packages_and_the_call_is_printed(
    photographs, make_clip: MakeClip, tmp_path, capsys
):
    wheels, videos, run = tmp_path / "wheels", tmp_path / "videos", tmp_path / "run"
    for folder in (wheels, videos, run / "checkpoints"):
        folder.mkdir(parents=True)
    with zipfile.ZipFile(wheels / "thing-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("thing/__init__.py", "VALUE = 3")
    make_clip(videos / "clip.mp4", num_frames=3)
    (run / "settings.json").write_text("{}")
    (run / "checkpoints" / "000000007.pt").write_bytes(os.urandom(parts.PART_BYTES + 5))
    words = ["pack", "--photographs", photographs, "--videos", videos, "--graphics", 1, "--start", run]
    words += ["--wheels", wheels, "--into", tmp_path / "packed", "--limit-mib", 10_000]  # whatever lies in this clone
    assert __main__.main([str(word) for word in words]) == 0
    found = {path.relative_to(tmp_path / "packed").as_posix() for path in (tmp_path / "packed").rglob("*.*")}
    assert {"site.tar.xz", "footage/videos/000_clip.mp4", "footage/graphics/graphics_000.webp"} <= found
    assert {"start/settings.json", "start/checkpoints/000000007.pt.part01"} <= found
    assert len(list((tmp_path / "packed" / "footage" / "photographs").iterdir())) == 4
    with tarfile.open(tmp_path / "packed" / "site.tar.xz") as archive:
        assert "thing/__init__.py" in archive.getnames()
    printed = capsys.readouterr().out
    assert "4 of 4 photographs, 1 videos, 1 drawn pictures" in printed
    assert pack.call("packed", 560) in printed
    assert len(pack.call("packed", 560)) <= pack.MAX_COMMAND_LENGTH


def test_what_does_not_fit_even_without_photographs_is_one_line(tmp_path, capsys):
    with zipfile.ZipFile(tmp_path / "thing-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("thing.py", "")
    words = [
        "pack",
        "--wheels",
        str(tmp_path),
        "--into",
        str(tmp_path / "packed"),
        "--limit-mib",
        "1",
        "--graphics",
        "0",
    ]
    assert __main__.main(words) == 2
    assert "MiB too much travels without any photograph: take fewer --videos" in capsys.readouterr().err


def test_git_leaves_what_is_packed_alone_in_this_clone_only(tmp_path):
    subprocess.run(["git", "init", "-q", str(tmp_path / "clone")], check=True)
    folder = tmp_path / "clone" / ".gpu"
    folder.mkdir()
    (folder / "file").write_text("text")
    for _ in range(2):
        pack.exclude_from_git(folder)
    command = ["git", "-C", str(folder.parent), "status", "--porcelain"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == ""
    assert (folder.parent / ".git" / "info" / "exclude").read_text().splitlines().count("/.gpu/") == 1


# ---- the run ---------------------------------------------------------------------------------------------------------


def works(setting, results, seconds):
    results.add("number", value=3, seconds=seconds)


def fails(setting, results, seconds):
    results.add("before", value=1)
    raise ValueError("not\nso")


def dies(setting, results, seconds):
    results.add("before", value=2)
    os._exit(7)


def hangs(setting, results, seconds):
    results.add("before", value=3)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    results.add("child", pid=child.pid)
    time.sleep(600)


@pytest.fixture
def setting(tmp_path) -> Setting:
    start_server()  # on a busy machine it takes longer than these tests' stages
    return Setting(device="cpu", tiny=True, packed=tmp_path / "packed", out=tmp_path)


@pytest.mark.long
def test_a_stage_that_fails_dies_or_hangs_is_reported_keeps_what_it_had_and_stops_no_other(setting):
    stages = [Stage(run.__name__, run, 30) for run in (fails, dies)]
    stages += [Stage("hangs", hangs, 2 + seconds_to_start()), Stage("works", works, 30)]
    started = time.monotonic()
    ended = run_stages(stages, setting, Results(setting.out), 130)
    assert time.monotonic() - started < 130
    assert ended == {
        "fails": "failed: ValueError: not so",
        "dies": "failed: the process ended with status 7",
        "hangs": "cut off",
        "works": "done",
    }
    records = read_results(setting.out)
    before = {record["stage"]: record["value"] for record in records if record["name"] == "before"}
    assert before == {"fails": 1, "dies": 2, "hangs": 3}
    (child,) = (record["pid"] for record in records if record["name"] == "child")
    assert not is_running(child)
    assert {record["stage"]: record["ended"] for record in records if record["name"] == "end"} == ended


def is_running(pid: int) -> bool:
    """Whether a process is there and no zombie, which nobody may have waited for yet."""
    for _ in range(50):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        if Path(f"/proc/{pid}/stat").exists() and Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
            return False
        time.sleep(0.1)
    return True


@pytest.mark.long
def test_what_no_time_is_left_for_is_not_begun_and_training_has_its_share_kept(setting):
    started = time.monotonic()
    stages = [Stage("hangs", hangs, 60), Stage("late", works, 60), Stage("training", works, 60, reserved_seconds=9)]
    ended = run_stages(stages, setting, Results(setting.out), 18)
    assert time.monotonic() - started < 18
    assert ended == {"hangs": "cut off", "late": "no time left", "training": "done"}


def test_a_line_that_was_cut_off_does_not_spoil_the_others(tmp_path):
    Results(tmp_path, "peaks").add("copy", tb_per_second=3.0)
    with (tmp_path / NAME).open("a") as file:
        file.write('{"stage": "pea')
    assert [record["tb_per_second"] for record in read_results(tmp_path)] == [3.0]


def seconds_to_start() -> float:
    """What a program may take to begin on this machine, as busy as it is."""
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", ""], check=True)
    return max(1.0, 10 * (time.monotonic() - started))


@pytest.mark.long
def test_a_program_that_takes_too_long_is_asked_to_end_first(tmp_path):
    script = tmp_path / "slow.py"
    script.write_text(
        "import time\ntry:\n    print('begun')\n    time.sleep(600)\nexcept KeyboardInterrupt:\n    print('saved')\n"
    )
    assert run_program([str(script)], tmp_path / "log", seconds_to_start(), grace_seconds=60.0) == "cut off"
    assert (tmp_path / "log").read_text() == "begun\nsaved\n"
    script.write_text("raise SystemExit('no luck')")
    assert run_program([str(script)], tmp_path / "log", 60.0) == "exit status 1: no luck"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--seconds", "0"], "--seconds must be above 0, got 0"),
        (["--seconds", "9", "--stages", "peaks,speed"], 'got "speed"'),
    ],
)
def test_a_wrong_argument_gets_one_clear_line(tmp_path, capsys, words, line):
    assert __main__.main(["measure", "--out", str(tmp_path), *words]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert line in said


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory) -> tuple[Path, str]:
    """All stages on the CPU, with footage to train on: the results' folder, and what was printed."""
    folder = tmp_path_factory.mktemp("dry")
    (folder / "packed" / "footage").mkdir(parents=True)
    Image.fromarray(skimage.data.astronaut()[:256, 120:376]).save(folder / "packed" / "footage" / "face.png")
    command = [sys.executable, "-m", "scripts.gpu", "measure", "--tiny", "--device", "cpu", "--seconds", "400"]
    command += ["--packed", str(folder / "packed"), "--out", str(folder / "out")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder / "out", done.stdout


@pytest.mark.long
def test_a_dry_run_of_everything_ends_well(dry_run):
    out, printed = dry_run
    assert printed.splitlines()[-len(STAGES) :] == [f"{stage.name}: done" for stage in STAGES]
    records = read_results(out)
    assert [record["stage"] for record in records if record["name"] == "end"] == [stage.name for stage in STAGES]


@pytest.mark.long
def test_the_dry_run_finds_the_picture_right_and_the_bytes_the_same(dry_run):
    records = read_results(dry_run[0])
    for record in records:
        if record["stage"] == "parity" and record["name"] != "end":
            assert record["finite"]
            assert record["same_bytes_twice"]
            assert record["hr_psnr_db"] > 100
        if record["stage"] == "graphs" and record["name"] != "end":
            assert record["same_bits"]
    measured = {record["stage"] for record in records if record["name"] != "end"}
    assert measured == {stage.name for stage in STAGES}


@pytest.mark.long
def test_the_dry_run_leaves_weights_a_log_and_a_checkpoint_to_go_on_from(dry_run):
    out, _ = dry_run
    assert (out / "training" / EMA).is_file()
    assert len((out / "training" / LOG).read_text().splitlines()) == 2
    assert list((out / "training" / "checkpoints").glob("*.pt*"))
    assert json.loads((out / "network_32x24.json").read_text())["part"] == "network"
    assert "skipped" in (out / "test_cuda.log").read_text()


@pytest.mark.long
def test_the_tests_for_a_gpu_start_where_codecs_are_missing():
    absent = ("av", "imageio_ffmpeg", "lpips", "tensorboard", "tqdm")
    program = f"import sys; sys.modules.update(dict.fromkeys({absent})); import pytest; "
    program += "sys.exit(pytest.main(['tests/backends/cuda/test_cuda.py', '-q', '-p', 'no:cacheprovider', '--co']))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
