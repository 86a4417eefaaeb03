"""Opens an encoder before anything is computed, to say in words what it refuses."""

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import av
import av.logging

from vsrealbasicvsr.errors import UserError, printable
from vsrealbasicvsr.scheduling import scheduling_kept

from .encoding import Encoder, Tags, check_size, configure, holds, refusal, segment_format

_IGNORED = re.compile("(Unknown option|Invalid value|Error parsing option)", re.IGNORECASE)
"""Warnings of libx264, libx265 and libsvtav1 for what stands in their own option lists and does nothing."""


def check_encoder(encoder: Encoder, size_px: tuple[int, int], tags: Tags, muxer: str, suffix: str) -> None:
    """Open the encoder as it will be used, and close it.

    Args:
        encoder: Codec, options and pixel format.
        size_px: (width, height) of the frames.
        tags: What the stream will say of its frames.
        muxer: ffmpeg's name of the output's container.
        suffix: The same as the user wrote it.

    Raises:
        UserError: It refuses the size, the format or an option, it does not know an option, or the container does not
            take its streams.
    """
    if not holds(muxer, encoder.codec):
        name = av.Codec(encoder.codec, "w").canonical_name
        raise UserError(f"{suffix} cannot hold {name}: choose another --codec or another suffix of the output")
    segment_format(encoder.codec)
    check_size(encoder, size_px)
    context: Any = av.CodecContext.create(encoder.codec, "w")
    configure(context, encoder, size_px, tags)
    given, failure = dict(context.options), None
    with scheduling_kept(), _stderr_dropped(), _logged() as records:
        try:
            context.open(strict=False)
        except (av.FFmpegError, ValueError) as error:
            failure = getattr(error, "strerror", None) or str(error)
    said = [printable(text, 200) for _, name, text in records if name != "Eval"]  # which repeats the option's text
    if failure is not None:
        raise refusal(encoder, size_px, said[0] if said else failure)
    unknown = [option for option in context.options if option in given]
    if unknown:
        raise UserError(f"the encoder {encoder.codec} has no option {printable(unknown[0], 100)}: leave it out")
    ignored = [text for text in said if _IGNORED.search(text)]
    if ignored:
        raise refusal(encoder, size_px, ignored[0])


@contextlib.contextmanager
def _logged() -> Iterator[list[tuple[int, str, str]]]:
    """Collect what ffmpeg logs from warnings on: (level, name, text)."""
    level = av.logging.get_level()
    av.logging.set_level(av.logging.WARNING)
    try:
        with av.logging.Capture() as records:
            yield records
    finally:
        av.logging.set_level(level)


@contextlib.contextmanager
def _stderr_dropped() -> Iterator[None]:
    """Drop what libraries write to the process's standard error: libx264 repeats there what it tells ffmpeg."""
    sys.stderr.flush()
    try:
        kept = os.dup(2)
    except OSError:  # there is none
        yield
        return
    try:
        with tempfile.TemporaryFile() as dropped:
            os.dup2(dropped.fileno(), 2)
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
