"""A virtual camera that moves over a photograph, with objects in front of it: clips from single images.

Frames are (H, W, 3) uint8, RGB, clips (T, H, W, 3). Positions are (x, y) in pixels, pixel centres at whole numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from training.data.arrays import Floats, Frames

MAX_SPEED_PX = 12.0
"""Fastest pan, in high-resolution pixels from one frame to the next."""


PHOTOGRAPH_SHRINK = (1.0, 1.5)
"""Range of the factor by which a photograph is shrunk before the camera moves over it."""


FOREGROUND_PROBABILITY = 1 / 3
"""Probability that a clip has moving objects in front of the photograph."""


_MARGIN_PX = 5.0  # Lanczos reads 4 pixels around the place it samples


@dataclass(frozen=True, slots=True)
class CameraPath:
    """A moving view: frame t shows what lies at `centre_px[t] + shrink[t] * R(angle_radians[t]) @ p`.

    p = (x, y) counts from the middle of the view.

    Attributes:
        centre_px: (T, 2), (x, y) in the source.
        angle_radians: (T).
        shrink: (T), source pixels per pixel of the view; 1 or more, so that nothing is magnified.
    """

    centre_px: Floats
    angle_radians: Floats
    shrink: Floats

    def scaled(self, factor: float) -> CameraPath:
        """Return the same path with all of its motion, rotation and zoom multiplied by `factor`."""
        return CameraPath(self.centre_px * factor, self.angle_radians * factor, self.shrink**factor)

    def at(self, centre_px: Floats) -> CameraPath:
        """Return the same path, moved by `centre_px` (2)."""
        return CameraPath(self.centre_px + centre_px, self.angle_radians, self.shrink)

    def matrices(self, height: int, width: int) -> Floats:
        """Return affine matrices (T, 2, 3) from pixels of a view of this size to pixels of the source."""
        cos, sin = self.shrink * np.cos(self.angle_radians), self.shrink * np.sin(self.angle_radians)
        linear = np.stack([np.stack([cos, -sin], axis=1), np.stack([sin, cos], axis=1)], axis=1)
        middle = np.array([(width - 1) / 2, (height - 1) / 2])
        return np.concatenate([linear, (self.centre_px - linear @ middle)[:, :, None]], axis=2)

    def bounds(self, height: int, width: int) -> tuple[Floats, Floats]:
        """Return the smallest and the largest (x, y) of the source that any frame of the path shows."""
        right, bottom = width - 1.0, height - 1.0
        corners = np.array([[0, right, 0, right], [0, 0, bottom, bottom], [1, 1, 1, 1]])
        seen = self.matrices(height, width) @ corners
        return seen.min(axis=(0, 2)), seen.max(axis=(0, 2))


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
    """Return a clip of a camera that moves smoothly over an image.

    The image is shrunk by 1 to 1.5 first (less where the path needs the room), then sampled. One clip in three has one
    or two objects that move in front of it. The path stays inside the image; only an image smaller than the view is
    continued by reflection.

    Args:
        image: (H, W, 3).
        num_frames: T.
        height: Of the view.
        width: Of the view.
        generator: Source of random numbers.
        foreground: Image that objects are cut from; None: `image` itself.
        still_probability: Probability of a camera on a tripod, which does not move at all.

    Returns:
        (num_frames, height, width, 3).
    """
    is_still = still_probability > 0 and generator.random() < still_probability  # 0 uses no random number
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


def shrunk(image: Frames, factor: float) -> Frames:
    """Return the image (H, W, 3) shrunk by `factor`, each pixel the mean of the area that it covers."""
    size = (max(1, round(image.shape[1] / factor)), max(1, round(image.shape[0] / factor)))
    if size == (image.shape[1], image.shape[0]):
        return image
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _sample_path(num_frames: int, generator: np.random.Generator) -> CameraPath:
    """Return a smooth random path from the origin: accelerated pan, often rotation and zoom, sometimes jitter."""
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
    """Return a view (height, width, 3) whose pixel p shows the image at matrix @ (p, 1)."""
    flags = cv2.INTER_LANCZOS4 | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(image, matrix, (width, height), flags=flags, borderMode=border), dtype=np.uint8)


def _with_object(frames: Frames, texture: Frames, generator: np.random.Generator) -> Frames:
    """Return the clip with a roundish piece of `texture` that moves in front of it, on a path of its own."""
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
    # This path is the object's in the view: its matrices map pixels of the patch to pixels of the view.
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
    """Return a mask (side, side) in [0, 1] of an uneven ellipse with an edge of 1 to 4 pixels; 0 on the border."""
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
