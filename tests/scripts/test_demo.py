"""scripts/demo.py on real files: what it leaves has the source's frames, times, colours and audio, or is not there."""

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import pytest
from PIL import Image

from scripts import demo
from scripts.encoding import pipe
from scripts.encoding.errors import EncodeError
from tests import ROOT, TIMEOUT_SECONDS
from tests.clips import MakeClip

pytestmark = pytest.mark.long

MAX_SECONDS_TO_END = 20
MATROSKA_TICK = Fraction(1, 1000)
FILM_RATE = Fraction(24000, 1001)


def command(source: Path, out: Path, model: Path, *more: str) -> list[str]:
    words = ["--input", str(source), "--out", str(out), "--model", str(model), *more]
    return [sys.executable, "-m", "scripts.demo", *words]


def run(line: list[str], *, path: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | ({"PATH": path} if path else {})
    return subprocess.run(
        line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
    )


@dataclass(frozen=True)
class Content:
    """What a file holds, decoded: the times of its frames in seconds, and its audio packets as bytes."""

    size: tuple[int, int]
    rate: Fraction
    seconds: list[Fraction]
    pixel_format: str
    colours: dict[str, int]
    audio: list[list[bytes]]
    audio_end: Fraction


def content(path: Path) -> Content:
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        frames = list(file.decode(video=0))
        rate = Fraction(stream.average_rate)
    colours = {name: int(getattr(frames[0], name)) for name in ("colorspace", "color_primaries", "color_trc")}
    with av.open(str(path)) as file:
        audio: dict[int, list[bytes]] = {stream.index: [] for stream in file.streams.audio}
        end = Fraction(0)
        for packet in file.demux(list(file.streams.audio)) if audio else ():
            if packet.size:
                audio[packet.stream_index].append(bytes(packet))
                end = max(end, (packet.pts + packet.duration) * Fraction(packet.time_base))
    return Content(
        size=(frames[0].width, frames[0].height),
        rate=rate,
        seconds=[frame.pts * Fraction(frame.time_base) for frame in frames],
        pixel_format=frames[0].format.name,
        colours=colours | {"color_range": int(frames[0].color_range)},
        audio=list(audio.values()),
        audio_end=end,
    )


# ---- what it leaves --------------------------------------------------------------------------------------------------


def test_a_film_keeps_its_frames_times_rate_colours_and_audio(
    make_clip: MakeClip, tiny_model: Path, tmp_path: Path
) -> None:
    colours = {"color_range": 2, "colorspace": 1, "color_primaries": 1, "color_trc": 1}
    audio = ("aac", "flac")
    source = make_clip(tmp_path / "it's a film.mp4", rate=FILM_RATE, colours=colours, audio_codecs=audio)
    before = source.read_bytes()
    result = run(command(source, tmp_path / "out", tiny_model))
    assert result.returncode == 0, result.stderr

    video, image = tmp_path / "out" / "it's a film_x4.mp4", tmp_path / "out" / "it's a film_x4.png"
    assert sorted((tmp_path / "out").iterdir()) == [video, image]
    assert sorted(tmp_path.iterdir()) == [source, tmp_path / "out"]
    assert source.read_bytes() == before
    was, came = content(source), content(video)
    assert came.size == (256, 192)
    assert (came.seconds, came.rate) == (was.seconds, FILM_RATE)
    assert came.colours == was.colours == colours
    assert len(was.audio) == 2
    assert came.audio == was.audio
    with Image.open(image) as picture:
        assert picture.size == (2 * 256, 192)

    (line,) = result.stdout.splitlines()
    assert line.startswith("30 frames, 64x48 to 256x192, in ")
    assert " fps): " in line
    assert line.endswith(f"{video} {image}")
    assert "upscaling: 100%" in result.stderr


def test_the_first_frames_of_a_variable_rate_keep_their_times_and_their_part_of_the_audio(
    make_clip: MakeClip, tiny_model: Path, tmp_path: Path
) -> None:
    pts = [700, 1100, 1501, 3000, 3100, 3500, 5000, 5333, 9000, 9400, 9800]
    source = make_clip(tmp_path / "v.mp4", pts=pts, time_base=Fraction(1, 10000), audio_codecs=("aac",))
    result = run(command(source, tmp_path / "out", tiny_model, "--frames", "7"))
    assert result.returncode == 0, result.stderr
    was, came = content(source), content(tmp_path / "out" / "v_x4.mp4")
    assert was.seconds[0] == Fraction(7, 100)
    assert came.seconds == [seconds - was.seconds[0] for seconds in was.seconds[:7]]
    first = was.audio[0].index(came.audio[0][0])
    assert came.audio[0] == was.audio[0][first : first + len(came.audio[0])]
    assert abs(came.audio_end - Fraction(5333 - 700, 10000)) < Fraction(2 * 1024, 48000)


def test_a_matroska_file_of_ten_bits_and_a_variable_rate_stays_one(
    make_clip: MakeClip, tiny_model: Path, tmp_path: Path
) -> None:
    source = make_clip(
        tmp_path / "v.mkv",
        pts=[0, 42, 83, 125, 300, 311, 350, 500],
        time_base=MATROSKA_TICK,
        pixel_format="yuv420p10le",
        audio_codecs=("libopus",),
    )
    from_here = Path(os.path.relpath(tiny_model))  # vspipe works in another folder
    result = run(command(source, tmp_path / "out", from_here))
    assert result.returncode == 0, result.stderr
    was, came = content(source), content(tmp_path / "out" / "v_x4.mkv")
    assert came.seconds == was.seconds
    assert came.pixel_format == "yuv420p10le"
    assert came.audio == was.audio


def test_a_source_that_y4m_cannot_carry_and_of_odd_size_is_converted(
    make_clip: MakeClip, tiny_model: Path, tmp_path: Path
) -> None:
    source = make_clip(
        tmp_path / "screen.avi", codec="ffv1", pixel_format="bgr0", width=63, height=47, num_frames=3, rate=FILM_RATE
    )
    result = run(command(source, tmp_path / "out", tiny_model))
    assert result.returncode == 0, result.stderr
    was, came = content(source), content(tmp_path / "out" / "screen_x4.mp4")
    assert came.size == (252, 188)
    assert (came.seconds, came.rate) == (was.seconds, FILM_RATE)
    assert came.colours["colorspace"] == 1


def test_the_sample_is_a_clip_of_low_quality(tmp_path: Path) -> None:
    path = tmp_path / "sample.mp4"
    demo.make_sample(path)
    made = content(path)
    assert made.size == (160, 112)
    assert made.seconds == [n / FILM_RATE for n in range(32)]
    bits_per_pixel = path.stat().st_size * 8 / (32 * 160 * 112)
    assert bits_per_pixel < 0.2


# ---- when something breaks -------------------------------------------------------------------------------------------


def test_what_is_not_a_video_is_refused_in_one_line(tiny_model: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("This is not a video.")
    for source, complaint in (
        (text, f"demo: {text} is not a video that can be read"),
        (tmp_path / "missing.mp4", f"demo: {tmp_path / 'missing.mp4'} is not a file"),
    ):
        result = run(command(source, tmp_path / "out", tiny_model))
        assert (result.returncode, result.stdout) == (1, "")
        (line,) = result.stderr.splitlines()
        assert line.startswith(complaint)
    assert list((tmp_path / "out").iterdir()) == []


def test_the_words_of_the_filter_reach_the_user_and_nothing_is_left(small_clip_file: Path, tmp_path: Path) -> None:
    result = run(command(small_clip_file, tmp_path / "out", tmp_path / "no_model"))
    assert (result.returncode, result.stdout) == (1, "")
    last = result.stderr.splitlines()[-1]
    assert last.startswith("demo: vspipe failed with exit code 1: rbvsr.Upscale: ")
    assert "no_model" in last
    assert "Traceback" not in result.stderr
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="the ffmpeg that fails is a shell script")
def test_an_ffmpeg_that_fails_is_named_and_nothing_is_left(
    small_clip_file: Path, tiny_model: Path, tmp_path: Path
) -> None:
    ffmpeg = tmp_path / "bin" / "ffmpeg"
    ffmpeg.parent.mkdir()
    ffmpeg.write_text(
        '#!/bin/sh\ncase "$*" in *-encoders) echo libx264; exit 0;; esac\n'
        'head -c 100000 >/dev/null\necho "No space left on device" >&2\nexit 1\n'
    )
    ffmpeg.chmod(0o755)
    path = f"{ffmpeg.parent}{os.pathsep}{os.environ['PATH']}"
    result = run(command(small_clip_file, tmp_path / "out", tiny_model), path=path)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.splitlines()[-1] == "demo: ffmpeg failed with exit code 1: No space left on device"
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_interrupted_leaves_neither_files_nor_processes(
    make_clip: MakeClip, tiny_model: Path, tmp_path: Path, number: signal.Signals
) -> None:
    source = make_clip(tmp_path / "long.mp4", num_frames=300, options={"preset": "ultrafast"})
    out = tmp_path / "out"
    out.mkdir()
    older = out / "long_x4.mp4"
    older.write_text("the result of an earlier run")
    line = command(source, out, tiny_model, "--length", "5", "--overlap", "5")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(line, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = ""
    while "/300" not in said or " 0/300" in said:  # until the first frame is done
        part = process.stderr.read(1)
        assert part, said
        said = (said + part)[-60:]
    assert len(processes_that_name(out)) == 2
    process.send_signal(number)
    _, rest = process.communicate(timeout=MAX_SECONDS_TO_END)
    assert process.returncode == 130
    assert rest.splitlines()[-1] == "demo: interrupted; nothing half-written was left"
    assert processes_that_name(out) == []
    assert list(out.iterdir()) == [older]
    assert older.read_text() == "the result of an earlier run"


def processes_that_name(folder: Path) -> list[str]:
    """The children of the demo: those with a path under `folder` among their arguments or variables."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            executable = (process / "exe").resolve().name
            words = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        except OSError:
            continue
        if f"{folder}{os.sep}".encode() in words:
            found.append(executable)
    return found


# ---- its parts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("codes", "vspipe_said", "ffmpeg_said", "words"),
    [
        ((1, 0), "Script evaluation failed:\nPython exception: it is blue\n\nTraceback\n  x", "", "exit code 1: it is"),
        ((1, 0), "Error: Failed to retrieve frame 3 with error: it is blue", "", "vspipe failed .*frame 3 .*blue"),
        ((1, 1), "Error: Failed to retrieve frame 0 with error: it is blue", "empty", "vspipe failed .*frame 0 .*blue"),
        ((1, 1), "Error: fwrite() call failed when writing frame: 3", "disk full", "ffmpeg failed .*disk full"),
        ((-13, 1), "", "disk full", "ffmpeg failed .*disk full"),
        ((-9, 0), "Information: x", "", "vspipe was killed by SIGKILL: Information: x"),
        ((-9, 1), "", "Invalid data", "vspipe was killed by SIGKILL: it said nothing"),
        ((0, 1), "", "", "ffmpeg failed with exit code 1: it said nothing"),
    ],
)
def test_the_first_to_fail_is_blamed(codes: tuple[int, int], vspipe_said: str, ffmpeg_said: str, words: str) -> None:
    with pytest.raises(EncodeError, match=words):
        pipe.check(codes, vspipe_said, ffmpeg_said)


def test_nobody_is_blamed_for_success() -> None:
    pipe.check((0, 0), "Output 3 frames in 0.1 seconds", "")


def test_audio_decides_the_container_only_where_the_source_has_another(make_clip: MakeClip, tmp_path: Path) -> None:
    for name, audio, suffix in (
        ("a.avi", ("libmp3lame",), ".mp4"),
        ("b.avi", ("pcm_s16le",), ".mkv"),
        ("c.mov", ("pcm_s16le",), ".mov"),
        ("d.ts", ("aac",), ".mp4"),
        ("e.webm", (), ".mkv"),
    ):
        codec = "libvpx-vp9" if name.endswith(".webm") else "libx264"
        source = make_clip(tmp_path / name, num_frames=2, codec=codec, audio_codecs=audio)
        assert demo.result_suffix(source) == suffix


@pytest.mark.skipif(not shutil.which("sh"), reason="a shell script")
def test_the_interpreter_for_the_environment_is_new_enough() -> None:
    script = ["sh", str(ROOT / "scripts" / "find_python.sh")]
    chosen = os.environ | {"PYTHON": sys.executable}
    good = subprocess.run(script, env=chosen, capture_output=True, text=True, check=False)
    assert good.returncode == 0, good.stderr
    assert Path(good.stdout.strip()).samefile(sys.executable)
    bad = subprocess.run(script, env=os.environ | {"PYTHON": "no-such"}, capture_output=True, text=True, check=False)
    assert bad.returncode == 1
    assert "PYTHON=no-such cannot be used: Python 3.12" in bad.stderr


@pytest.mark.parametrize("kind", ["a file", "under a file", "no path", "too long"])
def test_a_place_where_nothing_can_be_written_is_one_line(kind, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("signal.signal", lambda *_: None)
    (tmp_path / "file").write_text("mine")
    out = {"a file": "file", "under a file": "file/out", "no path": "a\0b", "too long": "x" * 300}[kind]
    assert demo.main(["--out", str(tmp_path / out)]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("demo: --out ")
    assert "nothing can be written there" in printed
    assert "Name a folder" in printed
    assert printed.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_result_that_cannot_be_put_in_its_place_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("signal.signal", lambda *_: None)
    (tmp_path / "sample.mp4").mkdir()  # where the sample would go
    (tmp_path / "sample.mp4" / "x").touch()
    assert demo.main(["--out", str(tmp_path)]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith(f"demo: {tmp_path / 'sample.mp4'} cannot be written (")
    assert printed.count("\n") == 1
