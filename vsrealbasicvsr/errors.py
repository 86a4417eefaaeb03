"""Errors that the user can mend, and text that can be shown to him. Knows nothing of what they are about."""

import re
from pathlib import Path

MAX_PATH_LENGTH = 300
"""Characters of a path that a message shows."""


class UserError(ValueError):
    """What was given cannot be used. The text is one line: what was found, and what to do.

    Programs show it as it is. Every other exception is a bug, and keeps its traceback.
    """


def printable(text: str, limit: int) -> str:
    """The text in one line that a terminal shows as it is, with what is beyond `limit` left out in the middle.

    Line breaks become spaces, other control characters question marks. Its end stays: that is where the way out stands.
    """
    text = re.sub(r"\s*[\t-\r\x1c-\x1f\x85\u2028\u2029]\s*", " ", text[: 20 * limit] + text[20 * limit :][-limit:])
    text = "".join(character if character.isprintable() else "?" for character in text.strip())
    if len(text) <= limit:
        return text
    tail = limit // 2
    return f"{text[: limit - tail - 3]}...{text[-tail:]}"


def shown_path(path: str | Path) -> str:
    """A path in a message: as it is where that can be read, else between quotation marks, as Python writes it."""
    text = str(path)
    if not text.isprintable() or text != text.strip() or "  " in text or not text:
        text = repr(text)
    return printable(text, MAX_PATH_LENGTH)
