"""A video at four times the size, made as a user would make it: vspipe, a .vpy script, a pipe, ffmpeg.

    python scripts/demo.py                                          a low-quality clip is made first
    python scripts/demo.py --input in.mp4 --frames 48 --out demo

Leaves OUT/NAME_x4.mp4 (or .mkv) with the input's number of frames, time stamps, colours and audio, and OUT/NAME_x4.png:
a frame enlarged by bicubic interpolation beside the same frame upscaled. Nothing half-written stays behind. Only what
the pipe cannot carry is done here: time stamps, audio, and the words for what went wrong.
"""

import argparse
import heapq
import importlib.util
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import av
import imageio_ffmpeg
import numpy as np
import vapoursynth as vs
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from skimage import data
from tqdm import tqdm

from vsrealbasicvsr.errors import printable, shown_path

SCALE = 4
SCRIPT = Path(__file__).with_name("upscale.vpy")
OPTIONS: Mapping[str, type] = {
    "theta": float,
    "model": str,
    "length": int,
    "overlap": int,
    "scene_cuts": str,
    "device": str,
    "precision": str,
    "tile": int,
    "detail": float,
    "cleaning": float,
}
"""Arguments of rbvsr.Upscale that are passed on, and of what kind they are."""
CRF = 16
MP4_AUDIO_CODECS = frozenset({"aac", "ac3", "alac", "eac3", "flac", "mp3", "opus"})
MAX_RATE_DEVIATION = 0.02
SIDE_MAX_WIDTH_PX, SIDE_MAX_HEIGHT_PX = 800, 640

MAX_ERROR_LENGTH = 1000

SAMPLE_NUM_FRAMES = 32
SAMPLE_WIDTH_PX, SAMPLE_HEIGHT_PX = 160, 112
SAMPLE_RATE = Fraction(24000, 1001)
SAMPLE_BLUR_SIGMA_PX = 1.6
"""Of the high-resolution photograph, before it is made four times smaller."""
SAMPLE_NOISE_SIGMA = 5 / 255
SAMPLE_CRF = 28

PROGRESS = re.compile(rb"Frame: (\d+)/\d+")
REASON = re.compile(r"^(?:Python exception|Error): (.+)$", re.MULTILINE)


class DemoError(Exception):
    """What went wrong, in words for the user."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """When each frame is shown: `pts` and the end of the last frame, in units of `time_base` seconds."""

    pts: tuple[int, ...]
    end: int
    time_base: Fraction

    def seconds(self) -> list[Fraction]:
        return [pts * self.time_base for pts in self.pts]

    def durations(self) -> list[int]:
        return [after - pts for pts, after in zip(self.pts, (*self.pts[1:], self.end), strict=True)]

    def mean_rate(self) -> Fraction:
        """Frames per second."""
        return len(self.pts) / ((self.end - self.pts[0]) * self.time_base)


# ---- the source ------------------------------------------------------------------------------------------------------


def make_sample(path: Path) -> None:
    """Write the low-quality clip: a photograph, moved and zoomed, blurred, made smaller, noisy, compressed by H.264."""
    photograph = Image.fromarray(data.stereo_motorcycle()[0])  # type: ignore[no-untyped-call]
    blurred = photograph.filter(ImageFilter.GaussianBlur(SAMPLE_BLUR_SIGMA_PX))
    size = SAMPLE_WIDTH_PX, SAMPLE_HEIGHT_PX
    random = np.random.default_rng(0)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=SAMPLE_RATE, options={"crf": str(SAMPLE_CRF)})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for n in range(SAMPLE_NUM_FRAMES):
            progress = n / (SAMPLE_NUM_FRAMES - 1)
            scale, left, top = SCALE * (1 - 0.1 * progress), 60 + 60 * progress, 30
            view = blurred.transform(
                size, Image.Transform.AFFINE, (scale, 0, left, 0, scale, top), Image.Resampling.BICUBIC
            )
            noisy = np.asarray(view) / 255 + random.normal(0, SAMPLE_NOISE_SIGMA, (*size[::-1], 3))
            rgb = (noisy.clip(0, 1) * 255).round().astype(np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        file.mux(stream.encode())


def open_clip(path: Path, index_folder: Path) -> tuple[vs.VideoNode, Timeline]:
    """The frames of a video file and their time stamps, as the script will see them. Raises DemoError."""
    logging.getLogger("vapoursynth").setLevel(logging.ERROR)  # it warns of the return values that are asked for here
    source = partial(vs.core.bs.VideoSource, str(path), cachepath=str(index_folder), showprogress=False)
    try:
        opened = source(exporttimestamps=True)
    except vs.Error as error:
        raise DemoError(f"{path} is not a video that can be read ({error})") from None
    clip, pts = opened["clip"], opened["timestamps"]
    time_base = Fraction(opened["timebasenum"], opened["timebaseden"])
    if not clip.width or clip.format is None:
        raise DemoError(f"{path} changes its size or format on the way. Convert it to one size first.")
    pts = [pts] if isinstance(pts, int) else list(pts)
    if len(pts) != clip.num_frames or any(before >= after for before, after in pairwise(pts)):
        time_base = 1 / clip.fps  # no usable time stamps in the file: the frame rate must do
        pts = list(range(clip.num_frames))
    frame_duration = pts[-1] - pts[-2] if len(pts) > 1 else max(1, round(1 / (clip.fps * time_base)))
    end = pts[-1] + (last_duration(path, pts[-1], time_base) or frame_duration)
    return clip, Timeline(pts=tuple(pts), end=end, time_base=time_base)


def last_duration(path: Path, last_pts: int, time_base: Fraction) -> int | None:
    """How long the last frame is shown, in units of time_base, where the file says so."""
    with av.open(str(path)) as file:
        durations = {packet.pts: packet.duration for packet in file.demux(video=0) if packet.time_base == time_base}
    return durations.get(last_pts) or None


def shortened(timeline: Timeline, num_frames: int) -> Timeline:
    """The first `num_frames` frames."""
    if num_frames >= len(timeline.pts):
        return timeline
    return Timeline(pts=timeline.pts[:num_frames], end=timeline.pts[num_frames], time_base=timeline.time_base)


# ---- vspipe | ffmpeg -------------------------------------------------------------------------------------------------


def find_vspipe() -> Path:
    """The program itself, not the launcher in bin/, which would not pass a signal on."""
    spec = importlib.util.find_spec("vapoursynth")
    folder = Path(spec.origin).parent if spec and spec.origin else Path()
    found = shutil.which("vspipe", path=str(folder))
    if not found:
        raise DemoError(f"there is no vspipe in {folder}. Reinstall it: pip install --force-reinstall vapoursynth")
    return Path(found)


def find_ffmpeg() -> Path:
    """The ffmpeg on PATH if it can encode H.264, else the one that the package imageio-ffmpeg carries."""
    on_path = shutil.which("ffmpeg")
    if on_path:
        encoders = subprocess.run([on_path, "-v", "quiet", "-encoders"], capture_output=True, text=True, check=False)
        if "libx264" in encoders.stdout:
            return Path(on_path)
    return Path(imageio_ffmpeg.get_ffmpeg_exe())


def vspipe_environment(folder: Path) -> dict[str, str]:
    """Variables under which vspipe finds this Python, and BestSource its index; nothing is written outside `folder`."""
    environment = {**os.environ, "XDG_CONFIG_HOME": str(folder), "XDG_CACHE_HOME": str(folder)}
    python = Path(sys.executable)
    python = python.parent.resolve() / python.name  # vspipe looks itself up by its real path
    subprocess.run([str(python), "-m", "vapoursynth", "config"], env=environment, capture_output=True, check=False)
    return environment


def colour_filter(clip: vs.VideoNode) -> str:
    """An ffmpeg filter that names the frames' colours, for y4m cannot, and changes none of them.

    A matrix that the source leaves open is named as rbvsr.Upscale understood it: players guess by the height, which is
    not the same any more.
    """
    props: Mapping[str, Any] = clip.get_frame(0).props
    if clip.format.color_family == vs.RGB:
        return "setparams=range=tv:colorspace=bt709"  # as scripts/upscale.vpy converts it
    matrix = props.get("_Matrix", 2)
    if matrix in (0, 2):
        matrix = 6 if clip.height <= 576 else 1
    full = props.get("_Range", vs.RANGE_LIMITED) == vs.RANGE_FULL
    tags = {"range": "pc" if full else "tv", "colorspace": int(matrix)}
    for name, prop in (("color_primaries", "_Primaries"), ("color_trc", "_Transfer")):
        if props.get(prop, 2) != 2:
            tags[name] = int(props[prop])
    return "setparams=" + ":".join(f"{name}={value}" for name, value in tags.items())


def nominal_rate(clip: vs.VideoNode, timeline: Timeline) -> Fraction:
    """The rate to tell the encoder: the clip's own; the mean where that is not what it has (a variable rate)."""
    mean = timeline.mean_rate().limit_denominator(1001)
    return Fraction(clip.fps) if abs(clip.fps / mean - 1) < MAX_RATE_DEVIATION else mean


def upscale(source: Path, clip: vs.VideoNode, timeline: Timeline, options: Mapping[str, str], folder: Path) -> Path:
    """Pipe the frames through vspipe and ffmpeg; they come out encoded, in a file in `folder`. Raises DemoError."""
    num_frames = len(timeline.pts)
    encoded = folder / "encoded.mkv"
    given = {"source": str(source.resolve()), "frames": str(num_frames), **options}
    arguments = [text for name, value in given.items() for text in ("--arg", f"{name}={value}")]
    vspipe = [str(find_vspipe()), "-p", "-c", "y4m", *arguments, str(SCRIPT), "-"]
    ffmpeg = [str(find_ffmpeg()), "-nostdin", "-v", "error", "-f", "yuv4mpegpipe"]
    ffmpeg += ["-r", str(nominal_rate(clip, timeline)), "-i", "-"]
    # No B-frames: packets come in the order of the frames, and `mux` may count them.
    ffmpeg += ["-vf", colour_filter(clip), "-c:v", "libx264", "-crf", str(CRF), "-bf", "0", str(encoded)]
    environment = vspipe_environment(folder)
    log = folder / "ffmpeg.log"
    with (
        log.open("wb") as ffmpeg_errors,
        running(vspipe, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as producer,
        running(ffmpeg, stdin=producer.stdout, stdout=ffmpeg_errors, stderr=ffmpeg_errors) as consumer,
    ):
        assert producer.stdout is not None
        assert producer.stderr is not None
        producer.stdout.close()  # ffmpeg alone holds the end of the pipe: if it dies, vspipe learns of it
        said = follow(producer.stderr, num_frames)
        codes = producer.wait(), consumer.wait()
    check(codes, said, log.read_text(errors="replace"))
    return encoded


@contextmanager
def running(command: list[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A process that does not outlive this block."""
    process = subprocess.Popen(command, **options)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def follow(stderr: IO[bytes], num_frames: int) -> str:
    """Show vspipe's progress until it ends; everything else that it said."""
    said, rest = [], b""
    with tqdm(total=num_frames, desc="upscaling", unit="frame", smoothing=0) as bar:
        while chunk := os.read(stderr.fileno(), 1 << 16):
            *lines, rest = re.split(rb"[\r\n]", rest + chunk)
            for line in lines:
                if match := PROGRESS.match(line):
                    bar.update(int(match.group(1)) - bar.n)
                else:
                    said.append(line)
        said.append(rest)
        text = b"\n".join(said).decode(errors="replace")
        if not REASON.search(text):
            bar.update(num_frames - bar.n)  # vspipe tells of every half second only, not of its last frame
    return text


def check(codes: tuple[int, int], vspipe_said: str, ffmpeg_said: str) -> None:
    """Raise DemoError, in one line, if vspipe or ffmpeg failed; the first to fail pulls the other along."""
    vspipe_code, ffmpeg_code = codes
    broken_pipe = vspipe_code == -getattr(signal, "SIGPIPE", 0) or "fwrite" in vspipe_said
    if vspipe_code and not (ffmpeg_code and broken_pipe):
        raise DemoError(f"vspipe {ending(vspipe_code)}: {reason(vspipe_said)}")
    if ffmpeg_code:
        raise DemoError(f"ffmpeg {ending(ffmpeg_code)}: {reason(ffmpeg_said)}")


def ending(code: int) -> str:
    """How a process ended: a negative code is a signal's."""
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"failed with exit code {code}"


def reason(said: str) -> str:
    """What a program gives as its reason, else its last words."""
    found = REASON.findall(said)
    # VapourSynth puts a Python traceback after this; its last line has the words of the exception.
    if found and not found[-1].rstrip().endswith("with error:"):
        return str(found[-1])
    return " | ".join([line.strip() for line in said.splitlines() if line.strip()][-3:]) or "it said nothing"


# ---- the result ------------------------------------------------------------------------------------------------------


def result_suffix(source: Path) -> str:
    """The container for the result: the source's own kind, if it is one of three; else .mp4 if the audio fits into it.

    .mp4 and .mov keep time stamps exactly, .mkv takes every audio codec.
    """
    known = {".mp4": ".mp4", ".m4v": ".mp4", ".mov": ".mov", ".mkv": ".mkv", ".webm": ".mkv"}
    if source.suffix.lower() in known:
        return known[source.suffix.lower()]
    with av.open(str(source)) as file:
        codecs = {stream.codec_context.codec.canonical_name for stream in file.streams.audio}
    return ".mp4" if codecs <= MP4_AUDIO_CODECS else ".mkv"


def mux(encoded: Path, source: Path, timeline: Timeline, path: Path, *, whole: bool) -> None:
    """Write `path`: the encoded frames at the source's time stamps, and its audio as it is.

    whole: all of the audio; else only what begins before the last frame ends.
    """
    options = {} if path.suffix == ".mkv" else {"movie_timescale": str(timeline.time_base.denominator)}
    end = timeline.end * timeline.time_base
    with (
        av.open(str(encoded)) as video,
        av.open(str(source)) as original,
        av.open(str(path), "w", options=options) as out,
    ):
        video_stream = out.add_stream_from_template(video.streams.video[0])
        video_stream.time_base = timeline.time_base
        audio_streams = {}
        for stream in original.streams.audio:
            audio_streams[stream.index] = out.add_stream_from_template(stream)
            audio_streams[stream.index].metadata.update(stream.metadata)

        def video_packets() -> Iterator[Any]:
            packets = (packet for packet in video.demux(video=0) if packet.size)
            for packet, pts, duration in zip(packets, timeline.pts, timeline.durations(), strict=True):
                packet.stream, packet.time_base = video_stream, timeline.time_base
                packet.pts = packet.dts = pts
                packet.duration = duration
                yield packet

        def audio_packets() -> Iterator[Any]:
            for packet in original.demux(list(original.streams.audio)) if audio_streams else ():
                if packet.size and (whole or begin(packet) < end):
                    packet.stream = audio_streams[packet.stream_index]
                    yield packet

        for packet in heapq.merge(video_packets(), audio_packets(), key=begin):
            out.mux(packet)


def begin(packet: Any) -> Fraction:
    """When a packet's content begins, in seconds."""
    ticks = packet.pts if packet.pts is not None else packet.dts
    return (ticks or 0) * Fraction(packet.time_base)


def check_result(clip: vs.VideoNode, found: Timeline, wanted: Timeline, suffix: str) -> None:
    """Raise DemoError unless the result has the wanted frames at the wanted times (Matroska counts milliseconds)."""
    if clip.num_frames != len(wanted.pts):
        raise DemoError(f"the result has {clip.num_frames} frames, the source has {len(wanted.pts)}")
    tolerance_seconds = Fraction(1, 1000) if suffix == ".mkv" else 0
    for n, (has, should) in enumerate(zip(found.seconds(), wanted.seconds(), strict=True)):
        if abs(has - should) > tolerance_seconds:
            raise DemoError(f"frame {n} of the result is shown at {float(has):.6f} s, not at {float(should):.6f} s")


def side_by_side(source: vs.VideoNode, result: vs.VideoNode, n: int) -> Image.Image:
    """The middle of frame n of the source, enlarged by bicubic interpolation, beside that of the result."""
    enlarged = picture(source, n, size=(result.width, result.height))
    ours = picture(result, n, size=(result.width, result.height))
    width, height = min(ours.width, SIDE_MAX_WIDTH_PX), min(ours.height, SIDE_MAX_HEIGHT_PX)
    left, top = (ours.width - width) // 2, (ours.height - height) // 2
    both = Image.new("RGB", (2 * width, height))
    draw = ImageDraw.Draw(both)
    for x, (image, label) in {0: (enlarged, "bicubic"), width: (ours, "rbvsr.Upscale")}.items():
        both.paste(image.crop((left, top, left + width, top + height)), (x, 0))
        font = ImageFont.load_default(max(10, min(18, width // 20)))
        draw.text((x + 6, 4), label, font=font, fill="white", stroke_width=2, stroke_fill="black")
    return both


def picture(clip: vs.VideoNode, n: int, *, size: tuple[int, int]) -> Image.Image:
    """Frame n at this size, as 8 bit RGB."""
    one = clip[n]
    arguments = {}
    if clip.format.color_family != vs.RGB and one.get_frame(0).props.get("_Matrix", 2) in (0, 2):
        arguments["matrix_in"] = 6 if clip.height <= 576 else 1
    frame = one.resize.Bicubic(*size, format=vs.RGB24, **arguments).get_frame(0)
    return Image.fromarray(np.stack([np.asarray(frame[plane]) for plane in range(3)], axis=-1))


# ---- all together ----------------------------------------------------------------------------------------------------


def demo(source: Path | None, out: Path, *, frames: int | None, options: Mapping[str, str]) -> str:
    """Run the whole of it; a line that says what came out. Raises DemoError."""
    with folder_in(out) as folder:  # everything is made in here, and moved to `out` when it is whole
        if source is None:
            source = out / "sample.mp4"
            make_sample(folder / source.name)
            (folder / source.name).replace(source)
        clip, timeline = open_clip(source, folder / "bsindex")
        num_frames = min(frames or clip.num_frames, clip.num_frames)
        wanted = shortened(timeline, num_frames)

        start = time.perf_counter()
        encoded = upscale(source, clip, wanted, options, folder)
        seconds = time.perf_counter() - start

        video = folder / f"{source.stem}_x4{result_suffix(source)}"
        try:
            mux(encoded, source, wanted, video, whole=num_frames == clip.num_frames)
        except av.FFmpegError as error:
            raise DemoError(f"{video.name} could not be written with the audio of {source.name} ({error})") from error
        result, found = open_clip(video, folder / "result")
        check_result(result, found, wanted, video.suffix)
        image = folder / f"{source.stem}_x4.png"
        side_by_side(clip, result, num_frames // 2).save(image)
        for file in (video, image):
            file.replace(out / file.name)
    return (
        f"{num_frames} frames, {clip.width}x{clip.height} to {result.width}x{result.height}, in {seconds:.1f} s "
        f"({num_frames / seconds:.2f} fps): {out / video.name} {out / image.name}"
    )


@contextmanager
def folder_in(out: Path) -> Iterator[Path]:
    """A folder in `out`, which is made, and gone when the block is left. Raises DemoError if it cannot be made."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        made = tempfile.TemporaryDirectory(prefix=".unfinished-", dir=out)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise DemoError(
            f"--out {shown_path(out)}: nothing can be written there ({reason}). Name a folder that is yours"
        ) from None
    with made as name:
        yield Path(name)


def check_numbers(options: Mapping[str, str]) -> None:
    """Raise DemoError for a text that should be a number, before anything is started."""
    for name, text in options.items():
        try:
            OPTIONS[name](text)
        except ValueError:
            kind = "a whole number" if OPTIONS[name] is int else "a number"
            option = name.replace("_", "-")
            raise DemoError(f"--{option} must be {kind}, got {printable(text, 100)!r}") from None


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """What was asked for. Exits with argparse's message if that makes no sense."""
    parser = argparse.ArgumentParser(prog="demo", description="Upscale a video by four with vspipe, rbvsr and ffmpeg.")
    parser.add_argument("--input", type=Path, help="a video file; without it, a low-quality clip is made first")
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for the results (default: %(default)s)")
    parser.add_argument("--frames", type=int, help="upscale only the first so many frames")
    for name in OPTIONS:
        parser.add_argument(f"--{name.replace('_', '-')}", help=f"as in rbvsr.Upscale({name}=...)")
    return parser.parse_args(arguments)


def interrupt_once(number: int, frame: Any) -> None:
    """A signal handler: the first Ctrl-C or SIGTERM ends the program in good order, and none after it disturbs that."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; the exit status."""
    given = parse_arguments(arguments)
    signal.signal(signal.SIGINT, interrupt_once)
    signal.signal(signal.SIGTERM, interrupt_once)
    options = {name: getattr(given, name) for name in OPTIONS if getattr(given, name) is not None}
    if "model" in options and options["model"] != "default":
        options["model"] = str(Path(options["model"]).resolve())  # vspipe looks for files beside the script
    try:
        if given.input is not None and not given.input.is_file():
            raise DemoError(f"{shown_path(given.input)} is not a file")
        if given.frames is not None and given.frames < 1:
            raise DemoError(f"--frames must be at least 1, got {given.frames}")
        check_numbers(options)
        print(demo(given.input, given.out, frames=given.frames, options=options))
    except DemoError as error:
        print(f"demo: {printable(str(error), MAX_ERROR_LENGTH)}", file=sys.stderr)
        return 1
    except OSError as error:  # a full disk, a result that is a folder
        where = shown_path(error.filename2 or error.filename or given.out)
        print(f"demo: {where} cannot be written ({error.strerror}). Check --out and the disk", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: interrupted; nothing half-written was left", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
