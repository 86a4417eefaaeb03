"""Atomic writing of files: complete under their final name, or absent."""

import contextlib
import os
import secrets
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

PARTIAL_SUFFIX = ".partial"
"""Suffix of the temporary file beside the final one: NUMBERS.partial. It remains if the process is killed."""

PATIENCE_SECONDS = 3.0
"""For which Windows is asked again to replace a file that another program has open."""


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file for writing that replaces `path` when the block ends without an exception.

    The data is on the disk before the name changes (fsync). If the block raises, `path` is unchanged and the temporary
    file is removed. Several writers of one path do not mix: the last to finish wins.

    Args:
        path: The final file; a symbolic link is followed.

    Yields:
        The temporary file, binary. It gets the permissions of any new file in the folder.

    Raises:
        OSError: The file cannot be written.
    """
    path = path.resolve()
    partial = path.with_name(f"{os.getpid()}-{secrets.token_hex(8)}{PARTIAL_SUFFIX}")  # a long name stays possible
    try:
        with partial.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        replace_file(partial, path)
        _sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def replace_file(source: Path, target: Path) -> None:
    """Rename a file to `target`, in the place of what is there.

    Windows renames and replaces nothing that another program has open, as virus scanners and indexers have what is new
    for a moment: it is asked again for PATIENCE_SECONDS.

    Raises:
        OSError: The system refuses; PermissionError if a program still has one of the files open.
    """
    deadline = time.monotonic() + (PATIENCE_SECONDS if sys.platform == "win32" else 0)
    while True:
        try:
            source.replace(target)
            return
        except PermissionError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(0.05)


def _sync_folder(folder: Path) -> None:
    """Flush a folder's new names to the disk, where the system can do so (Windows and some file systems cannot)."""
    with contextlib.suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
