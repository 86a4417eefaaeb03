"""Files that are there whole or not at all, whatever happens while they are written. Knows not what is in them."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

PARTIAL_SUFFIX = ".partial"
"""Of what is being written, beside the file that it will be: NUMBERS.partial. A process that was killed leaves it."""


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write into, which becomes `path` when the block is left well and all of it is on the disk.

    Until then, and if the block raises, what was at `path` stays, and nothing else is left. Each writer has a file of
    its own: of several, the last to end wins. Readable by whoever may read new files in the folder; a link at `path` is
    followed. Raises OSError if the file cannot be written.
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
    """Bring a new name to the disk, where the system can be asked to (Windows cannot, nor can some file systems)."""
    with contextlib.suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
