"""Every failure that a user can cause is one line on stderr, a documented status, and nothing half-written."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import vapoursynth as vs

from tests import TIMEOUT_SECONDS
from tests.app.running import command, run
from tests.app.test_doctor import link_tree
from tests.app.test_runs import wait_for
from tests.programs import run_program
from vsrealbasicvsr.app.cli import run_command

pytestmark = pytest.mark.long

PHASES = {"loading", "reading", "upscaling", "joining", "comparing"}


@pytest.fixture(scope="module")
def files(ffmpeg: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of files, good and bad ones."""
    folder = tmp_path_factory.mktemp("files")
    picture = ["-f", "lavfi", "-i", "testsrc2=size=48x32:rate=25:duration=0.4", "-c:v", "libx264"]
    sound = ["-f", "lavfi", "-i", "sine=duration=0.4"]
    for name, made in (("in.mkv", [*picture, "-pix_fmt", "yuv420p"]), ("audio.mka", sound)):
        subprocess.run([str(ffmpeg), "-v", "error", *made, str(folder / name)], check=True)
    colour = [*picture, "-pix_fmt", "yuv444p", str(folder / "444.mkv")]
    subprocess.run([str(ffmpeg), "-v", "error", *colour], check=True)
    (folder / "broken.mp4").write_bytes(b"no video")
    (folder / "empty.mkv").touch()
    shutil.copy(folder / "in.mkv", folder / "other.mkv")
    weights = tiny_model.read_bytes()
    (folder / "tiny.safetensors").write_bytes(weights)
    (folder / "cut.safetensors").write_bytes(weights[:3000])
    (folder / "damaged.safetensors").write_bytes(weights[:-100] + bytes([weights[-100] ^ 255]) + weights[-99:])
    (folder / "exists.mkv").write_text("old")
    (folder / "exists.html").write_text("old")
    (folder / "blocked.mkv.rbvsr").write_text("no folder")
    for name in ("folder.mkv", "nothing", "season"):
        (folder / name).mkdir()
    shutil.copy(folder / "broken.mp4", folder / "season" / "1.mp4")
    (folder / "link.mkv").symlink_to("in.mkv")
    return folder


def contents(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def up(*arguments: str, output: str = "out.mkv") -> list[str]:
    return ["upscale", "in.mkv", output, "--model", "tiny.safetensors", "--device", "cpu", *arguments]


def encode(codec: str, *options: str) -> list[str]:
    return up("--codec", codec, *(part for option in options for part in ("--encoder-option", option)))


FILES = [
    (["upscale", "no.mkv", "out.mkv"], "there is no file no.mkv"),
    (["upscale", "x" * 300 + ".mkv", "out.mkv"], "File name too long"),
    (["upscale", "caf\udce9.mkv", "out.mkv"], "is not valid UTF-8, which ffmpeg needs: rename it"),
    (up(output="caf\udce9.mkv"), "is not valid UTF-8, which ffmpeg needs: rename it"),
    (["upscale", "broken.mp4", "out.mkv"], "broken.mp4 is not a video that can be read"),
    (["upscale", "empty.mkv", "out.mkv"], "empty.mkv is not a video that can be read"),
    (["upscale", "audio.mka", "out.mkv"], "audio.mka has no video"),
    (["upscale", "tiny.safetensors", "out.mkv"], "tiny.safetensors is not a video that can be read"),
    (up(output="folder.mkv"), "folder.mkv is a folder: name a file in it"),
    (up(output="."), "outputs are .mkv"),
    (up(output="in.mkv"), "in.mkv is the source itself"),
    (up(output="link.mkv"), "link.mkv is the source itself"),
    (up(output="no/where/out.mkv"), "there is no folder no/where: make it first"),
    (up(output="out.avi"), "outputs are .mkv"),
    (up(output="out"), "outputs are .mkv"),
    (up(output="x" * 300 + ".mkv"), "cannot be written (File name too long)"),
    (up(output="x" * 250 + ".mkv"), "(File name too long): choose another output"),
    (up(output="blocked.mkv"), "(File exists): choose another output"),
    (up(output="exists.mkv"), "exists.mkv exists: add --overwrite"),
    (["upscale", "season", "exists.mkv"], "exists.mkv is a file: name a folder"),
    (["upscale", "season", "season"], "the results need a folder of their own"),
    (["upscale", "nothing", "hd"], "there is no video in nothing"),
]
ENCODERS = [
    (encode("libnothing"), "there is no encoder 'libnothing'"),
    (encode("aac"), "aac encodes audio, not video"),
    (encode("gif"), "the encoder gif takes none of the formats"),
    (encode("h264_nvenc"), "the encoder h264_nvenc does not take 192x128 yuv420p with its default options ("),
    (encode("h263"), "cannot hold h263"),
    (encode("mjpeg"), "Non full-range YUV is non-standard"),
    (up("--preset", "sluggish"), "(Error setting preset/tune sluggish/(null).)"),
    (up("--crf", "nan"), 'Unable to parse "crf" option value "nan"'),
    ([*encode("ffv1"), "--crf", "18"], "the encoder ffv1 has no option crf"),
    (encode("libx264", "nosuch=1"), "the encoder libx264 has no option nosuch"),
    (encode("libx264", "tune=nothing"), "Error setting preset/tune medium/nothing."),
    (encode("libx264", "bf=many"), 'Unable to parse "bf" option value "many"'),
    (encode("libx264", "x264-params=nosuch=1"), "Error parsing option 'nosuch = 1'"),
    (encode("libx265", "x265-params=nosuch=1"), "Unknown option: nosuch."),
    (encode("libx265", "x265-params=keyint=abc"), "Invalid value for keyint: abc."),
    (encode("libsvtav1", "svtav1-params=nosuch=1"), "Error parsing option nosuch: 1."),
    ([*encode("libsvtav1"), "--preset", "99"], "out of range"),
    ([*encode("libx264"), "--encoder-option", "tune"], "--encoder-option takes name=value"),
    ([*encode("libx265"), "--width", "126", "--height", "128"], "this one is 126x128: choose --codec libx264 or ffv1"),
    ([*encode("libsvtav1"), "--width", "8", "--height", "8"], "this one is 8x8: choose --codec libx264 or ffv1"),
    (up("--codec", "libx264", output="out.webm"), ".webm cannot hold h264"),
    (up("--codec", "libvpx-vp9", output="out.mov"), ".mov cannot hold vp9: choose another --codec or another suffix"),
    (up("--codec", "libsvtav1", output="out.mov"), ".mov cannot hold av1: choose another --codec or another suffix"),
    (up("--width", "60000", "--height", "60000"), "Picture size 60000x60000 is invalid"),
]
PICTURES = [
    (up("--width", "101", "--height", "99"), "a width divisible by 2 and a height divisible by 2, got 101x99"),
    (
        ["upscale", "444.mkv", *encode("libsvtav1")[2:], "--width", "101"],
        "frames of YUV420P8 have a width divisible by 2",
    ),
    (up("--width", "-2"), "--width must be above 0"),
    (up("--scale", "0"), "--scale must be above 0"),
    (up("--scale", "nan"), "--scale must be above 0"),
    (up("--scale", "2", "--height", "64"), "exclude each other"),
    (up("--start", "soon"), "--start takes seconds or h:mm:ss"),
    (up("--start", "1:2:3:4"), "--start takes seconds or h:mm:ss"),
    (up("--start", "1e999999999"), "--start takes seconds or h:mm:ss"),
    (up("--stop=-1"), "--stop takes seconds or h:mm:ss"),
    (up("--start", "99"), "no frame lies between --start and --stop: in.mkv lasts 0.400 s"),
    (up("--start", "0.3", "--stop", "0.1"), "no frame lies between --start and --stop"),
    (up("--deinterlace", "yadif"), "--deinterlace takes bwdif"),
]
NETWORK = [
    (["upscale", "in.mkv", "out.mkv", "--device", "cpu", "--detail", "1.5"], "detail must be between 0"),
    (["upscale", "in.mkv", "out.mkv", "--device", "cpu", "--detail", "nan"], "detail must be between 0"),
    (up("--detail", "0.5"), "detail"),
    (up("--theta", "300"), "theta must be between 0 and 255"),
    (up("--cleaning", "-1"), "cleaning must be between 0"),
    (up("--length", "0"), "length must be at least 1"),
    (up("--length", "99999999999999999999"), "--length must be at most"),
    (up("--overlap", "-1"), "overlap must be at least 0"),
    (up("--scene-cuts", "perhaps"), "scene_cuts must be one of"),
    (up("--precision", "fp8"), "precision must be"),
    (up("--tile", "-3"), "tile must be at least 1"),
    (["upscale", "in.mkv", "out.mkv", "--device", "tpu"], "tpu"),
    (["upscale", "in.mkv", "out.mkv", "--device", "cuda:99"], "cuda:99"),
    (["upscale", "in.mkv", "out.mkv", "--model", "no.safetensors"], "no.safetensors"),
    (["upscale", "in.mkv", "out.mkv", "--model", "nomodel"], "no stored model 'nomodel'"),
    (["upscale", "in.mkv", "out.mkv", "--model", "cut.safetensors"], "cut.safetensors"),
    (["upscale", "in.mkv", "out.mkv", "--model", "damaged.safetensors"], "damaged.safetensors"),
    (["upscale", "in.mkv", "out.mkv", "--model", "nothing"], "nothing"),
    (["upscale", "in.mkv", "out.mkv", "--model", "in.mkv"], "in.mkv"),
]
RUNS = [
    (up("--segment-frames", "0"), "--segment-frames must be above 0"),
    (up("--chunk", "4/3"), "--chunk takes i/n"),
    (up("--chunk", "1/3", "--join"), "--chunk and --join exclude each other"),
    (up("--restart", "--join"), "--restart and --join exclude each other"),
    (up("--join"), "1 of 1 segments are not rendered yet"),
    (up("--cluster", "auto", "--workers", "0"), "--workers must be 1 or more"),
    (up("--cluster", "nowhere"), "nowhere"),
    (up("--cluster", "127.0.0.1:1"), "no Ray cluster answers at 127.0.0.1:1"),
]
OTHERS = [
    (["preview", "no.mkv"], "there is no file no.mkv"),
    (["preview", "in.mkv", "out.html", "--at", "99"], "--at 99 is beyond the end"),
    (["preview", "in.mkv", "out.html", "--at", "soon"], "--at takes seconds"),
    (["preview", "in.mkv", "no/where.html"], "there is no folder no"),
    (["preview", "in.mkv", "exists.html"], "exists.html exists and is no page of rbvsr"),
    (["preview", "in.mkv", "in.mkv", "--overwrite"], "ends in .html"),
    (["preview", "in.mkv", "out.html", "--detail", "3"], "detail must be between 0"),
    (["preview", "in.mkv", "out.html", "--shots", "0"], "--shots must be 1 to 20"),
    (["compare"], "takes 2 to 8 videos"),
    (["compare", "in.mkv", "no.mkv", "out.html"], "there is no file no.mkv"),
    (["compare", "in.mkv", "audio.mka", "out.html"], "audio.mka has no video"),
    (["compare", "in.mkv", "other.mkv", "out.html", "--label", "a", "--label", "a"], "two videos are called 'a'"),
    (["models", "info", "nosuch"], "no stored model 'nosuch'"),
    (["models", "info", "cut.safetensors"], "cut.safetensors"),
    (["models", "verify", "damaged.safetensors"], "1 of 1 models cannot be used"),
    (["models", "download", "nosuch"], "there is no model 'nosuch'"),
    (["models", "convert", "in.mkv", "out.safetensors"], "in.mkv"),
    (["models", "convert", "tiny.safetensors", "exists.mkv"], "exists.mkv"),
    (["models", "convert", "tiny.safetensors", "no/where.safetensors"], "no/where.safetensors"),
    (["benchmark", "--sizes", "big"], "--sizes takes WIDTHxHEIGHT"),
    (["benchmark", "--seconds", "nan"], "--seconds must be above 0"),
]
USAGE = [
    (up("--thta", "5"), "--thta"),
    (up("--theta"), "--theta"),
    (up("--theta", "much"), "--theta"),
    (["upscale", "in.mkv"], "output"),
    (["upscale", "in.mkv", "out.mkv", "more.mkv"], "more.mkv"),
    (["nosuch"], "nosuch"),
    (["models", "nosuch"], "nosuch"),
]
CASES = [
    *((arguments, 1, said) for part in (FILES, ENCODERS, PICTURES, NETWORK, RUNS, OTHERS) for arguments, said in part),
    *((arguments, 2, said) for arguments, said in USAGE),
]


@pytest.mark.parametrize(("arguments", "status", "said"), CASES, ids=[" ".join(case[0])[:80] for case in CASES])
def test_what_goes_wrong_is_one_line_and_leaves_nothing_behind(
    files: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any, arguments: list[str], status: int, said: str
) -> None:
    monkeypatch.chdir(files)
    before = contents(files)
    assert run_command(arguments) == status
    out, err = capfd.readouterr()
    (line,) = [line for line in err.splitlines() if line not in PHASES and " frames are done" not in line]
    assert line.startswith("rbvsr: ")
    assert said in line
    assert "bug" not in line
    assert out == "" or arguments[1] == "verify"
    assert contents(files) == before


def test_debug_shows_the_traceback_above_the_line(files: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.chdir(files)
    assert run_command([*up("--theta", "300"), "--debug"]) == 1
    lines = capfd.readouterr().err.splitlines()
    assert "Traceback (most recent call last):" in lines
    assert lines[-1].startswith("rbvsr: theta must be between 0 and 255")


@pytest.mark.parametrize(
    ("arguments", "status"),
    [(up("--theta", "300"), 1), (up("--thta", "1"), 2), (["preview", "no.mkv"], 1), (["compare"], 1)],
)
def test_json_ends_with_the_error_as_an_object(
    files: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any, arguments: list[str], status: int
) -> None:
    monkeypatch.chdir(files)
    assert run_command([*arguments, "--json"]) == status
    out, err = capfd.readouterr()
    last = [json.loads(line) for line in out.splitlines()][-1]
    assert last == {"event": "error", "text": err.removeprefix("rbvsr: ").rstrip("\n"), "status": status}


def test_a_run_says_that_it_works_before_it_loads_torch(files: Path) -> None:
    program = f"""
import sys
from vsrealbasicvsr.app.cli import run_command
from vsrealbasicvsr.app.progress import PlainReporter

def phase(self, name):
    print(name, "torch" in sys.modules, flush=True)

PlainReporter.phase = phase
run_command({up("--theta", "300")!r})
"""
    done = run_program(program, cwd=files)
    assert done.stdout.splitlines() == ["loading False", "reading True"]


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files by POSIX")
def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(files: Path, tmp_path: Path) -> None:
    import resource

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))

    arguments = [*encode("ffv1"), "--length", "5", "--segment-frames", "5", "--overwrite"]
    arguments[1:3] = [str(files / "in.mkv"), str(tmp_path / "out.mkv")]
    full = subprocess.run(
        command(*arguments), capture_output=True, text=True, cwd=files, timeout=TIMEOUT_SECONDS, preexec_fn=limit
    )
    assert (full.returncode, full.stdout) == (1, "")
    assert full.stderr.splitlines()[-1].endswith("make room and run the command again, it goes on where it was")
    assert list(tmp_path.rglob("*.partial")) == []
    assert not (tmp_path / "out.mkv").exists()
    assert run(*arguments, cwd=files).returncode == 0
    assert list(tmp_path.iterdir()) == [tmp_path / "out.mkv"]


@pytest.mark.parametrize("why", ["refused", "not decodable"])
def test_a_video_that_its_container_does_not_keep_is_one_line_and_no_file(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any, why: str
) -> None:
    # No codec is known that passes the checks at the start and fails at the end; here the container claims to hold it.
    suffix, codec = {"refused": (".webm", "libx264"), "not decodable": (".mov", "rawvideo")}[why]
    monkeypatch.chdir(files)
    monkeypatch.setattr("vsrealbasicvsr.app.encoder_check.holds", lambda muxer, codec: True)
    arguments = encode(codec)
    arguments[1:3] = [str(files / "in.mkv"), str(tmp_path / f"out{suffix}")]
    assert run_command(arguments) == 1
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith(f"rbvsr: {suffix} does not ")
    assert last.endswith("choose another suffix of the output or another --codec")
    assert not (tmp_path / f"out{suffix}").exists()
    assert not list(tmp_path.rglob("joined*"))


@pytest.mark.skipif(sys.platform == "win32", reason="closes streams by a POSIX shell")
def test_it_works_where_the_standard_streams_are_closed(files: Path, tmp_path: Path) -> None:
    arguments = up()
    arguments[1:3] = [str(files / "in.mkv"), str(tmp_path / "out.mkv")]
    line = ["sh", "-c", 'exec "$@" >&- 2>&-', "sh", *command(*arguments)]
    assert subprocess.run(line, cwd=files, timeout=TIMEOUT_SECONDS, check=False).returncode == 0
    assert (tmp_path / "out.mkv").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="sends signals of POSIX")
def test_a_source_that_changes_is_not_joined(files: Path, tmp_path: Path) -> None:
    source = Path(shutil.copy(files / "in.mkv", tmp_path))
    arguments = [*up("--length", "1", "--segment-frames", "1")]
    arguments[1:3] = [str(source), str(tmp_path / "out.mkv")]
    line = command(*arguments)
    with subprocess.Popen(line, cwd=files, stderr=subprocess.PIPE, text=True) as process:
        wait_for(tmp_path / "out.mkv.rbvsr", 1, process)
        process.send_signal(signal.SIGSTOP)
        source.write_bytes(source.read_bytes() + b" ")
        process.send_signal(signal.SIGCONT)
        said = process.communicate(timeout=TIMEOUT_SECONDS)[1]
    assert process.returncode == 1
    assert "in.mkv changed while it was upscaled: nothing was written" in said.splitlines()[-1]
    assert not (tmp_path / "out.mkv").exists()
    again = run(*arguments, cwd=files)
    assert again.returncode == 1
    assert "keeps what an earlier run did with another source: " in again.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("plugin", "said"),
    [
        ("rbvsr", "core.rbvsr is not there: run rbvsr doctor"),
        ("bestsource", "BestSource is not installed: pip install"),
    ],
)
def test_a_missing_plugin_is_named(files: Path, tmp_path: Path, plugin: str, said: str) -> None:
    copy = tmp_path / "site" / "vapoursynth"
    link_tree(Path(vs.__file__).parent, copy)
    for folder in Path(vs.__file__).parents[1].glob("*.libs"):
        (copy.parent / folder.name).symlink_to(folder)
    found = [path for path in (copy / "plugins").rglob("*") if plugin in path.name.lower()]
    assert found
    for path in found:
        if path.is_file():
            path.unlink()
    arguments = up()
    arguments[2] = str(tmp_path / "out.mkv")
    environment = os.environ | {"PYTHONPATH": str(copy.parent), "COLUMNS": "120"}
    line = command(*arguments)  # a fork would have VapourSynth already
    done = subprocess.run(
        line, capture_output=True, text=True, cwd=files, env=environment, timeout=TIMEOUT_SECONDS, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr.splitlines()[-1]
    assert [path for path in tmp_path.iterdir() if path.name.startswith("out")] == []


@pytest.mark.skipif(sys.platform == "win32", reason="sends signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_source_is_read_leaves_nothing(ffmpeg: Path, tmp_path: Path, number: signal.Signals) -> None:
    made = [
        "-f",
        "lavfi",
        "-i",
        "testsrc2=size=640x360:rate=25:duration=120",
        "-c:v",
        "libx264",
        "-preset",
        "ultrafast",
    ]
    subprocess.run([str(ffmpeg), "-v", "error", *made, str(tmp_path / "in.mkv")], check=True)
    line = command("upscale", tmp_path / "in.mkv", tmp_path / "out.mkv", "--device", "cpu")
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert [process.stderr.readline() for _ in range(2)] == ["loading\n", "reading\n"]
        process.send_signal(number)
        said = process.communicate(timeout=TIMEOUT_SECONDS)[1]
    assert (process.returncode, said) == (130, "rbvsr: interrupted; run the same command again to go on\n")
    assert list(tmp_path.iterdir()) == [tmp_path / "in.mkv"]
