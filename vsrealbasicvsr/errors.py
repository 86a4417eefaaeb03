"""Errors that the user can mend, and text that is safe to show."""

import io
import re
import sys
from pathlib import Path

MAX_PATH_LENGTH = 300
"""Maximum number of characters of a path in a message; longer ones are shortened in the middle."""


class UserError(ValueError):
    """Unusable input. The text is one line for the user: what is wrong, what was given, what to do.

    Programs print it without a traceback. Every other exception is a bug and keeps its traceback.
    """


def printable(text: str, limit: int) -> str:
    """Return text as one line that is safe to print on a terminal.

    Line breaks become spaces, other control characters question marks. The end is kept when text is shortened, because
    it says what to do.

    Args:
        text: Any text, of any length.
        limit: Maximum length of the result; what is longer is cut in the middle.
    """
    text = re.sub(r"\s*[\t-\r\x1c-\x1f\x85\u2028\u2029]\s*", " ", text[: 20 * limit] + text[20 * limit :][-limit:])
    text = "".join(character if character.isprintable() else "?" for character in text.strip())
    if len(text) <= limit:
        return text
    tail = limit // 2
    return f"{text[: limit - tail - 3]}...{text[-tail:]}"


def print_any_text() -> None:
    """Let this program print any text: what the encoding of its streams lacks, as a file's name may, becomes escapes.

    Windows' pipes take some 200 characters (cp1252), and names hold any.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def shown_path(path: str | Path) -> str:
    """Return a path for a message: as it is if it is printable, else quoted as by repr()."""
    text = str(path)
    if not text.isprintable() or text != text.strip() or "  " in text or not text:
        text = repr(text)
    return printable(text, MAX_PATH_LENGTH)
