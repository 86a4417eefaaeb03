"""Prepared clips on disk: the format that `prepare` writes and training reads.

A prepared folder holds `index.json` and one file for each clip, uint8 (T, H, W, 3) RGB in NumPy's .npy. The index has
    version   the number of this format
    settings  what the clips were cut with
    sources   name -> kind, fingerprint, frames read and kept, and why it was left out or is incomplete (`trouble`)
    clips     one line each: file, kind ("video" or "photograph", which is one frame), source, first_frame, num_frames,
              height, width, top, left (its place in the shrunk frame), frames_per_second, pts_seconds (time stamps)
and is written last, so what it lists is complete.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from training.data.arrays import Frames
from vsrealbasicvsr.errors import UserError
from vsrealbasicvsr.whole_file import whole_file

type Scalar = str | int | float

VERSION = 1
INDEX_NAME = "index.json"
FOOTAGE_NAME = "footage"
"""Name of the file that says which pictures something was made from, see `ClipDataset.footage`."""
_PIECE_BYTES, _PIECE_AT = 1 << 14, 0.37  # share of the file: seldom the black bars of a frame
_DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class ClipError(UserError):
    """A clip's file is missing, incomplete or not what the index says. The text names it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """One prepared clip; the module's docstring describes the fields."""

    file: str
    kind: Literal["video", "photograph"]
    source: str
    first_frame: int
    num_frames: int
    height: int
    width: int
    top: int
    left: int
    frames_per_second: float
    pts_seconds: tuple[float | None, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRecord:
    """Result of preparing one source. `trouble` is None if all of it could be used."""

    kind: str
    fingerprint: str
    num_frames: int = 0
    num_kept: int = 0
    trouble: str | None = None


@dataclass(frozen=True, slots=True)
class Index:
    """The contents of index.json."""

    settings: Mapping[str, Scalar]
    sources: Mapping[str, SourceRecord] = field(default_factory=dict)
    clips: tuple[Clip, ...] = ()

    def to_json(self) -> str:
        """Return the text of index.json: one clip a line, everything sorted, so that equal contents are equal bytes."""
        clips = sorted(self.clips, key=lambda clip: clip.file)
        lines = ",\n".join("  " + json.dumps(asdict(clip)) for clip in clips)
        sources = {name: asdict(self.sources[name]) for name in sorted(self.sources)}
        head = json.dumps({"version": VERSION, "settings": dict(self.settings), "sources": sources}, indent=1)
        return f'{head[:-2]},\n "clips": [\n{lines}\n ]\n}}\n'


def read_index(folder: Path) -> Index:
    """Read the index of a prepared folder.

    Raises:
        UserError: There is none, or it is damaged or of another version.
    """
    path = folder / INDEX_NAME
    cure = "Make it with python -m training prepare FOLDER OUT."
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder} holds no prepared clips: it has no {INDEX_NAME}. {cure}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}. {cure}") from error
    if not isinstance(plain, dict) or plain.get("version") != VERSION:
        raise UserError(f"{path} is not of version {VERSION}, which this program reads. {cure}")
    try:
        clips = tuple(_clip_from_plain(entry) for entry in plain["clips"])
        sources = {name: SourceRecord(**entry) for name, entry in plain["sources"].items()}
        return Index(plain["settings"], sources, clips)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error}). {cure}") from error


def write_index(folder: Path, index: Index) -> None:
    """Write index.json, atomically. Raise OSError, with what to do, if the disk is full."""
    with _file_of_clips(folder / INDEX_NAME) as file:
        file.write(index.to_json().encode())


def write_clip_file(path: Path, frames: Frames) -> None:
    """Write a clip (T, H, W, 3), atomically. Raise OSError, with what to do, if the disk is full."""
    frames = np.ascontiguousarray(frames)
    with _file_of_clips(path) as file:
        file.write(_header(frames.shape))
        file.write(frames.data)  # np.save reports a full disk like any other error


@contextlib.contextmanager
def _file_of_clips(path: Path) -> Iterator[BinaryIO]:
    """Open a file as `whole_file` does; if the disk is full, the error says what to do."""
    try:
        with whole_file(path) as file:
            yield file
    except OSError as error:
        if error.errno in _DISK_ERRORS:
            raise OSError(f"cannot write {path}: {error.strerror}. Make room and run the same command again.") from None
        raise


class ClipDataset:
    """The clips of one or several prepared folders, in the order of the indexes, read piece by piece.

    Attributes:
        pool_folder: Where degraded clips are cached, see pool.py; None if they are not.
    """

    def __init__(self, clips: Iterable[tuple[Path, Clip]], pool_folder: Path | None = None) -> None:
        self.pool_folder = pool_folder
        self._folders: list[Path] = []
        self._clips: list[Clip] = []
        self._suited: dict[tuple[int, int], list[int]] = {}
        self._identity: str | None = None
        for folder, clip in clips:
            self._folders.append(folder)
            # Without time stamps, which training does not need: thousands of clips are sent to every worker.
            self._clips.append(replace(clip, pts_seconds=()))

    @classmethod
    def open(cls, folders: Path | Sequence[Path], *, pool_folder: Path | None = None) -> ClipDataset:
        """Open the clips that the indexes of these folders list.

        Args:
            folders: One or several prepared folders.
            pool_folder: Where degraded clips are cached.

        Raises:
            UserError: A folder is not a prepared one, or none holds a clip.
        """
        folders = [folders] if isinstance(folders, Path) else list(folders)
        dataset = cls(((folder, clip) for folder in folders for clip in read_index(folder).clips), pool_folder)
        if not len(dataset):
            raise UserError(f"no clips in {', '.join(map(str, folders))}. Prepare other footage.")
        return dataset

    def suited(self, *, num_frames: int, side_px: int) -> list[int]:
        """Return the numbers of the clips that are large enough: videos long enough too, photographs of any length.

        Args:
            num_frames: Minimum number of frames of a video.
            side_px: Minimum height and width.

        Raises:
            UserError: There is none.
        """
        wanted = (num_frames, side_px)
        if wanted not in self._suited:
            self._suited[wanted] = [
                number
                for number, clip in enumerate(self._clips)
                if min(clip.height, clip.width) >= side_px
                and (clip.kind == "photograph" or clip.num_frames >= num_frames)
            ]
        if not self._suited[wanted]:
            raise UserError(
                f"none of the {len(self)} clips has {num_frames} frames of {side_px}x{side_px} pixels."
                f" Prepare them with --min-frames {num_frames} and --min-px {side_px}, or train with smaller crops."
            )
        return self._suited[wanted]

    def __len__(self) -> int:
        return len(self._clips)

    def __getitem__(self, number: int) -> Clip:
        return self._clips[number]

    def path(self, number: int) -> Path:
        """Return the path of clip `number`."""
        return self._folders[number] / self._clips[number].file

    def identity(self) -> str:
        """Return a text that differs if the clips differ, in names or sizes; their folders do not matter."""
        if self._identity is None:
            digest = hashlib.blake2b(digest_size=16)
            for clip in self._clips:
                digest.update(f"{clip.file} {clip.num_frames} {clip.height} {clip.width}\n".encode())
            self._identity = digest.hexdigest()
        return self._identity

    def footage(self) -> str | None:
        """Return a text that differs if the pictures differ, by a piece of each file; None if one is incomplete.

        `identity` is equal for two folders whose sources have equal names and sizes, DSC0001.jpg of two cameras.
        """
        digest = hashlib.blake2b(digest_size=16)
        for number in range(len(self)):
            clip = self._clips[number]
            shape = (clip.num_frames, clip.height, clip.width, 3)
            try:
                with self.path(number).open("rb") as file:
                    size = file.seek(0, os.SEEK_END)
                    if size != len(_header(shape)) + int(np.prod(shape)):
                        return None
                    file.seek(int(_PIECE_AT * size))
                    digest.update(file.read(_PIECE_BYTES))
            except OSError:
                return None
        return digest.hexdigest()

    def is_noted(self, path: Path) -> bool:
        """Return whether a file notes the `footage` of these clips. It is written if it is missing."""
        footage = self.footage()
        try:
            return footage is None or path.read_text(encoding="utf-8", errors="replace") == footage
        except OSError:
            with contextlib.suppress(OSError):  # a whole pool may be where nothing can be written
                path.parent.mkdir(parents=True, exist_ok=True)
                with whole_file(path) as file:
                    file.write(str(footage).encode())
            return True

    def read(
        self,
        number: int,
        *,
        first_frame: int = 0,
        num_frames: int | None = None,
        step: int = 1,
        top: int = 0,
        left: int = 0,
        height: int | None = None,
        width: int | None = None,
    ) -> Frames:
        """Read frames of a clip: `first_frame` and every `step`-th after it, cropped.

        Only the wanted rows are read. They are read, not mapped: an incomplete file is an error here, instead of a
        SIGBUS that ends the process.

        Args:
            number: Of the clip.
            first_frame: Index of the first frame.
            num_frames: Number of frames; None: all that follow.
            step: Distance between the frames.
            top: First row.
            left: First column.
            height: Number of rows; None: all below `top`.
            width: Number of columns; None: all right of `left`.

        Returns:
            (num_frames, height, width, 3) uint8.

        Raises:
            ClipError: The file is not what the index says; the text names it.
            IndexError: The piece is not inside the clip.
        """
        clip, path = self._clips[number], self.path(number)
        num_frames = clip.num_frames - first_frame if num_frames is None else num_frames
        height = clip.height - top if height is None else height
        width = clip.width - left if width is None else width
        last_frame = first_frame + (num_frames - 1) * step
        if min(first_frame, top, left) < 0 or last_frame >= clip.num_frames:
            raise IndexError(f"frames {first_frame} to {last_frame} are not in {clip}")
        if top + height > clip.height or left + width > clip.width:
            raise IndexError(f"{width}x{height} at ({left}, {top}) is not in {clip}")
        shape = (clip.num_frames, clip.height, clip.width, 3)
        out = np.empty((num_frames, height, width, 3), dtype=np.uint8)
        rows = np.empty((height, clip.width, 3), dtype=np.uint8)
        try:
            with path.open("rb", buffering=0) as file:
                start = _check_header(file, shape, path)
                if file.seek(0, os.SEEK_END) != start + int(np.prod(shape)):
                    raise ClipError(f"{path} is cut short or too long. Prepare it again.")
                for number_out in range(num_frames):
                    row = (first_frame + number_out * step) * clip.height + top
                    file.seek(start + row * clip.width * 3)
                    _fill(file, rows, path)
                    out[number_out] = rows[:, left : left + width]
        except OSError as error:
            raise ClipError(f"cannot read {path}: {error.strerror or error}. Prepare it again.") from error
        return out


def _check_header(file: Any, shape: tuple[int, ...], path: Path) -> int:
    """Return where the values begin, after checking that the header announces uint8 of this shape."""
    expected = _header(shape)
    if file.read(len(expected)) == expected:
        return len(expected)
    file.seek(0)
    try:
        np.lib.format.read_magic(file)
        found_shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    except (ValueError, EOFError) as error:
        raise ClipError(f"{path} is no prepared clip ({error}). Prepare it again.") from error
    raise ClipError(f"{path} holds {dtype} {found_shape}, the index says uint8 {shape}. Prepare it again.")


@functools.lru_cache(maxsize=1024)
def _header(shape: tuple[int, ...]) -> bytes:
    """Return the header that `write_clip_file` writes. Parsing one would take longer than reading a frame."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return header.getvalue()


def _fill(file: Any, rows: Frames, path: Path) -> None:
    view = memoryview(rows.reshape(-1))
    while view:
        num_read = file.readinto(view)
        if not num_read:
            raise ClipError(f"{path} is cut short. Prepare it again.")
        view = view[num_read:]


def _clip_from_plain(entry: dict[str, Any]) -> Clip:
    return Clip(**{**entry, "pts_seconds": tuple(entry["pts_seconds"])})
