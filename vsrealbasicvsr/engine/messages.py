"""Messages for the user, from any thread: each is given once, and collected by the caller."""

import threading

MAX_NAMED_FRAMES = 20
"""Maximum number of frames with invalid samples that are named."""


class Messages:
    """Warnings, and notes about disabled optimizations."""

    def __init__(self) -> None:
        self._warnings: list[str] = []
        self._notes: list[str] = []
        self._noted: set[str] = set()
        self._limited: set[int] = set()
        self._lock = threading.Lock()

    def warn(self, text: str) -> None:
        """Add a warning."""
        with self._lock:
            self._warnings.append(text)

    def warn_of_samples(self, index: int, text: str) -> None:
        """Add a warning about the samples of a source frame, once for each frame, and for the first frames only."""
        with self._lock:
            if index in self._limited or len(self._limited) >= MAX_NAMED_FRAMES:
                return
            self._limited.add(index)
            more = "; further frames are not named" if len(self._limited) == MAX_NAMED_FRAMES else ""
            self._warnings.append(f"source frame {index} has {text}{more}")

    def note(self, text: str) -> None:
        """Add a note, unless there was the same before."""
        with self._lock:
            if text not in self._noted:
                self._noted.add(text)
                self._notes.append(text)

    def take_warnings(self) -> list[str]:
        """Return and clear the pending warnings."""
        if not self._warnings:  # the usual case, once for each frame
            return []
        with self._lock:
            warnings, self._warnings = self._warnings, []
        return warnings

    def take_notes(self) -> list[str]:
        """Return and clear the pending notes."""
        if not self._notes:
            return []
        with self._lock:
            notes, self._notes = self._notes, []
        return notes
