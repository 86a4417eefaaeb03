"""Files in parts below a size, and back: what copies files between machines may refuse large ones."""

from __future__ import annotations

import shutil
from pathlib import Path

PART_BYTES = 15 * 2**20
"""Largest part: below the 16 MiB that a file may have that comes back."""
_MARK = ".part"


def copy_in_parts(source: Path, folder: Path, *, part_bytes: int = PART_BYTES) -> list[Path]:
    """Copy a file into `folder`, as NAME if it is small and as NAME.part00, NAME.part01, ... if not.

    Returns the files in their order.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if source.stat().st_size <= part_bytes:
        return [Path(shutil.copyfile(source, folder / source.name))]
    made: list[Path] = []
    with source.open("rb") as file:
        while part := file.read(part_bytes):
            path = folder / f"{source.name}{_MARK}{len(made):02d}"
            path.write_bytes(part)
            made.append(path)
    return made


def join_parts(folder: Path) -> None:
    """Put the files of `folder` and all below it together again, in their places; the parts are deleted."""
    for first in sorted(folder.rglob(f"*{_MARK}00")):
        whole = first.with_name(first.name.removesuffix(f"{_MARK}00"))
        parts = sorted(first.parent.glob(f"{whole.name}{_MARK}[0-9][0-9]"))
        with whole.open("wb") as file:
            for part in parts:
                file.write(part.read_bytes())
        for part in parts:
            part.unlink()
