"""Cut a folder of videos, numbered frames and photographs into clips for training, and say what was left out and why.

    python -m training prepare FOLDER OUT

FOLDER is searched with everything below it. Each scene of a video becomes clips of --min-frames to --max-frames frames,
shrunk (compressed video is too soft for ground truth as it is) and cut into tiles of about --tile-px, so that reading a
crop touches little. A photograph becomes tiles of twice that side: the camera moves over them when they are loaded.
The same command with the same FOLDER gives the same bytes in OUT; interrupted, it goes on where it was; what is there
already is not made again. Training takes several prepared folders, so prepare different footage into different ones.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import itertools
import multiprocessing
import os
import re
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Literal, get_args

import cv2
import numpy as np
from tqdm import tqdm

from training.clips import (
    LOSSY_PICTURE_SUFFIXES,
    Found,
    Frames,
    Gap,
    Images,
    Source,
    TimedFrame,
    find_sources,
    read_numbered_frames,
    read_photograph,
    read_video,
    read_video_facts,
    shrunk,
    split_held_out,
    thumbnail,
)
from training.store import (
    INDEX_NAME,
    Clip,
    Index,
    Scalar,
    SourceRecord,
    read_index,
    write_clip_file,
    write_index,
)
from vsrealbasicvsr.errors import UserError
from vsrealbasicvsr.scenes import Thumbnail, is_scene_cut
from vsrealbasicvsr.whole_file import PARTIAL_SUFFIX

type Part = Literal["all", "train", "held-out"]

LOSSY_SHRINK = 1.5
"""Between 1.5 and 2 the blur and the blocks of usual compression fall below one pixel; 1.5 keeps twice the area."""
SECONDS_BETWEEN_INDEXES = 10.0
_PHOTOGRAPH_TILE_RATIO = 2
_FINGERPRINT_BYTES = 1 << 16
_MISSING_SECONDS = 0.5  # a video that ends that much before its container's word has been cut short


@dataclass(frozen=True, slots=True, kw_only=True)
class CutSettings:
    """What decides the clips, with the sources. `shrink` 0: as the sources' compression asks for, see `auto_shrink`."""

    images: Images = "auto"
    min_frames: int = 15
    max_frames: int = 60
    gap_frames: int = 0
    """Frames left out after each clip that ends without a change of scene: long videos take less room."""
    shrink: float = 0.0
    min_px: int = 256
    """Least height and width of a clip."""
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
        """The settings as the index keeps them."""
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
    """Takes the frames of one source one after another and writes clips; see `cut_source`."""

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
        """The next frame of the source. A change of scene or of size ends the clip before it."""
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
        """Write what has come since the last end, if it is long and large enough."""
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


def prepare(found: Found, out: Path, settings: CutSettings, *, num_workers: int, remove_missing: bool = False) -> Index:
    """The index of `out`, which afterwards holds the clips of the sources that were found; see the module's text.

    num_workers processes read sources; 0 or 1: this one. Progress goes to stderr. With `remove_missing` clips of
    sources that were not found are deleted.

    Raises UserError if there is nothing to cut, or if `out` holds clips cut otherwise or from elsewhere; OSError if
    the disk is full; KeyboardInterrupt on Ctrl-C. In every case what is under a final name is whole.
    """
    sources = part_of(found.sources, settings)
    if not sources and not found.unused:
        raise UserError(f"no source is left for --part {settings.part}. Name a folder with at least two of a kind.")
    out.mkdir(parents=True, exist_ok=True)
    for leftover in out.glob(f"*{PARTIAL_SUFFIX}"):
        leftover.unlink(missing_ok=True)
    fingerprints = {source.name: fingerprint(source) for source in sources}
    known = _known_sources(out, settings, fingerprints, remove_missing=remove_missing)
    records, clips = dict(known.sources), list(known.clips)
    records |= {one.name: SourceRecord(kind="picture", fingerprint="", trouble=one.reason) for one in found.unused}

    def write() -> Index:
        index = Index(settings.to_plain(), records, tuple(clips))
        write_index(out, index)
        return index

    write()  # from here on the folder belongs to these settings
    pending = [source for source in sources if source.name not in records]
    written_at = time.monotonic()
    try:
        with tqdm(total=len(pending), desc="prepare", unit="source", disable=None) as bar:
            for source, (num_frames, num_kept, trouble, new_clips) in _results(pending, settings, out, num_workers):
                records[source.name] = SourceRecord(
                    kind=source.kind,
                    fingerprint=fingerprints[source.name],
                    num_frames=num_frames,
                    num_kept=num_kept,
                    trouble=trouble,
                )
                clips += new_clips
                bar.update()
                if time.monotonic() - written_at > SECONDS_BETWEEN_INDEXES:
                    write()
                    written_at = time.monotonic()
    except BaseException:
        with contextlib.suppress(OSError):  # on a full disk the reason that is on its way matters more
            write()
        raise
    return write()


def cut_source(
    source: Source, settings: CutSettings, out: Path, stop: Event | None = None
) -> tuple[int, int, str | None, list[Clip]]:
    """Frames read, frames kept, what was wrong (None: nothing) and the clips, whose files are in `out` then.

    A source that cannot be used is no exception: it has no clips, and a reason.
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
    """Tiles that cover a frame, none of its pixels twice; their sides lie between 3/4 and 3/2 of `tile_px`, or are the
    frame's if that is smaller.

    1280 pixels in tiles of about 480:  0 .. 427 .. 853 .. 1280
    """
    rows, columns = (_edges(size, tile_px) for size in (height, width))
    return [
        Tile(top, left, bottom - top, right - left)
        for top, bottom in itertools.pairwise(rows)
        for left, right in itertools.pairwise(columns)
    ]


def auto_shrink(height: int, width: int, min_px: int, *, is_lossless: bool) -> float:
    """How much to shrink: not at all without compression, else LOSSY_SHRINK, or less where `min_px` would not fit."""
    return 1.0 if is_lossless else max(1.0, min(LOSSY_SHRINK, height / min_px, width / min_px))


def part_of(sources: Sequence[Source], settings: CutSettings) -> list[Source]:
    """The sources of the part that the settings name: of each kind, sorted by name, every n-th is held out."""
    if settings.part == "all":
        return list(sources)
    chosen: list[Source] = []
    for kind in ("video", "frames", "photograph"):
        alike = [source for source in sources if source.kind == kind]
        train, held_out = split_held_out(alike, every=settings.held_out_every)
        chosen += train if settings.part == "train" else held_out
    return sorted(chosen, key=lambda source: source.name)


def fingerprint(source: Source) -> str:
    """A text that differs if the source's files do: from names, sizes, and the first and last 64 KiB of two files."""
    digest = hashlib.blake2b(digest_size=16)
    for path in source.paths:
        with contextlib.suppress(OSError):
            digest.update(f"{path.name} {path.stat().st_size}\n".encode())
    for path in {source.paths[0], source.paths[-1]}:
        with contextlib.suppress(OSError), path.open("rb") as file:
            digest.update(file.read(_FINGERPRINT_BYTES))
            file.seek(max(0, path.stat().st_size - _FINGERPRINT_BYTES))
            digest.update(file.read(_FINGERPRINT_BYTES))
    return digest.hexdigest()


def summary(index: Index, found: Found, out: Path) -> str:
    """What the user is told in the end."""
    videos = [clip for clip in index.clips if clip.kind == "video"]
    num_photographs = len(index.clips) - len(videos)
    num_frames = sum(clip.num_frames for clip in index.clips)
    num_bytes = sum(clip.num_frames * clip.height * clip.width * 3 for clip in index.clips)
    lines = [
        f"{out}: {len(index.clips)} clips ({len(videos)} of moving pictures, {num_photographs} of photographs),"
        f" {num_frames} frames, {num_bytes / 1e9:.2f} GB, from {len({clip.source for clip in index.clips})} sources"
    ]
    used = {clip.source for clip in index.clips}
    troubled = {name: record for name, record in sorted(index.sources.items()) if record.trouble}
    for title, names in (
        ("skipped", [name for name in troubled if name not in used]),
        ("used in part", [name for name in troubled if name in used]),
    ):
        if names:
            lines += [f"{title}: {len(names)}", *(f"  {name}: {troubled[name].trouble}" for name in names)]
    if found.num_ignored:
        counted = ", ".join(f"{number} {suffix}" for suffix, number in found.num_ignored.items())
        lines.append(f"files that are neither video nor picture: {counted}")
    return "\n".join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of `python -m training prepare`."""
    usual = CutSettings()
    add = parser.add_argument
    add("folder", type=Path, metavar="FOLDER", help="searched with everything below it")
    add("out", type=Path, metavar="OUT", help="folder for the clips, made or continued")
    add(
        "--images",
        choices=get_args(Images.__value__),
        default=usual.images,
        help="what pictures with consecutive numbers are; auto: the frames of a clip if they have one size and"
        " neighbours look alike (default %(default)s)",
    )
    add("--min-frames", type=int, default=usual.min_frames, help="shortest clip (default %(default)s)")
    add("--max-frames", type=int, default=usual.max_frames, help="longest clip (default %(default)s)")
    add(
        "--gap-frames",
        type=int,
        default=usual.gap_frames,
        help="frames to leave out after a full clip, to thin long videos (default %(default)s)",
    )
    add(
        "--shrink",
        type=_shrink,
        default=usual.shrink,
        metavar="FACTOR",
        help=f"auto, or how many times smaller frames get: 1 for lossless footage, 1.5 to 2 for compressed. auto:"
        f" {LOSSY_SHRINK:g} for lossy video and frames in {' '.join(sorted(LOSSY_PICTURE_SUFFIXES))}, less where"
        " --min-px would not fit, 1 for the rest; photographs are shrunk when they are loaded (default auto)",
    )
    add("--min-px", type=int, default=usual.min_px, help="smallest side of a clip (default %(default)s)")
    add("--tile-px", type=int, default=usual.tile_px, help="about the side of a clip (default %(default)s)")
    add(
        "--part",
        choices=get_args(Part.__value__),
        default=usual.part,
        help="use all sources, or hold some out for evaluation (default %(default)s)",
    )
    add(
        "--held-out-every",
        type=int,
        default=usual.held_out_every,
        help="of each kind of source, sorted by name, every n-th is held out (default %(default)s)",
    )
    add("--workers", type=int, default=max(1, (os.cpu_count() or 1) // 2), help="processes (default %(default)s)")
    add("--remove-missing", action="store_true", help="delete clips of sources that are no longer in FOLDER")


def run(arguments: argparse.Namespace) -> int:
    """The exit status, 0.

    Raises UserError, OSError and KeyboardInterrupt as `prepare` does, and ValueError if there is no clip in the end.
    """
    settings = CutSettings(
        images=arguments.images,
        min_frames=arguments.min_frames,
        max_frames=arguments.max_frames,
        gap_frames=arguments.gap_frames,
        shrink=arguments.shrink,
        min_px=arguments.min_px,
        tile_px=arguments.tile_px,
        held_out_every=arguments.held_out_every,
        part=arguments.part,
    )
    found = find_sources(arguments.folder, images=settings.images)
    index = prepare(
        found, arguments.out, settings, num_workers=arguments.workers, remove_missing=arguments.remove_missing
    )
    print(summary(index, found, arguments.out))
    if not index.clips:
        raise UserError(f"no clip came out of {arguments.folder}, see above. Name a folder with usable footage.")
    return 0


def _shrink(text: str) -> float:
    return 0.0 if text == "auto" else float(text)


def _known_sources(out: Path, settings: CutSettings, fingerprints: dict[str, str], *, remove_missing: bool) -> Index:
    """What of the index in `out` still holds: sources whose fingerprint and clip files are as they were.

    Raises UserError as `prepare` does.
    """
    if not (out / INDEX_NAME).exists():
        return Index(settings.to_plain())
    index = read_index(out)
    if dict(index.settings) != settings.to_plain():
        plain = settings.to_plain()
        other = ", ".join(f"{key} {value}" for key, value in index.settings.items() if plain.get(key) != value)
        raise UserError(f"{out} holds clips that were cut with other settings ({other}). Name another folder.")
    made_of = {clip.source for clip in index.clips}
    missing = sorted(made_of - set(fingerprints))
    if missing and not remove_missing:
        raise UserError(
            f"{out} holds clips of {len(missing)} sources that are not in this folder, such as {missing[0]}."
            " Name another OUT (training takes several), or pass --remove-missing to delete these clips."
        )
    by_source: dict[str, list[Clip]] = {}
    for clip in index.clips:
        by_source.setdefault(clip.source, []).append(clip)
    kept: dict[str, SourceRecord] = {}
    for name, record in index.sources.items():
        files = [out / clip.file for clip in by_source.get(name, [])]
        if record.fingerprint == fingerprints.get(name) and all(file.exists() for file in files):
            kept[name] = record
            continue
        for file in files:
            file.unlink(missing_ok=True)
    return Index(settings.to_plain(), kept, tuple(clip for clip in index.clips if clip.source in kept))


type _Result = tuple[int, int, str | None, list[Clip]]


def _results(
    sources: Sequence[Source], settings: CutSettings, out: Path, num_workers: int
) -> Iterator[tuple[Source, _Result]]:
    """Sources and what `cut_source` makes of them, as they get ready."""
    num_workers = min(num_workers, len(sources))
    if num_workers <= 1:
        for source in sources:
            yield source, cut_source(source, settings, out)
        return
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    executor = ProcessPoolExecutor(num_workers, mp_context=context, initializer=_start_worker, initargs=(stop,))
    try:
        # the largest first, so that no worker is left alone with a long film in the end
        waiting = sorted(sources, key=lambda source: -sum(_num_bytes(path) for path in source.paths))
        futures: dict[Future[_Result], Source] = {
            executor.submit(_cut_in_worker, source, settings, out): source for source in waiting
        }
        while futures:
            for future in wait(futures, return_when=FIRST_COMPLETED).done:
                yield futures.pop(future), future.result()
    except BrokenProcessPool:
        raise OSError(
            "a worker process has died, perhaps out of memory. Use fewer --workers or --max-frames."
        ) from None
    finally:
        stop.set()
        executor.shutdown(wait=True, cancel_futures=True)


_stop: Event | None = None


def _start_worker(stop: Event) -> None:
    global _stop
    _stop = stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process is told, and tells us
    cv2.setNumThreads(1)


def _cut_in_worker(source: Source, settings: CutSettings, out: Path) -> _Result:
    return cut_source(source, settings, out, _stop)


def _cut_photograph(source: Source, settings: CutSettings, out: Path) -> _Result:
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
    """The cutter after the last frame, and the reasons of the gaps."""
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
    """The beginning of the names of a source's clips: readable, safe everywhere, and its own."""
    readable = re.sub(r"[^A-Za-z0-9.-]+", "-", name).strip("-.")[-60:]
    return f"{readable}_{hashlib.blake2b(name.encode(), digest_size=4).hexdigest()}"


def _num_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _without_place(text: str, source: Source) -> str:
    """The reason without the file's name and the function's: both stand beside it already."""
    text = re.sub(r"^read_\w+: ", "", text)
    return text.replace(f"{source.paths[0]} ", "").replace(str(source.paths[0]), "the file")
