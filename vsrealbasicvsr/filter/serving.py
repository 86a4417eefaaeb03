"""The steps that the native frame server calls: which frames frame n needs, then frame n itself.

The filter consists of three servers. The window server passes the source frames of window k to the upscaler and returns
an empty token frame; the core merges concurrent requests for one token, so each source frame is requested once. The
frame server requests the token of n's window and then computes frame n. The properties server does the same but returns
one pixel with the properties of source frame n: `from_rgbs` reads the colours of frame n before frame n, which would
otherwise be computed twice or cached. No callback ever blocks on a frame.
"""

import traceback
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import vapoursynth as vs

from vsrealbasicvsr.engine import (
    FrameCache,
    PlaneFormat,
    SourceFrame,
    WindowUpscaler,
    is_out_of_memory,
    memory_cure,
    to_planes,
)
from vsrealbasicvsr.errors import UserError, printable

from .conversion import STASH, plane_format

type Answer = vs.VideoFrame | list[int] | dict[str, str]
type Step = Callable[..., Answer]


@dataclass(frozen=True, slots=True)
class Served:
    """Three clips of the same frames. Of `rgbs` and `converted`, only one should be read for each frame, once.

    Attributes:
        rgbs: The upscaled frames in RGBS.
        converted: The upscaled frames in the format of the source, for frames with a `plane_format`; None unless
            requested.
        props: One pixel with the properties of each frame.
    """

    rgbs: vs.VideoNode
    converted: vs.VideoNode | None
    props: vs.VideoNode


def serve(rgbs: vs.VideoNode, upscaler: WindowUpscaler, *, convert_to: vs.VideoFormat | None = None) -> Served:
    """Build the servers of an upscaled clip.

    Args:
        rgbs: The source clip, converted by `to_rgbs`.
        upscaler: The engine for this clip.
        convert_to: Format to convert frames to where they are computed; None: they stay RGBS.
    """
    core = vs.core
    pixel = core.std.BlankClip(rgbs, format=vs.GRAY8, width=1, height=1, keep=True)
    tokens = core.std.BlankClip(pixel, length=upscaler.grid.num_windows, fpsnum=1, fpsden=1, keep=True)
    windows = core.rbvsr.Serve(
        clips=[rgbs], format=tokens, step=window_step(upscaler.cache, rgbs), name="rbvsr.Upscale (windows)", cache=0
    )
    form = core.std.BlankClip(rgbs, width=rgbs.width * upscaler.scale, height=rgbs.height * upscaler.scale, keep=True)
    real_core = core.core  # the proxy vs.core can be used on VapourSynth's own threads only

    def frame(n: int, wanted: vs.VideoFormat, planes: PlaneFormat | None) -> Answer:
        frames: list[vs.VideoFrame] = []

        def make_planes() -> list[torch.Tensor]:
            frames[:] = [real_core.create_video_frame(wanted.id, form.width, form.height)]
            return [_as_tensor(np.asarray(frames[0][plane])) for plane in range(wanted.num_planes)]

        props = upscaler.upscale_into(n, make_planes, None if planes is None else lambda hr: to_planes(hr, planes))
        (made,) = frames
        assert isinstance(props, dict)
        made.props.update({name: value for name, value in props.items() if not name.startswith(STASH)})
        _log_messages(upscaler)
        return made

    def rgbs_frame(n: int) -> Answer:
        return frame(n, form.format, None)

    def converted_frame(n: int) -> Answer:
        props = upscaler.cache.source(n).user_data
        assert convert_to is not None
        assert isinstance(props, dict)
        planes = plane_format(convert_to, rgbs.height, props)
        assert planes is not None  # `from_rgbs` reads no other frames here
        return frame(n, convert_to, planes)

    def properties(n: int) -> Answer:
        made = core.create_video_frame(vs.GRAY8, 1, 1)
        made.props.update(upscaler.cache.source(n).user_data)
        return made

    def server(like: vs.VideoNode, make: Callable[[int], Answer], name: str) -> vs.VideoNode:
        step = frame_step(upscaler.cache, make)
        return core.rbvsr.Serve(clips=[windows], format=like, step=step, name=name, cache=0)

    converted = None
    if convert_to is not None:
        blank = core.std.BlankClip(form, format=convert_to.id, keep=True)
        converted = server(blank, converted_frame, "rbvsr.Upscale (converted)")
    return Served(
        server(form, rgbs_frame, "rbvsr.Upscale"),
        converted,
        server(pixel, properties, "rbvsr.Upscale (properties)"),
    )


def _log_messages(upscaler: WindowUpscaler) -> None:
    for warning in upscaler.messages.take_warnings():
        vs.core.log_message(vs.MESSAGE_TYPE_WARNING, f"rbvsr.Upscale: {warning}.")
    for note in upscaler.messages.take_notes():
        vs.core.log_message(vs.MESSAGE_TYPE_INFORMATION, f"rbvsr.Upscale: {note}.")


def window_step(cache: FrameCache, source: vs.VideoNode) -> Step:
    """Return the step of the window server: request the missing source frames of window n, then return an empty frame.

    If some of them fail, the request fails, as the core requires; the others are cached, and the next request for the
    window works without the failed ones. The server's clips are [source].
    """
    asked: dict[int, list[int]] = {}

    def supply(n: int, numbers: list[int], frames: Any) -> None:
        cache.supply(n, dict(zip(numbers, map(_source_frame, _as_list(frames)), strict=True)))

    def step(n: int, frames: Any = None, failed: int = 0, lost: Any = ()) -> Answer:
        numbers = asked.pop(n, [])
        places = set(_as_list(lost))
        for place in places:
            _lose(cache, source, numbers[place])
        if frames is not None:
            supply(n, [number for place, number in enumerate(numbers) if place not in places], frames)
        if failed:
            return []
        if frames is None and (missing := cache.missing(n)):
            asked[n] = missing
            return [value for i in missing for value in (0, i)]
        return vs.core.create_video_frame(vs.GRAY8, 1, 1)

    return _in_one_line(step, frame_of=lambda index: cache.grid.window(index).first)


def _lose(cache: FrameCache, source: vs.VideoNode, n: int) -> None:
    """Mark source frame n as failed, and request it once more by itself: only such a request tells the reason."""
    cache.lose(n)

    def note(frame: Future[vs.VideoFrame]) -> None:
        error = frame.exception()
        if error is not None:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            # For an exception in Python the core's message is the traceback; its last line is the exception itself.
            reason = lines[-1] if "Traceback" in str(error) else " ".join(lines)
            cache.lose(n, reason[:300])
        else:
            frame.result().close()

    source.get_frame_async(n).add_done_callback(note)


def frame_step(cache: FrameCache, make: Callable[[int], Answer]) -> Step:
    """Return the step of the frame server: request n's token until no source frame is missing, then return make(n).

    A frame whose window is complete, as most are, is returned at once. The server's clips are [windows].
    """

    def step(n: int, frames: Any = None, failed: int = 0, lost: Any = ()) -> Answer:
        if failed:
            cache.release(n)
            return []
        if frames is None:
            if (reason := cache.why_lost(n)) is not None:
                return {"error": _lost(n, reason)}
            cache.acquire(n)
        try:
            index = cache.index_of(n)
            if cache.missing(index):  # even after a token: the window may have been evicted since
                return [0, index]
            if (reason := cache.why_lost(n)) is not None:
                cache.release(n)
                return {"error": _lost(n, reason)}
            frame = make(n)
            is_memory_short = _is_memory_short()
        except BaseException:
            cache.release(n)
            raise
        cache.release(n, is_memory_short=is_memory_short)
        return frame

    return _in_one_line(step, frame_of=lambda n: n)


def _in_one_line(step: Step, frame_of: Callable[[int], int]) -> Step:
    """Wrap a step so that exceptions become errors of one line; R81 would add the traceback to what is raised.

    The traceback is logged at debug level.
    """

    def answered(n: int, **arguments: Any) -> Answer:
        try:
            return step(n, **arguments)
        except Exception as error:
            log = "".join(traceback.format_exception(error))
            vs.core.log_message(vs.MESSAGE_TYPE_DEBUG, f"rbvsr.Upscale: {log}")
            return {"error": _why_failed(frame_of(n), error)}

    return answered


def _is_memory_short() -> bool:
    """Return whether VapourSynth's frames take more memory than the user allows (max_cache_size)."""
    core = vs.core.core
    return bool(core.used_cache_size > core.max_cache_size * 2**20)


def _as_tensor(plane: np.ndarray[Any, Any]) -> torch.Tensor:
    """Return a plane's memory as a tensor; uint16 as the same bits in int16, as `to_planes` expects."""
    return torch.from_numpy(plane.view(np.int16) if plane.dtype == np.uint16 else plane)


def _as_list(values: Any) -> list[Any]:
    return list(values) if isinstance(values, (list, tuple)) else [values]


def _source_frame(frame: vs.VideoFrame) -> SourceFrame:
    props = dict(frame.props)

    def planes() -> list[np.ndarray[Any, Any]]:
        return [np.asarray(frame[plane]) for plane in range(3)]

    begins, ends = props.get("_SceneChangePrev"), props.get("_SceneChangeNext")
    return SourceFrame(
        rgb=lambda: torch.from_numpy(np.stack(planes())),
        planes=planes,
        begins_scene=bool(begins) if isinstance(begins, int) else None,
        ends_scene=bool(ends) if isinstance(ends, int) else None,
        user_data=props,
    )


def _lost(n: int, reason: str) -> str:
    why = f" ({reason})" if reason else ""
    return f"rbvsr.Upscale: source frame {n} could not be read{why}. Its neighbours are upscaled without it."


def _why_failed(n: int, error: Exception) -> str:
    if isinstance(error, UserError):
        return f"rbvsr.Upscale: {printable(str(error), 1000)}"
    text = printable(str(error), 300)
    if is_out_of_memory(error):
        return (
            f"rbvsr.Upscale: out of memory at frame {n}, even with the smallest tiles ({text}). "
            f'{memory_cure()} Otherwise use a smaller clip, precision="fp16" on a GPU, or device="cpu".'
        )
    if isinstance(error, RuntimeError):  # torch's, the GPU driver's
        return f"rbvsr.Upscale: frame {n} could not be computed ({text}). Try another device or precision."
    return (
        f"rbvsr.Upscale: frame {n} failed because of a bug ({type(error).__name__}: {text}). Report it with "
        "core.rbvsr.Version() and the traceback, which a script shows that begins with "
        "core.add_log_handler(lambda kind, text: print(text, file=sys.stderr))."
    )
