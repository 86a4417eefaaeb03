"""Atomic writing of files: complete under their final name, or absent."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

PARTIAL_SUFFIX = ".partial"
"""Suffix of the temporary file beside the final one: NUMBERS.partial. It remains if the process is killed."""


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
        partial.replace(path)
        _sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Flush a folder's new names to the disk, where the system can do so (Windows and some file systems cannot)."""
    with contextlib.suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
