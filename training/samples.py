"""Sample number i: what it shows and how it is degraded, a pure function of the clips, the options and i.

A sample comes in two steps, so that they can run in different places: `draw` reads a piece of a clip and draws a recipe
(small, the CPU's work), `degrade` carries the recipe out (on the device that the piece is on, but for video codecs).
With the stochastic scheme (paper, section 4.1) U = ceil(L / 2) frames are read, sharpened, then mirrored in time, and
the degradation of the L frames is a walk. Knows no processes and no batches.
"""

from __future__ import annotations

import contextlib
import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from training.clips import Frames, moved_photograph
from training.degradations import (
    PUBLISHED,
    DegradationSettings,
    Recipe,
    apply,
    codecs,
    draw_settings,
    mixture,
    sample,
    unsharp,
)
from training.store import ClipError, ClipStore, write_clip_file
from vsrealbasicvsr.errors import UserError
from vsrealbasicvsr.model import SCALE

MAX_DRAWS = 20
"""Clips that cannot be read, one after another, before a sample is given up."""
POOL_VERSION = 2
"""Goes up whenever the same options make other clips: pools of before are then made again."""
_FLIP_PROBABILITY = 0.5
_FOREGROUND_PROBABILITY = 0.5  # of a photograph's object being cut out of another photograph
_CHECKSUM_BYTES = 4

# Streams of random numbers: one sample's draws never are another's.
_PIECE, _RECIPE, _POOL_PIECE, _POOL_RECIPE, _POOL_CUT, _HOLD = range(6)


class SampleError(UserError):
    """A sample could not be degraded; the text names its clip, and its index, with which it can be made again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleOptions:
    """What decides samples, with the clips. crop_px and pool_crop_px are sides of the low-resolution square.

    pool_clips = 0: every sample is degraded afresh. Otherwise there are only that many degraded clips, of
    pool_num_frames frames and pool_crop_px pixels, each made when it is first wanted and kept in pool_folder; a sample
    is a cut of one, flipped, and reversed in time in half of the cases.

    A pool may grow while it is used: sample i is a cut of one of the first pool_start_clips + i * pool_growth clips
    (pool_start_clips = 0: of all of them), so that a run need not wait until all are made.

    degradation_mix: named settings and their shares that each clip draws one of, see degradations.mixture; empty:
    `degradations`. hold_probability: share of the samples in which one frame stands still, noise and all.
    """

    crop_px: int = 64
    num_frames: int = 30
    stochastic: bool = True
    unsharp: bool = True
    degradations: DegradationSettings = PUBLISHED
    degradation_mix: tuple[str, ...] = ()
    still_probability: float = 0.0
    hold_probability: float = 0.0
    seed: int = 0
    pool_clips: int = 0
    pool_crop_px: int = 96
    pool_num_frames: int = 12
    pool_folder: Path | None = None
    pool_start_clips: int = 0
    pool_growth: float = 0.0

    def __post_init__(self) -> None:
        if self.crop_px < 1 or self.num_frames < 1 or self.pool_clips < 0 or self.seed < 0:
            raise UserError(
                "SampleOptions: crop_px and num_frames must be 1 or more, pool_clips and seed 0 or more, got"
                f" {self.crop_px}, {self.num_frames}, {self.pool_clips} and {self.seed}."
            )
        for name in ("still_probability", "hold_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"SampleOptions: {name} must be from 0 to 1, got {getattr(self, name)}.")
        if self.pool_start_clips < 0 or self.pool_growth < 0:
            raise UserError(
                "SampleOptions: pool_start_clips and pool_growth must be 0 or more, got"
                f" {self.pool_start_clips} and {self.pool_growth}."
            )
        mixture(self.degradation_mix) if self.degradation_mix else None
        if self.pool_clips == 0:
            return
        if self.pool_folder is None:
            raise UserError(f"SampleOptions: a pool of {self.pool_clips} clips needs a pool_folder to keep them in.")
        if self.pool_crop_px < self.crop_px or self.pool_num_frames < self.num_frames:
            raise UserError(
                f"SampleOptions: pool clips of {self.pool_num_frames} frames and {self.pool_crop_px} pixels are smaller"
                f" than samples of {self.num_frames} frames and {self.crop_px} pixels. Enlarge the pool's."
            )

    @property
    def num_unique(self) -> int:
        """U, the frames that are read."""
        return num_unique(self.num_frames, stochastic=self.stochastic)

    def of_pool_clips(self) -> SampleOptions:
        """The options with which the pool's clips are made; a mirrored one has an even number of frames."""
        num_frames = self.pool_num_frames + (self.pool_num_frames % 2 if self.stochastic else 0)
        return replace(
            self,
            crop_px=self.pool_crop_px,
            num_frames=num_frames,
            hold_probability=0.0,
            pool_clips=0,
            pool_folder=None,
            pool_start_clips=0,
            pool_growth=0.0,
        )

    def num_pool_clips(self, index: int) -> int:
        """How many of the pool's clips sample `index` may be a cut of."""
        if not self.pool_start_clips:
            return self.pool_clips
        return min(self.pool_clips, self.pool_start_clips + int(index * self.pool_growth))


_LATER_OPTIONS = ("degradation_mix", "still_probability", "hold_probability", "pool_start_clips", "pool_growth")
_DEFAULTS = {field.name: field.default for field in fields(SampleOptions)}


@dataclass(frozen=True, slots=True)
class Drawn:
    """A piece of a clip (U, 3, 4h, 4w) uint8 and the recipe for its L frames.

    `name` is for messages: the sample's number and the clip's file. `notes`: clips that could not be read. held_frame:
    the one that is shown all the time, None: each is shown once.
    """

    gt: Tensor
    recipe: Recipe
    name: str
    notes: tuple[str, ...] = ()
    held_frame: int | None = None

    def pin_memory(self) -> Drawn:
        """The same in page-locked memory, from which a copy to a GPU does not wait; torch's DataLoader calls it."""
        return replace(self, gt=self.gt.pin_memory())


@dataclass(frozen=True, slots=True)
class Sample:
    """lr (L, 3, h, w), gt (U, 3, 4h, 4w) and gt_unsharp, the same sharpened or None; all uint8."""

    lr: Tensor
    gt: Tensor
    gt_unsharp: Tensor | None
    notes: tuple[str, ...] = ()


def num_unique(num_frames: int, *, stochastic: bool) -> int:
    """Frames that are read for `num_frames` that the network sees."""
    return (num_frames + 1) // 2 if stochastic else num_frames


def mirror(x: Tensor, num_frames: int, *, axis: int = 1) -> Tensor:
    """x1 .. xU, xU .. x1 along `axis`, cut to num_frames (2 U or 2 U - 1).

    num_frames = 5, U = 3:  x1 x2 x3 x3 x2

    Raises ValueError if x has not U = ceil(num_frames / 2) frames.
    """
    if x.shape[axis] != num_unique(num_frames, stochastic=True):
        raise ValueError(f"mirror: {num_frames} frames are mirrored from half as many, got {x.shape[axis]}.")
    return torch.cat([x, x.flip(axis)], dim=axis).narrow(axis, 0, num_frames)


def make_sample(
    store: ClipStore, options: SampleOptions, index: int, *, run_codec: codecs.RunCodec = codecs.run
) -> Sample:
    """Sample `index`, computed here with one thread (the number of threads may change the last bit).

    Raises ValueError if no clip is large enough, ClipError if too many cannot be read, SampleError if it cannot be
    degraded.
    """
    with one_thread():
        if options.pool_clips:
            return _cut_of_pool(store, options, index, run_codec)
        return degrade(draw(store, options, index), options, run_codec=run_codec)


def draw(store: ClipStore, options: SampleOptions, index: int) -> Drawn:
    """What sample `index` shows, and its recipe. A clip that cannot be read is noted, and another one is drawn.

    Raises ValueError if no clip is large enough, ClipError if MAX_DRAWS in a row cannot be read.
    """
    return _draw(store, options, index, _PIECE, _RECIPE)


def draw_piece(
    store: ClipStore,
    number: int,
    generator: np.random.Generator,
    *,
    num_frames: int,
    side_px: int,
    still_probability: float = 0.0,
) -> Frames:
    """A square piece (num_frames, 3, side_px, side_px) of clip `number`: any place and time, flipped and transposed.

    A video gives every frame, or every second one if it is long enough; a photograph a camera that moves over it, or,
    with still_probability, one that stands still.

    Raises ClipError if the clip cannot be read.
    """
    clip = store[number]
    if clip.kind == "photograph":
        foreground = None
        if generator.random() < _FOREGROUND_PROBABILITY:
            suited = store.suited(num_frames=num_frames, side_px=side_px)
            other = suited[int(generator.integers(len(suited)))]
            if store[other].kind == "photograph":
                foreground = store.read(other)[0]
        piece = moved_photograph(
            store.read(number)[0],
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
        piece = store.read(
            number,
            first_frame=int(generator.integers(clip.num_frames - (num_frames - 1) * step)),
            num_frames=num_frames,
            step=step,
            top=int(generator.integers(clip.height - side_px + 1)),
            left=int(generator.integers(clip.width - side_px + 1)),
            height=side_px,
            width=side_px,
        )
    return _turned(piece, _draw_turn(generator))


def degrade(drawn: Drawn, options: SampleOptions, *, run_codec: codecs.RunCodec = codecs.run) -> Sample:
    """The sample of what was drawn, on the device that drawn.gt is on.

    Frames are sharpened before they are mirrored: the same result at half the price.

    Raises SampleError if anything goes wrong.
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
    """The sample with one frame of it, 0 <= frame < U, all the time."""

    def still(frames: Tensor) -> Tensor:
        return frames[frame].expand_as(frames).contiguous()

    return Sample(
        still(made.lr), still(made.gt), None if made.gt_unsharp is None else still(made.gt_unsharp), made.notes
    )


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Torch computes with one thread inside."""
    num_threads = torch.get_num_threads()
    if num_threads != 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if num_threads != 1:
            torch.set_num_threads(num_threads)


def pool_clip_path(store: ClipStore, options: SampleOptions, number: int) -> Path:
    """Where clip `number` of the pool lies: in a folder of its own for all that decides the pool's clips."""
    assert options.pool_folder is not None
    of_clips = options.of_pool_clips()
    decisions = asdict(of_clips)
    for name in _LATER_OPTIONS:  # at their defaults the clips are those of before these options were, so is the name
        if getattr(of_clips, name) == _DEFAULTS[name]:
            del decisions[name]
    decides = f"{POOL_VERSION} {decisions} {store.identity()}"
    return options.pool_folder / hashlib.blake2b(decides.encode(), digest_size=8).hexdigest() / f"{number:06d}.npy"


def pool_clip(
    store: ClipStore, options: SampleOptions, number: int, *, run_codec: codecs.RunCodec = codecs.run
) -> Sample:
    """Clip `number` of the pool, from its file, or made and written if there is none or if it is damaged.

    Two processes may make the same one: they write the same bytes, each as a whole.
    """
    path = pool_clip_path(store, options, number)
    of_clips = options.of_pool_clips()
    try:
        return _unpacked(np.load(path, allow_pickle=False), of_clips)
    except (OSError, ValueError, EOFError):  # missing, or damaged: it is made again
        drawn = _draw(store, of_clips, number, _POOL_PIECE, _POOL_RECIPE)
        made = degrade(drawn, of_clips, run_codec=run_codec)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_clip_file(path, _packed(made))
        return made


def _generator(options: SampleOptions, stream: int, number: int, attempt: int = 0) -> np.random.Generator:
    return np.random.default_rng((options.seed, stream, number, attempt))


def _draw(store: ClipStore, options: SampleOptions, number: int, piece_stream: int, recipe_stream: int) -> Drawn:
    side_px = options.crop_px * SCALE
    suited = store.suited(num_frames=options.num_unique, side_px=side_px)
    notes: list[str] = []
    for attempt in range(MAX_DRAWS):
        generator = _generator(options, piece_stream, number, attempt)
        clip_number = suited[int(generator.integers(len(suited)))]
        try:
            piece = draw_piece(
                store,
                clip_number,
                generator,
                num_frames=options.num_unique,
                side_px=side_px,
                still_probability=options.still_probability,
            )
        except ClipError as error:
            notes.append(str(error))
            continue
        recipe_generator = _generator(options, recipe_stream, number)
        degradations = draw_settings(options.degradation_mix, options.degradations, recipe_generator)
        recipe = sample(degradations, recipe_generator, num_frames=options.num_frames)
        name = f"{'sample' if piece_stream == _PIECE else 'pool clip'} {number} ({store[clip_number].file})"
        held_frame = _draw_hold(options, number)
        return Drawn(torch.from_numpy(piece), recipe, name, tuple(dict.fromkeys(notes)), held_frame)
    raise ClipError(f"{MAX_DRAWS} clips in a row cannot be read; the last one: {notes[-1]}")


def _draw_hold(options: SampleOptions, number: int) -> int | None:
    """The frame of sample `number` that is shown all the time, if it is one of those."""
    if not options.hold_probability:
        return None
    generator = _generator(options, _HOLD, number)
    is_held, frame = generator.random() < options.hold_probability, int(generator.integers(options.num_unique))
    return frame if is_held else None


def _draw_turn(generator: np.random.Generator) -> tuple[bool, bool, bool]:
    """Flip horizontally, flip vertically, transpose."""
    horizontally, vertically, transposed = (generator.random(3) < _FLIP_PROBABILITY).tolist()
    return horizontally, vertically, transposed


def _turned(frames: Frames, turn: tuple[bool, bool, bool]) -> Frames:
    """Square frames (T, H, H, 3) flipped and transposed, as planes (T, 3, H, H); one after another, in the cache."""
    horizontally, vertically, transposed = turn
    code = {(True, True): -1, (True, False): 1, (False, True): 0}.get((horizontally, vertically))
    out = np.empty((len(frames), 3, *frames.shape[1:3]), dtype=np.uint8)
    for frame, targets in zip(frames, out, strict=True):
        for plane, target in zip(cv2.split(frame), targets, strict=True):
            flipped = plane if code is None else cv2.flip(plane, code)
            target[:] = cv2.transpose(flipped) if transposed else flipped
    return out


def _cut_of_pool(store: ClipStore, options: SampleOptions, index: int, run_codec: codecs.RunCodec) -> Sample:
    cut = draw_cut(options, index)
    return cut_clip(pool_clip(store, options, cut.clip, run_codec=run_codec), options, cut)


@dataclass(frozen=True, slots=True)
class Cut:
    """What a sample is of which of the pool's clips: place, turn, direction in time, and the frame that is held."""

    clip: int
    first: int
    top: int
    left: int
    turn: tuple[bool, bool, bool]
    is_reversed: bool
    held_frame: int | None


def draw_cut(options: SampleOptions, index: int) -> Cut:
    """What sample `index` of a pool is."""
    generator = _generator(options, _POOL_CUT, index)
    number = int(generator.integers(options.num_pool_clips(index)))
    first = int(generator.integers(options.of_pool_clips().num_unique - options.num_unique + 1))
    top, left = (int(place) for place in generator.integers(options.pool_crop_px - options.crop_px + 1, size=2))
    turn = _draw_turn(generator)
    is_reversed = bool(generator.random() < _FLIP_PROBABILITY)
    return Cut(number, first, top, left, turn, is_reversed, _draw_hold(options, index))


def cut_clip(clip: Sample, options: SampleOptions, drawn: Cut) -> Sample:
    """A cut of a pool clip in space and time, on the device that the clip is on.

    Mirrored, U_p frames in the pool, U wanted: lr frames a .. a + U of the way there, and those of the way back that
    show the same frames. Reversing the whole of it leaves the ground truth as it is and swaps the two ways.
    """
    num_wanted = options.num_unique
    first, top, left, turn, is_reversed = drawn.first, drawn.top, drawn.left, drawn.turn, drawn.is_reversed

    def cut(frames: Tensor, scale: int) -> Tensor:
        side = options.crop_px * scale
        y, x = top * scale, left * scale
        frames = frames[..., y : y + side, x : x + side]
        flips = [axis for axis, flipped in ((3, turn[0]), (2, turn[1])) if flipped]
        frames = frames.flip(flips) if flips else frames
        return frames.transpose(2, 3) if turn[2] else frames

    lr, gt, gt_unsharp = clip.lr, clip.gt[first : first + num_wanted], None
    if clip.gt_unsharp is not None:
        gt_unsharp = clip.gt_unsharp[first : first + num_wanted]
    if options.stochastic:
        back = len(lr) - first - num_wanted
        lr = torch.cat([lr[first : first + num_wanted], lr[back : back + num_wanted]])
        lr = (lr.flip(0) if is_reversed else lr)[: options.num_frames]
    else:
        lr = lr[first : first + num_wanted]
        if is_reversed:
            lr, gt = lr.flip(0), gt.flip(0)
            gt_unsharp = None if gt_unsharp is None else gt_unsharp.flip(0)
    made = Sample(
        cut(lr, 1).contiguous(),
        cut(gt, SCALE).contiguous(),
        None if gt_unsharp is None else cut(gt_unsharp, SCALE).contiguous(),
        clip.notes,
    )
    return made if drawn.held_frame is None else held(made, drawn.held_frame)


def _packed(clip: Sample) -> npt.NDArray[np.uint8]:
    """A pool clip as one row of bytes: lr, gt, gt_unsharp, and the checksum of all."""
    parts = [part for part in (clip.lr, clip.gt, clip.gt_unsharp) if part is not None]
    values = np.concatenate([part.cpu().contiguous().numpy().reshape(-1) for part in parts])
    checksum = zlib.crc32(values).to_bytes(_CHECKSUM_BYTES, "little")
    return np.concatenate([values, np.frombuffer(checksum, dtype=np.uint8)])


def _unpacked(row: npt.NDArray[np.uint8], options: SampleOptions) -> Sample:
    """The clip that `_packed` packed. Raises ValueError if anything about the row is not as it should be."""
    side, num_there = options.crop_px, options.num_unique
    shapes = [(options.num_frames, 3, side, side)]
    shapes += [(num_there, 3, side * SCALE, side * SCALE)] * (2 if options.unsharp else 1)
    sizes = [int(np.prod(shape)) for shape in shapes]
    if row.dtype != np.uint8 or row.shape != (sum(sizes) + _CHECKSUM_BYTES,):
        raise ValueError(f"a pool clip of {row.dtype} {row.shape}")
    values = row[:-_CHECKSUM_BYTES]
    if zlib.crc32(values).to_bytes(_CHECKSUM_BYTES, "little") != row[-_CHECKSUM_BYTES:].tobytes():
        raise ValueError("the checksum is wrong")
    parts = np.split(values, np.cumsum(sizes)[:-1])
    lr, gt, *more = (torch.from_numpy(part.reshape(shape)) for part, shape in zip(parts, shapes, strict=True))
    return Sample(lr, gt, more[0] if more else None)
