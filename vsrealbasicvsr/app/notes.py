"""What VapourSynth and rbvsr log, as notes for the user."""

import logging
from typing import Any

from vsrealbasicvsr.errors import printable

MAX_NOTE_LENGTH = 1000


class logged_to:  # noqa: N801
    """Pass what VapourSynth, the filter and joining log to the reporter, each text once."""

    def __init__(self, reporter: Any) -> None:
        self._reporter = reporter
        self._said: set[str] = set()

    def __enter__(self) -> None:
        import vapoursynth as vs

        logging.getLogger("vapoursynth").setLevel(logging.ERROR)
        self._core = vs.core
        self._handle = vs.core.add_log_handler(self._from_core)
        self._handler = logging.Handler(logging.WARNING)
        self._handler.emit = lambda record: self._say(record.getMessage())  # type: ignore[method-assign]
        logging.getLogger("vsrealbasicvsr").addHandler(self._handler)

    def __exit__(self, *exception: object) -> None:
        self._core.remove_log_handler(self._handle)
        logging.getLogger("vsrealbasicvsr").removeHandler(self._handler)

    def _from_core(self, message_type: Any, text: str) -> None:
        if int(message_type) >= 2 and "no return value" not in text:  # a warning, and not of BestSource's extra values
            self._say(text)

    def _say(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self._reporter.note(printable(text, MAX_NOTE_LENGTH))
