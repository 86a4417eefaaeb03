"""`rbvsr upscale` on a zoo of real files: what is in the file besides its pixels comes out as it went in."""

import itertools
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import pytest

from tests.app.running import frames_of
from tests.clips import MakeClip
from vsrealbasicvsr.app.job import Choices
from vsrealbasicvsr.app.progress import PlainReporter
from vsrealbasicvsr.app.source import open_source
from vsrealbasicvsr.app.upscaling import upscale_file
from vsrealbasicvsr.errors import UserError

pytestmark = pytest.mark.long

MILLISECOND = Fraction(1, 1000)
"""The unit of time in Matroska."""

VIDEO = ["-f", "lavfi", "-i", "testsrc2=size=96x64:rate=24:duration=1"]
AUDIO = ["-f", "lavfi", "-i", "sine=frequency=440:duration=1"]
H264 = ["-c:v", "libx264", "-pix_fmt", "yuv420p"]
HDR = (
    "log-level=error:hdr10=1:master-display=G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,50)"
    ":max-cll=1000,400"
)


@pytest.fixture(scope="session")
def upscale(tiny_model: Path) -> Any:
    """Upscale a file with a tiny network: upscale(source, output, **choices)."""

    def run(source: Path, output: Path, **choices: Any) -> dict[str, Any]:
        arguments = {"model": str(tiny_model), "device": "cpu"}
        return upscale_file(source, output, Choices(upscale=arguments, **choices), PlainReporter(as_json=True))

    return run


@pytest.fixture
def make(ffmpeg: Path, tmp_path: Path) -> Any:
    """Make a file by ffmpeg: make(name, *arguments)."""

    def run(name: str, *arguments: str) -> Path:
        command = [str(ffmpeg), "-y", "-nostdin", "-v", "error", *arguments, str(tmp_path / name)]
        subprocess.run(command, check=True, timeout=60)
        return tmp_path / name

    return run


def described(path: Path) -> dict[str, Any]:
    """What the video stream says of itself, and when its frames are shown."""
    with av.open(str(path)) as file:
        context: Any = file.streams.video[0].codec_context
        said = {
            name: int(getattr(context, name)) for name in ("color_range", "colorspace", "color_primaries", "color_trc")
        }
        said |= {"size": (context.width, context.height), "pix_fmt": context.pix_fmt}
        said["sar"] = Fraction(context.sample_aspect_ratio)
    with av.open(str(path)) as file:
        frames = list(file.decode(video=0))
    said["seconds"] = [frame.pts * Fraction(frame.time_base) for frame in frames]
    said["rotation"] = frames[0].rotation
    said["side_data"] = sorted(kind.name for kind in frames[0].side_data.keys() if kind.name != "SEI_UNREGISTERED")  # noqa: SIM118
    return said


def packets(path: Path, kind: str) -> list[list[tuple[Fraction, bytes]]]:
    """The packets of each stream of a kind: when they begin, and their bytes."""
    with av.open(str(path)) as file:
        found: dict[int, list[tuple[Fraction, bytes]]] = {s.index: [] for s in file.streams if s.type == kind}
        streams = [stream for stream in file.streams if stream.index in found]
        for packet in file.demux(streams) if streams else ():
            if packet.size:
                found[packet.stream_index].append((packet.pts * Fraction(packet.time_base), bytes(packet)))
    return list(found.values())


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        (
            "full range",
            ["-vf", "scale=out_range=pc,setparams=range=pc", *H264, "-color_range", "pc"],
            {"color_range": 2},
        ),
        (
            "BT.601 at 8:9",
            ["-vf", "setparams=colorspace=smpte170m:color_primaries=smpte170m:color_trc=smpte170m,setsar=8/9", *H264],
            {"colorspace": 6, "color_primaries": 6, "color_trc": 6, "sar": Fraction(8, 9)},
        ),
        (
            "PQ of 10 bits",
            [
                "-vf",
                "format=yuv420p10le,setparams=range=tv:colorspace=bt2020nc:color_primaries=bt2020:color_trc=smpte2084",
                *("-c:v", "libx265", "-x265-params", HDR),
            ],
            {
                "colorspace": 9,
                "color_primaries": 9,
                "color_trc": 16,
                "pix_fmt": "yuv420p10le",
                "side_data": ["CONTENT_LIGHT_LEVEL", "MASTERING_DISPLAY_METADATA"],
            },
        ),
        (
            "HLG of 10 bits",
            [
                "-vf",
                "format=yuv420p10le,setparams=range=tv:colorspace=bt2020nc:color_primaries=bt2020:color_trc=arib-std-b67",
                *("-c:v", "libx265", "-x265-params", "log-level=error"),
            ],
            {"colorspace": 9, "color_primaries": 9, "color_trc": 18, "pix_fmt": "yuv420p10le", "color_range": 1},
        ),
        ("SAR 16:11", ["-vf", "setsar=16/11", *H264], {"sar": Fraction(16, 11)}),
        ("4:2:2 of 10 bits", ["-c:v", "ffv1", "-pix_fmt", "yuv422p10le"], {"pix_fmt": "yuv422p10le"}),
        (
            "BT.709",
            ["-vf", "setparams=colorspace=bt709:color_primaries=bt709:color_trc=bt709", *H264],
            {"colorspace": 1},
        ),
    ],
)
def test_colours_and_the_shape_of_pixels_are_kept(
    make: Any, upscale: Any, tmp_path: Path, name: str, arguments: list[str], expected: dict[str, Any]
) -> None:
    source = make("in.mkv", *VIDEO, *arguments)
    upscale(source, tmp_path / "out.mkv", stop="0.2")
    was, came = described(source), described(tmp_path / "out.mkv")
    assert came["size"] == (384, 256)
    assert {key: came[key] for key in expected} == expected
    assert {key: was[key] for key in expected} == expected


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_variable_rate_keeps_its_times_and_the_audio_its_packets(
    make: Any, upscale: Any, tmp_path: Path, suffix: str
) -> None:
    varied = ["-vf", "select='not(mod(n,3))+lt(n,7)'", "-fps_mode", "vfr", *H264, "-c:a", "aac"]
    source = make(f"in{suffix}", *VIDEO, *AUDIO, *varied)
    upscale(source, tmp_path / f"out{suffix}", segment_frames=1, encoder_options={"bf": "3"})
    was, came = described(source), described(tmp_path / f"out{suffix}")
    assert came["seconds"] == was["seconds"]
    assert len({after - before for before, after in pairwise(was["seconds"])}) > 1
    assert packets(tmp_path / f"out{suffix}", "audio") == packets(source, "audio")


def seconds(path: Path) -> list[Fraction]:
    """When the frames of a file are shown, as its packets say."""
    with av.open(str(path)) as file:
        return sorted(p.pts * p.time_base for p in file.demux(video=0) if p.size and p.pts is not None)


def remuxed(source: Path, path: Path, stamp: Callable[[Any, int], int]) -> Path:
    """Copy the packets, each with the time stamp that `stamp` makes of it and its number in its stream."""
    with av.open(str(source)) as file, av.open(str(path), "w") as out:
        streams = {stream.index: out.add_stream_from_template(stream) for stream in file.streams}
        numbers = {index: itertools.count() for index in streams}
        for packet in file.demux():
            if packet.size:
                packet.pts = packet.dts = stamp(packet, next(numbers[packet.stream_index]))
                packet.stream = streams[packet.stream_index]
                out.mux(packet)
    return path


def test_frames_without_time_stamps_are_shown_between_their_neighbours(
    make_clip: MakeClip, upscale: Any, tmp_path: Path
) -> None:
    """BestSource has one time stamp for each pack of an MPEG program stream."""
    source = make_clip(
        tmp_path / "in.mpg", num_frames=15, codec="mpeg2video", audio_codecs=("mp2",), options={"bf": "0"}
    )
    upscale(source, tmp_path / "out.mkv")
    came = seconds(tmp_path / "out.mkv")
    assert [time - came[0] for time in came] == [Fraction(n, 25) for n in range(15)]
    assert abs(came[0] - seconds(source)[0]) <= MILLISECOND
    was, copied = (packets(path, "audio")[0] for path in (source, tmp_path / "out.mkv"))
    assert all(abs(one[0] - other[0]) <= MILLISECOND for one, other in zip(was, copied, strict=True))


def test_a_picture_that_is_shown_for_an_hour_is_upscaled(make_clip: MakeClip, upscale: Any, tmp_path: Path) -> None:
    source = make_clip(tmp_path / "in.mkv", pts=[0, 1], rate=Fraction(1, 4000), codec="ffv1")
    upscale(source, tmp_path / "out.mkv")
    assert seconds(tmp_path / "out.mkv") == [0, 4000]


def test_repeated_time_stamps_leave_the_others_where_they_are(
    make_clip: MakeClip, upscale: Any, tmp_path: Path
) -> None:
    shown = [1000, 1000, 1000, 1100, 1300, 1300, 1700, 1900]
    plain = make_clip(tmp_path / "plain.mkv", num_frames=8, rate=Fraction(10), codec="ffv1")
    source = remuxed(plain, tmp_path / "in.mkv", lambda packet, n: shown[n])
    upscale(source, tmp_path / "out.mkv")
    came = [time * 1000 for time in seconds(tmp_path / "out.mkv")]
    assert [came[n] for n in (0, 3, 4, 6, 7)] == [1000, 1100, 1300, 1700, 1900]
    assert all(before < after for before, after in pairwise(came))


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_two_recordings_in_one_file_are_shown_one_after_another(
    make_clip: MakeClip, upscale: Any, tmp_path: Path, suffix: str
) -> None:
    part = make_clip(tmp_path / "part.ts", num_frames=20, codec="mpeg2video", audio_codecs=("mp2",))
    source = tmp_path / "in.ts"
    source.write_bytes(2 * part.read_bytes())
    upscale(source, tmp_path / f"out{suffix}")
    shown = seconds(tmp_path / f"out{suffix}")
    assert [round(25 * (time - shown[0])) for time in shown] == list(range(40))
    (was,), (came,) = packets(source, "audio"), packets(tmp_path / f"out{suffix}", "audio")
    assert [data for _, data in came] == [data for _, data in was]
    half = len(was) // 2
    assert abs(came[half][0] - came[0][0] - (shown[20] - shown[0])) <= 2 * MILLISECOND
    assert all(before[0] < after[0] for before, after in pairwise(came))


def test_an_audio_offset_is_kept(make: Any, upscale: Any, tmp_path: Path) -> None:
    source = make("in.mkv", *VIDEO, "-itsoffset", "0.35", *AUDIO, *H264, "-c:a", "flac")
    upscale(source, tmp_path / "out.mkv")
    came = packets(tmp_path / "out.mkv", "audio")
    assert came == packets(source, "audio")
    assert abs(came[0][0][0] - Fraction(35, 100)) < Fraction(1, 100)


def test_tracks_chapters_attachments_and_tags_are_kept(make: Any, upscale: Any, tmp_path: Path) -> None:
    (tmp_path / "s.srt").write_text("1\n00:00:00,500 --> 00:00:00,900\nHello\n")
    (tmp_path / "a.ttf").write_bytes(b"a font")
    (tmp_path / "meta.txt").write_text(
        ";FFMETADATA1\ntitle=A title\n[CHAPTER]\nTIMEBASE=1/1000\nSTART=0\nEND=500\ntitle=One\n"
        "[CHAPTER]\nTIMEBASE=1/1000\nSTART=500\nEND=1000\ntitle=Two\n"
    )
    inputs = [*VIDEO, *AUDIO, *AUDIO, "-i", str(tmp_path / "s.srt"), "-i", str(tmp_path / "meta.txt")]
    maps = ["-map", "0", "-map", "1", "-map", "2", "-map", "3", "-map_metadata", "4", "-map_chapters", "4"]
    tags = ["-metadata:s:a:1", "language=fre", "-disposition:s:0", "forced", "-metadata:s:s:0", "language=ger"]
    attached = ["-attach", str(tmp_path / "a.ttf"), "-metadata:s:t", "mimetype=application/x-truetype-font"]
    source = make("in.mkv", *inputs, *maps, *H264, "-c:a", "aac", "-c:s", "srt", *tags, *attached)
    upscale(source, tmp_path / "out.mkv")
    kept: list[Any] = []
    for path in (source, tmp_path / "out.mkv"):
        with av.open(str(path)) as file:
            kinds: list[Any] = [stream.type for stream in file.streams]
            languages = [stream.metadata.get("language") for stream in file.streams]
            dispositions = [int(stream.disposition) for stream in file.streams]
            chapters = [
                (c["start"] * c["time_base"], c["end"] * c["time_base"], c["metadata"]) for c in file.chapters()
            ]
            fonts = [(s.name, s.mimetype, bytes(s.data)) for s in file.streams if s.type == "attachment"]
            kept.append((kinds, languages, dispositions, chapters, fonts, file.metadata["title"]))
    assert kept[0] == kept[1]
    assert kept[0][0] == ["video", "audio", "audio", "subtitle", "attachment"]
    assert packets(tmp_path / "out.mkv", "subtitle") == packets(source, "subtitle")
    assert packets(tmp_path / "out.mkv", "audio") == packets(source, "audio")


@pytest.mark.parametrize("suffix", [".webm", ".mp4", ".mov"])
def test_an_attachment_is_left_out_with_a_note_where_the_container_has_none(
    make: Any, upscale: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, suffix: str
) -> None:
    (tmp_path / "a.ttf").write_bytes(b"a font")
    attached = ["-attach", str(tmp_path / "a.ttf"), "-metadata:s:t", "mimetype=application/x-truetype-font"]
    source = make("in.mkv", *VIDEO, *H264, *attached)
    upscale(source, tmp_path / f"out{suffix}", stop="0.1")
    assert f"(a.ttf) does not fit into {suffix} and is left out: write .mkv to keep it" in caplog.text
    with av.open(str(tmp_path / f"out{suffix}")) as file:
        assert [stream.type for stream in file.streams] == ["video"]


@pytest.mark.parametrize(
    ("codec", "suffix"), [("flac", ".mov"), ("libopus", ".mov"), ("truehd", ".mov"), ("truehd", ".mp4")]
)
def test_audio_that_its_container_refuses_is_left_out_with_a_note(
    make: Any, upscale: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, codec: str, suffix: str
) -> None:
    source = make("in.mkv", *VIDEO, *AUDIO, *H264, "-c:a", codec, "-ar", "48000", "-strict", "-2")
    upscale(source, tmp_path / f"out{suffix}", stop="0.1")
    assert f" does not fit into {suffix} and is left out: write .mkv to keep it" in caplog.text
    with av.open(str(tmp_path / f"out{suffix}")) as file:
        assert [stream.type for stream in file.streams] == ["video"]


@pytest.mark.parametrize(
    ("name", "codec", "advice"),
    [("in.mov", "pcm_mulaw", "write .mov to keep it"), ("in.wmv", "wmav2", "no other output keeps it")],
)
def test_what_matroska_does_not_take_is_said_with_what_does(
    make: Any, upscale: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, codec: str, advice: str
) -> None:
    source = make(name, *VIDEO, *AUDIO, *H264, "-c:a", codec)
    upscale(source, tmp_path / "out.mkv", stop="0.1")
    said = f"audio stream 1 ({codec}) does not fit into .mkv and is left out: {advice}"
    assert said in [record.getMessage() for record in caplog.records]


def test_a_file_is_called_incomplete_if_its_end_is_missing_not_if_its_audio_is_longer(
    make: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sound = ["-f", "lavfi", "-i", "sine=frequency=440:duration=4"]
    longer = make("longer.mkv", *VIDEO, *sound, *H264, "-c:a", "pcm_s16le")
    late = make("late.mkv", *AUDIO, "-itsoffset", "3", *VIDEO, *H264, "-c:a", "pcm_s16le")
    for path in (longer, late):
        open_source(path, tmp_path)
    assert not [record for record in caplog.records if "announces" in record.getMessage()]
    longer.write_bytes(longer.read_bytes()[: longer.stat().st_size // 2])
    open_source(longer, tmp_path)
    (said,) = [record.getMessage() for record in caplog.records if "announces" in record.getMessage()]
    assert "longer.mkv announces 4.0 s, and " in said
    assert said.endswith("is the file complete?")


@pytest.mark.skipif(sys.platform == "win32", reason="no name of a file has a colon there")
def test_a_colon_in_a_relative_name_is_no_protocol(
    make: Any, upscale: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make("in.mkv", *VIDEO, *H264).rename(tmp_path / "Alien: Covenant.mkv")
    monkeypatch.chdir(tmp_path)
    upscale(Path("Alien: Covenant.mkv"), Path("Alien: large.mkv"), stop="0.1")
    assert described(tmp_path / "Alien: large.mkv")


def test_a_rotated_video_is_turned(make: Any, upscale: Any, tmp_path: Path) -> None:
    plain = make("plain.mp4", *VIDEO, *H264)
    source = make("in.mp4", "-display_rotation", "90", "-i", str(plain), "-c", "copy")
    assert described(source)["rotation"] == 90
    upscale(source, tmp_path / "out.mp4", stop="0.2")
    came = described(tmp_path / "out.mp4")
    assert (came["size"], came["rotation"]) == ((256, 384), 0)


@pytest.mark.parametrize("angle", [90, 180, 270])
def test_the_pixels_of_a_rotated_video_are_turned_with_it(make: Any, upscale: Any, tmp_path: Path, angle: int) -> None:
    plain = make("plain.mp4", *VIDEO, "-vf", "setsar=4/3", *H264)
    source = make("in.mp4", "-display_rotation", str(angle), "-i", str(plain), "-c", "copy")
    upscale(source, tmp_path / "out.mkv", stop="0.1")
    came = described(tmp_path / "out.mkv")
    assert came["sar"] == (Fraction(4, 3) if angle == 180 else Fraction(3, 4))


def test_one_frame_and_odd_sizes_are_upscaled(make: Any, upscale: Any, tmp_path: Path) -> None:
    one = make("one.mp4", *VIDEO, "-frames:v", "1", *H264)
    assert upscale(one, tmp_path / "out.mp4")["frames"] == 1
    odd = make(
        "odd.mkv",
        "-f",
        "lavfi",
        "-i",
        "color=red:size=47x33:rate=24:duration=0.2",
        "-c:v",
        "ffv1",
        "-pix_fmt",
        "yuv444p",
    )
    assert upscale(odd, tmp_path / "odd_out.mkv")["width"] == 188


def test_a_part_begins_at_zero_with_its_part_of_the_audio(make: Any, upscale: Any, tmp_path: Path) -> None:
    source = make("in.mkv", *VIDEO, *AUDIO, *H264, "-c:a", "pcm_s16le")
    upscale(source, tmp_path / "out.mkv", start="0.5", stop="0:00:00.75")
    came = described(tmp_path / "out.mkv")
    assert (came["seconds"][0], len(came["seconds"])) == (0, 6)
    audio = packets(tmp_path / "out.mkv", "audio")[0]
    wanted = [data for begin, data in packets(source, "audio")[0] if Fraction(1, 2) <= begin < Fraction(3, 4)]
    assert [data for _, data in audio] == wanted
    assert 0 <= audio[0][0] < Fraction(3, 100)


def test_the_output_has_the_size_that_was_asked_for_and_its_pixels_the_right_shape(
    make: Any, upscale: Any, tmp_path: Path
) -> None:
    source = make("in.mkv", *VIDEO, "-vf", "setsar=4/3", *H264)
    for choices, size in (({"scale": 2.0}, (192, 128)), ({"height": 100}, (150, 100)), ({"width": 120}, (120, 80))):
        upscale(source, tmp_path / f"{size}.mkv", stop="0.1", **choices)
        came = described(tmp_path / f"{size}.mkv")
        assert (came["size"], came["sar"]) == (size, Fraction(4, 3))
    upscale(source, tmp_path / "square.mkv", stop="0.1", width=96, height=96)
    assert described(tmp_path / "square.mkv")["sar"] == 2


@pytest.mark.parametrize("codec", ["libx264", "libx265", "libsvtav1", "ffv1", "prores_ks", "rawvideo"])
def test_every_usual_encoder_can_be_chosen(make: Any, upscale: Any, tmp_path: Path, codec: str) -> None:
    source = make("in.mkv", *VIDEO, *H264)
    upscale(source, tmp_path / "out.mkv", codec=codec, stop="0.3", segment_frames=1)
    came = described(tmp_path / "out.mkv")
    assert (came["size"], len(came["seconds"])) == ((384, 256), 8)


def test_a_quantizer_of_the_users_own_overrules_the_default_quality(make: Any, upscale: Any, tmp_path: Path) -> None:
    source = make("in.mkv", *VIDEO, *H264)
    upscale(source, tmp_path / "lossless.mkv", stop="0.1", encoder_options={"qp": "0"})
    upscale(source, tmp_path / "wanted.mkv", stop="0.1", codec="ffv1")
    assert frames_of(tmp_path / "lossless.mkv") == frames_of(tmp_path / "wanted.mkv")


@pytest.mark.parametrize("codec", ["libx264", "libx265", "libsvtav1", "libvpx-vp9"])
def test_a_bit_rate_of_the_users_own_overrules_the_default_quality(
    make: Any, upscale: Any, tmp_path: Path, codec: str
) -> None:
    source = make("in.mkv", *VIDEO, *H264)
    sizes = []
    for name, options in (("default", {}), ("low", {"b": "20k"})):
        upscale(source, tmp_path / f"{name}.mkv", stop="0.2", codec=codec, encoder_options=options)
        sizes.append((tmp_path / f"{name}.mkv").stat().st_size)
    assert sizes[1] < 0.7 * sizes[0]


@pytest.mark.parametrize(
    ("pix_fmt", "options", "tag"),
    [("yuv422p10le", {}, "apch"), ("yuva444p10le", {}, "ap4h"), ("yuv422p10le", {"profile": "proxy"}, "apco")],
)
def test_prores_says_its_profile_and_its_colours(
    make: Any, upscale: Any, tmp_path: Path, pix_fmt: str, options: dict[str, str], tag: str
) -> None:
    colours = "setparams=range=tv:colorspace=smpte170m:color_primaries=smpte170m:color_trc=smpte170m"
    source = make("in.mkv", *VIDEO, "-vf", colours, "-c:v", "ffv1", "-pix_fmt", pix_fmt)
    upscale(source, tmp_path / "out.mov", codec="prores_ks", stop="0.1", encoder_options=options)
    with av.open(str(tmp_path / "out.mov")) as file:
        context: Any = file.streams.video[0].codec_context
        frame: Any = next(file.decode(video=0))
    assert context.codec_tag == tag
    assert (frame.color_range, frame.colorspace, frame.color_primaries, frame.color_trc) == (1, 6, 6, 6)


@pytest.mark.parametrize("suffix", [".MP4", ".m4v", ".mov"])
def test_hevc_has_the_tag_that_players_of_apple_ask_for(make: Any, upscale: Any, tmp_path: Path, suffix: str) -> None:
    source = make("in.mkv", *VIDEO, *H264)
    upscale(source, tmp_path / f"out{suffix}", codec="libx265", stop="0.1")
    with av.open(str(tmp_path / f"out{suffix}")) as file:
        context: Any = file.streams.video[0].codec_context
        assert context.codec_tag == "hvc1"
        assert next(file.decode(video=0)).width == 384


@pytest.mark.parametrize(
    ("make_source", "name", "said"),
    [
        (None, "out.mkv", "there is no file"),
        ([*AUDIO, "-c:a", "aac"], "out.mkv", "has no video"),
        ([*VIDEO, *H264], "out.xyz", "outputs are .mkv"),
        ([*VIDEO, *H264], "nowhere/out.mkv", "there is no folder"),
        ([*VIDEO, *H264], "in.mkv", "is the source itself"),
        ([*VIDEO, "-vf", "interlace,fieldorder=tff", *H264, "-flags", "+ilme+ildct"], "out.mkv", "is interlaced"),
    ],
)
def test_what_cannot_be_upscaled_ends_in_one_line(
    make: Any, upscale: Any, tmp_path: Path, make_source: list[str] | None, name: str, said: str
) -> None:
    source = make("in.mkv", *make_source) if make_source else tmp_path / "in.mkv"
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match=said) as caught:
        upscale(source, tmp_path / name)
    assert "\n" not in str(caught.value)
    assert [path for path in sorted(tmp_path.iterdir()) if path not in before and path.suffix != ".rbvsr"] == []


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        ({"codec": "libnothing"}, "there is no encoder 'libnothing'"),
        ({"codec": "aac"}, "not video"),
        ({"preset": "sluggish"}, "does not take preset=sluggish|does not take .*sluggish"),
        ({"start": "1:2:3:4"}, "--start takes seconds"),
        ({"start": "5"}, "no frame lies between"),
        ({"deinterlace": "yadif"}, "--deinterlace takes bwdif"),
    ],
)
def test_wrong_choices_end_in_one_line(
    make: Any, upscale: Any, tmp_path: Path, choices: dict[str, str], said: str
) -> None:
    source = make("in.mkv", *VIDEO, *H264)
    with pytest.raises(UserError, match=said) as caught:
        upscale(source, tmp_path / "out.mkv", **choices)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out.mkv").exists()
