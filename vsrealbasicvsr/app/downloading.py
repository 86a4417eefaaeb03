"""Downloads that can be interrupted: resumed where they were, checked by their SHA-256, there whole or not at all."""

import contextlib
import hashlib
import http.client
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock

from vsrealbasicvsr import __version__
from vsrealbasicvsr.errors import UserError, printable, shown_path
from vsrealbasicvsr.whole_file import replace_file

PART_SUFFIX = ".part"
"""Of what is there so far, beside the file that it will be. It stays when a download is interrupted."""
BLOCK_BYTES = 1 << 18
TIMEOUT_SECONDS = 30
MAX_ATTEMPTS = 5
"""In a row that bring nothing new, before giving up."""
PAUSE_SECONDS = 1.0
"""After the first such attempt; twice as long after each further one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Download:
    """A file of the web, with the SHA-256 that it must have, in hexadecimal."""

    url: str
    sha256: str
    num_bytes: int


def download(wanted: Download, path: Path, on_bytes: Callable[[int], None] = lambda count: None) -> None:
    """Download a file to `path`, or go on with what an earlier call left.

    Args:
        wanted: What and from where.
        path: Where it is to stand once it is whole and has the right SHA-256. Nothing stands there before.
        on_bytes: Called with the number of bytes that are there so far.

    Raises:
        UserError: The server cannot be reached or sends another file, or nothing can be written there.
    """
    part = path.with_name(path.name + PART_SUFFIX)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{part}.lock", timeout=0):
            _fetch(wanted, part, on_bytes)
            _check(wanted, part)
            replace_file(part, path)
            with contextlib.suppress(OSError):
                Path(f"{part}.lock").unlink()
    except filelock.Timeout:
        raise UserError(f"another rbvsr is downloading {shown_path(path)}: wait for it") from None
    except OSError as error:
        raise UserError(f"{shown_path(path)} cannot be written ({error.strerror or error}): make room there") from None


def _fetch(wanted: Download, part: Path, on_bytes: Callable[[int], None]) -> None:
    """Bring `part` to its full length. Raises UserError."""
    failures, most = 0, 0
    while (there := _size(part)) != wanted.num_bytes:
        if there > wanted.num_bytes:
            part.unlink()
            continue
        try:
            _fetch_rest(wanted, part, there, on_bytes)
            reason = "it ended early"
        except urllib.error.HTTPError as error:
            if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and there:
                part.unlink()  # the server's file is shorter than what is here
            elif error.code < 500:
                raise _unreachable(wanted, f"the server answers {error.code} {error.reason}") from None
            reason = f"the server answers {error.code} {error.reason}"
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            reason = str(getattr(error, "reason", None) or error) or type(error).__name__
        failures = 0 if _size(part) > max(most, there) else failures + 1
        most = max(most, _size(part))
        if failures >= MAX_ATTEMPTS:
            raise _unreachable(wanted, reason)
        if failures:
            time.sleep(PAUSE_SECONDS * 2 ** (failures - 1))


def _fetch_rest(wanted: Download, part: Path, there: int, on_bytes: Callable[[int], None]) -> None:
    """Append what one answer of the server brings; from the beginning where it does not send parts."""
    request = urllib.request.Request(wanted.url, headers={"User-Agent": f"rbvsr/{__version__}"})
    if there:
        request.add_header("Range", f"bytes={there}-")
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
        resumes = answer.status == http.HTTPStatus.PARTIAL_CONTENT and _begins_at(answer, there)
        with part.open("ab" if resumes else "wb") as file:
            while block := answer.read(BLOCK_BYTES):
                file.write(block)
                on_bytes(file.tell())
                if file.tell() > wanted.num_bytes:
                    break  # not the file that is wanted
            file.flush()
            os.fsync(file.fileno())
    if _size(part) > wanted.num_bytes:
        part.unlink()
        raise _other_file(wanted, f"more than {wanted.num_bytes:,} bytes")


def _begins_at(answer: Any, there: int) -> bool:
    return str(answer.headers.get("Content-Range", "")).startswith(f"bytes {there}-")


def _check(wanted: Download, part: Path) -> None:
    """Raise UserError, and delete the file, unless it has the right SHA-256."""
    with part.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 != wanted.sha256:
        part.unlink()
        raise _other_file(wanted, f"SHA-256 {sha256} instead of {wanted.sha256}")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _unreachable(wanted: Download, reason: str) -> UserError:
    return UserError(
        f"{wanted.url} cannot be downloaded ({printable(reason, 200)}): run the command again, it goes on where it was"
    )


def _other_file(wanted: Download, what: str) -> UserError:
    return UserError(f"{wanted.url} brought another file ({what}): it was deleted, try again later")
