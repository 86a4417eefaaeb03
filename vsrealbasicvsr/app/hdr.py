"""Pictures of high dynamic range in the gamma that the network was trained on, and back."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import vapoursynth as vs

TRANSFER_PQ, TRANSFER_HLG, PRIMARIES_BT2020, UNSPECIFIED = 16, 18, 9, 2
"""Numbers of ITU-T H.273."""
TRANSFER_BT1886 = 1
"""BT.709 in H.273; core.resize takes it for the display's power of 2.4, BT.1886 without black lift."""

PEAK_NITS = 1000.0
"""The luminance that is 1.0 for the network: the peak of most masters, and HLG's nominal one (BT.2100, note 5e).

A network that was trained on SDR photographs expects black at 0 and white at 1, with the light that a display shows to
the power of 1/2.4 between them (BT.1886). PQ (BT.2100, table 4) divides 0 to 10,000 cd/m2 by what an eye can tell
apart: SDR's white of 100 cd/m2 is 0.51 and BT.2408's reference white of 203 cd/m2 is 0.58, so that a picture has little
more than half of the contrast that the network expects. Its light is encoded anew, as (L / 1000 cd/m2)^(1/2.4).
Brighter pixels are not clipped: PQ's limit of 10,000 cd/m2 becomes 2.61, and the filter passes values up to 3.

Measured (scripts/measure_hdr.py): PQ 27.46 dB direct, 28.11 dB so, and the largest errors of highlights 917
and 703 cd/m2; HLG 27.50 and 27.85 dB, 918 and 475 cd/m2. With 1.0 at 4,000 or 10,000 cd/m2 highlights are worse.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Light:
    """How the light of a clip is encoded: numbers of ITU-T H.273, and 0 for limited and 1 for full range."""

    matrix: int
    primaries: int
    transfer: int
    color_range: int
    chroma_location: int = 0
    """Of subsampled frames, as VapourSynth numbers it: 0 left, 1 centre, 2 top left."""


def light_of(source_props: Mapping[str, Any], *, matrix: int, color_range: int) -> Light | None:
    """Return how a clip of PQ or HLG encodes its light; None for all other clips.

    Args:
        source_props: Frame properties of its first frame.
        matrix: Of its frames, also where they name none.
        color_range: The same.
    """
    transfer = int(source_props.get("_Transfer", 2))
    if transfer not in (TRANSFER_PQ, TRANSFER_HLG):
        return None
    primaries = int(source_props.get("_Primaries", UNSPECIFIED))
    known = PRIMARIES_BT2020 if primaries in (0, UNSPECIFIED, 3) else primaries
    return Light(
        matrix=matrix,
        primaries=known,
        transfer=transfer,
        color_range=color_range,
        chroma_location=int(source_props.get("_ChromaLocation", 0)),
    )


def to_network(clip: vs.VideoNode, light: Light, *, peak_nits: float = PEAK_NITS) -> vs.VideoNode:
    """Return the clip as RGBS whose samples are (L / peak_nits)^(1/2.4), without a limit.

    The primaries stay as they are, so that no colour leaves the gamut. Frames are treated as progressive, as by
    rbvsr.Upscale.
    """
    clip = clip.std.SetFrameProps(_FieldBased=0)  # core.resize converts the two fields apart, and not of every height
    given = {} if clip.format is not None and clip.format.color_family == vs.RGB else {"matrix_in": light.matrix}
    named = {"transfer_in": light.transfer, "primaries_in": light.primaries}
    signal = clip.resize.Bicubic(format=vs.RGBS, transfer=light.transfer, primaries=light.primaries, **named, **given)
    return signal.std.Limiter(0, 1).resize.Bicubic(  # PQ and HLG end there; coding and chroma go beyond
        transfer=TRANSFER_BT1886,
        primaries=light.primaries,
        nominal_luminance=peak_nits,
        approximate_gamma=False,  # which is a table that ends at 1
        **named,
    )


def from_network(
    clip: vs.VideoNode, wanted: vs.VideoFormat, light: Light, *, peak_nits: float = PEAK_NITS
) -> vs.VideoNode:
    """Return the RGBS clip of `to_network` in the format `wanted`, with its light encoded as it was."""
    given = {} if wanted.color_family == vs.RGB else {"matrix": light.matrix}
    if wanted.subsampling_w or wanted.subsampling_h:
        given["chromaloc"] = light.chroma_location
    return clip.resize.Bicubic(
        format=wanted.id,
        transfer_in=TRANSFER_BT1886,
        transfer=light.transfer,
        primaries_in=light.primaries,
        primaries=light.primaries,
        range=light.color_range,
        nominal_luminance=peak_nits,
        approximate_gamma=False,
        **given,
    )


def hdr_words(props: Mapping[str, Any]) -> dict[str, str]:
    """Return mastering display and content light in x265's words, where the frames carry them."""
    words = {}
    names = ("MasteringDisplayPrimariesX", "MasteringDisplayPrimariesY")
    if all(name in props for name in names):
        x, y = (props[name] for name in names)
        points = [*zip(x, y, strict=True)]  # red, green, blue
        white = (props["MasteringDisplayWhitePointX"], props["MasteringDisplayWhitePointY"])
        light = (props["MasteringDisplayMaxLuminance"], props["MasteringDisplayMinLuminance"])
        order = (("G", points[1]), ("B", points[2]), ("R", points[0]), ("WP", white))
        text = "".join(f"{name}({round(px * 50000)},{round(py * 50000)})" for name, (px, py) in order)
        words["master-display"] = f"{text}L({round(light[0] * 10000)},{round(light[1] * 10000)})"
    if "ContentLightLevelMax" in props:
        words["max-cll"] = f"{props['ContentLightLevelMax']},{props.get('ContentLightLevelAverage', 0)}"
    return words
