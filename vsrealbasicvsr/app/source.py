"""The video to upscale: its frames by BestSource, and when each is shown."""

import logging
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import vapoursynth as vs

from vsrealbasicvsr.errors import UserError, printable, shown_path

from .interrupting import interruptible
from .paths import check_readable, full_name, main_video
from .pixel_formats import ALPHA
from .time_stamps import increasing
from .timeline import Timeline

LOG = logging.getLogger(__name__)
NO_TIME = -(1 << 63)
"""BestSource's time stamp of a frame for which the file has none."""
MAX_MISSING_SECONDS, MAX_MISSING_FRACTION = 1.0, 0.02
"""Of a video's length, that may be announced and not be there before something is said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A video file that was opened: `clip` has as many frames as `timeline` has times."""

    path: Path
    clip: vs.VideoNode
    timeline: Timeline
    props: dict[str, Any]
    """Frame properties of the first frame."""


def open_source(path: Path, index_folder: Path) -> Source:
    """Open a video file by BestSource, rotated as it is to be shown.

    Args:
        path: The file.
        index_folder: Where BestSource keeps its index, so that the next call need not read the file again.

    Raises:
        UserError: There is no such file, it has no video that can be read, or its size or format changes.
    """
    check_readable(path)
    if not hasattr(vs.core, "bs"):
        raise UserError("the source plugin BestSource is not installed: pip install vapoursynth-bestsource")
    source = partial(
        vs.core.bs.VideoSource,
        full_name(path),
        cachepath=str(index_folder / "index"),
        cachemode=3,  # there, not below it under the source's whole path: Windows has 260 characters for both
        showprogress=False,
        apply_rotation=True,
    )
    try:
        opened = interruptible(partial(source, exporttimestamps=True))
    except vs.Error as error:
        raise UserError(f"{shown_path(path)} is not a video that can be read ({printable(str(error), 300)})") from None
    clip: vs.VideoNode = opened["clip"]
    if not clip.width or clip.format is None:
        raise UserError(
            f"{shown_path(path)} changes its size or format on the way: convert it to one size and format first"
        )
    timeline = _timeline(path, clip, opened)
    _warn_of_missing_end(path, timeline)
    try:
        with clip.get_frame(0) as frame:
            props = dict(frame.props)
    except vs.Error as error:
        raise UserError(
            f"the first frame of {shown_path(path)} cannot be read ({printable(str(error), 300)})"
        ) from None
    return Source(path=path, clip=clip, timeline=timeline, props=props)


def _timeline(path: Path, clip: vs.VideoNode, opened: Any) -> Timeline:
    """Return when each frame is shown, by the file's time stamps as far as they can be used."""
    found = opened["timestamps"]
    pts = [None if time == NO_TIME else time for time in ([found] if isinstance(found, int) else found)]
    time_base = Fraction(opened["timebasenum"], opened["timebaseden"])
    with av.open(full_name(path)) as file:
        stream: Any = main_video(file)
        rate = Fraction(stream.average_rate or clip.fps or 25)
        start = int(stream.start_time or 0)
    if len(pts) != clip.num_frames:
        pts = [None] * clip.num_frames
    stamps = increasing(pts, step=1 / (rate * time_base), start=start)
    if stamps.shifts:
        LOG.warning("the times of %s begin again on the way: its parts are put one after another", shown_path(path))
    times = stamps.times
    fallback = times[-1] - times[-2] if len(times) > 1 else max(1, round(stamps.scale / (rate * time_base)))
    unchanged = stamps.scale == 1 and pts[-1] == times[-1]
    end = times[-1] + ((_last_duration(path, times[-1], time_base) if unchanged else None) or fallback)
    shifts = tuple(shift * time_base for shift in stamps.shifts)
    return Timeline(pts=times, end=end, time_base=time_base / stamps.scale, shifts=shifts)


def check_suitable(source: Source, *, force: bool, deinterlaced: bool) -> None:
    """Raise UserError for what would come out wrong: interlaced frames and Dolby Vision, unless forced."""
    path = shown_path(source.path)
    if int(source.props.get("_FieldBased", 0)) > 0 and not (force or deinterlaced):
        raise UserError(
            f"{path} is interlaced: add --deinterlace bwdif, or --force to upscale it as if it were progressive"
        )
    if ("DolbyVisionRPU" in source.props or _announces_dolby_vision(source.path)) and not force:
        raise UserError(
            f"{path} is Dolby Vision, whose metadata would not fit the upscaled picture: add --force to upscale the"
            " base layer without it"
        )
    if ALPHA not in source.props and _tags(source.path).get("alpha_mode") == "1":
        LOG.warning("the alpha plane of %s is dropped: the decoder of VP8 and VP9 does not deliver it", path)


def _announces_dolby_vision(path: Path) -> bool:
    """Return whether the container has a configuration of Dolby Vision (dvcC, dvvC) for its video."""
    with av.open(full_name(path)) as file:
        context: Any = main_video(file).codec_context
        return "dovi_conf" in context.coded_side_data


def _tags(path: Path) -> dict[str, str]:
    """Return the tags of the video stream."""
    with av.open(full_name(path)) as file:
        return dict(main_video(file).metadata)


def _warn_of_missing_end(path: Path, timeline: Timeline) -> None:
    """Log a warning if the file announces more than can be read, as one whose copying was interrupted."""
    with av.open(full_name(path)) as file:
        stream: Any = main_video(file)
        if stream.duration:
            announced = float(stream.duration * Fraction(stream.time_base))
            what, found = " of video", float(timeline.end_seconds - timeline.start_seconds)
        else:  # Matroska announces when the last of its tracks ends, counted from time 0
            announced = (file.duration or 0) / av.time_base
            what, found = "", float(timeline.end_seconds)
    allowed = max(MAX_MISSING_SECONDS, MAX_MISSING_FRACTION * announced)
    if not what and announced - found > allowed:
        found = max(found, _last_end(path))
    if announced - found > allowed:
        LOG.warning(
            "%s announces %.1f s%s, and %.1f s can be read: is the file complete?",
            shown_path(path),
            announced,
            what,
            found,
        )


def _last_end(path: Path) -> float:
    """Return when the last packet of any stream ends, in seconds."""
    with av.open(full_name(path)) as file:
        ends = [
            float((packet.pts + (packet.duration or 0)) * packet.time_base)
            for packet in file.demux()
            if packet.pts is not None and packet.time_base is not None
        ]
    return max(ends, default=0.0)


def _last_duration(path: Path, last_pts: int, time_base: Fraction) -> int | None:
    """Return how long the last frame is shown, in units of time_base, where the file says so."""
    with av.open(full_name(path)) as file:
        stream = main_video(file)
        durations = {packet.pts: packet.duration for packet in file.demux(stream) if packet.time_base == time_base}
    return durations.get(last_pts) or None
