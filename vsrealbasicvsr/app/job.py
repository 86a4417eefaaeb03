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
LOCK_NAME = "lock"
"""Of the run that renders and joins everything; that of a share is called lock-i-of-n."""
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


def keep_identity(job: Job, *, restart: bool, lock_name: str = LOCK_NAME) -> None:
    """Write what the job is into its folder, or compare it with what is there.

    Args:
        job: The job.
        restart: Discard what the folder keeps; for a share of the job, only if it is of another job, as the rest may be
            what other shares rendered.
        lock_name: The lock that this run holds, another one than `LOCK_NAME` for a share.

    Raises:
        UserError: The folder keeps segments of another source, other options, weights or versions; or it is to be
            discarded while another run is at work in it.
    """
    path = job.folder / JOB_NAME
    text = json.dumps(job.identity, indent=1, sort_keys=True)
    kept = _kept_identity(path)
    if restart and (lock_name == LOCK_NAME or kept not in (None, json.loads(text))):
        _check_alone(job, lock_name)
        discard(job.folder, lock_name)
        kept = None
    job.folder.mkdir(parents=True, exist_ok=True)
    if kept is None:
        with whole_file(path) as file:
            file.write(text.encode())
    elif kept != json.loads(text):
        different = ", ".join(sorted(set(_differences(kept, json.loads(text))))) or "its contents"
        raise UserError(
            f"{shown_path(job.folder)} keeps what an earlier run did with another {different}:"
            " use what that run used to go on with it, or add --restart to begin anew"
        )


def _kept_identity(path: Path) -> Any:
    """Return what a state folder says that its job is; None if it says nothing, {} if that cannot be read."""
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return {}


def _check_alone(job: Job, lock_name: str) -> None:
    """Raise UserError if another run is at work in the job's folder."""
    for path in job.folder.glob(f"{LOCK_NAME}*"):
        if path.name != lock_name:
            try:
                with filelock.FileLock(path, timeout=0):
                    pass
            except filelock.Timeout:
                raise _at_work(job.output) from None


def _at_work(output: Path) -> UserError:
    return UserError(f"another rbvsr is at work on {shown_path(output)}: wait for it, or stop it first")


def _differences(one: Any, other: Any, name: str = "") -> Iterator[str]:
    """Yield the names of the values that differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in one.keys() | other.keys():
            yield from _differences(one.get(key), other.get(key), "source" if name == "source" else key)
    elif one != other:
        yield name


def discard(folder: Path, lock_name: str = LOCK_NAME) -> None:
    """Delete what a state folder holds, but for the lock of this run."""
    for path in folder.iterdir() if folder.exists() else ():
        if path.name != lock_name:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(output: Path, name: str = LOCK_NAME) -> Iterator[None]:
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
        raise _at_work(output) from None
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
