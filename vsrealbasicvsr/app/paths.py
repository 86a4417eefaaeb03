"""Checks of a source and an output before torch is loaded: the one can be read, the other written."""

from pathlib import Path
from typing import Any

import av

from vsrealbasicvsr.errors import UserError, printable, shown_path

OUTPUT_SUFFIXES = (".mkv", ".webm", ".mp4", ".m4v", ".mov")


def check_readable(path: Path) -> None:
    """Raise UserError unless the file is there, can be read, and has a video stream."""
    check_name(path)
    try:
        if not path.exists():
            raise UserError(f"there is no file {shown_path(path)}")
        with av.open(full_name(path)) as file:
            has_video = any(not is_cover(stream) for stream in file.streams.video)
    except (av.FFmpegError, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{shown_path(path)} is not a video that can be read ({printable(reason, 300)})") from None
    if not has_video:
        raise UserError(f"{shown_path(path)} has no video")


def full_name(path: Path) -> str:
    """Return the absolute path of a file, for ffmpeg.

    In a relative one ffmpeg takes the text before a colon ("Alien: Covenant.mp4") for a protocol.
    """
    return str(path.absolute())


def check_name(path: Path) -> None:
    """Raise UserError for a name that ffmpeg cannot be given."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise UserError(f"the name {shown_path(path)} is not valid UTF-8, which ffmpeg needs: rename it") from None


def check_paths(source: Path, output: Path, *, overwrite: bool) -> None:
    """Raise UserError for what can be known to be wrong before anything is read."""
    check_readable(source)
    try:
        _check_output(source, output, overwrite=overwrite)
    except OSError as error:  # a name that is too long, a folder that may not be read
        raise UserError(f"{shown_path(output)} cannot be written ({error.strerror}): choose another output") from None


def _check_output(source: Path, output: Path, *, overwrite: bool) -> None:
    check_name(output)
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


def is_cover(stream: Any) -> bool:
    """Return whether a video stream is a picture of an album or film, not a video."""
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def main_video(file: Any) -> Any:
    """Return the first video stream of a container that is not a cover; there must be one."""
    return next(stream for stream in file.streams.video if not is_cover(stream))
