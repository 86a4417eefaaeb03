"""The error of the programs that run vspipe and ffmpeg."""

from vsrealbasicvsr.errors import UserError


class EncodeError(UserError):
    """Encoding failed; the text says what is wrong and what to do."""
