"""Sources of images on disk, read one after another: videos, folders of numbered frames, photographs.

Frames are (H, W, 3) uint8, RGB.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import av
import cv2
import numpy as np
from av.stream import Disposition
from av.video.reformatter import Colorspace, Interpolation

from training.data.arrays import Floats, Frames
from vsrealbasicvsr.errors import UserError

type SourceKind = Literal["video", "frames", "photograph"]
type Images = Literal["auto", "frames", "photographs"]

PHOTOGRAPH_SUFFIXES = frozenset({".webp", ".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"})
LOSSY_PICTURE_SUFFIXES = frozenset({".webp", ".jpg", ".jpeg"})
# fmt: off
VIDEO_SUFFIXES = frozenset({
    ".3g2", ".3gp", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv", ".h264", ".h265", ".hevc", ".ivf",
    ".m2ts", ".m2v", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".nut", ".obu",
    ".ogm", ".ogv", ".qt", ".rm", ".rmvb", ".ts", ".vob", ".webm", ".wmv", ".y4m",
})
# fmt: on

MIN_NUMBERED_FRAMES = 4
"""Minimum number of images with consecutive numbers that may be the frames of a clip; fewer are photographs."""
FRAMES_DIFFERENCE = 20.0
"""Maximum median difference of neighbouring images (thumbnails, grey levels of 255) that are frames of one clip.
Measured: ten videos 0.0 to 7.6 with every fifth frame taken; 144 numbered photographs 59, any four of them 41 or
more."""
MAX_NEIGHBOURS_COMPARED = 16


_UNSPECIFIED_MATRIX, _TRANSFER_PQ = 2, 16  # of ITU-T H.273
_LONG_PAUSE_SECONDS = 0.2  # frames are missing where time stamps are so far apart, and four times as far as usual
_LONG_PAUSE_RATIO = 4.0


@dataclass(frozen=True, slots=True)
class Source:
    """A video, a run of numbered frames, or a photograph. `name` is its path in the folder that was searched.

    Numbered frames have several paths, in the order of their numbers, and a name such as `walk/frame_[0001-0100].png`.
    """

    name: str
    kind: SourceKind
    paths: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class Unused:
    """An image or video that is left out, whole or in part, and the reason: one line for the user."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Found:
    """Contents of a folder.

    Attributes:
        sources: Sorted by name.
        unused: Images that fit nowhere.
        num_ignored: Number of other files by suffix.
    """

    sources: tuple[Source, ...]
    unused: tuple[Unused, ...]
    num_ignored: dict[str, int]


@dataclass(frozen=True, slots=True)
class TimedFrame:
    """A frame (H, W, 3) and its time stamp; None if the source has none."""

    picture: Frames
    pts_seconds: float | None


@dataclass(frozen=True, slots=True)
class Gap:
    """Missing frames: no clip continues across a gap.

    Attributes:
        reason: Why they are missing; None for a pause in the video's own time stamps.
    """

    reason: str | None


@dataclass(frozen=True, slots=True)
class VideoFacts:
    """Facts in a video's container. `promised_seconds` is None if it does not state a duration."""

    frames_per_second: float
    promised_seconds: float | None
    is_lossless: bool


def find_sources(folder: Path, *, images: Images = "auto") -> Found:
    """Find everything in a folder, and the folders below, that clips can be made of.

    Images in one folder are the frames of a clip if their names have the same beginning and suffix with consecutive
    numbers in between, at least MIN_NUMBERED_FRAMES of them, and (`images="auto"`) if they have the same size and
    neighbours look alike: see FRAMES_DIFFERENCE. All others are photographs. Files and folders whose names begin with a
    dot are skipped.

    Args:
        folder: Where to look.
        images: "auto"; "frames": the numbers decide, and images without are unused; "photographs": every image is one.

    Returns:
        Sources sorted by name, and what is left out.

    Raises:
        UserError: The folder is missing or holds neither videos nor images.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}. Name a folder that holds videos or pictures.")
    sources: list[Source] = []
    unused: list[Unused] = []
    ignored: Counter[str] = Counter()
    for place, names in _walk(folder):
        pictures: list[Path] = []
        for path in (place / name for name in names):
            suffix = path.suffix.lower()
            if suffix in VIDEO_SUFFIXES:
                sources.append(Source(_name_in(folder, path), "video", (path,)))
            elif suffix in PHOTOGRAPH_SUFFIXES:
                pictures.append(path)
            else:
                ignored[suffix or "without a suffix"] += 1
        runs = [] if images == "photographs" else _numbered_runs(pictures)
        for run in runs:
            if images == "frames" or _are_frames(run):
                sources.append(Source(_run_name(folder, run), "frames", tuple(run)))
                in_run = set(run)
                pictures = [path for path in pictures if path not in in_run]
        if images == "frames":
            reason = f"not one of {MIN_NUMBERED_FRAMES} or more frames with consecutive numbers"
            unused += [Unused(_name_in(folder, path), reason) for path in pictures]
        else:
            sources += [Source(_name_in(folder, path), "photograph", (path,)) for path in pictures]
    if not sources and not unused:
        known = " ".join(sorted(VIDEO_SUFFIXES | PHOTOGRAPH_SUFFIXES))
        raise UserError(f"{folder} holds no videos and no pictures. Name a folder that holds some ({known}).")
    return Found(
        tuple(sorted(sources, key=lambda source: source.name)),
        tuple(sorted(unused, key=lambda one: one.name)),
        dict(sorted(ignored.items())),
    )


def split_held_out[T](items: Sequence[T], *, every: int) -> tuple[list[T], list[T]]:
    """Split items into those to train from and those held out: every `every`-th, from the first.

    A single item is trained from.
    """
    if len(items) < 2:
        return list(items), []
    held = list(items[::every])
    return [item for number, item in enumerate(items) if number % every], held


def read_photograph(path: Path) -> Frames:
    """Read a photograph: RGB (H, W, 3), rotated according to its EXIF data, without alpha, 16 bits reduced to 8.

    Raises:
        UserError: It cannot be read; the text names the file.
    """
    try:
        encoded = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    except OSError as error:
        raise UserError(f"read_photograph: cannot open {path}: {error}. Leave it out.") from error
    try:
        image = cv2.imdecode(encoded, cv2.IMREAD_COLOR) if encoded.size else None
    except cv2.error:
        image = None
    if image is None:
        raise UserError(f"read_photograph: {path} holds no readable picture. Leave it out or convert it to PNG.")
    return np.ascontiguousarray(image[:, :, ::-1], dtype=np.uint8)


def read_numbered_frames(paths: Sequence[Path]) -> Iterator[TimedFrame | Gap]:
    """Yield the frames of a run of images in their order; a Gap stands for each one that cannot be read."""
    for path in paths:
        try:
            yield TimedFrame(read_photograph(path), None)
        except ValueError:
            yield Gap(f"{path.name} holds no readable picture")


def read_video_facts(path: Path) -> VideoFacts:
    """Read what the container says about its first video stream.

    Raises:
        UserError: The file cannot be read as video; the text names it.
    """
    with _opened(path) as container:
        stream = _video_stream(container, path)
        promised_seconds = None
        if stream.duration and stream.time_base:
            promised_seconds = float(stream.duration * stream.time_base)
        elif match := re.fullmatch(r"(\d+):(\d+):([\d.]+)", stream.metadata.get("DURATION", "")):
            hours, minutes, seconds = match.groups()
            promised_seconds = int(hours) * 3600 + int(minutes) * 60 + float(seconds)
        codec = stream.codec_context.codec
        frames_per_second = float(stream.average_rate or stream.guessed_rate or 0) or 25.0
        return VideoFacts(frames_per_second, promised_seconds, codec.lossless and not codec.lossy)


def read_video(path: Path) -> Iterator[TimedFrame | Gap]:
    """Yield the frames of a video in display order, upright, in 8 bits, whatever its codec and depth.

    Colours follow the stream's matrix; without one BT.601 up to a height of 576, BT.709 above. A Gap stands where time
    stamps pause far longer than usual (a pause, or lost packets), and for interlaced frames among others. What cannot
    be decoded or converted ends the video: a Gap with the reason comes last. One thread is used.

    Raises:
        UserError: The file holds no video, or an interlaced one, or one of PQ; the text names it.
    """
    with _opened(path) as container:
        stream = _video_stream(container, path)
        stream.codec_context.thread_count = 1
        num_frames, previous_seconds, was_interlaced = 0, None, False
        usual_seconds: list[float] = []
        frames = container.decode(stream)
        while True:
            try:
                frame = next(frames)
            except StopIteration:
                return
            except (OSError, EOFError, av.FFmpegError) as error:
                yield Gap(f"cannot be decoded further than {num_frames} frames: {_first_line(error)}")
                return
            if frame.is_corrupt:
                yield Gap(f"cannot be decoded further than {num_frames} frames: corrupt data")
                return
            if num_frames == 0:
                _check_first(frame, path)
            if frame.interlaced_frame:
                if not was_interlaced:
                    yield Gap(f"is interlaced from frame {num_frames} on: deinterlace it first")
                was_interlaced, num_frames = True, num_frames + 1
                continue
            was_interlaced = False
            seconds = None if frame.pts is None or frame.time is None else float(frame.time)
            if seconds is not None and previous_seconds is not None:
                step_seconds = seconds - previous_seconds
                usual = float(np.median(usual_seconds)) if usual_seconds else step_seconds
                if step_seconds > max(_LONG_PAUSE_SECONDS, _LONG_PAUSE_RATIO * usual):
                    yield Gap(None)
                usual_seconds = [*usual_seconds[-30:], step_seconds]
            previous_seconds = seconds
            num_frames += 1
            try:
                picture = _upright_rgb(frame)
            except (OSError, av.FFmpegError) as error:
                matrix = f"matrix {int(frame.colorspace)} of H.273, {frame.format.name}"
                yield Gap(f"its colours ({matrix}) cannot be converted: {_first_line(error)}")
                return
            yield TimedFrame(picture, seconds)


def _walk(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield folders and the names of their files, sorted; links are followed, but no folder is visited twice."""
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield Path(place), sorted(name for name in names if not name.startswith("."))


def _name_in(folder: Path, path: Path) -> str:
    return path.relative_to(folder).as_posix()


def _run_name(folder: Path, run: Sequence[Path]) -> str:
    first, last = _numbered(run[0]), _numbered(run[-1])
    assert first is not None
    assert last is not None
    name = f"{first.group(1)}[{first.group(2)}-{last.group(2)}]{run[0].suffix}"
    return _name_in(folder, run[0].with_name(name))


def _numbered(path: Path) -> re.Match[str] | None:
    """Match beginning and number of an image's name; None if it does not end with a number."""
    return re.fullmatch(r"(.*?)(\d+)", path.stem)


def _numbered_runs(pictures: Sequence[Path]) -> list[list[Path]]:
    """Return runs of images with one beginning and suffix and consecutive numbers, in the order of the numbers."""
    numbered = sorted(
        ((match.group(1), path.suffix.lower()), int(match.group(2)), path)
        for path in pictures
        if (match := _numbered(path)) is not None
    )
    runs: list[list[Path]] = []
    for before, (series, number, path) in zip([None, *numbered], numbered, strict=False):
        if before is not None and before[:2] == (series, number - 1):
            runs[-1].append(path)
        else:
            runs.append([path])
    return [run for run in runs if len(run) >= MIN_NUMBERED_FRAMES]


def _are_frames(run: Sequence[Path]) -> bool:
    """Return whether the images have one size and most neighbours, of up to MAX_NEIGHBOURS_COMPARED pairs, look alike.

    Images that cannot be read are skipped.
    """
    num_pairs = min(len(run) - 1, MAX_NEIGHBOURS_COMPARED)
    places = [round(place) for place in np.linspace(0, len(run) - 2, num_pairs)]
    sizes: set[tuple[int, ...]] = set()
    differences: list[float] = []
    read: dict[int, Floats | None] = {}
    for place in places:
        for number in (place, place + 1):
            if number not in read:
                read[number] = None
                try:
                    picture = read_photograph(run[number])
                except ValueError:
                    continue
                sizes.add(picture.shape)
                read[number] = _grey(picture)
        before, after = read[place], read[place + 1]
        if before is not None and after is not None:
            differences.append(float(np.abs(after - before).mean()))
    return len(sizes) == 1 and bool(differences) and float(np.median(differences)) <= FRAMES_DIFFERENCE


def _grey(picture: Frames) -> Floats:
    """Return an image (H, W, 3) in grey, (18, 32), 0..255, for FRAMES_DIFFERENCE."""
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    return np.asarray(cv2.resize(grey, (32, 18), interpolation=cv2.INTER_AREA), dtype=np.float64)


def _opened(path: Path) -> av.container.InputContainer:
    try:
        return av.open(str(path.absolute()))  # of "Show: Part 1.mkv" FFmpeg would take "Show" for a protocol
    except (OSError, EOFError, av.FFmpegError, IndexError) as error:
        raise UserError(
            f"read_video: cannot read {path}: {_first_line(error)}. Leave it out or encode it again."
        ) from error


def _video_stream(container: av.container.InputContainer, path: Path) -> av.VideoStream:
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic and stream.codec_context is not None:
            return stream
    raise UserError(f"read_video: {path} holds no video that can be decoded. Leave it out.")


def _check_first(frame: av.VideoFrame, path: Path) -> None:
    """Raise UserError if the first frame says that the video cannot be used as it is."""
    if frame.interlaced_frame:
        raise UserError(f"read_video: {path} is interlaced. Deinterlace it first.")
    if frame.color_trc == _TRANSFER_PQ:  # its pictures have half of the contrast that the network expects
        raise UserError(f"read_video: {path} is HDR (PQ). Convert it to SDR first.")


def _first_line(error: Exception) -> str:
    """Return the reason of an error, without the number and the names that OSError and FFmpegError put around it."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).splitlines()[0]


def _upright_rgb(frame: av.VideoFrame) -> Frames:
    """Return the frame in RGB, (H, W, 3) uint8, rounded to the nearest value and rotated as the container asks for.

    Without these flags libswscale rounds down, and every frame would be about 1/255 too dark.
    """
    matrix = None
    if frame.colorspace == _UNSPECIFIED_MATRIX:
        matrix = Colorspace.ITU601 if frame.height <= 576 else Colorspace.ITU709
    rounding = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
    rgb = frame.reformat(format="rgb24", src_colorspace=matrix, interpolation=rounding, threads=1).to_ndarray()
    return np.ascontiguousarray(np.rot90(rgb, frame.rotation // 90), dtype=np.uint8)
