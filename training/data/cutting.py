"""Cutting of one source into clips: scenes of videos, tiles of photographs, and reasons for what is left out."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
from dataclasses import asdict, dataclass, field
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Literal

import numpy as np

from training.data.arrays import Frames
from training.data.camera import shrunk
from training.data.dataset import (
    Clip,
    Scalar,
    write_clip_file,
)
from training.data.scenes import thumbnail
from training.data.sources import (
    LOSSY_PICTURE_SUFFIXES,
    Gap,
    Images,
    Source,
    TimedFrame,
    read_numbered_frames,
    read_photograph,
    read_video,
    read_video_facts,
)
from vsrealbasicvsr.errors import UserError
from vsrealbasicvsr.scenes import Thumbnail, is_scene_cut

type Part = Literal["all", "train", "held-out"]

LOSSY_SHRINK = 1.5
"""Factor for compressed footage. Between 1.5 and 2, blur and blocks of usual compression fall below one pixel; 1.5
keeps twice the area."""
_PHOTOGRAPH_TILE_RATIO = 2
_MISSING_SECONDS = 0.5  # a video that ends so much before the duration in its container is incomplete


@dataclass(frozen=True, slots=True, kw_only=True)
class CutSettings:
    """Everything that decides the clips, apart from the sources.

    `shrink` 0: chosen by the sources' compression, see `auto_shrink`.
    """

    images: Images = "auto"
    min_frames: int = 15
    max_frames: int = 60
    gap_frames: int = 0
    """Frames left out after each clip that does not end at a scene cut, so that long videos take less room."""
    shrink: float = 0.0
    min_px: int = 256
    """Minimum height and width of a clip."""
    tile_px: int = 480
    held_out_every: int = 12
    part: Part = "all"

    def __post_init__(self) -> None:
        if not 1 <= self.min_frames <= self.max_frames:
            raise UserError(f"--min-frames must be from 1 to --max-frames, got {self.min_frames} and {self.max_frames}")
        if self.shrink != 0 and not 1 <= self.shrink <= 16:
            raise UserError(f"--shrink must be from 1 to 16, got {self.shrink}")
        if not 16 <= self.min_px <= self.tile_px:
            raise UserError(f"--min-px must be from 16 to --tile-px, got {self.min_px} and {self.tile_px}")
        if self.gap_frames < 0:
            raise UserError(f"--gap-frames must be 0 or more, got {self.gap_frames}")
        if self.held_out_every < 2:
            raise UserError(f"--held-out-every must be 2 or more, got {self.held_out_every}")

    def to_plain(self) -> dict[str, Scalar]:
        """Return the settings as they are stored in the index."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Tile:
    """A rectangle of a frame, in pixels."""

    top: int
    left: int
    height: int
    width: int


class _StoppedError(Exception):
    """The user has asked to stop."""


@dataclass(slots=True)
class _Cutter:
    """Receives the frames of one source one after another and writes clips; see `cut_source`."""

    source: Source
    settings: CutSettings
    out: Path
    frames_per_second: float
    shrink: float
    clips: list[Clip] = field(default_factory=list)
    num_frames: int = 0
    num_kept: int = 0
    _pictures: list[Frames] = field(default_factory=list)
    _pts_seconds: list[float | None] = field(default_factory=list)
    _last_thumbnail: Thumbnail | None = None
    _num_to_leave_out: int = 0

    def add(self, frame: TimedFrame) -> None:
        """Add the next frame of the source. A scene cut or another size ends the clip before it."""
        picture = shrunk(frame.picture, self.shrink)
        now = thumbnail(picture)
        if self._last_thumbnail is not None and is_scene_cut(self._last_thumbnail, now):
            self.end_clip()
        if self._pictures and self._pictures[-1].shape != picture.shape:
            self.end_clip()
        self._last_thumbnail = now
        self.num_frames += 1
        if self._num_to_leave_out > 0:
            self._num_to_leave_out -= 1
            return
        self._pictures.append(picture)
        self._pts_seconds.append(None if frame.pts_seconds is None else round(frame.pts_seconds, 6))
        if len(self._pictures) == self.settings.max_frames:
            self.end_clip()
            self._num_to_leave_out = self.settings.gap_frames

    def end_clip(self) -> None:
        """Write the frames since the last end as clips, if they are enough and large enough."""
        pictures, pts_seconds = self._pictures, tuple(self._pts_seconds)
        self._pictures, self._pts_seconds, self._num_to_leave_out = [], [], 0
        if len(pictures) < self.settings.min_frames or min(pictures[0].shape[:2]) < self.settings.min_px:
            return
        first_frame = self.num_frames - len(pictures)
        self.num_kept += len(pictures)
        for number, tile in enumerate(tiles(pictures[0].shape[0], pictures[0].shape[1], self.settings.tile_px)):
            clip = Clip(
                file=f"{_file_stem(self.source.name)}_{first_frame:06d}_{number:02d}.npy",
                kind="video",
                source=self.source.name,
                first_frame=first_frame,
                num_frames=len(pictures),
                height=tile.height,
                width=tile.width,
                top=tile.top,
                left=tile.left,
                frames_per_second=round(self.frames_per_second, 6),
                pts_seconds=pts_seconds,
            )
            write_clip_file(self.out / clip.file, np.stack([_cropped(picture, tile) for picture in pictures]))
            self.clips.append(clip)


def cut_source(
    source: Source, settings: CutSettings, out: Path, stop: Event | None = None
) -> tuple[int, int, str | None, list[Clip]]:
    """Cut a source into clips, whose files are written to `out`.

    A source that cannot be used raises no exception: it has no clips, and a reason.

    Args:
        source: The source.
        settings: How to cut.
        out: Folder of the clips.
        stop: Set when the user has asked to stop.

    Returns:
        Frames read, frames kept, the reason if something was left out (None: nothing), and the clips.
    """
    try:
        if source.kind == "photograph":
            return _cut_photograph(source, settings, out)
        cutter, gaps = _cut_video(source, settings, out, stop)
    except ValueError as error:
        return 0, 0, _without_place(str(error), source), []
    trouble = f"{gaps[0]}{f' (and {len(gaps) - 1} more)' if len(gaps) > 1 else ''}" if gaps else None
    if not cutter.clips:
        shortest = f"no scene of at least {settings.min_frames} frames in {cutter.num_frames}"
        trouble = f"{trouble}; {shortest}" if trouble else shortest
    return cutter.num_frames, cutter.num_kept, trouble, cutter.clips


def tiles(height: int, width: int, tile_px: int) -> list[Tile]:
    """Return tiles that cover a frame without overlap.

    Their sides are between 3/4 and 3/2 of `tile_px`, or the frame's if that is smaller.

        1280 pixels in tiles of about 480:  0 .. 427 .. 853 .. 1280
    """
    rows, columns = (_edges(size, tile_px) for size in (height, width))
    return [
        Tile(top, left, bottom - top, right - left)
        for top, bottom in itertools.pairwise(rows)
        for left, right in itertools.pairwise(columns)
    ]


def auto_shrink(height: int, width: int, min_px: int, *, is_lossless: bool) -> float:
    """Return the factor to shrink by: 1 without compression, else LOSSY_SHRINK, or less if `min_px` would not fit."""
    return 1.0 if is_lossless else max(1.0, min(LOSSY_SHRINK, height / min_px, width / min_px))


def _cut_photograph(source: Source, settings: CutSettings, out: Path) -> CutResult:
    picture = read_photograph(source.paths[0])
    height, width = picture.shape[:2]
    if min(height, width) < settings.min_px:
        return 1, 0, f"is {width}x{height}, smaller than --min-px {settings.min_px}", []
    clips = []
    for number, tile in enumerate(tiles(height, width, settings.tile_px * _PHOTOGRAPH_TILE_RATIO)):
        clip = Clip(
            file=f"{_file_stem(source.name)}_{number:02d}.npy",
            kind="photograph",
            source=source.name,
            first_frame=0,
            num_frames=1,
            height=tile.height,
            width=tile.width,
            top=tile.top,
            left=tile.left,
            frames_per_second=0.0,
        )
        write_clip_file(out / clip.file, _cropped(picture, tile)[None])
        clips.append(clip)
    return 1, 1, None, clips


def _cut_video(source: Source, settings: CutSettings, out: Path, stop: Event | None) -> tuple[_Cutter, list[str]]:
    """Return the cutter after the last frame, and the reasons of the gaps."""
    path = source.paths[0]
    if source.kind == "video":
        facts = read_video_facts(path)
        items = read_video(path)
        frames_per_second, promised_seconds = facts.frames_per_second, facts.promised_seconds
        is_lossless = facts.is_lossless
    else:
        items = read_numbered_frames(source.paths)
        frames_per_second, promised_seconds = 0.0, None
        is_lossless = path.suffix.lower() not in LOSSY_PICTURE_SUFFIXES
    cutter: _Cutter | None = None
    reasons: list[str] = []
    last_seconds: float | None = None
    for item in items:
        if stop is not None and stop.is_set():
            raise _StoppedError
        if isinstance(item, Gap):
            if cutter is not None:
                cutter.end_clip()
            if item.reason is not None:
                reasons.append(item.reason)
            continue
        if cutter is None:
            height, width = item.picture.shape[:2]
            shrink = settings.shrink or auto_shrink(height, width, settings.min_px, is_lossless=is_lossless)
            if min(height, width) / shrink < settings.min_px - 0.5:
                smaller = f", shrunk by {shrink:g}," if shrink != 1 else ","
                raise UserError(f"is {width}x{height}{smaller} smaller than --min-px {settings.min_px}")
            cutter = _Cutter(source, settings, out, frames_per_second, shrink)
        cutter.add(item)
        last_seconds = item.pts_seconds
    if cutter is None:
        raise UserError("; ".join(reasons[:1]) or "holds no frame that can be decoded")
    cutter.end_clip()
    if not reasons and promised_seconds is not None and last_seconds is not None:
        end_seconds = last_seconds + 1 / frames_per_second
        if end_seconds < promised_seconds - _MISSING_SECONDS:
            reasons.append(f"ends after {end_seconds:.1f} of {promised_seconds:.1f} seconds")
    return cutter, reasons


def _edges(size: int, tile_px: int) -> list[int]:
    num_tiles = max(1, round(size / tile_px))
    return [round(number * size / num_tiles) for number in range(num_tiles + 1)]


def _cropped(picture: Frames, tile: Tile) -> Frames:
    return picture[tile.top : tile.top + tile.height, tile.left : tile.left + tile.width]


def _file_stem(name: str) -> str:
    """Return the beginning of the names of a source's clips: readable, valid on every system, and unique."""
    readable = re.sub(r"[^A-Za-z0-9.-]+", "-", name).strip("-.")[-60:]
    return f"{readable}_{hashlib.blake2b(os.fsencode(name), digest_size=4).hexdigest()}"


def _without_place(text: str, source: Source) -> str:
    """Return the reason without the names of the file and the function, which the report shows beside it."""
    text = re.sub(r"^read_\w+: ", "", text)
    return text.replace(f"{source.paths[0]} ", "").replace(str(source.paths[0]), "the file")


type CutResult = tuple[int, int, str | None, list[Clip]]
