"""Options of ffmpeg that say what the frames of a y4m stream are: colours, aspect, HDR metadata."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from vsrealbasicvsr.app.hdr import hdr_words

HDR_PARAMETERS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "libx264": ("-x264-params", {"master-display": "mastering-display", "max-cll": "cll"}),
    "libx265": ("-x265-params", {}),
}
"""Encoders that take HDR metadata: the option for it, and the parameters whose names differ from x265's."""
_UNSPECIFIED = 2
_CHROMA_LOCATIONS = ("left", "center", "topleft", "top", "bottomleft", "bottom")


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """A script's first output.

    Attributes:
        width: In pixels.
        height: In pixels.
        num_frames: Its length.
        rate: Frames per second; 0 if it is variable.
        props: Properties of the first frame that are numbers.
    """

    width: int
    height: int
    num_frames: int
    rate: Fraction
    props: Mapping[str, Any]


def frame_filter(props: Mapping[str, Any]) -> str:
    """Return an ffmpeg filter that sets range, matrix, primaries, transfer and aspect, and changes no sample.

    What the frame does not name is not set, except that an unnamed range is limited, as ffmpeg assumes too. All frames
    are marked as progressive: fields do not survive upscaling.
    """
    tags = {"field_mode": "prog", "range": "pc" if props.get("_Range") == 1 else "tv"}
    for name, prop in (("colorspace", "_Matrix"), ("color_primaries", "_Primaries"), ("color_trc", "_Transfer")):
        value = props.get(prop)
        if isinstance(value, int) and value not in (0, _UNSPECIFIED):
            tags[name] = str(value)
    filters = "setparams=" + ":".join(f"{name}={value}" for name, value in tags.items())
    num, den = props.get("_SARNum"), props.get("_SARDen")
    if isinstance(num, int) and isinstance(den, int) and num > 0 and den > 0:
        filters += f",setsar={num}/{den}"
    return filters


def frame_options(props: Mapping[str, Any], encoder_options: Sequence[str]) -> list[str]:
    """Return the options of ffmpeg's output: the encoder's, and those that describe the frames."""
    options = ["-vf", frame_filter(props)]
    location = props.get("_ChromaLocation")
    if isinstance(location, int) and 0 <= location < len(_CHROMA_LOCATIONS):
        options += ["-chroma_sample_location", _CHROMA_LOCATIONS[location]]
    return options + with_hdr_metadata(encoder_options, hdr_words(props))


def with_hdr_metadata(encoder_options: Sequence[str], words: Mapping[str, str]) -> list[str]:
    """Add mastering display and light level to the encoder's own parameters, unless they are there.

    Args:
        encoder_options: Options of ffmpeg.
        words: Parameters by x265's names, see `hdr_words`.
    """
    options = list(encoder_options)
    for encoder, (option, names) in HDR_PARAMETERS.items():
        if encoder not in options or not words:
            continue
        if option not in options[:-1]:
            options += [option, ""]
        at = options.index(option) + 1
        found = {names.get(name, name): text for name, text in words.items()}
        more = [f"{name}={text}" for name, text in found.items() if f"{name}=" not in options[at]]
        options[at] = ":".join([*filter(None, [options[at]]), *more])
    return options
