"""A video at four times the size, made as a user would make it: vspipe, a .vpy script, a pipe, ffmpeg.

    python -m scripts.demo                                          a low-quality clip is made first
    python -m scripts.demo --input in.mp4 --frames 48 --out demo

Writes OUT/NAME_x4.mp4 (or .mkv) with the input's frames, times, colours, audio and the rest, and OUT/NAME_x4.png: a
frame enlarged by bicubic interpolation beside the same frame upscaled. No incomplete file is left behind. With --frames
the times begin at 0. scripts/encoding restores what the pipe cannot carry.
"""

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np
import vapoursynth as vs
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from skimage import data

from scripts.encoding.command_line import print_warning, run_program
from scripts.encoding.errors import EncodeError
from scripts.encoding.job import ENCODER
from scripts.encoding.pipe import pipe
from scripts.encoding.programs import configured_environment
from vsrealbasicvsr.app.joining import join
from vsrealbasicvsr.app.source import Source, open_source
from vsrealbasicvsr.app.timeline import Timeline
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
"""Arguments of rbvsr.Upscale that are passed on, and their types."""
MP4_AUDIO_CODECS = frozenset({"aac", "ac3", "alac", "eac3", "flac", "mp3", "opus"})
SIDE_MAX_WIDTH_PX, SIDE_MAX_HEIGHT_PX = 800, 640

SAMPLE_NUM_FRAMES = 32
SAMPLE_WIDTH_PX, SAMPLE_HEIGHT_PX = 160, 112
SAMPLE_RATE = Fraction(24000, 1001)
SAMPLE_BLUR_SIGMA_PX = 1.6
"""Blur of the photograph before it is made four times smaller."""
SAMPLE_NOISE_SIGMA = 5 / 255
SAMPLE_CRF = 28

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


# ---- vspipe | ffmpeg -------------------------------------------------------------------------------------------------


def upscale(source: Path, timeline: Timeline, options: Mapping[str, str], folder: Path) -> Path:
    """Pipe the frames through vspipe and ffmpeg into a file in `folder`. Raise EncodeError if that fails."""
    encoded = folder / "encoded.mkv"
    environment = configured_environment(folder) | {"XDG_CACHE_HOME": str(folder)}  # nothing is written outside of it
    pipe(
        SCRIPT,
        {"source": str(source.resolve()), "frames": str(len(timeline.pts)), **options},
        encoded,
        rate=lambda output: timeline.nominal_rate(output.rate),
        encoder_options=ENCODER,
        environment=environment,
        warn=partial(print_warning, "demo"),
    )
    return encoded


# ---- the result ------------------------------------------------------------------------------------------------------


def result_suffix(source: Path) -> str:
    """Return the suffix of the result: of the source's own container if it is a known one; else .mp4 if the audio fits.

    .mp4 and .mov keep time stamps exactly, .mkv takes every audio codec.
    """
    known = {".mp4": ".mp4", ".m4v": ".mp4", ".mov": ".mov", ".mkv": ".mkv", ".webm": ".mkv"}
    if source.suffix.lower() in known:
        return known[source.suffix.lower()]
    with av.open(str(source)) as file:
        codecs = {stream.codec_context.codec.canonical_name for stream in file.streams.audio}
    return ".mp4" if codecs <= MP4_AUDIO_CODECS else ".mkv"


def check_result(made: Source, wanted: Timeline, *, shift: Fraction) -> None:
    """Check that the result has the wanted frames, at the wanted times.

    Args:
        made: The result.
        wanted: The times.
        shift: Seconds by which the result begins earlier.

    Raises:
        EncodeError: Frames or times differ, by more than a millisecond for Matroska, which counts in those.
    """
    found = made.timeline
    if len(found.pts) != len(wanted.pts):
        raise EncodeError(f"the result has {len(found.pts)} frames, the source has {len(wanted.pts)}")
    tolerance_seconds = Fraction(1, 1000) if made.path.suffix == ".mkv" else 0
    for n, (found_pts, wanted_pts) in enumerate(zip(found.pts, wanted.pts, strict=True)):
        has, should = found_pts * found.time_base, wanted_pts * wanted.time_base - shift
        if abs(has - should) > tolerance_seconds:
            raise EncodeError(f"frame {n} of the result is shown at {float(has):.6f} s, not at {float(should):.6f} s")


def side_by_side(source: vs.VideoNode, result: vs.VideoNode, n: int) -> Image.Image:
    """Return the middle of frame n of the source, enlarged by bicubic interpolation, beside that of the result."""
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
    """Return frame n at this size, as 8-bit RGB."""
    one = clip[n]
    arguments = {}
    if clip.format.color_family != vs.RGB and one.get_frame(0).props.get("_Matrix", 2) in (0, 2):
        arguments["matrix_in"] = 6 if clip.height <= 576 else 1
    frame = one.resize.Bicubic(*size, format=vs.RGB24, **arguments).get_frame(0)
    return Image.fromarray(np.stack([np.asarray(frame[plane]) for plane in range(3)], axis=-1))


# ---- all together ----------------------------------------------------------------------------------------------------


def demo(source: Path | None, out: Path, *, frames: int | None, options: Mapping[str, str]) -> str:
    """Make and check the results.

    Args:
        source: The video; None: a low-quality clip is made first.
        out: Folder of the results.
        frames: Number of frames; None: all.
        options: Arguments of rbvsr.Upscale, as text.

    Returns:
        A line about the results.

    Raises:
        UserError: Something failed that the user can mend.
    """
    with folder_in(out) as folder:  # everything is made in here, and moved to `out` when it is complete
        if source is None:
            source = out / "sample.mp4"
            make_sample(folder / source.name)
            (folder / source.name).replace(source)
        opened = open_source(source, folder / "bsindex")
        clip = opened.clip
        num_frames = min(frames or clip.num_frames, clip.num_frames)
        wanted = opened.timeline.cut(0, num_frames)

        start = time.perf_counter()
        encoded = upscale(source, wanted, options, folder)
        seconds = time.perf_counter() - start

        video = folder / f"{source.stem}_x4{result_suffix(source)}"
        try:
            whole = num_frames == clip.num_frames
            join([encoded], source, wanted, video, suffix=video.suffix, whole=whole)
        except av.FFmpegError as error:
            raise EncodeError(f"{video.name} could not be written with the audio of {source.name} ({error})") from error
        made = open_source(video, folder / "result")
        check_result(made, wanted, shift=Fraction(0) if whole else wanted.start_seconds)
        result = made.clip
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
    """Create a folder in `out` (created too) that is removed when the block ends. Raise EncodeError if that fails."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        made = tempfile.TemporaryDirectory(prefix=".unfinished-", dir=out)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise EncodeError(
            f"--out {shown_path(out)}: nothing can be written there ({reason}). Name a folder that is yours"
        ) from None
    with made as name:
        yield Path(name)


def check_numbers(options: Mapping[str, str]) -> None:
    """Raise EncodeError for a text that should be a number, before anything is started."""
    for name, text in options.items():
        try:
            OPTIONS[name](text)
        except ValueError:
            kind = "a whole number" if OPTIONS[name] is int else "a number"
            option = name.replace("_", "-")
            raise EncodeError(f"--{option} must be {kind}, got {printable(text, 100)!r}") from None


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Parse the command line. Exit with argparse's message if it makes no sense."""
    parser = argparse.ArgumentParser(prog="demo", description="Upscale a video by four with vspipe, rbvsr and ffmpeg.")
    parser.add_argument("--input", type=Path, help="a video file; without it, a low-quality clip is made first")
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for the results (default: %(default)s)")
    parser.add_argument("--frames", type=int, help="upscale only the first so many frames")
    for name in OPTIONS:
        parser.add_argument(f"--{name.replace('_', '-')}", help=f"as in rbvsr.Upscale({name}=...)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the demo that the command line asks for. Return the exit status."""
    given = parse_arguments(arguments)
    logging.getLogger("vapoursynth").setLevel(logging.ERROR)  # it warns of what BestSource is asked to return
    options = {name: getattr(given, name) for name in OPTIONS if getattr(given, name) is not None}
    if "model" in options and options["model"] != "default":
        options["model"] = str(Path(options["model"]).resolve())  # vspipe looks for files beside the script

    def work() -> str:
        if given.input is not None and not given.input.is_file():
            raise EncodeError(f"{shown_path(given.input)} is not a file")
        if given.frames is not None and given.frames < 1:
            raise EncodeError(f"--frames must be at least 1, got {given.frames}")
        check_numbers(options)
        return demo(given.input, given.out, frames=given.frames, options=options)

    return run_program("demo", work, result=given.out, check="Check --out and the disk")


if __name__ == "__main__":
    sys.exit(main())
