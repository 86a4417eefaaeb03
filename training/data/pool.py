"""A finite pool of degraded clips, each computed once, cached on disk, and cut into many samples.

For machines on which degrading every sample takes longer than training on it.
"""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from training.data.dataset import FOOTAGE_NAME, ClipDataset, write_clip_file
from training.data.sampler import (
    FLIP_PROBABILITY,
    POOL_CUT,
    POOL_PIECE,
    POOL_RECIPE,
    Sample,
    degrade,
    draw,
    draw_from,
    draw_held_frame,
    draw_turn,
    held,
    one_thread,
    random_numbers,
)
from training.data.settings import DataSettings
from training.degradations import SCALE, codecs
from vsrealbasicvsr.errors import UserError

POOL_VERSION = 2
"""Number of this format; raised whenever the same options give other clips, so that older pools are computed again."""


_CHECKSUM_BYTES = 4


def make_sample(
    dataset: ClipDataset, options: DataSettings, index: int, *, run_codec: codecs.RunCodec = codecs.run
) -> Sample:
    """Compute sample `index` here, on one thread (the number of threads might change the last bit).

    Args:
        dataset: The clips.
        options: Settings of the samples.
        index: Number of the sample.
        run_codec: Runs codec steps, for example in another process.

    Raises:
        UserError: No clip is large enough for the options.
        ClipError: Too many clips in a row cannot be read.
        SampleError: The sample cannot be degraded.
    """
    with one_thread():
        if options.pool_clips:
            return _cut_of_pool(dataset, options, index, run_codec)
        return degrade(draw(dataset, options, index), options, run_codec=run_codec)


def pool_clip_path(dataset: ClipDataset, options: DataSettings, number: int) -> Path:
    """Return the path of clip `number` of the pool, in a folder of its own for the settings that decide the clips.

    Raises:
        UserError: The dataset has no folder for its pools.
    """
    if dataset.pool_folder is None:
        raise UserError(f"a pool of {options.pool_clips} clips needs a pool_folder to be cached in.")
    name = hashlib.blake2b(_what_decides(dataset, options.of_pool_clips()).encode(), digest_size=8).hexdigest()
    return dataset.pool_folder / name / f"{number:06d}.npy"


def check_pool(dataset: ClipDataset, options: DataSettings) -> None:
    """Note the footage in the pool's folder, or compare: clips of other footage may have the same names and sizes.

    Raises:
        UserError: The dataset has no folder for its pools, or this one is of other footage.
    """
    path = pool_clip_path(dataset, options, 0).with_name(FOOTAGE_NAME)
    if not dataset.is_noted(path):
        raise UserError(
            f"the pool {path.parent} was made from other footage, whose clips have the same names and sizes."
            " Name another --pool-folder, or delete this one."
        )


def _what_decides(dataset: ClipDataset, options: DataSettings) -> str:
    """Return all that decides the pool's clips, as text. Its wording must not change: pools would be computed again.

    Fields that were added later are left out at their defaults, which give the same clips as before.
    """
    later = {
        "degradation_mix": options.degradation_mix,
        "still_probability": options.still_probability,
        "soft_probability": options.soft_probability,
        "soft_sigma_px": options.soft_probability and options.soft_sigma_px,
    }
    decisions = {
        "crop_px": options.crop_px,
        "num_frames": options.num_frames,
        "stochastic": options.stochastic,
        "unsharp": options.unsharp,
        "degradations": asdict(options.degradations),
        **{name: value for name, value in later.items() if value},
        "seed": options.seed,
        "pool_clips": 0,
        "pool_crop_px": options.pool_crop_px,
        "pool_num_frames": options.pool_num_frames,
        "pool_folder": None,
    }
    return f"{POOL_VERSION} {decisions} {dataset.identity()}"


def pool_clip(
    dataset: ClipDataset, options: DataSettings, number: int, *, run_codec: codecs.RunCodec = codecs.run
) -> Sample:
    """Return clip `number` of the pool from its file; compute and write it if the file is missing or damaged.

    Two processes may compute the same clip: they write the same bytes, atomically.

    Args:
        dataset: The clips.
        options: Settings of the samples.
        number: Of the clip.
        run_codec: Runs codec steps.
    """
    path = pool_clip_path(dataset, options, number)
    of_clips = options.of_pool_clips()
    try:
        return _unpacked(np.load(path, allow_pickle=False), of_clips)
    except (OSError, ValueError, EOFError):  # missing or damaged
        drawn = draw_from(dataset, of_clips, number, POOL_PIECE, POOL_RECIPE)
        made = degrade(drawn, of_clips, run_codec=run_codec)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_clip_file(path, _packed(made))
        return made


def _cut_of_pool(dataset: ClipDataset, options: DataSettings, index: int, run_codec: codecs.RunCodec) -> Sample:
    cut = draw_cut(options, index)
    return cut_clip(pool_clip(dataset, options, cut.clip, run_codec=run_codec), options, cut)


@dataclass(frozen=True, slots=True)
class Cut:
    """A sample's part of a pool clip.

    Attributes:
        clip: Number of the clip.
        first: Index of the first frame.
        top: First low-resolution row.
        left: First low-resolution column.
        turn: Flip horizontally, flip vertically, transpose.
        is_reversed: Reverse time.
        held_frame: Frame that is shown all the time; None: each is shown once.
    """

    clip: int
    first: int
    top: int
    left: int
    turn: tuple[bool, bool, bool]
    is_reversed: bool
    held_frame: int | None


def draw_cut(options: DataSettings, index: int) -> Cut:
    """Draw which part of which pool clip sample `index` is."""
    generator = random_numbers(options, POOL_CUT, index)
    number = int(generator.integers(options.num_pool_clips(index)))
    first = int(generator.integers(options.of_pool_clips().num_unique - options.num_unique + 1))
    top, left = (int(place) for place in generator.integers(options.pool_crop_px - options.crop_px + 1, size=2))
    turn = draw_turn(generator)
    is_reversed = bool(generator.random() < FLIP_PROBABILITY)
    return Cut(number, first, top, left, turn, is_reversed, draw_held_frame(options, index))


def cut_clip(clip: Sample, options: DataSettings, drawn: Cut) -> Sample:
    """Cut a sample from a pool clip, on the clip's device.

    A mirrored pool clip has its U_p frames forwards, then backwards. A sample of U frames takes lr frames a .. a + U of
    the first half, and those of the second half that show the same frames. Reversing time leaves the ground truth
    unchanged and swaps the two halves.

    Args:
        clip: The pool clip.
        options: Settings of the samples.
        drawn: Which part.
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
    """Return a pool clip as one row of bytes: lr, gt, gt_unsharp, and a checksum."""
    parts = [part for part in (clip.lr, clip.gt, clip.gt_unsharp) if part is not None]
    values = np.concatenate([part.cpu().contiguous().numpy().reshape(-1) for part in parts])
    checksum = zlib.crc32(values).to_bytes(_CHECKSUM_BYTES, "little")
    return np.concatenate([values, np.frombuffer(checksum, dtype=np.uint8)])


def _unpacked(row: npt.NDArray[np.uint8], options: DataSettings) -> Sample:
    """Return the clip that `_packed` packed. Raise ValueError if the row's size or checksum is wrong."""
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
