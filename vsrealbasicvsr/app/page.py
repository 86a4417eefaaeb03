"""A web page that compares methods: one file, with every picture in it, which needs no network."""

import base64
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import jinja2
import numpy as np
import vapoursynth as vs

from vsrealbasicvsr.errors import UserError, shown_path
from vsrealbasicvsr.whole_file import whole_file

GENERATOR = "rbvsr page"
"""Named in a page's head: a page of ours is replaced without a question, another file is not."""
QUALITY = 92
"""Of the pictures (WebP, 0 to 100)."""
MAX_PAGE_PIXELS = 400_000_000
"""Of all pictures of a page together, some 70 MB; a loop is shortened to fit."""
MAX_METHODS = 8
"""Letters of the keyboard that choose a method: A to H."""
THUMBNAIL_HEIGHT_PX = 112
PAGE_SUFFIXES = (".html", ".htm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One of the methods that are compared."""

    name: str
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shot:
    """A moment of the video. `pictures` holds, for each method, a WebP file for each frame of the loop."""

    seconds: float
    thumbnail: bytes
    pictures: Sequence[Sequence[bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What a page shows. width, height: of every picture, in pixels; `aspect`: width of a pixel over its height."""

    title: str
    methods: Sequence[Method]
    shots: Sequence[Shot]
    width: int
    height: int
    aspect: float
    frames_per_second: float


def frames_that_fit(*, wanted: int, width: int, height: int, num_methods: int, num_shots: int) -> int:
    """Return how many frames a loop may have so that the page does not grow beyond all bounds; 1 or more."""
    return max(1, min(wanted, MAX_PAGE_PIXELS // (width * height * num_methods * num_shots)))


def check_page(path: Path, *, overwrite: bool) -> None:
    """Raise UserError unless a page can be written there. An earlier page of ours may be replaced."""
    if path.suffix.lower() not in PAGE_SUFFIXES:
        raise UserError(f"{shown_path(path)}: the page is a file whose name ends in .html: name one")
    if not path.parent.is_dir():
        raise UserError(f"there is no folder {shown_path(path.parent)}: make it first")
    if path.is_dir():
        raise UserError(f"{shown_path(path)} is a folder: name a file in it")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"nothing can be written in {shown_path(path.parent)}: choose another place")
    if path.exists() and not overwrite and not _is_ours(path):
        raise UserError(f"{shown_path(path)} exists and is no page of rbvsr: add --overwrite, or choose another name")


def _is_ours(path: Path) -> bool:
    with path.open("rb") as file:
        return f'content="{GENERATOR}'.encode() in file.read(4096)


def to_rgb24(clip: vs.VideoNode, matrix: int, *, size: tuple[int, int] | None = None) -> vs.VideoNode:
    """Return the clip as RGB of 8 bits, at (width, height) if given; enlarged by bicubic interpolation.

    matrix: of YUV frames that name none.
    """
    arguments: dict[str, Any] = {}
    if clip.format is not None and clip.format.color_family == vs.YUV:
        arguments["matrix_in"] = matrix
    width, height = size or (clip.width, clip.height)
    return clip.resize.Bicubic(width, height, format=vs.RGB24, dither_type="error_diffusion", **arguments)


def encode_picture(frame: vs.VideoFrame) -> bytes:
    """Return an RGB24 frame as a WebP file."""
    picture = np.full((frame.height, frame.width, 4), 255, np.uint8)
    for target, plane in ((2, 0), (1, 1), (0, 2)):
        picture[..., target] = np.asarray(frame[plane])
    made = io.BytesIO()
    with av.open(made, "w", format="webp") as file:
        options = {"quality": str(QUALITY), "preset": "photo", "compression_level": "2"}
        stream: Any = file.add_stream("libwebp", rate=1, options=options)
        stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, "bgra"
        file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="bgra")))
        file.mux(stream.encode())
    return made.getvalue()


def write_page(page: Page, path: Path) -> int:
    """Write the page, whole or not at all; return its size in bytes. Raises UserError if it cannot be written."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("vsrealbasicvsr.app", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    text = environment.get_template("page.html.jinja").render(
        generator=GENERATOR, title=page.title, methods=page.methods, data=_data(page)
    )
    content = text.encode()
    try:
        with whole_file(path) as file:
            file.write(content)
    except OSError as error:
        raise UserError(f"{shown_path(path)} cannot be written ({error.strerror}): choose another place") from None
    return len(content)


def _data(page: Page) -> dict[str, Any]:
    """Return what the page's program reads."""
    return {
        "width": page.width,
        "height": page.height,
        "aspect": page.aspect,
        "fps": page.frames_per_second,
        "methods": [{"name": method.name, "note": method.note} for method in page.methods],
        "shots": [
            {
                "time": time_text(shot.seconds),
                "thumbnail": _data_uri(shot.thumbnail),
                "pictures": [[_data_uri(picture) for picture in pictures] for pictures in shot.pictures],
            }
            for shot in page.shots
        ],
    }


def _data_uri(picture: bytes) -> str:
    return f"data:image/webp;base64,{base64.b64encode(picture).decode('ascii')}"


def time_text(seconds: float | Fraction) -> str:
    """Return 0:01.3, or 1:02:03.4 from an hour on."""
    tenths = round(float(seconds) * 10)
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    tail = f"{rest / 10:04.1f}"
    return f"{hours}:{minutes:02d}:{tail}" if hours else f"{minutes}:{tail}"
