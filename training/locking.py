"""One process at a time in a folder: a second one would delete what the first one writes."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import filelock

from vsrealbasicvsr.errors import UserError

LOCK_NAME = "lock"


@contextlib.contextmanager
def alone_in(folder: Path, *, command: str) -> Iterator[None]:
    """Hold the lock of a folder, which is created if needed, and deleted again at the end if it is empty then.

    The operating system takes the lock from a process that dies. Where the file system knows no locks, there is none.

    Args:
        folder: The folder.
        command: What holds its lock, for the error, such as "training train".

    Raises:
        UserError: Another process holds the lock, nothing can be written there, or it is a file.
    """
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    lock = filelock.FileLock(folder / LOCK_NAME, timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except FileExistsError:
        raise UserError(f"{folder} is a file: name a folder") from None
    except filelock.Timeout:
        raise UserError(f"another {command} is at work in {folder}: wait for it, or stop it first") from None
    except OSError as error:
        raise UserError(f"nothing can be written in {folder} ({error.strerror}): name another folder") from None
    except NotImplementedError:
        pass
    try:
        yield
    finally:
        if sys.platform == "win32":  # deletes no file that is open
            lock.release()
        with contextlib.suppress(OSError):  # elsewhere while it is held: afterwards it may be that of the next process
            (folder / LOCK_NAME).unlink()
        lock.release()
        for path in new:
            with contextlib.suppress(OSError):
                path.rmdir()
