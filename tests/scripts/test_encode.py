"""scripts/encode.py with a real vspipe and ffmpeg: the lines of README keep what a y4m stream does not carry."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import vapoursynth as vs

from scripts.encoding import command, frame_options, timeline
from tests import ROOT, TIMEOUT_SECONDS
from tests.clips import MakeClip

pytestmark = pytest.mark.long

README = (ROOT / "README.md").read_text(encoding="utf-8")
(README_SCRIPT,) = re.findall(r"```python\n(import vapoursynth as vs\n.+?)```", README, re.DOTALL)
(README_COMMAND,) = re.findall(r"^python (scripts/encode\.py .*?) *#", README, re.MULTILINE)
MASTERING = "G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,1)"
NAMED = ("_Matrix", "_Primaries", "_Transfer", "_Range", "_ChromaLocation", "_SARNum", "_SARDen")


def make(ffmpeg: Path, path: Path, *words: str) -> Path:
    """Run ffmpeg to make a small clip."""
    subprocess.run([str(ffmpeg), "-v", "error", *words, str(path)], check=True, timeout=TIMEOUT_SECONDS)
    return path


def run(folder: Path, *arguments: str, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run encode.py in a folder."""
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
    )


def as_readme_says(folder: Path) -> subprocess.CompletedProcess[str]:
    """README's script and README's command, in a folder with in.mkv and a clone's scripts; they leave out.mkv."""
    (folder / "upscale.vpy").write_text(README_SCRIPT)
    shutil.copytree(ROOT / "scripts", folder / "scripts", ignore=shutil.ignore_patterns("pictures", "__pycache__"))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "XDG_CONFIG_HOME": str(folder / "none")}  # not configured
    result = run(folder, *shlex.split(README_COMMAND), environment=environment)
    assert result.returncode == 0, result.stderr
    return result


def opened(path: Path) -> vs.VideoNode:
    return vs.core.bs.VideoSource(str(path), cachemode=0, showprogress=False)


def times(path: Path) -> list[Fraction]:
    with av.open(str(path)) as file:
        return [frame.pts * frame.time_base for frame in file.decode(video=0)]


def audio(path: Path) -> list[tuple[Fraction, bytes]]:
    with av.open(str(path)) as file:
        return [(packet.pts * packet.time_base, bytes(packet)) for packet in file.demux(audio=0) if packet.size]


# ---- the lines of README ---------------------------------------------------------------------------------------------


def test_full_range_chroma_location_and_aspect_survive(ffmpeg: Path, tmp_path: Path) -> None:
    source = make(
        ffmpeg, tmp_path / "in.mkv", "-f", "lavfi", "-i", "color=0xC52725:s=64x48:r=25:d=0.12",
        "-vf", "scale=out_range=pc:out_color_matrix=bt601,format=yuv420p,setparams=range=pc:colorspace=smpte170m,"
        "setsar=8/9", "-c:v", "libx264", "-qp", "0", "-chroma_sample_location", "topleft",
    )  # fmt: skip
    as_readme_says(tmp_path)
    was, came = (opened(path).get_frame(0) for path in (source, tmp_path / "out.mkv"))
    assert {name: came.props[name] for name in NAMED} == {name: was.props[name] for name in NAMED}
    expected = {"_Matrix": 6, "_Range": vs.RANGE_FULL, "_ChromaLocation": 2, "_SARNum": 8, "_SARDen": 9}
    assert expected.items() <= dict(came.props).items()
    shown = opened(tmp_path / "out.mkv").resize.Bicubic(format=vs.RGB24).get_frame(0)
    assert np.abs(np.subtract([np.asarray(plane)[96, 128] for plane in shown], [197, 39, 37], dtype=int)).max() <= 2


def test_sd_video_that_names_no_matrix_and_is_interlaced_is_bt601_and_progressive(ffmpeg: Path, tmp_path: Path) -> None:
    make(
        ffmpeg, tmp_path / "in.mkv", "-f", "lavfi", "-i", "testsrc2=s=64x160:r=50:d=0.12",
        "-vf", "scale=out_color_matrix=bt601,format=yuv420p,tinterlace=interleave_top,"
        "setparams=field_mode=tff:colorspace=unknown", "-c:v", "libx264", "-flags", "+ildct+ilme",
    )  # fmt: skip
    assert opened(tmp_path / "in.mkv").get_frame(0).props["_Matrix"] == 2
    result = as_readme_says(tmp_path)
    came = opened(tmp_path / "out.mkv")
    assert came.height == 640
    assert (came.get_frame(0).props["_Matrix"], came.get_frame(0).props["_FieldBased"]) == (6, 0)
    warnings = [line for line in result.stderr.splitlines() if "warning" in line]
    assert len(warnings) == 1
    assert re.search(r"frame \d+ is marked as interlaced", warnings[0])  # whichever was asked for first
    assert warnings[0].endswith("Deinterlace the clip first.")


def test_bt2020_pq_in_ten_bits_and_its_metadata_survive(ffmpeg: Path, tmp_path: Path) -> None:
    source = make(
        ffmpeg, tmp_path / "in.mkv", "-f", "lavfi", "-i", "testsrc2=s=64x48:r=24:d=0.125",
        "-vf", "format=yuv420p10le,setparams=range=tv:colorspace=bt2020nc:color_primaries=bt2020:color_trc=smpte2084",
        "-c:v", "libx265", "-x265-params", f"log-level=error:master-display={MASTERING}:max-cll=1000,400",
    )  # fmt: skip
    as_readme_says(tmp_path)
    was, came = (opened(path).get_frame(0) for path in (source, tmp_path / "out.mkv"))
    assert came.format.id == vs.YUV420P10
    hdr = [name for name in was.props if name.startswith(("Mastering", "ContentLight"))]
    assert len(hdr) == 8
    for name in (*NAMED, *hdr):
        assert came.props[name] == pytest.approx(was.props[name]), name
    assert (came.props["_Matrix"], came.props["_Primaries"], came.props["_Transfer"]) == (9, 9, 16)


def test_a_variable_rate_keeps_its_times_and_the_audio_its_place(make_clip: MakeClip, tmp_path: Path) -> None:
    pts = [70, 112, 153, 195, 370, 381, 420, 570, 830]
    source = make_clip(tmp_path / "in.mkv", pts=pts, time_base=Fraction(1, 1000), audio_codecs=("libopus",))
    result = as_readme_says(tmp_path)
    assert times(tmp_path / "out.mkv") == times(source) == [Fraction(n, 1000) for n in pts]
    assert audio(tmp_path / "out.mkv") == audio(source)
    assert "warning" not in result.stderr
    assert result.stdout == "9 frames of 256x192: out.mkv\n"


# ---- other scripts, other files, other encoders ----------------------------------------------------------------------

PASSED_ON = """
    import vapoursynth as vs
    clip = vs.core.bs.VideoSource(source, showprogress=False)
    {}
    clip.set_output()
"""


def script(folder: Path, line: str = "") -> str:
    path = folder / "script.vpy"
    path.write_text("\n".join(text.strip() for text in PASSED_ON.format(line).splitlines()))
    return str(path)


@pytest.fixture
def encoded(vspipe_environment: dict[str, str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs encode.py in a folder, where vspipe is configured."""

    def run_in(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        return run(folder, str(ROOT / "scripts" / "encode.py"), *arguments, environment=vspipe_environment)

    return run_in


def test_times_finer_than_milliseconds_and_frames_out_of_order_survive_in_mp4(
    encoded, make_clip: MakeClip, tmp_path: Path
) -> None:
    pts = [700, 1100, 1501, 3000, 3100, 3500, 5000, 5333, 9000, 9400, 9800]
    source = make_clip(tmp_path / "in.mp4", pts=pts, time_base=Fraction(1, 10000), audio_codecs=("aac",))
    result = encoded(
        tmp_path, script(tmp_path), "in.mp4", "out.mp4", "--", "-c:v", "libx264", "-bf", "3", "-b_strategy", "0"
    )
    assert result.returncode == 0, result.stderr
    assert times(tmp_path / "out.mp4") == times(source)
    assert audio(tmp_path / "out.mp4") == audio(source)
    with av.open(str(tmp_path / "out.mp4")) as file:
        decoded, shown = zip(*[(packet.dts, packet.pts) for packet in file.demux(video=0) if packet.size], strict=True)
    assert list(decoded) == sorted(set(decoded))
    assert list(shown) != sorted(shown)


def test_a_script_that_changes_speed_is_obeyed_and_told_of(encoded, make_clip: MakeClip, tmp_path: Path) -> None:
    make_clip(tmp_path / "in.mkv", num_frames=25, audio_codecs=("flac",))
    line = "clip = clip.std.AssumeFPS(fpsnum=20)"
    result = encoded(tmp_path, script(tmp_path, line), "in.mkv", "out.mkv")
    assert result.returncode == 0, result.stderr
    assert times(tmp_path / "out.mkv") == [Fraction(n, 20) for n in range(25)]
    assert "encode: warning: the last frame begins at 1.20 s, that of in.mkv at 0.96 s: the audio may not fit" in (
        result.stderr
    )


def test_variables_reach_the_script_which_works_in_its_own_folder(encoded, make_clip: MakeClip, tmp_path: Path) -> None:
    make_clip(tmp_path / "in.mkv", num_frames=5)
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "beside.txt").touch()
    line = "open('beside.txt'); assert __name__ == '__vapoursynth__'; clip = clip[:int(number)]"
    path = script(tmp_path / "scripts", line)
    result = encoded(tmp_path, path, "in.mkv", "out.mkv", "--arg", "number=3")
    assert result.returncode == 0, result.stderr
    assert result.stdout == "3 frames of 64x48: out.mkv\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mkv", "out.mkv", "scripts"]


@pytest.mark.parametrize(
    ("line", "arguments", "said"),
    [
        ("clip = clip.resize.Bicubic(format=vs.RGB24, matrix_in=6)", [], "vspipe failed .*y4m headers to YUV and .*"),
        ("raise ValueError('it is blue')", [], "vspipe failed with exit code 1: it is blue"),
        ("clip = clip.std.FrameEval(lambda n: 1 / 0)", [], "vspipe failed .*: ZeroDivisionError: division by zero"),
        ("", ["--", "-c:v", "nothing"], "ffmpeg failed with exit code .*Encoder not found"),
        ("", ["--", "-c:v", "libx264", "-t", "0.1"], "ffmpeg wrote 3 packets for 30 frames. Leave out the option .*"),
        ("", ["--", "-vf", "hflip"], "-vf cannot be given: filters go into the script, .*"),
        ("", ["--arg", "a b=1"], r"--arg must be NAME=VALUE, got 'a b'"),
    ],
)  # fmt: skip
def test_what_fails_is_one_line_and_leaves_nothing(
    encoded, small_clip_file: Path, tmp_path, line, arguments, said
) -> None:
    result = encoded(tmp_path, script(tmp_path, line), str(small_clip_file), "out.mkv", *arguments)
    assert (result.returncode, result.stdout) == (1, "")
    assert re.fullmatch(f"encode: {said}", result.stderr.splitlines()[-1]), result.stderr
    assert "Traceback" not in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["script.vpy"]


@pytest.mark.parametrize(
    ("result", "said"),
    [
        ("out.avi", "out.avi must end in .m4v, .mkv, .mov, .mp4"),
        ("nowhere/out.mkv", "nowhere is not a folder. Make it first"),
        ("in.mkv", "in.mkv is the source itself. Name another file"),
    ],
)
def test_a_result_that_cannot_be_is_refused_before_anything_starts(tmp_path, monkeypatch, capsys, result, said) -> None:
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    for name in ("in.mkv", "a.vpy"):
        Path(name).write_text("")
    assert command.main(["a.vpy", "in.mkv", result]) == 1
    assert capsys.readouterr().err == f"encode: {said}\n"


# ---- its parts -------------------------------------------------------------------------------------------------------


def test_frames_that_an_edit_list_hides_do_not_count(ffmpeg: Path, make_clip: MakeClip, tmp_path: Path) -> None:
    whole = make_clip(tmp_path / "whole.mp4", num_frames=20, audio_codecs=("aac",))
    cut = make(ffmpeg, tmp_path / "cut.mp4", "-ss", "0.4", "-i", str(whole), "-c", "copy")
    with av.open(str(cut)) as file:
        assert any(packet.is_discard for packet in file.demux(video=0))
    found = timeline.source_times(cut)
    shown = times(cut)
    assert (found.first, found.last) == (shown[0], shown[-1])


def test_what_a_frame_leaves_open_stays_open() -> None:
    assert frame_options.frame_filter({}) == "setparams=field_mode=prog:range=tv"
    unnamed = {"_Matrix": 2, "_Primaries": 2, "_Transfer": 2, "_Range": 0, "_SARNum": 0, "_SARDen": 0}
    assert frame_options.frame_filter(unnamed) == "setparams=field_mode=prog:range=tv"
    assert frame_options.frame_options({"_ChromaLocation": 1}, ["-c:v", "ffv1"])[2:] == [
        "-chroma_sample_location", "center", "-c:v", "ffv1",
    ]  # fmt: skip


def test_hdr_metadata_goes_among_the_parameters_that_the_user_gave() -> None:
    add, words = frame_options.with_hdr_metadata, {"master-display": "G(1,2)", "max-cll": "9,8"}
    assert add(["-c:v", "libx265"], words)[2:] == ["-x265-params", "master-display=G(1,2):max-cll=9,8"]
    assert add(["-c:v", "libx264"], words)[2:] == ["-x264-params", "mastering-display=G(1,2):cll=9,8"]
    given = ["-c:v", "libx265", "-x265-params", "aq-mode=3:max-cll=7,7", "-crf", "18"]
    assert add(given, words)[3] == "aq-mode=3:max-cll=7,7:master-display=G(1,2)"
    for untouched in (["-c:v", "libx265"], ["-c:v", "libx264", "-x264-params", "me=dia"]):
        assert add(untouched, {}) == untouched
    assert add(["-c:v", "ffv1"], words) == ["-c:v", "ffv1"]


def test_frames_are_shown_as_long_as_they_say_and_the_others_as_long_as_is_likely() -> None:
    film = Fraction(1001, 24000)
    constant = timeline.timeline_of([film] * 3, rate=1 / film, start_seconds=Fraction(0))
    assert (constant.pts, constant.end, constant.time_base) == ((0, 1001, 2002), 3003, Fraction(1, 24000))
    open_end = [Fraction(1, 25), Fraction(2, 25), None]
    for last_seconds, end in ((None, Fraction(5, 25)), (Fraction(1, 25), Fraction(4, 25))):
        made = timeline.timeline_of(open_end, rate=Fraction(25), start_seconds=Fraction(1), last_seconds=last_seconds)
        assert [pts * made.time_base for pts in made.pts] == [1, 1 + Fraction(1, 25), 1 + Fraction(3, 25)]
        assert made.end * made.time_base == 1 + end
    odd = timeline.timeline_of(
        [Fraction(1, 999_983), Fraction(1, 10_007)], rate=Fraction(25), start_seconds=Fraction(0)
    )
    assert odd.time_base == Fraction(1, timeline.MAX_TICKS_PER_SECOND)
