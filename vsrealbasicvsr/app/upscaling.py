"""Upscales one video file to another: plan, render what is missing, join, put in place."""

import errno
from contextlib import suppress
from pathlib import Path
from typing import Any

import av

from vsrealbasicvsr.errors import UserError, printable, shown_path
from vsrealbasicvsr.whole_file import replace_file

from .cluster import render_on_cluster
from .job import LOCK_NAME, Choices, Job, check_unchanged, keep_identity, locked, remove_leftovers, remove_state
from .joining import count_frames, join
from .opening import open_job
from .paths import check_paths
from .plan import Segment, share
from .progress import Reporter
from .rendering import Pipeline, render
from .source import Source


def upscale_file(
    source_path: Path,
    output: Path,
    choices: Choices,
    reporter: Reporter,
    *,
    overwrite: bool = False,
    restart: bool = False,
    chunk: tuple[int, int] | None = None,
    join_only: bool = False,
    cluster: str | None = None,
    num_workers: int | None = None,
) -> dict[str, Any]:
    """Upscale a video file, or go on where an earlier run was interrupted.

    Args:
        source_path: The video.
        output: The file to write; nothing stands there until it is complete.
        choices: What the user chose.
        reporter: Told of every phase and frame.
        overwrite: Replace an output that exists.
        restart: Discard what an earlier run left; with `chunk`, only what was left with other choices.
        chunk: (i, n): render share i of n only, 1 <= i <= n, and do not join.
        join_only: Render nothing; all segments must be there.
        cluster: Render by the workers of the Ray cluster at this address; "auto": the one that runs here, else one
            of this machine's own.
        num_workers: Of the cluster; None: one for each GPU, or for each machine.

    Returns:
        Facts of what came out: output, frames, width, height.

    Raises:
        UserError: With what to do, for all that a user can mend.
    """
    check_paths(source_path, output, overwrite=overwrite or chunk is not None)
    lock_name = LOCK_NAME if chunk is None else f"{LOCK_NAME}-{chunk[0]}-of-{chunk[1]}"
    with locked(output, lock_name):
        reporter.phase("reading")
        job, source, frames, pipeline = open_job(source_path, output, choices)
        keep_identity(job, restart=restart, lock_name=lock_name)
        if chunk is None:
            remove_leftovers(job)
        mine = share(list(job.segments), *((0, 1) if chunk is None else (chunk[0] - 1, chunk[1])))
        missing = [segment for segment in job.missing() if segment in mine]
        if join_only and missing:
            raise _not_rendered(job, missing)
        total = sum(segment.num_frames for segment in mine)
        reporter.start(total - sum(segment.num_frames for segment in missing), total)
        reporter.phase("upscaling")
        _render(job, pipeline, missing, reporter, cluster=cluster, num_workers=num_workers)
        clip = pipeline.clip
        facts = {"output": str(output), "frames": clip.num_frames, "width": clip.width, "height": clip.height}
        if chunk is None:
            reporter.phase("joining")
            _join(job, source, frames)
            reporter.result(**facts)
    if chunk is None:
        remove_state(output)
    return facts


def _not_rendered(job: Job, missing: list[Segment]) -> UserError:
    return UserError(
        f"{len(missing)} of {len(job.segments)} segments are not rendered yet, the first from frame"
        f" {missing[0].first}: run the chunks that have them"
    )


def _render(
    job: Job,
    pipeline: Pipeline,
    missing: list[Segment],
    reporter: Reporter,
    *,
    cluster: str | None,
    num_workers: int | None,
) -> None:
    """Render the missing segments, here or by the cluster."""
    if cluster is None:
        _render_here(job, pipeline, missing, reporter)
    else:
        _render_there(job, missing, reporter, cluster, num_workers)


def _render_here(job: Job, pipeline: Pipeline, missing: list[Segment], reporter: Reporter) -> None:
    """Render the missing segments here, and report each frame."""
    try:
        for _ in render(job, pipeline, missing, on_frame=lambda n: reporter.frame()):
            check_unchanged(job)
    except OSError as error:
        raise full_disk(error, job.folder) from None


def _render_there(job: Job, missing: list[Segment], reporter: Reporter, address: str, num_workers: int | None) -> None:
    """Render the missing segments by a cluster, and report the frames of each when it arrives."""

    def arrived(segment: Segment) -> None:
        for _ in range(segment.num_frames):
            reporter.frame()

    render_on_cluster(job, missing, arrived, address=address, num_workers=num_workers)


def full_disk(error: OSError, folder: Path) -> UserError:
    """Return what to tell of a file that could not be written."""
    what = "the disk is full" if error.errno == errno.ENOSPC else (error.strerror or str(error))
    return UserError(
        f"{shown_path(folder)} cannot be written ({printable(what, 200)}): make room and run the command again,"
        " it goes on where it was"
    )


def _join(job: Job, source: Source, frames: tuple[int, int]) -> None:
    """Join the segments into the output, which appears when it is complete."""
    paths = [job.path_of(segment) for segment in job.segments]
    damaged = [
        path for path, segment in zip(paths, job.segments, strict=True) if count_frames(path) != segment.num_frames
    ]
    for path in damaged:
        path.unlink(missing_ok=True)
    if damaged:
        raise UserError(
            f"{len(damaged)} finished segments were damaged on the disk, such as {shown_path(damaged[0].name)}:"
            " they were deleted, run the command again"
        )
    check_unchanged(job)
    made = job.folder / f"joined{job.output.suffix}"
    whole = frames == (0, len(source.timeline.pts))
    try:
        join(paths, job.source, source.timeline.cut(*frames), made, suffix=job.output.suffix, whole=whole)
        _put_in_place(made, job.output)
    except OSError as error:
        with suppress(OSError):
            made.unlink(missing_ok=True)
        raise full_disk(error, job.output.parent) from None
    except av.FFmpegError as error:
        made.unlink(missing_ok=True)
        raise UserError(
            f"{job.output.suffix} does not take the video or what is copied beside it"
            f" ({printable(str(error.strerror), 200)}): choose another suffix of the output or another --codec"
        ) from None


def _put_in_place(made: Path, output: Path) -> None:
    """Let the finished video appear. Raises UserError if an earlier one cannot be replaced."""
    try:
        replace_file(made, output)
    except PermissionError:
        made.unlink()
        raise UserError(
            f"{shown_path(output)} cannot be replaced: close the program that has it open, and run the command again"
        ) from None
