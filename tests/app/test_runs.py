"""`rbvsr upscale` interrupted, resumed, shared out, refused: the output is an undisturbed run's, or is not there."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import TIMEOUT_SECONDS
from tests.app.running import command, frames_of, run
from vsrealbasicvsr.app.cli import run_command
from vsrealbasicvsr.app.job import locked
from vsrealbasicvsr.app.plan import Segment, plan_segments, runs, share

pytestmark = pytest.mark.long

NUM_FRAMES = 60
SEGMENT = ["--length", "5", "--overlap", "2", "--segment-frames", "10", "--device", "cpu"]


@pytest.fixture(scope="module")
def source(ffmpeg: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "in.mkv"
    made = ["-f", "lavfi", "-i", f"testsrc2=size=32x32:rate=25:duration={NUM_FRAMES / 25}", "-c:v", "libx264"]
    subprocess.run([str(ffmpeg), "-v", "error", *made, str(path)], check=True)
    return path


@pytest.fixture(scope="module")
def options(tiny_model: Path) -> list[str]:
    return [*SEGMENT, "--model", str(tiny_model)]


@pytest.fixture(scope="module")
def undisturbed(source: Path, options: list[str], tmp_path_factory: pytest.TempPathFactory) -> str:
    output = tmp_path_factory.mktemp("undisturbed") / "out.mkv"
    done = run("upscale", source, output, *options)
    assert (done.returncode, sorted(output.parent.iterdir())) == (0, [output]), done.stderr
    return frames_of(output)


def wait_for(folder: Path, num_segments: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while len(list(folder.glob("*-*.mkv"))) < num_segments and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.skipif(sys.platform == "win32", reason="sends signals of POSIX")
@pytest.mark.parametrize("name", ["SIGKILL", "SIGINT", "SIGTERM"])
def test_a_run_that_was_stopped_goes_on_where_it_was(
    source: Path, options: list[str], undisturbed: str, tmp_path: Path, name: str
) -> None:
    number = signal.Signals[name]
    output = tmp_path / "out.mkv"
    line = command("upscale", source, output, *options)
    with subprocess.Popen(
        line, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    ) as process:
        wait_for(tmp_path / "out.mkv.rbvsr", 2, process)
        process.send_signal(number)
        said = process.communicate(timeout=TIMEOUT_SECONDS)[1]
    assert not output.exists()
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 130
        assert said.splitlines()[-1] == "rbvsr: interrupted; run the same command again to go on"
        assert list((tmp_path / "out.mkv.rbvsr").glob("*.partial")) == []
    kept = len(list((tmp_path / "out.mkv.rbvsr").glob("*-*.mkv")))
    assert 2 <= kept < 6
    done = run("upscale", source, output, *options, "--json")
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    (start,) = (event for event in events if event["event"] == "start")
    assert (start["done"], start["total"]) == (10 * kept, NUM_FRAMES)
    assert sum(event["event"] == "progress" for event in events) == NUM_FRAMES - 10 * kept
    assert events[-1]["event"] == "result"
    assert sorted(tmp_path.iterdir()) == [output]
    assert frames_of(output) == undisturbed


def test_shares_rendered_apart_and_joined_are_the_whole(
    source: Path, options: list[str], undisturbed: str, tmp_path: Path
) -> None:
    output = tmp_path / "out.mkv"
    assert run("upscale", source, output, *options, "--chunk", "2/2").returncode == 0
    early = run("upscale", source, output, *options, "--join")
    assert early.returncode == 1
    assert early.stderr.splitlines()[-1].startswith(
        "rbvsr: 3 of 6 segments are not rendered yet, the first from frame 0"
    )
    assert run("upscale", source, output, *options, "--chunk", "1/2").returncode == 0
    assert not output.exists()
    assert run("upscale", source, output, *options, "--join").returncode == 0
    assert frames_of(output) == undisturbed


def test_a_share_that_begins_anew_discards_only_what_other_options_made(
    source: Path, options: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    output, state = tmp_path / "out.mkv", tmp_path / "out.mkv.rbvsr"

    def chunk(number: int, *more: str) -> int:
        given = ["--stop", "0.8", "--chunk", f"{number}/2", "--restart", *more]
        return run_command(["upscale", str(source), str(output), *options, *given])

    assert [chunk(number) for number in (1, 2)] == [0, 0]
    assert sorted(path.name for path in state.glob("*-*.mkv")) == ["00000000-00000010.mkv", "00000010-00000020.mkv"]
    with locked(output, "lock-1-of-2"):
        assert chunk(2, "--theta", "1") == 1
    assert "another rbvsr is at work on" in capfd.readouterr().err.splitlines()[-1]
    assert len(list(state.glob("*-*.mkv"))) == 2
    assert chunk(2, "--theta", "1") == 0
    assert [path.name for path in state.glob("*-*.mkv")] == ["00000010-00000020.mkv"]


def test_another_source_or_option_is_not_joined_to_what_is_there(
    source: Path, options: list[str], tmp_path: Path
) -> None:
    output = tmp_path / "out.mkv"
    assert run("upscale", source, output, *options, "--chunk", "1/3").returncode == 0
    other = run("upscale", source, output, *options, "--theta", "1")
    assert other.returncode == 1
    assert "keeps what an earlier run did with another theta" in other.stderr
    assert run("upscale", source, output, *options, "--theta", "1", "--restart").returncode == 0
    again = run("upscale", source, output, *options)
    assert (again.returncode, "exists: add --overwrite" in again.stderr) == (1, True)
    assert run("upscale", source, output, *options, "--overwrite").returncode == 0


def test_a_damaged_segment_is_rendered_again(
    source: Path, options: list[str], undisturbed: str, tmp_path: Path
) -> None:
    output = tmp_path / "out.mkv"
    assert run("upscale", source, output, *options, "--chunk", "1/1").returncode == 0
    segment = sorted((tmp_path / "out.mkv.rbvsr").glob("*-*.mkv"))[1]
    segment.write_bytes(segment.read_bytes()[:500])
    damaged = run("upscale", source, output, *options)
    assert damaged.returncode == 1
    assert "was damaged" in damaged.stderr or "were damaged" in damaged.stderr
    assert not output.exists()
    assert run("upscale", source, output, *options).returncode == 0
    assert frames_of(output) == undisturbed


@pytest.mark.skipif(sys.platform == "win32", reason="sends signals of POSIX")
def test_two_programs_do_not_write_one_output(source: Path, options: list[str], tmp_path: Path) -> None:
    output = tmp_path / "out.mkv"
    line = command("upscale", source, output, *options)
    with subprocess.Popen(line, stderr=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"}) as first:
        wait_for(tmp_path / "out.mkv.rbvsr", 1, first)  # type: ignore[arg-type]
        first.send_signal(signal.SIGSTOP)
        second = run("upscale", source, output, *options)
        first.send_signal(signal.SIGCONT)
        assert first.wait(TIMEOUT_SECONDS) == 0
    assert second.returncode == 1
    assert "another rbvsr is at work on" in second.stderr
    assert output.exists()


def test_a_folder_is_upscaled_and_what_fails_is_listed(source: Path, options: list[str], tmp_path: Path) -> None:
    season = tmp_path / "season"
    (season / "extras").mkdir(parents=True)
    for name in ("1.mkv", "extras/2.mkv"):
        (season / name).write_bytes(source.read_bytes())
    (season / "broken.mp4").write_bytes(b"no video")
    (season / "._1.mp4").write_bytes(b"macOS's notes on another file")
    (season / "notes.txt").write_text("not a video")
    first = run("upscale", season, tmp_path / "hd", *options, "--stop", "0.2")
    assert first.returncode == 1
    assert "1 of 3 videos could not be upscaled: broken.mp4: " in first.stderr.splitlines()[-1]
    made = sorted(path.relative_to(tmp_path / "hd") for path in (tmp_path / "hd").rglob("*") if path.is_file())
    assert made == [Path("1.mkv"), Path("extras/2.mkv")]
    times = [(tmp_path / "hd" / path).stat().st_mtime_ns for path in made]
    again = run("upscale", season, tmp_path / "hd", *options, "--stop", "0.2")
    assert "1.mkv (1 of 3): done before" in again.stderr
    assert times == [(tmp_path / "hd" / path).stat().st_mtime_ns for path in made]


def test_an_unforeseen_error_fails_one_video_of_a_folder_and_is_shown_by_debug(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    upscaled = []

    def upscale(video: Path, *arguments: object, **options: object) -> None:
        upscaled.append(video.name)
        if video.name == "1.mkv":
            raise ZeroDivisionError("nobody foresaw this")

    monkeypatch.setattr("vsrealbasicvsr.app.folders.upscale_file", upscale)
    for name in ("1.mkv", "2.mkv"):
        (tmp_path / name).write_bytes(source.read_bytes())
    assert run_command(["upscale", str(tmp_path), str(tmp_path / "hd"), "--debug"]) == 1
    assert upscaled == ["1.mkv", "2.mkv"]
    lines = capfd.readouterr().err.splitlines()
    assert lines[-1].startswith("rbvsr: 1 of 2 videos could not be upscaled: 1.mkv: ZeroDivisionError: nobody foresaw")
    assert any('raise ZeroDivisionError("nobody foresaw this")' in line for line in lines)


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["upscale", "a.mkv"], 2, "output"),
        (["upscale", "a.mkv", "b.mkv", "--thta", "5"], 2, "thta"),
        (["upscale", "a.mkv", "b.mkv", "--theta", "abc"], 2, "theta"),
        (["upscale", "a.mkv", "b.mkv"], 1, "there is no file a.mkv"),
        (["upscale", "a.mkv", "b.mkv", "--chunk", "4/3"], 1, "--chunk takes i/n"),
        (["upscale", "a.mkv", "b.mkv", "--scale", "2", "--height", "100"], 1, "exclude each other"),
        (["upscale", "a.mkv", "b.mkv", "--encoder-option", "tune"], 1, "--encoder-option takes name=value"),
        (["nothing"], 2, "nothing"),
    ],
)
def test_wrong_usage_is_one_line_and_a_status(arguments: list[str], status: int, said: str, tmp_path: Path) -> None:
    done = run(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (status, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("rbvsr: ")
    assert said in line
    assert list(tmp_path.iterdir()) == []


def test_segments_are_whole_windows_and_shares_cover_them_once() -> None:
    assert plan_segments(10, window_length=3, segment_frames=5) == [Segment(0, 6), Segment(6, 10)]
    segments = plan_segments(1000, window_length=30, segment_frames=60)
    assert [frame for one in segments for frame in range(one.first, one.stop)] == list(range(1000))
    for count in (1, 3, 17, 40):
        assert [one for index in range(count) for one in share(segments, index, count)] == segments
    assert runs([Segment(6, 9), Segment(0, 3), Segment(3, 6), Segment(12, 15)]) == [
        [Segment(0, 3), Segment(3, 6), Segment(6, 9)],
        [Segment(12, 15)],
    ]
