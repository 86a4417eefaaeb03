"""Footage for training in few bytes: photographs re-encoded to a budget, videos as they are, drawn pictures."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from scripts.draw_graphics import picture
from training.data.sources import PHOTOGRAPH_SUFFIXES, VIDEO_SUFFIXES


def files_in(folders: Iterable[Path], suffixes: Iterable[str]) -> list[Path]:
    """All files with one of these suffixes, by folder and name. Raises OSError for a folder that is not there."""
    found = []
    for folder in folders:
        if not folder.is_dir():
            raise NotADirectoryError(f"there is no folder {folder}")
        found += sorted(path for path in folder.rglob("*") if path.suffix.lower() in set(suffixes))
    return found


def copy_videos(folders: Sequence[Path], out: Path) -> int:
    """Copy the videos of these folders; returns their number."""
    videos = files_in(folders, VIDEO_SUFFIXES)
    out.mkdir(parents=True, exist_ok=True)
    for number, path in enumerate(videos):
        shutil.copyfile(path, out / f"{number:03d}_{path.name}")
    return len(videos)


def draw_graphics(num: int, out: Path, *, seed: int = 0) -> int:
    """Draw pictures that photographs lack; returns their number."""
    out.mkdir(parents=True, exist_ok=True)
    for number in range(num):
        picture(number, seed).save(out / f"graphics_{number:03d}.webp", lossless=True)
    return num


def copy_photographs(folders: Sequence[Path], out: Path, *, max_bytes: int, quality: int) -> tuple[int, int]:
    """Re-encode photographs as WebP, of every folder as evenly as fits; returns how many were taken, and of how many.

    Pictures are taken from all over the sorted list (0, 1/2, 1/4, 3/4, ...), so that a small budget sees all of it.
    Sizes stay: training shrinks lossy pictures itself. Where a picture is smaller as it is, it is copied.
    """
    photographs = files_in(folders, PHOTOGRAPH_SUFFIXES)
    out.mkdir(parents=True, exist_ok=True)
    left, num_taken = max_bytes, 0
    for number in _spread_order(len(photographs)):
        path = photographs[number]
        encoded = io.BytesIO()
        with Image.open(path) as image:
            image.convert("RGB").save(encoded, "webp", quality=quality, method=6)
        content, suffix = encoded.getvalue(), ".webp"
        if path.stat().st_size <= len(content):
            content, suffix = path.read_bytes(), path.suffix.lower()
        if len(content) > left:
            continue
        (out / f"{number:04d}_{path.stem}{suffix}").write_bytes(content)
        left -= len(content)
        num_taken += 1
    return num_taken, len(photographs)


def _spread_order(num: int) -> list[int]:
    """0 to num - 1, each prefix spread over the whole: by the numbers' bits in reverse."""
    num_bits = max(num - 1, 1).bit_length()
    mirrored = [int(f"{number:0{num_bits}b}"[::-1], 2) for number in range(2**num_bits)]
    return [number for number in mirrored if number < num]
