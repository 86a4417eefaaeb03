"""Work that Ctrl-C ends at once, wherever it is."""

import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future, wait
from contextlib import suppress
from functools import partial
from typing import Any

import vapoursynth as vs

LOOK_SECONDS = 0.2
"""Between two looks for a signal: on Windows none wakes a thread that waits for another one."""


def interruptible(call: Callable[[], Any]) -> Any:
    """Return call(), made on a thread of its own, which is left behind if a signal comes: call() may take minutes."""
    result: Future[Any] = Future()

    def run() -> None:
        try:
            result.set_result(call())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=run, name="interruptible", daemon=True).start()
    while not wait((result,), LOOK_SECONDS).done:
        pass
    return result.result()


def computed(clip: vs.VideoNode) -> Generator[vs.VideoFrame]:
    """Yield a clip's frames as clip.frames(close=True) does; after a signal, those under way are not waited for."""
    frames = clip.frames(close=True)
    try:
        while (frame := interruptible(partial(next, frames, None))) is not None:
            yield frame
    finally:
        with suppress(ValueError):  # still at work on the thread that was left behind
            frames.close()
