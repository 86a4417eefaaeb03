"""How a file is refused: one line that says which file, what was found in it, and what to do."""

import pickle
from pathlib import Path

from vsrealbasicvsr.errors import UserError, printable, shown_path

MAX_FOUND_LENGTH = 500


class WeightsError(UserError):
    """A file is not usable as weights; the text says which file, what was found in it, and what to do."""


def refused(path: Path, found: str, advice: str) -> WeightsError:
    """An error of one line that can be printed, whatever stands in the path and in the file."""
    return WeightsError(f"{shown_path(path)} {printable(found, MAX_FOUND_LENGTH)}. {advice}.")


def reason_of(error: BaseException) -> str:
    """What went wrong in a library, without the advice that follows.

    torch's advice for a pickle that it did not read is to read it in the way that runs its code: never passed on.
    """
    text = str(error)
    if isinstance(error, pickle.UnpicklingError) and "weights_only" in text:
        _, _, text = text.partition("WeightsUnpickler error:")
        text = next((line for line in text.splitlines() if line.strip()), "its pickle cannot be read")
        if "weights_only" in text or "safe_globals" in text:
            text = "its pickle cannot be read"
    return printable(text or type(error).__name__, 160).rstrip(" .:")
