"""The sequences of a folder such as VideoLQ, and which of their frames are measured.

Frames are (T, H, W, 3) uint8, RGB.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.data.arrays import Frames
from training.data.sources import Gap, Source, find_sources, read_numbered_frames, read_video
from vsrealbasicvsr.errors import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """A sequence in memory.

    Attributes:
        name: Of the sequence.
        frames: All frames.
        stems: Names of the frames without suffix.
        measured: Indices of the frames that are measured.
    """

    name: str
    frames: Frames
    stems: tuple[str, ...]
    measured: tuple[int, ...]


def measured_frames(num_frames: int) -> tuple[int, ...]:
    """Return the first, the middle and the last frame, as the authors measure VideoLQ: 0, 50 and 99 of 100 (T // 2).

    They name these files in issue 22 of ckkelvinchan/RealBasicVSR. Fewer are returned if frames coincide.
    """
    return tuple(sorted({0, num_frames // 2, num_frames - 1}))


def find_sequences(folder: Path, num_sequences: int | None = None) -> dict[str, Source]:
    """Find the sequences of a folder, sorted by name.

    Folders of numbered images are named by their path in the folder, videos by theirs without suffix. Pictures that
    belong to no sequence are counted on standard error: a sequence of three frames would be missing without a word.

    Args:
        folder: Where to look, with everything below.
        num_sequences: Take only this many, evenly spaced.

    Raises:
        UserError: There is no sequence, or two have one name.
    """
    found = find_sources(folder, images="frames")
    sequences: dict[str, Source] = {}
    for source in found.sources:
        place = source.paths[0].parent if source.kind == "frames" else source.paths[0].with_suffix("")
        name = place.relative_to(folder).as_posix()
        name = folder.resolve().name if name == "." else name
        if name in sequences:
            raise UserError(
                f"{folder} holds two sequences {name}: {sequences[name].name} and {source.name}."
                " Number the frames of a sequence without gaps, and put each into a folder of its own"
            )
        sequences[name] = source
    if not sequences:
        reason = found.unused[0] if found.unused else None
        raise UserError(
            f"{folder} holds no sequences{f' ({reason.name}: {reason.reason})' if reason else ''}."
            " Name a folder of folders of numbered PNG frames, as VideoLQ is, or of videos"
        )
    if found.unused:
        one = found.unused[0]
        print(
            f"training benchmark: {len(found.unused)} pictures are left out, such as {one.name}: {one.reason}",
            file=sys.stderr,
        )
    if num_sequences is None or num_sequences >= len(sequences):
        return sequences
    names = list(sequences)
    chosen = [names[round(place)] for place in np.linspace(0, len(names) - 1, num_sequences)]
    return {name: sequences[name] for name in chosen}


def read_clip(name: str, source: Source, num_frames: int | None = None) -> Clip:
    """Read a sequence, or its first num_frames frames.

    Raises:
        UserError: A frame cannot be read or has another size than the first; the text names the file.
    """
    paths = source.paths[:num_frames]
    frames: list[Frames] = []
    for item in read_video(source.paths[0]) if source.kind == "video" else read_numbered_frames(paths):
        if isinstance(item, Gap):
            if item.reason is None:
                continue  # the video's own pause: no frame is missing
            raise UserError(f"{source.name}: {item.reason}. Repair the sequence, or take it out of the folder")
        if frames and item.picture.shape != frames[0].shape:
            sizes = ["{1}x{0}".format(*picture.shape) for picture in (frames[0], item.picture)]
            raise UserError(f"{source.name}: frame {len(frames)} is {sizes[1]}, the first {sizes[0]}. Give one size")
        frames.append(item.picture)
        if len(frames) == num_frames:
            break
    if not frames:
        raise UserError(f"{source.name} holds no frames. Take it out of the folder")
    stems = [path.stem for path in paths] if source.kind == "frames" else [f"{n:08d}" for n in range(len(frames))]
    return Clip(name=name, frames=np.stack(frames), stems=tuple(stems), measured=measured_frames(len(frames)))


def stamp(paths: Iterable[Path]) -> str:
    """Return a short text that changes when one of the files does, by names, sizes and times, not contents."""
    facts = [(path.name, status.st_size, status.st_mtime_ns) for path in paths for status in [path.stat()]]
    return hashlib.sha256(repr(sorted(facts)).encode()).hexdigest()[:16]


def pieces(num_frames: int, length: int | None) -> Sequence[range]:
    """Return the frames cut into ranges of `length`, the last one shorter; None: one range."""
    step = length or num_frames
    return [range(first, min(first + step, num_frames)) for first in range(0, num_frames, step)]
