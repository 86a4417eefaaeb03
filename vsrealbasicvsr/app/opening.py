"""Opens a source and plans its job, without computing a frame."""

import logging
import re
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import vapoursynth as vs

from vsrealbasicvsr import __version__
from vsrealbasicvsr.errors import UserError, printable, shown_path

from .encoder_check import check_encoder
from .encoding import Encoder, carries_range, choose_encoder
from .hdr import PEAK_NITS
from .job import Choices, Job, identity_of, state_folder
from .joining import muxer_of
from .pixel_formats import ALPHA, has_alpha, to_pix_fmt
from .plan import plan_segments
from .rendering import Pipeline, light_of_source, matrix_of, range_of, tags_of, upscaled
from .source import Source, check_suitable, open_source

LOG = logging.getLogger(__name__)
DEFAULT_WINDOW_LENGTH = 30
DEFAULT_CODEC_OF, DEFAULT_DEEP_CODEC_OF = {".webm": "libvpx-vp9"}, {".webm": "libsvtav1"}
"""Of containers that take none of the usual codecs: for 8 bits, and for more, of which libvpx-vp9 takes none here."""
_TIME = re.compile(r"(\d{1,9}:){0,2}(\d{1,9}(\.\d{0,9})?|\.\d{1,9})", re.ASCII)


def parse_time(text: str, option: str) -> Fraction:
    """Return seconds from 83.5, 1:23.5 or 0:01:23.5. Raises UserError."""
    if not _TIME.fullmatch(text.strip()):
        raise UserError(f"{option} takes seconds or h:mm:ss, such as 83.5 or 1:23.5, got {printable(text, 50)!r}")
    seconds = Fraction(0)
    for part in text.strip().split(":"):
        seconds = seconds * 60 + Fraction(part)
    return seconds


def open_job(source_path: Path, output: Path, choices: Choices) -> tuple[Job, Source, tuple[int, int], Pipeline]:
    """Open the source and plan the job. The pipeline's clip is made, but no frame is computed yet.

    Raises:
        UserError: The source cannot be read or is not suitable, or an argument is wrong.
    """
    start, stop = (
        None if text is None else parse_time(text, option)
        for text, option in ((choices.start, "--start"), (choices.stop, "--stop"))
    )
    source = open_source(source_path, state_folder(output))
    check_suitable(source, force=choices.force, deinterlaced=choices.deinterlace is not None)
    frames = source.timeline.frames_between(start, stop)
    if frames[0] >= frames[1]:
        length = float(source.timeline.end_seconds - source.timeline.start_seconds)
        raise UserError(f"no frame lies between --start and --stop: {shown_path(source_path)} lasts {length:.3f} s")
    clip = upscaled(source, choices, frames)
    assert clip.format is not None
    suffix = output.suffix.lower()
    encoder = choose_encoder(
        clip.format,
        alpha=ALPHA in source.props,
        codec=choices.codec or _default_codec(suffix, clip.format, alpha=ALPHA in source.props),
        crf=choices.crf,
        preset=choices.preset,
        options=choices.encoder_options,
    )
    if ALPHA in source.props and not has_alpha(encoder.pix_fmt):
        LOG.warning("the alpha plane is dropped, which %s does not keep: --codec ffv1 does", encoder.codec)
        clip = clip.std.RemoveFrameProps(ALPHA)
    _warn_of_lost_depth(clip.format, encoder, suffix)
    full = range_of(source.clip.format, source.props) == int(vs.RANGE_FULL)
    to_limited = full and not carries_range(muxer_of(suffix), encoder.codec)
    clip = to_pix_fmt(clip, encoder.pix_fmt, matrix=matrix_of(source), to_limited=to_limited)
    rate = source.timeline.cut(*frames).nominal_rate(Fraction(source.clip.fps))
    tags = tags_of(source, rate, clip, to_limited=to_limited)
    check_encoder(encoder, (clip.width, clip.height), tags, muxer_of(suffix), suffix)
    pipeline = Pipeline(clip=clip, encoder=encoder, tags=tags)
    segments = plan_segments(
        clip.num_frames,
        window_length=int(choices.upscale.get("length") or DEFAULT_WINDOW_LENGTH),
        segment_frames=choices.segment_frames,
    )
    identity = identity_of(
        source_path, choices, frames=frames, encoder=asdict(encoder), versions=_versions(), hdr=_hdr(source)
    )
    job = Job(source=source_path, output=output, choices=choices, identity=identity, segments=tuple(segments))
    return job, source, frames, pipeline


def _default_codec(suffix: str, video_format: vs.VideoFormat, *, alpha: bool) -> str | None:
    """Return the codec that a container needs; None: the usual ones do. Alpha is worth more than depth."""
    deep = video_format.bits_per_sample > 8 and not alpha
    return (DEFAULT_DEEP_CODEC_OF if deep else DEFAULT_CODEC_OF).get(suffix)


def _warn_of_lost_depth(video_format: vs.VideoFormat, encoder: Encoder, suffix: str) -> None:
    """Log a warning where samples of more than 8 bits are encoded with 8."""
    depth = av.VideoFormat(encoder.pix_fmt).components[0].bits
    in_av1 = suffix == ".webm" and not has_alpha(encoder.pix_fmt)
    if video_format.bits_per_sample > 8 >= depth:
        LOG.warning(
            "the source's %d bits per sample become %d, which is all that %s takes: %s",
            video_format.bits_per_sample,
            depth,
            encoder.codec,
            "--codec libsvtav1 keeps 10" if in_av1 else "write .mkv with --codec ffv1 to keep them",
        )


def _hdr(source: Source) -> dict[str, Any]:
    """Return how PQ and HLG are converted for the network; empty for other sources."""
    light = light_of_source(source)
    return {} if light is None else {**asdict(light), "peak_nits": PEAK_NITS}


def _versions() -> dict[str, Any]:
    """Return the versions that decide pixels; frames of two of them are not to be joined."""
    found = dict(vs.core.rbvsr.Version())
    names = ("rbvsr", "torch", "kernels")
    return {name: _text(found[name]) for name in names if name in found} | {"rbvsr": __version__}


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
