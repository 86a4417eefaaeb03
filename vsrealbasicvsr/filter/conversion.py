"""From any constant format to RGBS and back, by what each frame says of its own colours.

`_Matrix`, `_Range`, `_ChromaLocation` and the other properties that a conversion rewrites travel with the RGBS frame
under names of our own and are put back at the end, so that a frame leaves with exactly the properties it came with.
"""

from collections.abc import Mapping

import vapoursynth as vs

REWRITTEN_PROPS = ("_Matrix", "_Transfer", "_Primaries", "_Range", "_ChromaLocation", "_FieldBased")
"""What core.resize reads and writes."""

SD_MAX_HEIGHT = 576
"""A clip whose frames do not name their matrix is taken for BT.601 up to this height, for BT.709 above it."""

_STASH = "_rbvsr"
_RGB_MATRIX, _UNSPECIFIED = int(vs.MatrixCoefficients.MATRIX_RGB), int(vs.MatrixCoefficients.MATRIX_UNSPECIFIED)

_Colours = tuple[int | None, ...]
"""The values of REWRITTEN_PROPS of one frame; None: absent."""

_UNNAMED: _Colours = (None,) * len(REWRITTEN_PROPS)

INTERLACED = (
    "rbvsr.Upscale: frame {n} is marked as interlaced (_FieldBased) and is upscaled as a progressive one. "
    "Deinterlace the clip first."
)


def to_rgbs(clip: vs.VideoNode) -> vs.VideoNode:
    """The clip as RGBS; each frame carries its original colour properties for `from_rgbs`.

    Matrix, range and chroma location are those of the frame; where it does not name them, BT.601 up to a height of
    576 and BT.709 above, limited range (full for RGB), chroma on the left. Frames are taken as progressive.
    """
    # A first reader beside FrameEval itself from the beginning: the core caches only what has several readers.
    converted = {_UNNAMED: _to_rgbs(clip, _UNNAMED)}

    def choose(n: int, f: vs.VideoFrame) -> vs.VideoNode:
        colours = _colours_of(f.props)
        if colours not in converted:
            if colours[REWRITTEN_PROPS.index("_FieldBased")]:
                vs.core.log_message(vs.MESSAGE_TYPE_WARNING, INTERLACED.format(n=n))
            converted[colours] = _to_rgbs(clip, colours)
        return converted[colours]

    form = vs.core.std.BlankClip(clip, format=vs.RGBS, keep=True)
    return vs.core.std.FrameEval(form, choose, prop_src=[clip], clip_src=[clip])


def from_rgbs(clip: vs.VideoNode, form: vs.VideoNode) -> vs.VideoNode:
    """The RGBS clip in the format of `form`, with the colours and properties that `to_rgbs` found.

    form: any clip of the wanted format; its frames are not read.
    """
    wanted = form.format
    converted = {_UNNAMED: _from_rgbs(clip, wanted, _UNNAMED)}

    def choose(n: int, f: vs.VideoFrame) -> vs.VideoNode:
        colours = tuple(_number(f.props.get(_STASH + name)) for name in REWRITTEN_PROPS)
        if colours not in converted:
            converted[colours] = _from_rgbs(clip, wanted, colours)
        return converted[colours]

    blank = vs.core.std.BlankClip(clip, format=wanted.id, keep=True)
    return vs.core.std.FrameEval(blank, choose, prop_src=[clip], clip_src=[clip])


def _to_rgbs(clip: vs.VideoNode, colours: _Colours) -> vs.VideoNode:
    known = dict(zip(REWRITTEN_PROPS, colours, strict=True))
    progressive = clip.std.SetFrameProps(_FieldBased=0) if known["_FieldBased"] else clip
    arguments = {} if clip.format.color_family == vs.RGB else {"matrix_in": _matrix(clip.height, known["_Matrix"])}
    rgb = progressive.resize.Bicubic(format=vs.RGBS, **arguments)
    return rgb.std.SetFrameProps(**{_STASH + name: value for name, value in known.items() if value is not None})


def _from_rgbs(clip: vs.VideoNode, wanted: vs.VideoFormat, colours: _Colours) -> vs.VideoNode:
    known = dict(zip(REWRITTEN_PROPS, colours, strict=True))
    arguments = {}
    if wanted.color_family != vs.RGB:
        arguments["matrix"] = _matrix(clip.height // 4, known["_Matrix"])
    default_range = vs.RANGE_FULL if wanted.color_family == vs.RGB else vs.RANGE_LIMITED
    arguments["range"] = int(default_range) if known["_Range"] is None else known["_Range"]
    if known["_ChromaLocation"] is not None and wanted.color_family == vs.YUV:
        arguments["chromaloc"] = known["_ChromaLocation"]
    converted = clip.resize.Bicubic(format=wanted.id, **arguments)
    present = {name: value for name, value in known.items() if value is not None}
    unwanted = [name for name, value in known.items() if value is None] + [_STASH + name for name in present]
    if unwanted:
        converted = converted.std.RemoveFrameProps(unwanted)
    return converted.std.SetFrameProps(**present) if present else converted


def _matrix(height: int, matrix: int | None) -> int:
    """The matrix to convert with: the frame's own, or by the height where it names none (or RGB's, for YUV)."""
    if matrix is not None and matrix not in (_UNSPECIFIED, _RGB_MATRIX):
        return matrix
    standard = vs.MATRIX_ST170_M if height <= SD_MAX_HEIGHT else vs.MATRIX_BT709
    return int(standard)


def _colours_of(props: Mapping[str, object]) -> _Colours:
    return tuple(_number(props.get(name)) for name in REWRITTEN_PROPS)


def _number(value: object) -> int | None:
    return int(value) if isinstance(value, int) else None
