"""`rbvsr preview` and `rbvsr compare`: a few moments of a video by several methods, as a page."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import vapoursynth as vs

from vsrealbasicvsr.errors import UserError, printable, shown_path

from .excerpts import Excerpt, Extent, measure, open_excerpt
from .interrupting import computed
from .job import Choices
from .moments import find_moments
from .opening import parse_time
from .page import (
    THUMBNAIL_HEIGHT_PX,
    Method,
    Page,
    Shot,
    encode_picture,
    frames_that_fit,
    time_text,
    to_rgb24,
    write_page,
)
from .progress import Reporter
from .rendering import matrix_of, output_size, pixel_aspect, upscaled
from .source import check_suitable

DEFAULT_OVERLAP = 8
MAX_SHOTS = 20
MAX_LOOP_FRAMES = 100
MARGIN_FRAMES = 2
"""Copied more than is wanted, on each side of an excerpt."""
MAX_LENGTH_DIFFERENCE = Fraction(1, 50)


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """Which part of a video is looked at. `at`: times in words; none: where there is most detail and motion."""

    at: Sequence[str] = ()
    num_shots: int
    loop_frames: int

    def __post_init__(self) -> None:
        """Raise UserError for numbers out of their range."""
        for option, value, maximum in (
            ("--shots", self.num_shots, MAX_SHOTS),
            ("--frames", self.loop_frames, MAX_LOOP_FRAMES),
            ("--at", len(self.at) or 1, MAX_SHOTS),
        ):
            if not 1 <= value <= maximum:
                what = "may be given up to" if option == "--at" else "must be 1 to"
                raise UserError(f"{option} {what} {maximum}{' times' if option == '--at' else ''}, got {value}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One way to upscale: what the page calls it, and the arguments of rbvsr.Upscale in which it differs."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


def preview(
    path: Path, page: Path, choices: Choices, variants: Sequence[Variant], look: Look, reporter: Reporter
) -> None:
    """Upscale a few moments of a video, and write a page that shows them beside bicubic interpolation.

    A moment is upscaled with `overlap` frames of context on each side, so that it looks as in the whole video.

    Args:
        path: The video.
        page: The page to write, which has passed `check_page`.
        choices: As for `rbvsr upscale`; encoding and times are not looked at.
        variants: Ways to upscale, each a method of its own beside bicubic.
        look: Which moments.
        reporter: Told of every frame.

    Raises:
        UserError: With what to do, for all that a user can mend.
    """
    reporter.phase("reading")
    extent = measure(path)
    times = _times(path, extent, look)
    overlap = int(choices.upscale.get("overlap", DEFAULT_OVERLAP))
    shots: list[Shot] = []
    methods = [Method(name="bicubic"), *(Method(name=variant.name) for variant in variants)]
    shape: _Shape | None = None
    with _folder() as folder:
        for number, seconds in enumerate(times):
            excerpt = _excerpt(path, seconds, extent, look, overlap, folder / str(number))
            check_suitable(excerpt.source, force=choices.force, deinterlaced=choices.deinterlace is not None)
            if shape is None:
                size = output_size(excerpt.source.clip, choices)
                shape = _Shape.of(excerpt, size, look, num_methods=len(methods), num_shots=len(times))
                shape.tell(look, reporter)
                reporter.start(0, shape.loop_frames * len(times) * len(variants))
                reporter.phase("upscaling")
            pictures = [list(_bicubic(excerpt, shape))]
            for variant in variants:
                own = replace(choices, upscale={**choices.upscale, **variant.arguments})
                pictures.append(list(_upscaled(excerpt, own, shape, overlap, reporter)))
            shots.append(_shot(seconds - extent.start, _thumbnail(excerpt, shape), pictures))
    assert shape is not None
    _write(page, shape.page(title=path.name, methods=methods, shots=shots, rate=extent.rate), reporter)


def compare(paths: Sequence[Path], labels: Sequence[str], page: Path, look: Look, reporter: Reporter) -> None:
    """Write a page that shows the same moments of several videos; smaller ones are enlarged by bicubic interpolation.

    Args:
        paths: Two videos or more; moments are chosen in the first. Times count from each video's first frame.
        labels: What the page calls them.
        page: The page to write, which has passed `check_page`.
        look: Which moments.
        reporter: Told of every frame.

    Raises:
        UserError: A video cannot be read, or has no frame at one of the times.
    """
    reporter.phase("reading")
    extents = [measure(path) for path in paths]
    common = min(one.end - one.start for one in extents)
    longest = max(one.end - one.start for one in extents)
    if longest - common > max(MAX_LENGTH_DIFFERENCE * longest, 2 / extents[0].rate):
        shortest = paths[[one.end - one.start for one in extents].index(common)]
        reporter.note(
            f"the videos are not equally long: compared from their beginnings, over the {float(common):.1f} s of"
            f" {shown_path(shortest.name)}"
        )
    times = _times(paths[0], replace(extents[0], end=extents[0].start + common), look)
    offsets = [seconds - extents[0].start for seconds in times]
    shots: list[Shot] = []
    shape: _Shape | None = None
    with _folder() as folder:
        for number, offset in enumerate(offsets):
            excerpts = [
                _excerpt(path, extent.start + offset, extent, look, 0, folder / f"{number}-{which}")
                for which, (path, extent) in enumerate(zip(paths, extents, strict=True))
            ]
            if shape is None:
                largest = max(excerpts, key=lambda one: one.source.clip.width * one.source.clip.height)
                size = (largest.source.clip.width, largest.source.clip.height)
                shape = _Shape.of(largest, size, look, num_methods=len(paths), num_shots=len(times))
                shape.tell(look, reporter)
                reporter.start(0, shape.loop_frames * len(times) * len(paths))
                reporter.phase("comparing")
            pictures: list[list[bytes]] = []
            for excerpt in excerpts:
                pictures.append([])
                for picture in _bicubic(excerpt, shape):
                    pictures[-1].append(picture)
                    reporter.frame()
            shots.append(_shot(offset, _thumbnail(excerpts[0], shape), pictures))
    assert shape is not None
    methods = [Method(name=label) for label in labels]
    title = " and ".join(dict.fromkeys(path.name for path in paths[:2]))
    _write(page, shape.page(title=title, methods=methods, shots=shots, rate=extents[0].rate), reporter)


def labels_of(paths: Sequence[Path], given: Sequence[str]) -> list[str]:
    """Return what a page calls its videos: the names given, else the files', with folders where files share a name.

    Raises:
        UserError: More names than videos, or two that are the same.
    """
    if len(given) > len(paths):
        raise UserError(f"--label may be given once for each video, {len(paths)} times, got {len(given)}")
    names = [path.name for path in paths]
    if len(set(names)) < len(names):
        names = [f"{path.parent.name}/{path.name}" for path in paths]
    labels = [*given, *names[len(given) :]]
    if len(set(labels)) < len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        raise UserError(f"two videos are called {printable(twice, 100)!r}: give each a name by --label")
    return labels


# ---- parts -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shape:
    """What all pictures of a page share."""

    size: tuple[int, int]
    aspect: float
    loop_frames: int

    @staticmethod
    def of(excerpt: Excerpt, size: tuple[int, int], look: Look, *, num_methods: int, num_shots: int) -> "_Shape":
        """Return the shape of a page whose pictures have this size."""
        clip = excerpt.source.clip
        stretch = Fraction(size[0], clip.width) / Fraction(size[1], clip.height)
        fit = frames_that_fit(
            wanted=look.loop_frames, width=size[0], height=size[1], num_methods=num_methods, num_shots=num_shots
        )
        return _Shape(size=size, aspect=float(pixel_aspect(excerpt.source) / stretch), loop_frames=fit)

    def tell(self, look: Look, reporter: Reporter) -> None:
        """Say that loops are shorter than was asked for."""
        if self.loop_frames < look.loop_frames:
            plural = "frame" if self.loop_frames == 1 else "frames"
            reporter.note(f"loops have {self.loop_frames} {plural} each, so that a browser can hold the page")

    def page(self, *, title: str, methods: Sequence[Method], shots: Sequence[Shot], rate: Fraction) -> Page:
        """Return the page."""
        return Page(
            title=title,
            methods=methods,
            shots=shots,
            width=self.size[0],
            height=self.size[1],
            aspect=self.aspect,
            frames_per_second=float(rate),
        )


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="rbvsr-", ignore_cleanup_errors=True) as name:
        yield Path(name)


def _times(path: Path, extent: Extent, look: Look) -> list[Fraction]:
    """Return the times of the moments by the video's own clock. Raises UserError for one beyond its end."""
    if not look.at:
        return find_moments(path, extent, look.num_shots)
    times = []
    for text in look.at:
        seconds = parse_time(text, "--at")
        if extent.start + seconds >= extent.end:
            raise UserError(
                f"--at {printable(text, 50)} is beyond the end: {shown_path(path)} lasts"
                f" {time_text(extent.end - extent.start)}"
            )
        times.append(extent.start + seconds)
    return times


def _excerpt(path: Path, seconds: Fraction, extent: Extent, look: Look, overlap: int, folder: Path) -> Excerpt:
    return open_excerpt(
        path,
        seconds,
        before=(overlap + MARGIN_FRAMES) / extent.rate,
        after=(look.loop_frames + overlap + MARGIN_FRAMES) / extent.rate,
        folder=folder,
    )


def _bicubic(excerpt: Excerpt, shape: _Shape) -> Iterator[bytes]:
    """Yield the loop's frames as they are, enlarged where they are smaller than the page's pictures."""
    clip = excerpt.source.clip[excerpt.at : excerpt.at + shape.loop_frames]
    yield from _encoded(to_rgb24(clip, matrix_of(excerpt.source), size=shape.size))


def _upscaled(excerpt: Excerpt, choices: Choices, shape: _Shape, overlap: int, reporter: Reporter) -> Iterator[bytes]:
    """Yield the loop's frames upscaled, with context on both sides."""
    first = max(0, excerpt.at - overlap)
    stop = min(excerpt.source.clip.num_frames, excerpt.at + shape.loop_frames + overlap)
    # One window over all: the frames before and after are its context.
    own = replace(choices, upscale={**choices.upscale, "length": stop - first, "overlap": 0})
    clip = upscaled(excerpt.source, own, (first, stop))
    clip = clip[excerpt.at - first : excerpt.at - first + shape.loop_frames]
    for picture in _encoded(to_rgb24(clip, matrix_of(excerpt.source), size=shape.size)):
        reporter.frame()
        yield picture


def _encoded(clip: vs.VideoNode) -> Iterator[bytes]:
    try:
        for frame in computed(clip):
            yield encode_picture(frame)
    except vs.Error as error:
        raise UserError(printable(str(error), 1000)) from None


def _thumbnail(excerpt: Excerpt, shape: _Shape) -> bytes:
    """Return the moment's first frame in small, as it is to be shown."""
    width, height = shape.size
    size = (max(1, round(THUMBNAIL_HEIGHT_PX * width * shape.aspect / height)), THUMBNAIL_HEIGHT_PX)
    clip = excerpt.source.clip[excerpt.at]
    return next(_encoded(to_rgb24(clip, matrix_of(excerpt.source), size=size)))


def _shot(seconds: Fraction, thumbnail: bytes, pictures: Sequence[Sequence[bytes]]) -> Shot:
    """Return a moment whose loops are equally long: one may end where its video does."""
    shortest = min(len(one) for one in pictures)
    return Shot(seconds=float(seconds), thumbnail=thumbnail, pictures=[one[:shortest] for one in pictures])


def _write(path: Path, page: Page, reporter: Reporter) -> None:
    reporter.phase("writing")
    size = write_page(page, path)
    reporter.result(output=str(path), moments=len(page.shots), bytes=size)
