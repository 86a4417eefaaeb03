"""Sample number i: its content and its degradation, a pure function of the clips, the options and i.

A sample is computed in two steps, which can run in different places: `draw` reads a piece of a clip and draws a recipe
(cheap, on the CPU), `degrade` applies the recipe (on the piece's device, except for video codecs). With the stochastic
scheme (paper, section 4.1) U = ceil(L / 2) frames are read, sharpened, then mirrored in time, and the degradation of
the L frames is a random walk.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from torch import Tensor

from training.data.arrays import Frames
from training.data.camera import moved_photograph
from training.data.dataset import ClipDataset, ClipError
from training.data.settings import DataSettings
from training.degradations import (
    SCALE,
    Recipe,
    apply,
    codecs,
    draw_settings,
    sample,
    unsharp,
)
from vsrealbasicvsr.errors import UserError

MAX_DRAWS = 20
"""Maximum number of unreadable clips in a row; then the sample is given up."""
FLIP_PROBABILITY = 0.5
_FOREGROUND_PROBABILITY = 0.5  # that a photograph's objects are cut from another photograph

# Streams of random numbers: no two purposes share one.
PIECE, RECIPE, POOL_PIECE, POOL_RECIPE, POOL_CUT, HOLD, SOFT = range(7)


class SampleError(UserError):
    """A sample could not be degraded. The text names its clip, and its index, with which it can be computed again."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """A piece of a clip and the recipe for its degradation.

    Attributes:
        gt: (U, 3, 4h, 4w) uint8.
        recipe: For L frames.
        name: The sample's number and the clip's file, for messages.
        notes: Clips that could not be read.
        held_frame: Frame that is shown all the time; None: each is shown once.
    """

    gt: Tensor
    recipe: Recipe
    name: str
    notes: tuple[str, ...] = ()
    held_frame: int | None = None

    def pin_memory(self) -> Drawn:
        """Return the same in page-locked memory, for asynchronous copies to a GPU; torch's DataLoader calls it."""
        return replace(self, gt=self.gt.pin_memory())


@dataclass(frozen=True, slots=True)
class Sample:
    """A degraded clip and its ground truth, all uint8.

    Attributes:
        lr: (L, 3, h, w).
        gt: (U, 3, 4h, 4w).
        gt_unsharp: `gt`, sharpened; None if the options do not ask for it.
        notes: Clips that could not be read.
    """

    lr: Tensor
    gt: Tensor
    gt_unsharp: Tensor | None
    notes: tuple[str, ...] = ()


def mirror(x: Tensor, num_frames: int, *, axis: int = 1) -> Tensor:
    """Return x1 .. xU, xU .. x1 along `axis`, cut to num_frames.

        num_frames = 5, U = 3:  x1 x2 x3 x3 x2

    Args:
        x: U = ceil(num_frames / 2) frames along `axis`.
        num_frames: 2 U or 2 U - 1.
        axis: Of the frames.

    Raises:
        ValueError: x has another number of frames.
    """
    if x.shape[axis] != -(-num_frames // 2):
        raise ValueError(f"mirror: {num_frames} frames are mirrored from half as many, got {x.shape[axis]}.")
    return torch.cat([x, x.flip(axis)], dim=axis).narrow(axis, 0, num_frames)


def draw(dataset: ClipDataset, options: DataSettings, index: int) -> Drawn:
    """Draw the content of sample `index` and its recipe. A clip that cannot be read is noted and another one is drawn.

    Raises:
        UserError: No clip is large enough.
        ClipError: MAX_DRAWS clips in a row cannot be read.
    """
    return draw_from(dataset, options, index, PIECE, RECIPE)


def draw_piece(
    dataset: ClipDataset,
    number: int,
    generator: np.random.Generator,
    *,
    num_frames: int,
    side_px: int,
    still_probability: float = 0.0,
) -> Frames:
    """Read a random square piece of a clip: any place and time, flipped and transposed.

    A video gives every frame, or every second one if it is long enough; a photograph gives a moving camera.

    Args:
        dataset: The clips.
        number: Of the clip.
        generator: Source of random numbers.
        num_frames: Of the piece.
        side_px: Of the piece.
        still_probability: Probability that a photograph's camera does not move.

    Returns:
        (num_frames, 3, side_px, side_px) uint8.

    Raises:
        ClipError: The clip cannot be read.
    """
    clip = dataset[number]
    if clip.kind == "photograph":
        foreground = None
        if generator.random() < _FOREGROUND_PROBABILITY:
            suited = dataset.suited(num_frames=num_frames, side_px=side_px)
            other = suited[int(generator.integers(len(suited)))]
            if dataset[other].kind == "photograph":
                foreground = dataset.read(other)[0]
        piece = moved_photograph(
            dataset.read(number)[0],
            num_frames=num_frames,
            height=side_px,
            width=side_px,
            generator=generator,
            foreground=foreground,
            still_probability=still_probability,
        )
    else:
        step = int(generator.integers(1, 3))
        if (num_frames - 1) * step >= clip.num_frames:
            step = 1
        piece = dataset.read(
            number,
            first_frame=int(generator.integers(clip.num_frames - (num_frames - 1) * step)),
            num_frames=num_frames,
            step=step,
            top=int(generator.integers(clip.height - side_px + 1)),
            left=int(generator.integers(clip.width - side_px + 1)),
            height=side_px,
            width=side_px,
        )
    return _turned(piece, draw_turn(generator))


def degrade(drawn: Drawn, options: DataSettings, *, run_codec: codecs.RunCodec = codecs.run) -> Sample:
    """Degrade what was drawn, on the device of `drawn.gt`.

    Frames are sharpened before they are mirrored: the same result at half the cost.

    Args:
        drawn: A piece and its recipe.
        options: Settings of the samples.
        run_codec: Runs codec steps.

    Raises:
        SampleError: Something failed.
    """
    try:
        sharpened = unsharp(drawn.gt) if options.unsharp else drawn.gt
        seen = mirror(sharpened, options.num_frames, axis=0) if options.stochastic else sharpened
        lr = apply(drawn.recipe, seen, run_codec=run_codec)
    except Exception as error:
        raise SampleError(f"{drawn.name}: cannot be degraded: {type(error).__name__}: {error}") from error
    made = Sample(lr, drawn.gt, sharpened if options.unsharp else None, drawn.notes)
    return made if drawn.held_frame is None else held(made, drawn.held_frame)


def held(made: Sample, frame: int) -> Sample:
    """Return a sample that shows one of its frames, 0 <= frame < U, all the time."""

    def still(frames: Tensor) -> Tensor:
        return frames[frame].expand_as(frames).contiguous()

    return Sample(
        still(made.lr), still(made.gt), None if made.gt_unsharp is None else still(made.gt_unsharp), made.notes
    )


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute with one thread while the block runs."""
    num_threads = torch.get_num_threads()
    if num_threads != 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if num_threads != 1:
            torch.set_num_threads(num_threads)


def random_numbers(options: DataSettings, stream: int, number: int, attempt: int = 0) -> np.random.Generator:
    """Return a generator for a stream and a number; no draw depends on another."""
    return np.random.default_rng((options.seed, stream, number, attempt))


def draw_from(dataset: ClipDataset, options: DataSettings, number: int, piece_stream: int, recipe_stream: int) -> Drawn:
    """Draw the content of sample or pool clip `number` with random numbers of these streams; see `draw`."""
    side_px = options.crop_px * SCALE
    suited = dataset.suited(num_frames=options.num_unique, side_px=side_px)
    notes: list[str] = []
    for attempt in range(MAX_DRAWS):
        generator = random_numbers(options, piece_stream, number, attempt)
        clip_number = suited[int(generator.integers(len(suited)))]
        try:
            piece = draw_piece(
                dataset,
                clip_number,
                generator,
                num_frames=options.num_unique,
                side_px=side_px,
                still_probability=options.still_probability,
            )
        except ClipError as error:
            notes.append(str(error))
            continue
        _soften(piece, options, number)
        recipe_generator = random_numbers(options, recipe_stream, number)
        degradations = draw_settings(options.degradation_mix, options.degradations, recipe_generator)
        recipe = sample(degradations, recipe_generator, num_frames=options.num_frames)
        name = f"{'sample' if piece_stream == PIECE else 'pool clip'} {number} ({dataset[clip_number].file})"
        held_frame = draw_held_frame(options, number)
        return Drawn(torch.from_numpy(piece), recipe, name, tuple(dict.fromkeys(notes)), held_frame)
    raise ClipError(f"{MAX_DRAWS} clips in a row cannot be read; the last one: {notes[-1]}")


def draw_held_frame(options: DataSettings, number: int) -> int | None:
    """Draw which frame of sample `number` is shown all the time; None for most samples."""
    if not options.hold_probability:
        return None
    generator = random_numbers(options, HOLD, number)
    is_held, frame = generator.random() < options.hold_probability, int(generator.integers(options.num_unique))
    return frame if is_held else None


def _soften(frames: Frames, options: DataSettings, number: int) -> None:
    """Blur the frames (T, 3, H, W) of sample or pool clip `number` in place, all of them alike, if it is a soft one."""
    if not options.soft_probability:
        return
    generator = random_numbers(options, SOFT, number)
    is_soft, sigma_px = generator.random() < options.soft_probability, generator.uniform(*options.soft_sigma_px)
    if is_soft:
        for plane in frames.reshape(-1, *frames.shape[2:]):
            cv2.GaussianBlur(plane, (0, 0), sigma_px, dst=plane, borderType=cv2.BORDER_REFLECT_101)


def draw_turn(generator: np.random.Generator) -> tuple[bool, bool, bool]:
    """Draw whether to flip horizontally, flip vertically, and transpose."""
    horizontally, vertically, transposed = (generator.random(3) < FLIP_PROBABILITY).tolist()
    return horizontally, vertically, transposed


def _turned(frames: Frames, turn: tuple[bool, bool, bool]) -> Frames:
    """Return square frames (T, H, H, 3) flipped and transposed, as planes (T, 3, H, H).

    Frame by frame, so that each stays in the CPU's cache.
    """
    horizontally, vertically, transposed = turn
    code = {(True, True): -1, (True, False): 1, (False, True): 0}.get((horizontally, vertically))
    out = np.empty((len(frames), 3, *frames.shape[1:3]), dtype=np.uint8)
    for frame, targets in zip(frames, out, strict=True):
        for plane, target in zip(cv2.split(frame), targets, strict=True):
            flipped = plane if code is None else cv2.flip(plane, code)
            target[:] = cv2.transpose(flipped) if transposed else flipped
    return out
