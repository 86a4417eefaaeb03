"""Renders a job's segments: source, deinterlacing, rbvsr.Upscale, size and format, encoder."""

import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import vapoursynth as vs

from vsrealbasicvsr.errors import UserError, printable
from vsrealbasicvsr.filter import conversion
from vsrealbasicvsr.whole_file import PARTIAL_SUFFIX, replace_file

from .encoding import Encoder, SegmentWriter, Tags
from .hdr import Light, from_network, hdr_words, light_of, to_network
from .interrupting import computed
from .job import Choices, Job
from .paths import full_name, main_video
from .pixel_formats import ALPHA, check_divisible
from .plan import Segment, runs
from .source import Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """The clip as it will be encoded, and how. `clip` has the frames that the job keeps, and no others."""

    clip: vs.VideoNode
    encoder: Encoder
    tags: Tags


def upscaled(source: Source, choices: Choices, frames: tuple[int, int]) -> vs.VideoNode:
    """Return the frames [first, stop) of the source, upscaled and resized as chosen.

    Raises:
        UserError: rbvsr.Upscale or the deinterlacer refuses the clip or the arguments.
    """
    clip = source.clip[frames[0] : frames[1]]
    if choices.deinterlace:
        clip = _deinterlaced(clip, choices.deinterlace)
    alpha = clip.std.PropToClip(ALPHA) if ALPHA in source.props else None
    if alpha is not None:  # it is resized once, to the output's size
        clip = clip.std.RemoveFrameProps(ALPHA)
    light = light_of_source(source)
    if light is not None:
        clip = to_network(clip, light)
    clip = _by_network(clip, choices)
    if light is not None:
        clip = from_network(clip, source.clip.format, light)
    width, height = output_size(source.clip, choices)
    check_divisible(clip.format, width, height)
    if (width, height) != (clip.width, clip.height):
        clip = clip.resize.Lanczos(width, height, **_matrix_arguments(source))
    if alpha is not None:
        full = {"range_in": vs.RANGE_FULL, "range": vs.RANGE_FULL}
        clip = clip.std.ClipToProp(alpha.resize.Lanczos(width, height, **full), prop=ALPHA)
    return clip


def light_of_source(source: Source) -> Light | None:
    """Return how a source of PQ or HLG encodes its light; None for all others."""
    return light_of(source.props, matrix=matrix_of(source), color_range=range_of(source.clip.format, source.props))


def _by_network(clip: vs.VideoNode, choices: Choices) -> vs.VideoNode:
    """Return the clip four times as large. Raises UserError."""
    if not hasattr(vs.core, "rbvsr"):
        raise UserError("the plugin core.rbvsr is not there: run rbvsr doctor")
    arguments = {name: value for name, value in choices.upscale.items() if value is not None}
    try:
        return vs.core.rbvsr.Upscale(clip, **arguments)
    except vs.Error as error:
        raise UserError(printable(str(error).removeprefix("rbvsr.Upscale: "), 1000)) from None


def _matrix_arguments(source: Source) -> dict[str, Any]:
    """Return what core.resize must be told of a clip that names no matrix: the one that was assumed for it."""
    return {} if source.clip.format.color_family != vs.YUV else {"matrix_in": matrix_of(source)}


def matrix_of(source: Source) -> int:
    """Return the frames' matrix, as rbvsr.Upscale takes it; of RGB, the one that it is converted to YUV with."""
    if source.clip.format.color_family == vs.RGB:
        return int(vs.MATRIX_BT709)
    return conversion.matrix_of(source.clip.height, source.props)


def range_of(video_format: vs.VideoFormat, props: Mapping[str, Any]) -> int:
    """Return 1 for frames of full range, 0 for limited range, which is assumed of YUV and GRAY."""
    assumed = vs.RANGE_FULL if video_format.color_family == vs.RGB else vs.RANGE_LIMITED
    return int(props.get("_Range", assumed))


def output_size(clip: vs.VideoNode, choices: Choices) -> tuple[int, int]:
    """Return (width, height) of the output: four times the source's, or as chosen, the other side in proportion."""
    width, height = 4 * clip.width, 4 * clip.height
    if choices.scale is not None:
        width, height = _even(clip.width * choices.scale), _even(clip.height * choices.scale)
    if choices.height is not None:
        width, height = _even(clip.width * choices.height / clip.height), choices.height
    if choices.width is not None:
        height = height if choices.height is not None else _even(clip.height * choices.width / clip.width)
        width = choices.width
    return width, height


def _even(length: float) -> int:
    return max(2, 2 * round(length / 2))


def _deinterlaced(clip: vs.VideoNode, name: str) -> vs.VideoNode:
    """Return the clip without interlacing, at the same number of frames."""
    if name != "bwdif":
        raise UserError(f"--deinterlace takes bwdif, got {printable(name, 100)!r}")
    if not hasattr(vs.core, "bwdif"):
        raise UserError("the plugin bwdif is not installed: pip install vapoursynth-bwdif")
    return vs.core.bwdif.Bwdif(clip, field=-1)


def pixel_aspect(source: Source) -> Fraction:
    """Return width / height of the source's pixels as they are shown. BestSource turns frames, and not their pixels."""
    aspect = Fraction(int(source.props.get("_SARNum", 1)) or 1, int(source.props.get("_SARDen", 1)) or 1)
    if aspect == 1:
        return aspect
    with av.open(full_name(source.path)) as file, suppress(av.FFmpegError, StopIteration):
        if next(file.decode(main_video(file))).rotation % 180 == 90:
            return 1 / aspect
    return aspect


def tags_of(source: Source, rate: Fraction, clip: vs.VideoNode, *, to_limited: bool = False) -> Tags:
    """Return what the output's stream says of its frames: what the source's frames say, in the output's size.

    to_limited: the clip was converted from full to limited range.
    """
    props = source.props
    is_rgb = clip.format is not None and clip.format.color_family == vs.RGB
    # Then core.resize makes what is usual for the new family: RGB full, YUV limited.
    changed = clip.format is None or source.clip.format.color_family != clip.format.color_family
    full = range_of(clip.format, {} if changed or to_limited else props)
    # The frame keeps its shape: what was stretched by a size of the user's own is taken out again.
    stretch = Fraction(clip.width, source.clip.width) / Fraction(clip.height, source.clip.height)
    return Tags(
        rate=rate,
        sample_aspect_ratio=(pixel_aspect(source) / stretch).limit_denominator(4096),
        color_range=2 if full == int(vs.RANGE_FULL) else 1,
        colorspace=0 if is_rgb else matrix_of(source),
        color_primaries=int(props.get("_Primaries", 2)),
        color_trc=int(props.get("_Transfer", 2)),
        chroma_location=props.get("_ChromaLocation"),
        hdr=hdr_words(props),
    )


def render(
    job: Job, pipeline: Pipeline, segments: list[Segment], on_frame: Callable[[int], None] = lambda n: None
) -> Iterator[Segment]:
    """Render segments, those that follow one another without a pause; yield each when its file is complete.

    A segment is written under a name of its own and renamed at its end, so that a file under a segment's name is whole.

    Args:
        job: Where the segments belong.
        pipeline: The clip and the encoder.
        segments: What to render.
        on_frame: Called with each frame's number when it is encoded.

    Raises:
        UserError: A frame cannot be had, the encoder refuses its options, or no segment can hold what it encodes.
        OSError: The disk is full.
    """
    for run in runs(segments):
        frames = computed(pipeline.clip[run[0].first : run[-1].stop])
        try:
            for segment in run:
                yield _render_one(job, pipeline, segment, frames, on_frame)
        except vs.Error as error:
            raise UserError(printable(str(error), 1000)) from None
        except av.FFmpegError as error:
            if isinstance(error, OSError):
                raise
            raise UserError(
                f"what {pipeline.encoder.codec} encodes cannot be written ({printable(str(error.strerror), 200)}):"
                " choose another --codec"
            ) from None
        finally:
            frames.close()


def _render_one(
    job: Job, pipeline: Pipeline, segment: Segment, frames: Iterator[vs.VideoFrame], on_frame: Callable[[int], None]
) -> Segment:
    """Render one segment from the frames that come next."""
    final = job.path_of(segment)
    partial = final.with_name(f"{final.stem}-{os.getpid()}-{secrets.token_hex(4)}{PARTIAL_SUFFIX}")
    writer = SegmentWriter(partial, pipeline.clip, pipeline.encoder, pipeline.tags)
    try:
        for n in range(segment.first, segment.stop):
            frame = next(frames)
            writer.write(frame)
            on_frame(n)
        writer.close()
    except BaseException:
        writer.abandon()
        raise
    replace_file(partial, final)
    return segment
