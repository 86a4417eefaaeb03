"""What pictures there are on disk, read one after another: videos, folders of numbered frames, photographs.

Also the virtual camera that moves over a photograph, and what tells a change of scene. Frames are (H, W, 3) uint8, RGB,
clips (T, H, W, 3). Positions are (x, y) in pixels, pixel centres at whole numbers.
Knows nothing of degradations, of prepared clips and of tensors.
"""

from __future__ import annotations

import itertools
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
import numpy.typing as npt
from av.stream import Disposition
from av.video.reformatter import Colorspace, Interpolation

from vsrealbasicvsr.errors import UserError
from vsrealbasicvsr.scenes import THUMBNAIL_COLUMNS, THUMBNAIL_ROWS, Thumbnail, is_scene_cut, thumbnail_of_luma

type Frames = npt.NDArray[np.uint8]
type Floats = npt.NDArray[np.float64]
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
"""Pictures with consecutive numbers that may be the frames of a clip; fewer are photographs."""
FRAMES_DIFFERENCE = 20.0
"""Median difference of neighbouring pictures (thumbnails, grey levels of 255) up to which they are frames of one clip.
Measured: ten videos 0.0 to 7.6 with every fifth frame taken; 144 numbered photographs 59, any four of them 41 or more.
"""
MAX_NEIGHBOURS_COMPARED = 16

MAX_SPEED_PX = 12.0
"""Fastest pan, in high-resolution pixels from one frame to the next."""

PHOTOGRAPH_SHRINK = (1.0, 1.5)
FOREGROUND_PROBABILITY = 1 / 3

_UNSPECIFIED_MATRIX = 2
_MARGIN_PX = 5.0  # Lanczos reads 4 pixels around the place it samples
_LONG_PAUSE_SECONDS = 0.2  # frames are missing where time stamps pause that long and four times longer than usual
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
    """What is left out, whole or in part, and why: one line for the user."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Found:
    """What a folder holds: sources sorted by name, pictures that fit nowhere, and how many files of other suffixes."""

    sources: tuple[Source, ...]
    unused: tuple[Unused, ...]
    num_ignored: dict[str, int]


@dataclass(frozen=True, slots=True)
class TimedFrame:
    """A frame (H, W, 3) and the time at which its source shows it, where the source tells it."""

    picture: Frames
    pts_seconds: float | None


@dataclass(frozen=True, slots=True)
class Gap:
    """Between the frames before and after it some are missing: no clip goes across. `reason` is None if that is how
    the video was made: its time stamps pause.
    """

    reason: str | None


@dataclass(frozen=True, slots=True)
class VideoFacts:
    """What a video's container says of it. `promised_seconds` is None where it says nothing."""

    frames_per_second: float
    promised_seconds: float | None
    is_lossless: bool


@dataclass(frozen=True, slots=True)
class CameraPath:
    """A view that moves: frame t shows what lies at `centre_px[t] + shrink[t] * R(angle_radians[t]) @ p`.

    p (x, y) counts from the middle of the view. centre_px (T, 2), angle_radians (T), shrink (T): source pixels per
    pixel of the view, 1 or more, so that nothing is magnified.
    """

    centre_px: Floats
    angle_radians: Floats
    shrink: Floats

    def scaled(self, factor: float) -> CameraPath:
        """The same path with all of its motion, turn and zoom multiplied by `factor`."""
        return CameraPath(self.centre_px * factor, self.angle_radians * factor, self.shrink**factor)

    def at(self, centre_px: Floats) -> CameraPath:
        """The same path, moved by `centre_px` (2)."""
        return CameraPath(self.centre_px + centre_px, self.angle_radians, self.shrink)

    def matrices(self, height: int, width: int) -> Floats:
        """Affine matrices (T, 2, 3) that take pixels of a view of this size to pixels of the source."""
        cos, sin = self.shrink * np.cos(self.angle_radians), self.shrink * np.sin(self.angle_radians)
        linear = np.stack([np.stack([cos, -sin], axis=1), np.stack([sin, cos], axis=1)], axis=1)
        middle = np.array([(width - 1) / 2, (height - 1) / 2])
        return np.concatenate([linear, (self.centre_px - linear @ middle)[:, :, None]], axis=2)

    def bounds(self, height: int, width: int) -> tuple[Floats, Floats]:
        """Smallest and largest (x, y) of the source that any frame of the path shows."""
        right, bottom = width - 1.0, height - 1.0
        corners = np.array([[0, right, 0, right], [0, 0, bottom, bottom], [1, 1, 1, 1]])
        seen = self.matrices(height, width) @ corners
        return seen.min(axis=(0, 2)), seen.max(axis=(0, 2))


def find_sources(folder: Path, *, images: Images = "auto") -> Found:
    """Everything in `folder` and the folders below that clips can be made of, sorted by name.

    Pictures in one folder are the frames of a clip if their names have the same beginning and end with consecutive
    numbers in between, at least MIN_NUMBERED_FRAMES of them, and (`images="auto"`) if they have the same size and
    neighbours look alike: see FRAMES_DIFFERENCE. All others are photographs. `images="frames"` believes the numbers,
    and pictures without are unused; with `"photographs"` every picture is a photograph.

    Files and folders whose names begin with a dot are passed over.

    Raises UserError if the folder is missing or holds neither videos nor pictures.
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
                pictures = [path for path in pictures if path not in set(run)]
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
    """The items parted into those to train from and those that training never sees: every `every`-th, from the first.

    A single item is trained from.
    """
    if len(items) < 2:
        return list(items), []
    held = list(items[::every])
    return [item for number, item in enumerate(items) if number % every], held


def read_photograph(path: Path) -> Frames:
    """One photograph, (H, W, 3) RGB, turned as its EXIF data says, without alpha, 16 bits made 8.

    Raises UserError, naming the file, if it cannot be read.
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
    """The frames of a run of pictures in their order; a Gap stands for each one that cannot be read."""
    for path in paths:
        try:
            yield TimedFrame(read_photograph(path), None)
        except ValueError:
            yield Gap(f"{path.name} holds no readable picture")


def read_video_facts(path: Path) -> VideoFacts:
    """What the container says of the first video stream in it.

    Raises UserError, naming the file, if it cannot be read as video.
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
    """Frames of a video in the order of display, upright, in 8 bits, whatever its codec and depth.

    Colours follow the stream's matrix; without one BT.601 up to a height of 576, BT.709 above. A Gap stands where time
    stamps pause far longer than usual (a pause, or lost packets). What cannot be decoded ends the video: a Gap with the
    reason comes last. Decodes with one thread.

    Raises UserError, naming the file, if there is no video in it or if it is interlaced.
    """
    with _opened(path) as container:
        stream = _video_stream(container, path)
        stream.codec_context.thread_count = 1
        num_frames, previous_seconds = 0, None
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
            if num_frames == 0 and frame.interlaced_frame:
                raise UserError(f"read_video: {path} is interlaced. Deinterlace it first.")
            seconds = None if frame.pts is None or frame.time is None else float(frame.time)
            if seconds is not None and previous_seconds is not None:
                step_seconds = seconds - previous_seconds
                usual = float(np.median(usual_seconds)) if usual_seconds else step_seconds
                if step_seconds > max(_LONG_PAUSE_SECONDS, _LONG_PAUSE_RATIO * usual):
                    yield Gap(None)
                usual_seconds = [*usual_seconds[-30:], step_seconds]
            previous_seconds = seconds
            num_frames += 1
            yield TimedFrame(_upright_rgb(frame), seconds)


def moved_photograph(
    image: Frames,
    *,
    num_frames: int,
    height: int,
    width: int,
    generator: np.random.Generator,
    foreground: Frames | None = None,
    still_probability: float = 0.0,
) -> Frames:
    """A clip (num_frames, height, width, 3) of a camera that moves smoothly over `image` (H, W, 3).

    The image is shrunk by 1 to 1.5 first (less where the path needs the room), then sampled; one clip in three has one
    or two objects, cut from `foreground` (or from `image` itself), that move in front of it. The path stays inside the
    image; only an image smaller than the view is continued by reflection. With still_probability the camera stands on a
    tripod: it does not move at all, which it otherwise hardly ever does.
    """
    is_still = still_probability > 0 and generator.random() < still_probability  # 0: nothing is drawn
    path = _still_path(num_frames) if is_still else _sample_path(num_frames, generator)
    shrink = generator.uniform(*PHOTOGRAPH_SHRINK)
    size_px = np.array([image.shape[1], image.shape[0]], dtype=np.float64)
    for factor in (1.0, 0.75, 0.5, 0.25, 0.0):
        fitted = path.scaled(factor)
        low, high = fitted.bounds(height, width)
        room = float(np.min(size_px / (high - low + 1 + 2 * _MARGIN_PX)))
        if room >= PHOTOGRAPH_SHRINK[0]:
            break
    source = shrunk(image, max(1.0, min(shrink, room)))
    first = _MARGIN_PX - low
    last = np.array([source.shape[1], source.shape[0]]) - 1 - _MARGIN_PX - high
    place = first + generator.uniform(size=2) * np.maximum(last - first, 0)
    place = np.where(last >= first, place, (first + last) / 2)
    frames = np.stack(
        [
            _warped(source, matrix, height, width, cv2.BORDER_REFLECT_101)
            for matrix in fitted.at(place).matrices(height, width)
        ]
    )
    if generator.random() < FOREGROUND_PROBABILITY:
        texture = source if foreground is None else shrunk(foreground, shrink)
        for _ in range(int(generator.integers(1, 3))):
            frames = _with_object(frames, texture, generator)
    return frames


def has_scene_cut(frames: Frames) -> bool:
    """Whether two neighbouring frames of the clip (T, H, W, 3) show different scenes."""
    thumbnails = [thumbnail(frame) for frame in frames]
    return any(is_scene_cut(before, after) for before, after in itertools.pairwise(thumbnails))


def thumbnail(frame: Frames) -> Thumbnail:
    """Return what scenes are told apart by, of a frame (H, W, 3). OpenCV shrinks it 20 times as fast as torch."""
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.float32)
    cells = cv2.resize(grey, (THUMBNAIL_COLUMNS, THUMBNAIL_ROWS), interpolation=cv2.INTER_AREA)
    return thumbnail_of_luma(np.asarray(cells, dtype=np.float32) / np.float32(255))


def shrunk(image: Frames, factor: float) -> Frames:
    """The image (H, W, 3), `factor` times smaller, each pixel the mean of the area that it covers."""
    size = (max(1, round(image.shape[1] / factor)), max(1, round(image.shape[0] / factor)))
    if size == (image.shape[1], image.shape[0]):
        return image
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _walk(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Folders and the names of their files, sorted, through links but into no folder twice."""
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
    """Beginning and number of a picture's name; None if it ends with no number."""
    return re.fullmatch(r"(.*?)(\d+)", path.stem)


def _numbered_runs(pictures: Sequence[Path]) -> list[list[Path]]:
    """Pictures with the same beginning and suffix and consecutive numbers, each run in the order of its numbers."""
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
    """Whether the pictures have one size and most neighbours, of up to MAX_NEIGHBOURS_COMPARED pairs, look alike.

    Pictures that cannot be read are passed over.
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
    """Return a picture (H, W, 3) in grey, (18, 32), 0..255: what FRAMES_DIFFERENCE is of."""
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    return np.asarray(cv2.resize(grey, (32, 18), interpolation=cv2.INTER_AREA), dtype=np.float64)


def _opened(path: Path) -> av.container.InputContainer:
    try:
        return av.open(str(path))
    except (OSError, EOFError, av.FFmpegError, IndexError) as error:
        raise UserError(
            f"read_video: cannot read {path}: {_first_line(error)}. Leave it out or encode it again."
        ) from error


def _video_stream(container: av.container.InputContainer, path: Path) -> av.VideoStream:
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic and stream.codec_context is not None:
            return stream
    raise UserError(f"read_video: {path} holds no video that can be decoded. Leave it out.")


def _first_line(error: Exception) -> str:
    """What is wrong, without the number and the names that OSError and FFmpegError put around it."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).splitlines()[0]


def _upright_rgb(frame: av.VideoFrame) -> Frames:
    """The frame in RGB, (H, W, 3) uint8, rounded to the nearest value and turned as the container asks for.

    Without these flags libswscale rounds down, and every frame would be about 1/255 too dark.
    """
    matrix = None
    if frame.colorspace == _UNSPECIFIED_MATRIX:
        matrix = Colorspace.ITU601 if frame.height <= 576 else Colorspace.ITU709
    rounding = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
    rgb = frame.reformat(format="rgb24", src_colorspace=matrix, interpolation=rounding, threads=1).to_ndarray()
    return np.ascontiguousarray(np.rot90(rgb, frame.rotation // 90), dtype=np.uint8)


def _sample_path(num_frames: int, generator: np.random.Generator) -> CameraPath:
    """A smooth path from the origin: pan with acceleration, in half of the clips turn and zoom, in some jitter."""
    time = np.arange(num_frames, dtype=np.float64)
    progress = time / max(num_frames - 1, 1)
    # many slow, few fast: the median is 2 pixels a frame; one clip in twelve does not pan
    speed_px = 0.0 if generator.random() < 1 / 12 else MAX_SPEED_PX * generator.random() ** 2.5
    heading = generator.uniform(-np.pi, np.pi) + progress * generator.normal(0, 0.5)
    pace_px = speed_px * (1 - progress * generator.uniform(0, 0.8))
    if generator.random() < 0.5:
        pace_px = pace_px[::-1]
    steps_px = np.stack([pace_px * np.cos(heading), pace_px * np.sin(heading)], axis=1)
    centre_px = np.cumsum(steps_px, axis=0) - steps_px[0]
    if generator.random() < 0.25:
        centre_px = centre_px + generator.normal(0, generator.uniform(0.1, 0.8), size=centre_px.shape)
    angle_radians = np.full(num_frames, generator.normal(0, 0.05))
    if generator.random() < 0.5:
        angle_radians = angle_radians + generator.normal(0, 0.003) * time + generator.normal(0, 0.01) * progress**2
    log_shrink = np.zeros(num_frames)
    if generator.random() < 0.5:
        log_shrink = generator.normal(0, 0.004) * time + generator.normal(0, 0.01) * progress**2
    shrink = np.minimum(np.exp(log_shrink - log_shrink.min()), 1.25)
    return CameraPath(centre_px, angle_radians, shrink)


def _still_path(num_frames: int) -> CameraPath:
    return CameraPath(np.zeros((num_frames, 2)), np.zeros(num_frames), np.ones(num_frames))


def _warped(image: Frames, matrix: Floats, height: int, width: int, border: int) -> Frames:
    """A view (height, width, 3) whose pixel p shows the image at matrix @ (p, 1)."""
    flags = cv2.INTER_LANCZOS4 | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(image, matrix, (width, height), flags=flags, borderMode=border), dtype=np.uint8)


def _with_object(frames: Frames, texture: Frames, generator: np.random.Generator) -> Frames:
    """The clip with a roundish piece of `texture` that moves in front of it, by a path of its own."""
    num_frames, height, width, _ = frames.shape
    side = int(generator.uniform(0.15, 0.5) * min(height, width, *texture.shape[:2]))
    top = int(generator.integers(0, texture.shape[0] - side + 1))
    left = int(generator.integers(0, texture.shape[1] - side + 1))
    patch = np.ascontiguousarray(texture[top : top + side, left : left + side])
    mask = _blob(side, generator)
    path = _sample_path(num_frames, generator)
    middle = generator.uniform(0.1, 0.9, size=2) * np.array([width, height])
    path = path.at(middle - path.centre_px[num_frames // 2])
    out = frames.copy()
    corners = np.array([[0, side, 0, side], [0, 0, side, side], [1, 1, 1, 1]]) - 0.5 * np.array([[1], [1], [0]])
    # here the path is that of the object in the view: its matrices take pixels of the patch to pixels of the view
    for number, matrix in enumerate(path.matrices(side, side)):
        covered = matrix @ corners
        first_x, first_y = np.maximum(np.floor(covered.min(axis=1)).astype(int) - 1, 0)
        stop_x, stop_y = np.minimum(np.ceil(covered.max(axis=1)).astype(int) + 2, (width, height))
        if first_x >= stop_x or first_y >= stop_y:
            continue
        inverse = np.asarray(cv2.invertAffineTransform(matrix), dtype=np.float64)
        inverse[:, 2] += inverse[:, :2] @ (first_x, first_y)
        place = (number, slice(first_y, stop_y), slice(first_x, stop_x))
        size = (int(stop_x - first_x), int(stop_y - first_y))
        moved = _warped(patch, inverse, size[1], size[0], cv2.BORDER_REFLECT_101)
        cover = cv2.warpAffine(mask, inverse, size, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
        mixed = frames[place] + cover[:, :, None] * (moved.astype(np.float32) - frames[place])
        out[place] = np.clip(np.rint(mixed), 0, 255).astype(np.uint8)
    return out


def _blob(side: int, generator: np.random.Generator) -> npt.NDArray[np.float32]:
    """A mask (side, side) in [0, 1] of an uneven ellipse with an edge of 1 to 4 pixels; 0 on the border."""
    half = (side - 1) / 2
    y, x = (np.mgrid[0:side, 0:side] - half) / max(half, 1.0)
    turn, aspect = generator.uniform(-np.pi, np.pi), generator.uniform(0.5, 1.0)
    along, across = x * np.cos(turn) + y * np.sin(turn), (y * np.cos(turn) - x * np.sin(turn)) / aspect
    radius, theta = np.hypot(along, across), np.arctan2(across, along)
    outline = np.full_like(radius, 0.75)
    for order in (2, 3, 5):
        outline += generator.uniform(0, 0.2 / order) * np.cos(order * theta + generator.uniform(-np.pi, np.pi))
    edge_px = generator.uniform(1.0, 4.0)
    mask: npt.NDArray[np.float32] = np.clip(0.5 + (outline - radius) * half * aspect / edge_px, 0, 1).astype(np.float32)
    mask[[0, -1], :] = 0
    mask[:, [0, -1]] = 0
    return mask
