"""HDR is computed in the gamma that the network knows, Dolby Vision is refused, and alpha is kept where codecs can."""

import struct
import subprocess
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import vapoursynth as vs

from vsrealbasicvsr.app.hdr import Light, from_network, light_of, to_network
from vsrealbasicvsr.app.job import Choices
from vsrealbasicvsr.app.opening import open_job
from vsrealbasicvsr.app.progress import PlainReporter
from vsrealbasicvsr.app.rendering import upscaled
from vsrealbasicvsr.app.source import open_source
from vsrealbasicvsr.app.upscaling import upscale_file
from vsrealbasicvsr.errors import UserError

PQ, HLG, BT2020 = 16, 18, 9
RAMP = np.linspace(64, 940, 64).round().astype(np.uint16)


def ramp(transfer: int) -> vs.VideoNode:
    """A grey ramp over the whole of a signal of 10 bits and limited range."""
    blank = vs.core.std.BlankClip(width=64, height=8, format=vs.YUV420P10, length=1, color=[64, 512, 512])

    def fill(n: int, f: vs.VideoFrame) -> vs.VideoFrame:
        made = f.copy()
        np.asarray(made[0])[:] = RAMP
        return made

    props = {"_Matrix": BT2020, "_Transfer": transfer, "_Primaries": BT2020, "_Range": 0}
    return blank.std.ModifyFrame(blank, fill).std.SetFrameProps(**props)


@pytest.mark.parametrize("transfer", [PQ, HLG])
def test_the_whole_range_of_light_goes_to_the_network_and_back(transfer: int) -> None:
    light = Light(matrix=BT2020, primaries=BT2020, transfer=transfer, color_range=0)
    clip = ramp(transfer)
    encoded = to_network(clip, light)
    with encoded.get_frame(0) as frame:
        samples = np.asarray(frame[1])[0]
    assert np.all(np.diff(samples) > 0)  # nothing is clipped
    assert samples[0] == pytest.approx(0, abs=0.01)
    assert samples[-1] == pytest.approx(10 ** (1 / 2.4) if transfer == PQ else 1, abs=0.01)
    with from_network(encoded, clip.format, light).get_frame(0) as frame:
        back = np.asarray(frame[0])[0].astype(int)
        assert {int(value) for value in (frame.props["_Transfer"], frame.props["_Matrix"])} == {transfer, BT2020}
    assert np.max(np.abs(back - RAMP)) <= 1


@pytest.mark.parametrize("location", [0, 1, 2])
def test_chroma_samples_stay_where_they_were(location: int) -> None:
    """HDR of discs and streams has them at the top left (2), and the output is tagged as its source."""
    props = {"_Matrix": BT2020, "_Transfer": PQ, "_Primaries": BT2020, "_Range": 0, "_ChromaLocation": location}
    blank = vs.core.std.BlankClip(width=32, height=32, format=vs.YUV420P10, length=1, color=[400, 512, 512])
    slope = np.linspace(400, 624, 16).round().astype(np.uint16)

    def fill(n: int, f: vs.VideoFrame) -> vs.VideoFrame:
        made = f.copy()
        np.asarray(made[1])[:] = slope
        np.asarray(made[2])[:] = slope[:, None]
        return made

    clip = blank.std.ModifyFrame(blank, fill).std.SetFrameProps(**props)
    light = light_of(props, matrix=BT2020, color_range=0)
    assert light is not None
    with from_network(to_network(clip, light), clip.format, light).get_frame(0) as frame:
        assert int(frame.props["_ChromaLocation"]) == location
        for plane, wanted in ((1, slope[None]), (2, slope[:, None])):
            off = (np.asarray(frame[plane]).astype(int) - wanted)[4:-4, 4:-4]
            assert np.max(np.abs(off)) <= 1


def test_interlaced_light_is_taken_as_progressive() -> None:
    """--force lets it pass; of a height that is no multiple of 4 core.resize would convert no fields."""
    clip = ramp(PQ).std.AddBorders(bottom=2).std.SetFrameProps(_FieldBased=2)
    light = Light(matrix=BT2020, primaries=BT2020, transfer=PQ, color_range=0)
    with to_network(clip, light).get_frame(0) as frame:
        assert frame.height == 10


def test_reference_white_of_sdr_has_more_than_half_of_the_network_s_contrast() -> None:
    """203 cd/m2 (BT.2408) is 58 % of PQ."""
    light = Light(matrix=BT2020, primaries=BT2020, transfer=PQ, color_range=0)
    clip = vs.core.std.BlankClip(width=16, height=16, format=vs.YUV420P10, length=1, color=[573, 512, 512])
    with to_network(clip, light).get_frame(0) as frame:
        assert np.asarray(frame[1])[0, 0] == pytest.approx(0.203 ** (1 / 2.4), abs=0.005)


@pytest.fixture
def make(ffmpeg: Path, tmp_path: Path) -> Any:
    """Make a file by ffmpeg: make(name, *arguments)."""

    def run(name: str, *arguments: str) -> Path:
        command = [str(ffmpeg), "-y", "-nostdin", "-v", "error", *arguments, str(tmp_path / name)]
        subprocess.run(command, check=True, timeout=60)
        return tmp_path / name

    return run


def upscale(source: Path, output: Path, model: Path, **choices: Any) -> None:
    arguments = {"model": str(model), "device": "cpu"}
    upscale_file(source, output, Choices(upscale=arguments, **choices), PlainReporter(as_json=True))


@pytest.mark.long
def test_flat_light_of_every_strength_stays_as_it_is(make: Any, tmp_path: Path) -> None:
    setparams = "setparams=range=tv:colorspace=bt2020nc:color_primaries=bt2020:color_trc=smpte2084"
    for code in (200, 573, 760, 900):
        geq = f"color=black:size=16x16:rate=25:duration=0.12,format=yuv420p10le,geq=lum={code}:cb=512:cr=512"
        source = make(f"{code}.mkv", "-f", "lavfi", "-i", f"{geq},{setparams}", "-c:v", "ffv1")
        opened = open_source(source, tmp_path)
        with upscaled(opened, Choices(upscale={"device": "cpu", "detail": 0.0}), (0, 3)).get_frame(1) as frame:
            assert frame.format.name == "YUV420P10"
            middle = np.asarray(frame[0])[24:40, 24:40].astype(int)
        assert np.max(np.abs(middle - code)) <= 12, code


@pytest.mark.long
@pytest.mark.parametrize("transfer", ["smpte2084", "bt709"])
def test_a_job_of_hdr_is_of_its_conversion(make: Any, tiny_model: Path, tmp_path: Path, transfer: str) -> None:
    """Else frames of two conversions could be joined."""
    picture = f"testsrc2=size=16x16:rate=25:duration=0.12,format=yuv420p10le,setparams=color_trc={transfer}"
    source = make("in.mkv", "-f", "lavfi", "-i", picture, "-c:v", "ffv1")
    choices = Choices(upscale={"model": str(tiny_model), "device": "cpu"}, codec="ffv1")
    job, *_ = open_job(source, tmp_path / "out.mkv", choices)
    found = job.identity.get("conversion of HDR", {})
    assert (found.get("transfer"), found.get("peak_nits")) == (
        (PQ, 1000.0) if transfer == "smpte2084" else (None, None)
    )


def with_dolby_vision(mp4: bytes) -> bytes:
    """Insert a box dvvC, of profile 8.1, at the end of the first sample entry of an .mp4 whose moov comes last."""
    profile, level, flags, compatibility = 8, 1, 0b101, 1
    configuration = bytes([1, 0]) + (profile << 9 | level << 3 | flags).to_bytes(2, "big") + bytes([compatibility << 4])
    box = struct.pack(">I", 8 + 24) + b"dvvC" + configuration + bytes(24 - len(configuration))
    entry = mp4.index(b"hvc1", mp4.index(b"stsd")) - 4
    end = entry + struct.unpack(">I", mp4[entry : entry + 4])[0]
    made = bytearray(mp4[:end] + box + mp4[end:])
    for name in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"hvc1"):
        at = made.index(name, mp4.index(b"moov")) - 4
        made[at : at + 4] = struct.pack(">I", struct.unpack(">I", made[at : at + 4])[0] + len(box))
    return bytes(made)


@pytest.mark.long
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_dolby_vision_is_refused_unless_forced(make: Any, tiny_model: Path, tmp_path: Path, suffix: str) -> None:
    pattern = ["-f", "lavfi", "-i", "testsrc2=size=64x48:rate=24:duration=0.2", "-pix_fmt", "yuv420p10le"]
    source = make("in.mp4", *pattern, "-c:v", "libx265", "-tag:v", "hvc1", "-x265-params", "log-level=error")
    source.write_bytes(with_dolby_vision(source.read_bytes()))
    if suffix == ".mkv":
        source = make("in.mkv", "-i", str(source), "-c", "copy", "-strict", "unofficial")
    with pytest.raises(UserError, match="is Dolby Vision, whose metadata would not fit the upscaled picture: add"):
        upscale(source, tmp_path / "out.mkv", tiny_model)
    upscale(source, tmp_path / "out.mkv", tiny_model, force=True)
    with av.open(str(tmp_path / "out.mkv")) as file:
        context: Any = file.streams.video[0].codec_context
        assert "dovi_conf" not in context.coded_side_data


def alpha_of(path: Path, decoder: str | None = None) -> np.ndarray[Any, Any]:
    """The alpha plane of the first frame, one row of it, of 8 bits."""
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        if decoder is None:
            frame = next(file.decode(stream))
        else:
            context: Any = av.CodecContext.create(decoder, "r")
            frame = next(frame for packet in file.demux(stream) for frame in context.decode(packet))
        return frame.reformat(format="rgba").to_ndarray()[16, :, 3].astype(int)


@pytest.mark.long
@pytest.mark.parametrize(
    ("pix_fmt", "name", "codec", "decoder"),
    [
        ("yuva420p", "out.mkv", "ffv1", None),
        ("yuva444p10le", "out.mov", "prores_ks", None),
        ("yuva420p", "out.webm", None, "libvpx-vp9"),
        ("yuva420p", "out.mkv", "libvpx-vp9", "libvpx-vp9"),
        ("gbrap", "out.webm", None, "libvpx-vp9"),
        ("yuva444p", "out.webm", None, "libvpx-vp9"),
        ("gbrap", "out.mov", "png", None),
        ("gbrap", "out.mkv", "ffv1", None),
        ("yuva420p", "out.mov", "png", None),
    ],
)
def test_alpha_is_kept_where_the_codec_can(
    make: Any, tiny_model: Path, tmp_path: Path, pix_fmt: str, name: str, codec: str | None, decoder: str | None
) -> None:
    picture = "testsrc2=size=64x48:rate=25:duration=0.12,format=rgba,geq=r='r(X,Y)':g='g(X,Y)':b='b(X,Y)':a='4*X'"
    source = make("in.mkv", "-f", "lavfi", "-i", picture, "-c:v", "ffv1", "-pix_fmt", pix_fmt)
    for choices, scale in (({}, 4), ({"scale": 2.0}, 2)):
        output = tmp_path / f"{scale}-{name}"
        upscale(source, output, tiny_model, codec=codec, segment_frames=1, **choices)
        wanted = (np.arange(64 * scale) + 0.5) * 4 / scale - 2  # the ramp, between its centres
        assert np.max(np.abs(alpha_of(output, decoder) - wanted)[8:-8]) <= 3


@pytest.mark.long
def test_alpha_that_is_dropped_is_said(
    make: Any, tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pattern = ["-f", "lavfi", "-i", "testsrc2=size=64x48:rate=25:duration=0.12,format=yuva420p"]
    upscale(make("in.mkv", *pattern, "-c:v", "ffv1"), tmp_path / "out.mkv", tiny_model)
    assert said(caplog) == ["the alpha plane is dropped, which libx264 does not keep: --codec ffv1 does"]
    caplog.clear()
    upscale(make("in.webm", *pattern, "-c:v", "libvpx-vp9"), tmp_path / "vp9.mkv", tiny_model, codec="ffv1")
    (line,) = said(caplog)
    assert line.endswith("in.webm is dropped: the decoder of VP8 and VP9 does not deliver it")


@pytest.mark.long
def test_a_webm_of_more_than_8_bits_keeps_10_or_says_that_it_does_not(
    make: Any, tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    picture = "testsrc2=size=16x16:rate=25:duration=0.12,format=yuv420p10le,setparams=color_trc=smpte2084"
    source = make("in.mkv", "-f", "lavfi", "-i", picture, "-c:v", "ffv1")
    formats = []
    for name, codec in (("default.webm", None), ("vp9.webm", "libvpx-vp9"), ("mpeg4.mkv", "mpeg4")):
        upscale(source, tmp_path / name, tiny_model, codec=codec)
        with av.open(str(tmp_path / name)) as file:
            formats.append(next(file.decode(video=0)).format.name)
    assert formats == ["yuv420p10le", "yuv420p", "yuv420p"]
    lost = "the source's 10 bits per sample become 8, which is all that"
    assert said(caplog) == [
        f"{lost} libvpx-vp9 takes: --codec libsvtav1 keeps 10",
        f"{lost} mpeg4 takes: write .mkv with --codec ffv1 to keep them",
    ]


def flat(path: Path, pix_fmt: str, samples: tuple[int, ...], **colours: int) -> Path:
    """A video of three frames of one colour, whose planes have these samples."""
    with av.open(str(path), "w") as file:
        stream: Any = file.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 16, 16, pix_fmt
        for name, value in colours.items():
            setattr(stream.codec_context, name, value)
        for n in range(3):
            frame: Any = av.VideoFrame(16, 16, pix_fmt)
            for plane, sample in zip(frame.planes, samples, strict=True):
                plane.update(bytes([sample]) * plane.buffer_size)
            frame.pts = n
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def shown(path: Path) -> np.ndarray[Any, Any]:
    """The mean colour of the first frame, as what it and the file say of it lets a player show it."""
    with av.open(str(path)) as file:
        return next(file.decode(video=0)).reformat(format="rgb24").to_ndarray().mean((0, 1))


@pytest.mark.long
@pytest.mark.parametrize(
    ("codec", "name"),
    [
        ("prores_ks", "out.mov"),
        ("v210", "out.mov"),
        ("cfhd", "out.mov"),
        ("jpeg2000", "out.mov"),
        ("mpeg4", "out.mp4"),
        ("mpeg2video", "out.mp4"),
        ("mpeg2video", "out.mkv"),
        ("libvpx", "out.webm"),
        ("ffv1", "out.mp4"),
        ("jpeg2000", "out.mkv"),
        ("libx264", "out.mp4"),
        ("libsvtav1", "out.webm"),
    ],
)
def test_full_range_is_shown_in_its_colours_by_every_codec(
    tiny_model: Path, tmp_path: Path, codec: str, name: str
) -> None:
    source = flat(tmp_path / "in.mkv", "yuv420p", (90, 108, 190), color_range=2, colorspace=6)
    upscale(source, tmp_path / "wanted.mkv", tiny_model, codec="ffv1")
    upscale(source, tmp_path / name, tiny_model, codec=codec)
    assert np.max(np.abs(shown(tmp_path / name) - shown(tmp_path / "wanted.mkv"))) <= 3


@pytest.mark.long
@pytest.mark.parametrize("pix_fmt", ["gray", "ya8"])
@pytest.mark.parametrize(
    ("codec", "name"), [("libsvtav1", "out.mkv"), (None, "out.webm"), ("mpeg4", "out.mkv"), ("ffv1", "out.mkv")]
)
def test_white_of_grey_sources_stays_white(
    tiny_model: Path, tmp_path: Path, pix_fmt: str, codec: str | None, name: str
) -> None:
    source = flat(tmp_path / "in.mkv", pix_fmt, (255,), color_range=2)
    upscale(source, tmp_path / "wanted.mkv", tiny_model, codec="libx264")  # takes grey
    upscale(source, tmp_path / name, tiny_model, codec=codec)
    assert np.max(np.abs(shown(tmp_path / name) - shown(tmp_path / "wanted.mkv"))) <= 3


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("vsrealbasicvsr")]
