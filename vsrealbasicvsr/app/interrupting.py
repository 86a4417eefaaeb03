"""Work that Ctrl-C ends at once, wherever it is."""

import threading
from collections.abc import Callable, Generator
from queue import Empty, SimpleQueue
from typing import Any

import vapoursynth as vs

LOOK_SECONDS = 0.2
"""Between two looks for a signal: on Windows none wakes a thread that waits for another one."""
_END = object()


def interruptible(call: Callable[[], Any]) -> Any:
    """Return call(), which may take minutes; after a signal it is left behind, on a thread of its own."""
    return next(_made_elsewhere(call() for _ in range(1)))


def computed(clip: vs.VideoNode) -> Generator[vs.VideoFrame]:
    """Yield a clip's frames as clip.frames(close=True) does; after a signal, those under way are not waited for."""
    return _made_elsewhere(clip.frames(close=True))


def _made_elsewhere(items: Generator[Any]) -> Generator[Any]:
    """Yield what a generator yields. It runs on a thread of its own, which ends once nobody asks for more."""
    asked: SimpleQueue[bool] = SimpleQueue()
    made: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()

    def make() -> None:
        while asked.get():
            try:
                made.put((next(items, _END), None))
            except BaseException as error:
                made.put((_END, error))
        items.close()

    threading.Thread(target=make, name="interruptible", daemon=True).start()
    try:
        while True:
            asked.put(True)
            item, error = _next(made)
            if error is not None:
                raise error
            if item is _END:
                return
            yield item
    finally:
        asked.put(False)


def _next(made: SimpleQueue[Any]) -> Any:
    while True:
        try:
            return made.get(timeout=LOOK_SECONDS)
        except Empty:
            continue
