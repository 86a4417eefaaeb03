"""The steps that the native frame server calls: which frames it needs for n, then frame n.

Three servers make the filter. The window server hands the source frames of window k to the upscaler and returns an
empty token; the core merges the requests for one token, however many frames wait for it, so each source frame is asked
for once. The frame server asks for the token of n's window and then computes frame n. The properties server does the
same, but returns one pixel with the properties of source frame n: what reads frame n's colours before it reads frame n
would else have it computed twice, or all frames held for it. Nobody ever waits for a frame in a callback.
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
from vsrealbasicvsr.model import SCALE

from .conversion import STASH, plane_format

type Answer = vs.VideoFrame | list[int] | dict[str, str]
type Step = Callable[..., Answer]


@dataclass(frozen=True, slots=True)
class Served:
    """Clips of the same frames. Of each, `rgbs` or `converted` should be read, once.

    rgbs: as RGBS. converted: in the format of the source, for frames with a `plane_format`; None unless asked for.
    props: one pixel with the properties.
    """

    rgbs: vs.VideoNode
    converted: vs.VideoNode | None
    props: vs.VideoNode


def serve(rgbs: vs.VideoNode, upscaler: WindowUpscaler, *, convert_to: vs.VideoFormat | None = None) -> Served:
    """The upscaled clip. convert_to: a format into which frames are to be converted where they are computed."""
    core = vs.core
    pixel = core.std.BlankClip(rgbs, format=vs.GRAY8, width=1, height=1, keep=True)
    tokens = core.std.BlankClip(pixel, length=upscaler.grid.num_windows, fpsnum=1, fpsden=1, keep=True)
    windows = core.rbvsr.Serve(
        clips=[rgbs], format=tokens, step=window_step(upscaler.cache, rgbs), name="rbvsr.Upscale (windows)", cache=0
    )
    form = core.std.BlankClip(rgbs, width=rgbs.width * SCALE, height=rgbs.height * SCALE, keep=True)

    real_core = core.core  # the proxy works on VapourSynth's threads only

    def frame(n: int, wanted: vs.VideoFormat, planes: PlaneFormat | None) -> Answer:
        frames: list[vs.VideoFrame] = []

        def make_planes() -> list[torch.Tensor]:
            frames[:] = [real_core.create_video_frame(wanted.id, form.width, form.height)]
            return [_as_tensor(np.asarray(frames[0][plane])) for plane in range(wanted.num_planes)]

        props = upscaler.upscale_into(n, make_planes, None if planes is None else lambda hr: to_planes(hr, planes))
        (made,) = frames
        assert isinstance(props, dict)
        made.props.update({name: value for name, value in props.items() if not name.startswith(STASH)})
        for warning in upscaler.messages.take_warnings():
            core.log_message(vs.MESSAGE_TYPE_WARNING, f"rbvsr.Upscale: {warning}.")
        for note in upscaler.messages.take_notes():
            core.log_message(vs.MESSAGE_TYPE_INFORMATION, f"rbvsr.Upscale: {note}.")
        return made

    def rgbs_frame(n: int) -> Answer:
        return frame(n, form.format, None)

    def converted_frame(n: int) -> Answer:
        props = upscaler.cache.source(n).user_data
        assert convert_to is not None
        assert isinstance(props, dict)
        planes = plane_format(convert_to, form.height, props)
        assert planes is not None  # nobody reads other frames here
        return frame(n, convert_to, planes)

    def properties(n: int) -> Answer:
        made = core.create_video_frame(vs.GRAY8, 1, 1)
        made.props.update(upscaler.cache.source(n).user_data)
        return made

    def server(like: vs.VideoNode, make: Callable[[int], Answer], name: str) -> vs.VideoNode:
        made: vs.VideoNode = core.rbvsr.Serve(
            clips=[windows], format=like, step=frame_step(upscaler.cache, make), name=name, cache=0
        )
        return made

    converted = None
    if convert_to is not None:
        blank = core.std.BlankClip(form, format=convert_to.id, keep=True)
        converted = server(blank, converted_frame, "rbvsr.Upscale (converted)")
    return Served(
        server(form, rgbs_frame, "rbvsr.Upscale"),
        converted,
        server(pixel, properties, "rbvsr.Upscale (properties)"),
    )


def window_step(cache: FrameCache, source: vs.VideoNode) -> Step:
    """For window n: its missing source frames, then an empty frame. clips = [source].

    Where some of them cannot be had, the request fails, for so the core wants it; but the others are kept, and the next
    request does without those.
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
    """Note that source frame n failed, and ask for it once more by itself: why it failed is told only so."""
    cache.lose(n)

    def note(frame: Future[vs.VideoFrame]) -> None:
        error = frame.exception()
        if error is not None:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            # Of an exception in somebody's Python the core tells the traceback too; its last line is what was raised.
            reason = lines[-1] if "Traceback" in str(error) else " ".join(lines)
            cache.lose(n, reason[:300])
        else:
            frame.result().close()

    source.get_frame_async(n).add_done_callback(note)


def frame_step(cache: FrameCache, make: Callable[[int], Answer]) -> Step:
    """Serve frame n: ask for the token of its window until nothing is missing, then return make(n). clips = [windows].

    A frame whose window is complete, as most are, is answered at once.
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
            if cache.missing(index):  # after a token came, too: it may have been answered before the window was evicted
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
    """The step, whose exceptions become answers of one line: R81 would wrap what is raised in its traceback.

    The traceback goes to the log, at debug level.
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
    """Whether VapourSynth holds more frames than the user lets it."""
    core = vs.core.core
    return bool(core.used_cache_size > core.max_cache_size * 2**20)


def _as_tensor(plane: np.ndarray[Any, Any]) -> torch.Tensor:
    """The plane's memory; unsigned integers of 16 bits as those bits, for that is how `to_planes` has them."""
    return torch.from_numpy(plane.view(np.int16) if plane.dtype == np.uint16 else plane)


def _as_list(values: Any) -> list[Any]:
    return list(values) if isinstance(values, (list, tuple)) else [values]


def _source_frame(frame: vs.VideoFrame) -> SourceFrame:
    props = dict(frame.props)
    begins, ends = props.get("_SceneChangePrev"), props.get("_SceneChangeNext")
    return SourceFrame(
        rgb=lambda: torch.from_numpy(np.stack([np.asarray(frame[plane]) for plane in range(3)])),
        begins_scene=bool(begins) if isinstance(begins, int) else None,
        ends_scene=bool(ends) if isinstance(ends, int) else None,
        user_data=props,
    )


def _lost(n: int, reason: str) -> str:
    why = f" ({reason})" if reason else ""
    return f"rbvsr.Upscale: source frame {n} cannot be had{why}. The frames around it are made without it."


def _why_failed(n: int, error: Exception) -> str:
    if isinstance(error, UserError):
        return f"rbvsr.Upscale: {printable(str(error), 1000)}"
    text = printable(str(error), 300)
    if is_out_of_memory(error):
        return (
            f"rbvsr.Upscale: out of memory at frame {n}, in the smallest bands too ({text}). "
            f'{memory_cure()} Otherwise use a smaller clip, precision="fp16" on a GPU, or device="cpu".'
        )
    if isinstance(error, RuntimeError):  # torch's, the GPU driver's
        return f"rbvsr.Upscale: frame {n} could not be computed ({text}). Try another device or precision."
    return (
        f"rbvsr.Upscale: frame {n} failed because of a bug ({type(error).__name__}: {text}). Report it, please, with "
        "core.rbvsr.Version() and the traceback, which a script shows that begins with "
        "core.add_log_handler(lambda kind, text: print(text, file=sys.stderr))."
    )
