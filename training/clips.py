"""High-resolution clips, out of photographs that a virtual camera moves over and out of videos.

Clips are (T, H, W, 3) uint8, RGB. Positions are (x, y) in pixels, pixel centres at whole numbers.
Knows nothing of degradations, of the pool and of tensors.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np
import numpy.typing as npt

type Frames = npt.NDArray[np.uint8]
type Floats = npt.NDArray[np.float64]

PHOTOGRAPH_SUFFIXES = frozenset({".webp", ".png", ".jpg", ".jpeg"})
VIDEO_SUFFIXES = frozenset({".mp4", ".mkv", ".webm", ".mov"})

MAX_SPEED_PX = 12.0
"""Fastest pan, in high-resolution pixels from one frame to the next."""

PHOTOGRAPH_SHRINK = (1.0, 1.5)
VIDEO_SHRINK = (1.5, 2.0)
FOREGROUND_PROBABILITY = 1 / 3

_MARGIN_PX = 5.0  # Lanczos reads 4 pixels around the place it samples
_CUT_DIFFERENCE = 28.0  # mean absolute grey difference of two neighbouring thumbnails, of 255, that tells a scene cut
_CUT_ATTEMPTS = 8


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


def read_photographs(folder: Path) -> list[Path]:
    """Paths of the photographs in `folder`, sorted by name.

    Raises ValueError if there are none.
    """
    return _list_files(folder, PHOTOGRAPH_SUFFIXES, "photographs")


def read_videos(folder: Path) -> list[Path]:
    """Paths of the videos in `folder`, sorted by name.

    Raises ValueError if there are none.
    """
    return _list_files(folder, VIDEO_SUFFIXES, "videos")


def read_photograph(path: Path) -> Frames:
    """One photograph, (H, W, 3) RGB.

    Raises ValueError, naming the file, if it cannot be read.
    """
    try:
        encoded = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    except OSError as error:
        raise ValueError(f"read_photograph: cannot open {path}: {error}. Leave it out.") from error
    image = cv2.imdecode(encoded, cv2.IMREAD_COLOR) if encoded.size else None
    if image is None:
        raise ValueError(f"read_photograph: {path} holds no readable picture. Leave it out or convert it to PNG.")
    return np.ascontiguousarray(image[:, :, ::-1], dtype=np.uint8)


def read_video(path: Path, *, start_seconds: float = 0.0) -> Iterator[Frames]:
    """Frames (H, W, 3) RGB of a video in the order of display, from the first one at or after `start_seconds`.

    Raises ValueError, naming the file, as soon as something cannot be read; the frames before it have come out by then.
    """
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError(f"read_video: {path} holds no video stream. Leave it out.")
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            if start_seconds > 0 and stream.time_base is not None:
                container.seek(int(start_seconds / stream.time_base), stream=stream)
            for frame in container.decode(stream):
                if start_seconds > 0 and (frame.time or 0.0) < start_seconds - 1e-4:
                    continue
                yield np.asarray(frame.to_ndarray(format="rgb24"), dtype=np.uint8)
    except (OSError, av.FFmpegError) as error:
        raise ValueError(f"read_video: cannot read {path}: {error}. Leave it out or encode it again.") from error


def moved_photograph(
    image: Frames,
    *,
    num_frames: int,
    height: int,
    width: int,
    generator: np.random.Generator,
    foreground: Frames | None = None,
) -> Frames:
    """A clip (num_frames, height, width, 3) of a camera that moves smoothly over `image` (H, W, 3).

    The image is shrunk by 1 to 1.5 first (less where the path needs the room), then sampled; one clip in three has one
    or two objects, cut from `foreground` (or from `image` itself), that move in front of it. The path stays inside the
    image; only an image smaller than the view is continued by reflection.
    """
    path = _sample_path(num_frames, generator)
    shrink = generator.uniform(*PHOTOGRAPH_SHRINK)
    size_px = np.array([image.shape[1], image.shape[0]], dtype=np.float64)
    for factor in (1.0, 0.75, 0.5, 0.25, 0.0):
        fitted = path.scaled(factor)
        low, high = fitted.bounds(height, width)
        room = float(np.min(size_px / (high - low + 1 + 2 * _MARGIN_PX)))
        if room >= PHOTOGRAPH_SHRINK[0]:
            break
    source = _shrunk(image, max(1.0, min(shrink, room)))
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
        texture = source if foreground is None else _shrunk(foreground, shrink)
        for _ in range(int(generator.integers(1, 3))):
            frames = _with_object(frames, texture, generator)
    return frames


def cut_video(path: Path, *, num_frames: int, height: int, width: int, generator: np.random.Generator) -> Frames:
    """A clip (num_frames, height, width, 3) cut at random in time and space out of a video that is shrunk by 1.5 to 2.

    Every frame or every second frame is taken. The shrinking makes compressed video sharp enough for ground truth; it
    is less than 1.5 only where the view would not fit.

    Raises ValueError, naming the file, if the video is unreadable, too short or too small, or if every cut that was
    tried holds a change of scene.
    """
    duration_seconds, frames_per_second = _video_length(path)
    for attempt in range(_CUT_ATTEMPTS):
        step = int(generator.integers(1, 3)) if attempt < _CUT_ATTEMPTS // 2 else 1
        span = (num_frames - 1) * step + 1
        latest_seconds = duration_seconds - (span + 1) / frames_per_second
        start_seconds = float(generator.uniform(0, max(latest_seconds, 0)))
        where, shrink = generator.uniform(size=2), generator.uniform(*VIDEO_SHRINK)
        taken: list[Frames] = []
        for number, frame in enumerate(read_video(path, start_seconds=start_seconds)):
            if number == 0:
                shrink = min(shrink, frame.shape[0] / height, frame.shape[1] / width)
                if shrink < 1:
                    raise ValueError(
                        f"cut_video: {path} is {frame.shape[1]}x{frame.shape[0]}, smaller than the clip of"
                        f" {width}x{height} that was asked for. Leave it out or ask for smaller clips."
                    )
            if number % step == 0:
                taken.append(_shrunk(frame, shrink))
            if len(taken) == num_frames:
                break
        if len(taken) == num_frames and not has_scene_cut(np.stack(taken)):
            clip = np.stack(taken)
            top = int(where[0] * (clip.shape[1] - height + 1))
            left = int(where[1] * (clip.shape[2] - width + 1))
            return np.ascontiguousarray(clip[:, top : top + height, left : left + width])
    raise ValueError(
        f"cut_video: no {num_frames} frames without a change of scene found in {path} ({duration_seconds:.1f} s)."
        " Leave it out."
    )


def has_scene_cut(frames: Frames) -> bool:
    """Whether two neighbouring frames differ so much that they show different scenes."""
    greys = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    thumbnails = np.stack([cv2.resize(grey, (32, 18), interpolation=cv2.INTER_AREA) for grey in greys]).astype(float)
    return bool((np.abs(np.diff(thumbnails, axis=0)).mean(axis=(1, 2)) > _CUT_DIFFERENCE).any())


def _list_files(folder: Path, suffixes: frozenset[str], what: str) -> list[Path]:
    paths = sorted(path for path in folder.glob("*") if path.suffix.lower() in suffixes)
    if not paths:
        raise ValueError(f"read_{what}: no {what} ({', '.join(sorted(suffixes))}) in {folder}. Name another folder.")
    return paths


def _video_length(path: Path) -> tuple[float, float]:
    """Duration in seconds and frames per second, as the container tells them."""
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError(f"cut_video: {path} holds no video stream. Leave it out.")
            stream = container.streams.video[0]
            if stream.duration is not None and stream.time_base is not None:
                duration_seconds = float(stream.duration * stream.time_base)
            else:
                duration_seconds = (container.duration or 0) / av.time_base
            return duration_seconds, float(stream.average_rate or 25)
    except (OSError, av.FFmpegError) as error:
        raise ValueError(f"cut_video: cannot read {path}: {error}. Leave it out or encode it again.") from error


def _sample_path(num_frames: int, generator: np.random.Generator) -> CameraPath:
    """A smooth path from the origin: pan with acceleration, in half of the clips turn and zoom, in some jitter."""
    time = np.arange(num_frames, dtype=np.float64)
    progress = time / max(num_frames - 1, 1)
    # many slow, few fast: the median is 2 pixels a frame; one clip in twelve stands still
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


def _shrunk(image: Frames, factor: float) -> Frames:
    """The image, `factor` times smaller, each pixel the mean of the area that it covers."""
    size = (max(1, round(image.shape[1] / factor)), max(1, round(image.shape[0] / factor)))
    if size == (image.shape[1], image.shape[0]):
        return image
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


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
    out = np.empty_like(frames)
    # here the path is that of the object in the view: its matrices take pixels of the patch to pixels of the view
    for number, matrix in enumerate(path.matrices(side, side)):
        inverse = np.asarray(cv2.invertAffineTransform(matrix), dtype=np.float64)
        moved = _warped(patch, inverse, height, width, cv2.BORDER_REFLECT_101)
        cover = cv2.warpAffine(mask, inverse, (width, height), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
        mixed = frames[number] + cover[:, :, None] * (moved.astype(np.float32) - frames[number])
        out[number] = np.clip(np.rint(mixed), 0, 255).astype(np.uint8)
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
