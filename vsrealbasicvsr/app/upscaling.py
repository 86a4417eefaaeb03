"""Upscales one video file to another: plan, render what is missing, join, put in place."""

import errno
from contextlib import suppress
from dataclasses import asdict
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import vapoursynth as vs

from vsrealbasicvsr import __version__
from vsrealbasicvsr.errors import UserError, printable, shown_path

from .cluster import render_on_cluster
from .encoding import choose_encoder, to_pix_fmt
from .job import Choices, Job, check_unchanged, identity_of, keep_identity, locked, remove_state, state_folder
from .joining import count_frames, join
from .plan import Segment, plan_segments, share
from .progress import Reporter
from .rendering import Pipeline, render, tags_of, upscaled
from .source import Source, check_readable, check_suitable, open_source

DEFAULT_WINDOW_LENGTH = 30
OUTPUT_SUFFIXES = (".mkv", ".webm", ".mp4", ".m4v", ".mov")


def parse_time(text: str, option: str) -> Fraction:
    """Return seconds from 83.5, 1:23.5 or 0:01:23.5. Raises UserError."""
    parts = text.split(":")
    try:
        numbers = [Fraction(part) for part in parts]
        if len(parts) > 3 or any(number < 0 for number in numbers):
            raise ValueError
    except (ValueError, ZeroDivisionError):
        raise UserError(
            f"{option} takes seconds or h:mm:ss, such as 83.5 or 1:23.5, got {printable(text, 50)!r}"
        ) from None
    seconds = Fraction(0)
    for number in numbers:
        seconds = seconds * 60 + number
    return seconds


def check_paths(source: Path, output: Path, *, overwrite: bool) -> None:
    """Raise UserError for what can be known to be wrong before anything is read."""
    check_readable(source)
    if output.suffix.lower() not in OUTPUT_SUFFIXES:
        raise UserError(f"{shown_path(output)}: outputs are {', '.join(OUTPUT_SUFFIXES)}: choose one of these")
    if not output.parent.is_dir():
        raise UserError(f"there is no folder {shown_path(output.parent)}: make it first")
    if output.is_dir():
        raise UserError(f"{shown_path(output)} is a folder: name a file in it")
    if output.exists() and output.samefile(source):
        raise UserError(f"{shown_path(output)} is the source itself: choose another output")
    if output.exists() and not overwrite:
        raise UserError(f"{shown_path(output)} exists: add --overwrite, or choose another output")


def open_job(source_path: Path, output: Path, choices: Choices) -> tuple[Job, Source, tuple[int, int], Pipeline]:
    """Open the source and plan the job. The pipeline's clip is made, but no frame is computed yet.

    Raises:
        UserError: The source cannot be read or is not suitable, or an argument is wrong.
    """
    source = open_source(source_path, state_folder(output))
    check_suitable(source, force=choices.force, deinterlaced=choices.deinterlace is not None)
    start, stop = (
        None if text is None else parse_time(text, option)
        for text, option in ((choices.start, "--start"), (choices.stop, "--stop"))
    )
    frames = source.timeline.frames_between(start, stop)
    if frames[0] >= frames[1]:
        length = float(source.timeline.end_seconds - source.timeline.start_seconds)
        raise UserError(f"no frame lies between --start and --stop: {shown_path(source_path)} lasts {length:.3f} s")
    clip = upscaled(source, choices, frames)
    assert clip.format is not None
    encoder = choose_encoder(
        clip.format, codec=choices.codec, crf=choices.crf, preset=choices.preset, options=choices.encoder_options
    )
    clip = to_pix_fmt(clip, encoder.pix_fmt)
    rate = source.timeline.cut(*frames).nominal_rate(Fraction(source.clip.fps))
    pipeline = Pipeline(clip=clip, encoder=encoder, tags=tags_of(source, rate, clip))
    segments = plan_segments(
        clip.num_frames,
        window_length=int(choices.upscale.get("length") or DEFAULT_WINDOW_LENGTH),
        segment_frames=choices.segment_frames,
    )
    identity = identity_of(source_path, choices, frames=frames, encoder=asdict(encoder), versions=_versions())
    job = Job(source=source_path, output=output, choices=choices, identity=identity, segments=tuple(segments))
    return job, source, frames, pipeline


def _versions() -> dict[str, Any]:
    """Return the versions that decide pixels; frames of two of them are not to be joined."""
    found = dict(vs.core.rbvsr.Version())
    names = ("rbvsr", "torch", "kernels")
    return {name: _text(found[name]) for name in names if name in found} | {"rbvsr": __version__}


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


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
        restart: Discard what an earlier run left.
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
    lock_name = "lock" if chunk is None else f"lock-{chunk[0]}-of-{chunk[1]}"
    with locked(output, lock_name):
        reporter.phase("reading")
        job, source, frames, pipeline = open_job(source_path, output, choices)
        keep_identity(job, restart=restart)
        mine = list(job.segments) if chunk is None else share(list(job.segments), chunk[0] - 1, chunk[1])
        missing = [segment for segment in job.missing() if segment in mine]
        if join_only and missing:
            raise UserError(
                f"{len(missing)} of {len(job.segments)} segments are not rendered yet, the first from frame"
                f" {missing[0].first}: run the chunks that have them"
            )
        total = sum(segment.num_frames for segment in mine)
        reporter.start(total - sum(segment.num_frames for segment in missing), total)
        reporter.phase("upscaling")
        if cluster is None:
            _render_missing(job, pipeline, missing, reporter)
        else:
            on_segment = partial(_report_segment, reporter)
            render_on_cluster(job, missing, on_segment, address=cluster, num_workers=num_workers)
        facts = {"output": str(output), "frames": pipeline.clip.num_frames}
        facts |= {"width": pipeline.clip.width, "height": pipeline.clip.height}
        if chunk is None:
            reporter.phase("joining")
            _join(job, source, frames)
            reporter.result(**facts)
    if chunk is None:
        remove_state(output)
    return facts


def _render_missing(job: Job, pipeline: Pipeline, missing: list[Segment], reporter: Reporter) -> None:
    """Render the missing segments here, and report each frame."""
    try:
        for _ in render(job, pipeline, missing, on_frame=lambda n: reporter.frame()):
            check_unchanged(job)
    except OSError as error:
        raise full_disk(error, job.folder) from None


def _report_segment(reporter: Reporter, segment: Segment) -> None:
    """Report the frames of a segment that came from a worker."""
    for _ in range(segment.num_frames):
        reporter.frame()


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
        made.replace(job.output)
    except OSError as error:
        with suppress(OSError):
            made.unlink(missing_ok=True)
        raise full_disk(error, job.output.parent) from None
