"""Joins finished segments to one video, with everything else that the source holds. Packets are copied, not encoded."""

import heapq
import io
import logging
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av

from vsrealbasicvsr.errors import UserError, printable, shown_path

from .encoding import NOT_MUXED, packets_of
from .paths import full_name, main_video
from .time_stamps import Stamps, increasing, non_decreasing
from .timeline import Timeline

LOG = logging.getLogger(__name__)
MP4_SUFFIXES = (".mp4", ".m4v", ".mov")
OWN_TAG = ("rawvideo", "prores")
"""Of these the tag says how the samples lie, or which profile it is; PyAV resets it."""
COPIED = ("audio", "subtitle", "attachment")


def join(segments: Sequence[Path], source: Path, timeline: Timeline, path: Path, *, suffix: str, whole: bool) -> None:
    """Write `path`: the segments' frames at the source's times, and its audio, subtitles, chapters, attachments, tags.

    Args:
        segments: Files of encoded frames, in order.
        source: Where the rest comes from.
        timeline: When each of the frames is shown.
        path: The file to write.
        suffix: The container, by the suffix of the final name.
        whole: The whole source; else only what begins while the frames are shown, with times from 0.

    Raises:
        UserError: The container does not take the video, or what was written cannot be decoded.
    """
    shift = Fraction(0) if whole else timeline.start_seconds
    options = {"movie_timescale": str(_movie_timescale(timeline))} if suffix.lower() in MP4_SUFFIXES else {}
    with (
        av.open(full_name(segments[0])) as first,
        av.open(full_name(source)) as original,
        av.open(full_name(path), "w", format=muxer_of(suffix), options=options) as out,
    ):
        video = _add_video(out, first.streams.video[0], suffix)
        video.time_base = timeline.time_base
        _describe(original, video, out)
        if "alpha_mode" in first.streams.video[0].metadata:
            video.metadata["alpha_mode"] = first.streams.video[0].metadata["alpha_mode"]
        copied = _copied_streams(original, out, suffix)
        chapters = _chapters(original, timeline, shift, whole=whole)
        if chapters:
            out.set_chapters(chapters)
        packets = _video_packets(segments, timeline, video, shift)
        others = _other_packets(original, copied, _mended(source, copied, timeline), timeline, shift, whole=whole)
        for packet in heapq.merge(packets, others, key=_begin):
            out.mux(packet)
    _check_decodable(path, segments[0], suffix)


def _add_video(out: Any, encoded: Any, suffix: str) -> Any:
    """Add a stream for the packets of a segment's stream to `out`. Raises UserError."""
    try:
        # opaque: by the parameters alone; else PyAV looks for an encoder of the name of the decoder (libdav1d).
        video = out.add_stream_from_template(encoded, opaque=True)
    except ValueError as error:
        raise UserError(
            f"{suffix} does not take the video ({printable(str(error), 200)}): choose another suffix of the output or"
            " another --codec"
        ) from None
    if encoded.codec_context.name in OWN_TAG:
        video.codec_context.codec_tag = encoded.codec_context.codec_tag
    if encoded.codec_context.name == "hevc" and suffix.lower() in MP4_SUFFIXES:
        video.codec_context.codec_tag = "hvc1"  # players of Apple refuse ffmpeg's default, hev1
    return video


def _check_decodable(path: Path, segment: Path, suffix: str) -> None:
    """Raise UserError unless the joined video decodes as its first segment does: some containers lose what it takes."""
    if _first_picture(path) != _first_picture(segment):
        path.unlink()
        raise UserError(
            f"{suffix} does not keep what the encoder's frames need to be decoded: choose another suffix of the output"
            " or another --codec"
        )


def _first_picture(path: Path) -> tuple[int, int] | None:
    """Return (width, height) of a video's first frame, or None if it cannot be decoded."""
    try:
        with av.open(full_name(path)) as file:
            frame = next(file.decode(main_video(file)))
    except (av.FFmpegError, StopIteration):
        return None
    return frame.width, frame.height


def muxer_of(suffix: str) -> str:
    """Return ffmpeg's name of a container. Raises UserError for one that cannot be written."""
    names = {".mkv": "matroska", ".webm": "webm", ".mp4": "mp4", ".m4v": "mp4", ".mov": "mov"}
    if suffix.lower() not in names:
        raise UserError(f"outputs are {', '.join(names)}, got {printable(suffix, 50)!r}: choose one of these")
    return names[suffix.lower()]


def _movie_timescale(timeline: Timeline) -> int:
    return max(1000, timeline.time_base.denominator)


def _describe(original: Any, video: Any, out: Any) -> None:
    """Copy the title and tags of the file and of its video; what described the old encoding is left out."""
    dropped = {
        "alpha_mode",
        "encoder",
        "handler_name",
        "vendor_id",
        "duration",
        "bps",
        "number_of_frames",
        "number_of_bytes",
    }

    def kept(tags: Any) -> dict[str, str]:
        names = {name: name.lower().removesuffix("-eng") for name in tags}
        return {name: tags[name] for name in tags if names[name] not in dropped and not name.startswith("_STATISTICS")}

    out.metadata.update({name: text for name, text in kept(original.metadata).items() if not name.endswith("_brand")})
    main = main_video(original)
    video.metadata.update(kept(main.metadata))
    video.disposition = main.disposition


def _copied_streams(original: Any, out: Any, suffix: str) -> dict[int, Any]:
    """Add a stream to `out` for each of the source's that goes with it; say which do not fit into the container."""
    copied = {}
    main, not_muxed = main_video(original), NOT_MUXED.get(muxer_of(suffix), ())
    for stream in original.streams:
        kind = stream.type
        if stream is main or kind not in (*COPIED, "video"):
            continue
        name = getattr(stream.codec_context, "name", None) if kind != "attachment" else stream.name
        try:
            if kind == "attachment" and muxer_of(suffix) == "matroska":  # .webm drops it silently, .mp4 fails
                out.add_attachment(stream.name, stream.mimetype, bytes(stream.data))
                continue
            if kind == "attachment" or name not in out.supported_codecs or name in not_muxed:
                raise ValueError(f"{name} is not for this container")
            added = out.add_stream_from_template(stream)
        except (ValueError, av.FFmpegError, AttributeError, TypeError):
            keeps = next((other for other in _keepers(kind, name) if other != suffix.lower()), None)
            LOG.warning(
                "%s stream %d (%s) does not fit into %s and is left out: %s",
                kind,
                stream.index,
                name,
                suffix,
                f"write {keeps} to keep it" if keeps else "no other output keeps it",
            )
            continue
        added.metadata.update(stream.metadata)
        added.disposition = stream.disposition
        copied[stream.index] = added
    return copied


def _keepers(kind: str, codec: str | None) -> Iterator[str]:
    """Yield the suffixes of containers that take a stream."""
    for suffix in (".mkv", ".mp4", ".mov"):
        with av.open(io.BytesIO(), "w", format=muxer_of(suffix)) as file:
            takes_it = suffix == ".mkv" if kind == "attachment" else codec in file.supported_codecs
            if takes_it:
                yield suffix


def _chapters(original: Any, timeline: Timeline, shift: Fraction, *, whole: bool) -> list[Any]:
    """Return the source's chapters; of a part, those that it meets, at their new times."""
    chapters = []
    for chapter in original.chapters():
        base = Fraction(chapter["time_base"])
        start, end = chapter["start"] * base, chapter["end"] * base
        if not whole:
            if end <= timeline.start_seconds or start >= timeline.end_seconds:
                continue
            start, end = max(start - shift, Fraction(0)), min(end, timeline.end_seconds) - shift
        chapters.append({**chapter, "start": int(start / base), "end": int(end / base)})
    return chapters


def _video_packets(segments: Sequence[Path], timeline: Timeline, stream: Any, shift: Fraction) -> Iterator[Any]:
    """Yield the segments' packets at the times of the timeline.

    Frames are encoded in another order than they are shown (B-frames): the decoding time of packet k is the time of
    frame k - delay, which comes no later than any frame that is encoded at k or after.
    """
    offset = round(shift / timeline.time_base)
    durations = timeline.durations()
    first, delay = 0, max(_reordering(segment) for segment in segments)
    for path in segments:
        packets = list(packets_of(path))
        shown = sorted(range(len(packets)), key=lambda k: packets[k].pts)
        place = {k: first + rank for rank, k in enumerate(shown)}
        if first + len(packets) > len(timeline.pts):
            raise UserError(f"{shown_path(path)} has too many frames: delete it and run the command again")
        for k, packet in enumerate(packets):
            n, behind = place[k], first + k - delay
            packet.stream, packet.time_base = stream, timeline.time_base
            packet.pts, packet.duration = timeline.pts[n] - offset, durations[n]
            early = timeline.pts[0] + behind * durations[0]
            packet.dts = (timeline.pts[behind] if behind >= 0 else early) - offset
            yield packet
        first += len(packets)


def _reordering(path: Path) -> int:
    """Return by how many frames a segment's packets come before they are shown, at most."""
    times = [packet.pts for packet in packets_of(path)]
    rank = {pts: n for n, pts in enumerate(sorted(times))}
    return max((k - rank[pts] for k, pts in enumerate(times)), default=0)


def _mended(source: Path, copied: Collection[int], timeline: Timeline) -> dict[int, Stamps]:
    """Return the decoding times of each copied stream of audio or subtitles in which some are missing or go back.

    So they do where packets were lost or recordings were concatenated; containers refuse them.
    """
    times: dict[int, list[int | None]] = {}
    durations: dict[int, Counter[int]] = {}
    bases: dict[int, Fraction] = {}
    with av.open(full_name(source)) as opened:
        file: Any = opened
        streams = [s for s in file.streams if s.index in copied and s.type in ("audio", "subtitle")]
        subtitles = {stream.index for stream in streams if stream.type == "subtitle"}
        for packet in file.demux(streams) if streams else ():
            if packet.size:
                index = packet.stream_index
                times.setdefault(index, []).append(packet.dts if packet.dts is not None else packet.pts)
                durations.setdefault(index, Counter())[max(1, packet.duration or 1)] += 1
                bases[index] = Fraction(packet.time_base)
    found = {}
    for index, stamps in times.items():
        known = [time for time in stamps if time is not None]
        if len(known) < len(stamps) or any(before > after for before, after in pairwise(known)):
            shifts = [round(seconds / bases[index]) for seconds in timeline.shifts]
            if index in subtitles:
                found[index] = non_decreasing(stamps, shifts=shifts)
            else:
                step = Fraction(durations[index].most_common(1)[0][0])
                found[index] = increasing(stamps, step=step, shifts=shifts)
    return found


def _other_packets(
    original: Any,
    copied: dict[int, Any],
    mended: dict[int, Stamps],
    timeline: Timeline,
    shift: Fraction,
    *,
    whole: bool,
) -> Iterator[Any]:
    """Yield the packets of audio and subtitles; of a part, those that begin while it is shown."""
    if not copied:
        return
    times = {index: iter(stamps.times) for index, stamps in mended.items()}
    for packet in original.demux([stream for stream in original.streams if stream.index in copied]):
        if not packet.size:
            continue
        index = packet.stream_index
        if index in mended:
            _set_time(packet, next(times[index]), mended[index].scale)
        if not whole:
            begin = _begin(packet)
            if not timeline.start_seconds <= begin < timeline.end_seconds:
                continue
            ticks = round(shift / Fraction(packet.time_base))
            packet.pts = None if packet.pts is None else packet.pts - ticks
            packet.dts = None if packet.dts is None else packet.dts - ticks
        packet.stream = copied[index]
        yield packet


def _set_time(packet: Any, dts: int, scale: int) -> None:
    """Let a packet be decoded at `dts`, in its time base divided by `scale`, and be heard as long after as before."""
    later = 0 if packet.dts is None or packet.pts is None else max(0, packet.pts - packet.dts)
    duration = packet.duration
    packet.time_base = Fraction(packet.time_base) / scale
    packet.dts, packet.pts = dts, dts + later * scale
    if duration:
        packet.duration = duration * scale


def _begin(packet: Any) -> Fraction:
    """Return when a packet is decoded or begins, in seconds."""
    ticks = packet.dts if packet.dts is not None else packet.pts
    return (ticks or 0) * Fraction(packet.time_base)


def count_frames(path: Path) -> int:
    """Return the number of frames of a segment; -1 if it cannot be read."""
    try:
        return sum(1 for _ in packets_of(path))
    except (av.FFmpegError, OSError, IndexError):
        return -1
