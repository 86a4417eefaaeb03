"""Errors about files of weights: one line that says which file, what was found in it, and what to do."""

import pickle
from pathlib import Path

from vsrealbasicvsr.errors import UserError, printable, shown_path

MAX_FOUND_LENGTH = 500


class WeightsError(UserError):
    """A file cannot be used as weights. The text says which file, what was found in it, and what to do."""


def refused(path: Path, found: str, advice: str) -> WeightsError:
    """Return an error of one printable line, whatever characters the path and the file contain.

    Args:
        path: The file, which begins the line.
        found: What is wrong with it, as a predicate.
        advice: What to do, as an imperative.
    """
    return WeightsError(f"{shown_path(path)} {printable(found, MAX_FOUND_LENGTH)}. {advice}.")


def reason_of(error: BaseException) -> str:
    """Return the reason of a library's exception, without the library's advice.

    torch's advice for a pickle that it refuses is to load it in the way that runs its code; it is never passed on.
    """
    text = str(error)
    if isinstance(error, pickle.UnpicklingError) and "weights_only" in text:
        _, _, text = text.partition("WeightsUnpickler error:")
        text = next((line for line in text.splitlines() if line.strip()), "its pickle cannot be read")
        if "weights_only" in text or "safe_globals" in text:
            text = "its pickle cannot be read"
    return printable(text or type(error).__name__, 160).rstrip(" .:")
