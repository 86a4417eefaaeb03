"""From any constant format to RGBS and back, by what each frame says of its own colours.

`_Matrix`, `_Range`, `_ChromaLocation` and the other properties that a conversion rewrites travel with the RGBS frame
under names of our own and are put back at the end, so that a frame leaves with exactly the properties it came with.
"""

from collections.abc import Container, Mapping

import vapoursynth as vs

from vsrealbasicvsr.model import SCALE

REWRITTEN_PROPS = ("_Matrix", "_Transfer", "_Primaries", "_Range", "_ChromaLocation", "_FieldBased")
"""What core.resize reads and writes."""

SD_MAX_HEIGHT = 576
"""A clip whose frames do not name their matrix is taken for BT.601 up to this height, for BT.709 above it."""

_STASH = "_rbvsr"
_RGB_MATRIX, _UNSPECIFIED = 0, 2
_PLAIN_MATRICES = frozenset({1, 4, 5, 6, 7, 8, 9})
_NEEDS_TRANSFER = frozenset({10, 12, 13, 14})
"""Matrices (ITU-T H.273) that core.resize can use as they are, and those that ask for transfer and primaries too."""
_VALID: Mapping[str, Container[int | None]] = {"_Range": range(2), "_ChromaLocation": range(6)}

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
    return _uncached(vs.core.std.FrameEval(form, choose, prop_src=[clip], clip_src=[clip]))


def from_rgbs(clip: vs.VideoNode, props: vs.VideoNode, form: vs.VideoNode) -> vs.VideoNode:
    """The RGBS clip in the format of `form`, with the colours and properties that `to_rgbs` found.

    props: a clip whose frames carry the properties of those of `clip`; cheap, for each is read before its frame of
    `clip` is, once. form: any clip of the wanted format; its frames are not read.
    """
    wanted = form.format
    converted = {_UNNAMED: _from_rgbs(clip, wanted, _UNNAMED)}

    def choose(n: int, f: vs.VideoFrame) -> vs.VideoNode:
        colours = tuple(_number(f.props.get(_STASH + name)) for name in REWRITTEN_PROPS)
        if colours not in converted:
            converted[colours] = _from_rgbs(clip, wanted, colours)
        return converted[colours]

    blank = vs.core.std.BlankClip(clip, format=wanted.id, keep=True)
    return vs.core.std.FrameEval(blank, choose, prop_src=[props], clip_src=[clip])


def _to_rgbs(clip: vs.VideoNode, colours: _Colours) -> vs.VideoNode:
    known = dict(zip(REWRITTEN_PROPS, colours, strict=True))
    matrix = _RGB_MATRIX if clip.format.color_family == vs.RGB else _matrix(clip.height, known)
    # Core.resize refuses a frame for any property that it cannot use, needed or not: those are left out on the way.
    useless = [] if matrix in _NEEDS_TRANSFER else ["_Transfer", "_Primaries"]
    useless += [name for name, valid in _VALID.items() if known[name] is not None and known[name] not in valid]
    if useless:
        clip = clip.std.RemoveFrameProps(useless)
    rgb = _uncached(clip.std.SetFrameProps(_Matrix=matrix, _FieldBased=0).resize.Bicubic(format=vs.RGBS))
    return _uncached(
        rgb.std.SetFrameProps(**{_STASH + name: value for name, value in known.items() if value is not None})
    )


def _from_rgbs(clip: vs.VideoNode, wanted: vs.VideoFormat, colours: _Colours) -> vs.VideoNode:
    known = dict(zip(REWRITTEN_PROPS, colours, strict=True))
    is_rgb = wanted.color_family == vs.RGB
    arguments: dict[str, int | None] = {} if is_rgb else {"matrix": _matrix(clip.height // SCALE, known)}
    default_range = int(vs.RANGE_FULL if is_rgb else vs.RANGE_LIMITED)
    arguments["range"] = known["_Range"] if known["_Range"] in _VALID["_Range"] else default_range
    if wanted.color_family == vs.YUV and known["_ChromaLocation"] in _VALID["_ChromaLocation"]:
        arguments["chromaloc"] = known["_ChromaLocation"]
    converted = _uncached(clip.resize.Bicubic(format=wanted.id, **arguments))
    present = {name: value for name, value in known.items() if value is not None}
    unwanted = [name for name, value in known.items() if value is None] + [_STASH + name for name in present]
    if unwanted:
        converted = _uncached(converted.std.RemoveFrameProps(unwanted))
    return _uncached(converted.std.SetFrameProps(**present)) if present else converted


def _uncached(clip: vs.VideoNode) -> vs.VideoNode:
    """The clip, of which the core keeps no frame: each is read once, and may be large."""
    clip.std.SetVideoCache(mode=0)
    return clip


def _matrix(height: int, known: Mapping[str, int | None]) -> int:
    """The matrix to convert with: the frame's own where it names one that can be used, else by the height."""
    matrix = known["_Matrix"]
    if matrix in _NEEDS_TRANSFER:
        usable = all(known[name] not in (None, _UNSPECIFIED) for name in ("_Transfer", "_Primaries"))
    else:
        usable = matrix in _PLAIN_MATRICES
    if matrix is not None and usable:
        return matrix
    return int(vs.MATRIX_ST170_M if height <= SD_MAX_HEIGHT else vs.MATRIX_BT709)


def _colours_of(props: Mapping[str, object]) -> _Colours:
    return tuple(_number(props.get(name)) for name in REWRITTEN_PROPS)


def _number(value: object) -> int | None:
    return int(value) if isinstance(value, int) else None
