"""A job: one video to upscale, what decides every pixel of the result, and the folder that keeps what is done."""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import filelock

from vsrealbasicvsr.errors import UserError, shown_path
from vsrealbasicvsr.whole_file import PARTIAL_SUFFIX, whole_file

from .plan import DEFAULT_SEGMENT_FRAMES, Segment

STATE_SUFFIX = ".rbvsr"
"""Of the folder beside the output that keeps finished segments until the output is complete."""
JOB_NAME = "job.json"
SAMPLED_BYTES = 1 << 20
"""Read at the beginning and the end of a source to know it again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """What the user chose; None: the default of what it is passed to. Times are seconds as fractions, in text."""

    upscale: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of rbvsr.Upscale."""
    width: int | None = None
    height: int | None = None
    scale: float | None = None
    codec: str | None = None
    crf: float | None = None
    preset: str | None = None
    encoder_options: Mapping[str, str] = field(default_factory=dict)
    start: str | None = None
    stop: str | None = None
    deinterlace: str | None = None
    force: bool = False
    segment_frames: int = DEFAULT_SEGMENT_FRAMES


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One video to upscale. Two jobs with equal `identity` make the same frames and packets."""

    source: Path
    output: Path
    choices: Choices
    identity: Mapping[str, Any]
    """Source, choices, weights and versions, as JSON holds them."""
    segments: tuple[Segment, ...]

    @property
    def folder(self) -> Path:
        """Where finished segments are kept."""
        return state_folder(self.output)

    def path_of(self, segment: Segment) -> Path:
        """Return the file of a finished segment."""
        return self.folder / f"{segment.first:08d}-{segment.stop:08d}.mkv"

    def missing(self) -> list[Segment]:
        """Return the segments that are still to be rendered."""
        return [segment for segment in self.segments if not self.path_of(segment).exists()]


def state_folder(output: Path) -> Path:
    """Return the folder that keeps a job's finished segments: out.mkv.rbvsr beside out.mkv."""
    return output.with_name(output.name + STATE_SUFFIX)


def source_identity(path: Path) -> dict[str, Any]:
    """Return what a source is known by: its size, and a hash of its first and last MiB."""
    digest = hashlib.sha256()
    size = path.stat().st_size
    with path.open("rb") as file:
        digest.update(file.read(SAMPLED_BYTES))
        file.seek(max(0, size - SAMPLED_BYTES))
        digest.update(file.read())
    return {"size": size, "sha256_of_ends": digest.hexdigest()}


def check_unchanged(job: Job) -> None:
    """Raise UserError if the source is not the file that the job began with."""
    if not job.source.exists() or source_identity(job.source) != job.identity["source"]:
        raise UserError(
            f"{shown_path(job.source)} changed while it was upscaled: nothing was written."
            " Run the command again with --restart"
        )


def keep_identity(job: Job, *, restart: bool) -> None:
    """Write what the job is into its folder, or compare it with what is there.

    Raises:
        UserError: The folder keeps segments of another source, other options, weights or versions.
    """
    path = job.folder / JOB_NAME
    if restart and job.folder.exists():
        discard(job.folder)
    job.folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(job.identity, indent=1, sort_keys=True)
    if path.exists():
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept != json.loads(text):
            different = ", ".join(sorted(set(_differences(kept, json.loads(text))))) or "its contents"
            raise UserError(
                f"{shown_path(job.folder)} keeps what an earlier run did with another {different}:"
                " use what that run used to go on with it, or add --restart to begin anew"
            )
        return
    with whole_file(path) as file:
        file.write(text.encode())


def _differences(one: Any, other: Any, name: str = "") -> Iterator[str]:
    """Yield the names of the values that differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in one.keys() | other.keys():
            yield from _differences(one.get(key), other.get(key), "source" if name == "source" else key)
    elif one != other:
        yield name


def discard(folder: Path) -> None:
    """Delete what a state folder holds, but for its lock."""
    for path in folder.iterdir():
        if path.name != "lock":
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(output: Path, name: str = "lock") -> Iterator[None]:
    """Hold a lock of the job that writes `output`.

    Raises:
        UserError: Another process holds it, or nothing can be written there.
    """
    folder = state_folder(output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / name, timeout=0)
        lock.acquire()
    except filelock.Timeout:
        raise UserError(f"another rbvsr is at work on {shown_path(output)}: wait for it, or stop it first") from None
    except OSError as error:
        raise UserError(
            f"nothing can be written in {shown_path(output.parent)} ({error.strerror}): choose another output"
        ) from None
    try:
        yield
    finally:
        if sys.platform == "win32":  # deletes no file that is open, neither this lock nor that of the next run
            lock.release()
            _remove_if_nothing_is_kept(folder, name)
        else:  # the lock is deleted while it is held: afterwards it may be that of the next run
            _remove_if_nothing_is_kept(folder, name)
            lock.release()


def _remove_if_nothing_is_kept(folder: Path, lock_name: str) -> None:
    """Delete a state folder that holds neither segments, nor an index, nor another run's lock."""
    with contextlib.suppress(OSError):
        names = {path.name for path in folder.iterdir()}
        if names <= {lock_name, JOB_NAME}:
            for name in sorted(names, key=lambda name: name != lock_name):
                (folder / name).unlink()
            folder.rmdir()


def remove_leftovers(job: Job) -> None:
    """Delete segments that a killed run left unfinished, unless shares of the job may be rendered elsewhere."""
    if not any(job.folder.glob("lock-*")):
        for path in job.folder.glob(f"*{PARTIAL_SUFFIX}"):
            path.unlink(missing_ok=True)


def remove_state(output: Path) -> None:
    """Delete the state folder of a finished output. What cannot be deleted stays."""
    shutil.rmtree(state_folder(output), ignore_errors=True)


def identity_of(
    source: Path,
    choices: Choices,
    *,
    frames: tuple[int, int],
    encoder: Mapping[str, Any],
    versions: Mapping[str, Any],
    hdr: Mapping[str, Any],
) -> dict[str, Any]:
    """Return everything that decides the result, as JSON holds it."""
    options = dataclasses.asdict(choices)
    options.pop("force")
    model = str(choices.upscale.get("model", "default"))
    weights = hashlib.sha256(Path(model).read_bytes()).hexdigest() if model != "default" else "default"
    found: dict[str, Any] = json.loads(
        json.dumps(
            {
                "source": source_identity(source),
                "options": options,
                "frames": list(frames),
                "encoder": dict(encoder),
                "weights": weights,
                "versions": dict(versions),
                **({"conversion of HDR": dict(hdr)} if hdr else {}),
            }
        )
    )
    return found


def free_bytes(folder: Path) -> int:
    """Bytes that are free on the disk of a folder."""
    return shutil.disk_usage(folder if folder.exists() else os.path.curdir).free
