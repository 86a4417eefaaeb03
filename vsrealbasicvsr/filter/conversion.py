"""From any constant format to RGBS and back, by what each frame says of its own colours.

`_Matrix`, `_Range`, `_ChromaLocation` and the other properties that a conversion rewrites travel with the RGBS frame
under names of our own and are put back at the end, so that a frame leaves with the properties it came with. Added are
only the colours that had to be assumed, for what comes next might assume others: the rule for the matrix asks for the
height, which is four times as large by then.
"""

from collections.abc import Container, Mapping
from typing import Any

import vapoursynth as vs

from vsrealbasicvsr.engine import MATRICES, PlaneFormat
from vsrealbasicvsr.model import SCALE

REWRITTEN_PROPS = ("_Matrix", "_Transfer", "_Primaries", "_Range", "_ChromaLocation", "_FieldBased")
"""What core.resize reads and writes."""

SD_MAX_HEIGHT = 576
"""A clip whose frames do not name their matrix is taken for BT.601 up to this height, for BT.709 above it."""

ALPHA = "_Alpha"
"""The property that holds an alpha plane, a frame: std.ClipToProp, BestSource and `set_output(alpha=)` use it."""

_STASH = "_rbvsr"
_RGB_MATRIX, _UNSPECIFIED = 0, 2
_PLAIN_MATRICES = frozenset({1, 4, 5, 6, 7, 8, 9})
_NEEDS_TRANSFER = frozenset({10, 12, 13, 14})
"""Matrices (ITU-T H.273) that core.resize can use as they are, and those that ask for transfer and primaries too."""
_VALID: Mapping[str, Container[int | None]] = {"_Range": range(2), "_ChromaLocation": range(6)}

_MEANING = {
    ("_Matrix", int(vs.MATRIX_ST170_M)): f"BT.601, by its height of {SD_MAX_HEIGHT} at most",
    ("_Matrix", int(vs.MATRIX_BT709)): f"BT.709, by its height above {SD_MAX_HEIGHT}",
    ("_Range", int(vs.RANGE_LIMITED)): "limited",
    ("_ChromaLocation", int(vs.CHROMA_LEFT)): "left",
}
"""What can be assumed, in words."""

_Colours = tuple[int | None, ...]
"""The values of REWRITTEN_PROPS of one frame; None: absent."""

_UNNAMED: _Colours = (None,) * len(REWRITTEN_PROPS)

INTERLACED = (
    "rbvsr.Upscale: frame {n} is marked as interlaced (_FieldBased) and is upscaled as a progressive one. "
    "Deinterlace the clip first."
)
ASSUMED = (
    "rbvsr.Upscale: frame {n} does not name all of its colours. Assumed and written to the upscaled frames: {colours}. "
    "If that is wrong, name them before: std.SetFrameProps."
)


def to_rgbs(clip: vs.VideoNode) -> vs.VideoNode:
    """The clip as RGBS; each frame carries its original colour properties for `from_rgbs`.

    Matrix, range and chroma location are those of the frame; where it does not name them, BT.601 up to a height of
    576 and BT.709 above, limited range (full for RGB), chroma on the left. Frames are taken as progressive.
    """
    # A first reader beside FrameEval itself from the beginning: the core caches only what has several readers.
    converted = {_UNNAMED: _to_rgbs(clip, _UNNAMED)}
    is_told = False

    def choose(n: int, f: vs.VideoFrame) -> vs.VideoNode:
        nonlocal is_told
        colours = _colours_of(f.props)
        if not is_told and (assumed := _assumed(clip.format, clip.height, colours)):
            is_told = True
            told = ", ".join(f"{name}={value} ({_MEANING[name, value]})" for name, value in assumed.items())
            vs.core.log_message(vs.MESSAGE_TYPE_INFORMATION, ASSUMED.format(n=n, colours=told))
        if colours not in converted:
            if colours[REWRITTEN_PROPS.index("_FieldBased")]:
                vs.core.log_message(vs.MESSAGE_TYPE_WARNING, INTERLACED.format(n=n))
            converted[colours] = _to_rgbs(clip, colours)
        return converted[colours]

    form = vs.core.std.BlankClip(clip, format=vs.RGBS, keep=True)
    return _uncached(vs.core.std.FrameEval(form, choose, prop_src=[clip], clip_src=[clip]))


def from_rgbs(
    clip: vs.VideoNode, props: vs.VideoNode, form: vs.VideoNode, converted: vs.VideoNode | None = None
) -> vs.VideoNode:
    """The RGBS clip in the format of `form`, with the colours and properties that `to_rgbs` found or had to assume.

    A frame in the property `_Alpha` is enlarged to the clip's size, by Lanczos interpolation.

    props: a clip whose frames carry the properties of those of `clip`; cheap, for each is read before its frame of
    `clip` is, once. form: any clip of the wanted format; its frames are not read. converted: the same clip in the
    wanted format already, for those frames that have a `plane_format`.
    """
    wanted = form.format

    def make(colours: _Colours) -> vs.VideoNode:
        if converted is not None and _plane_format(wanted, clip.height, colours):
            return _with_original_props(converted, wanted, colours)
        return _from_rgbs(clip, wanted, colours)

    made = {_UNNAMED: make(_UNNAMED)}
    alphas = _Alphas(clip)

    def choose(n: int, f: vs.VideoFrame) -> vs.VideoNode:
        colours = _stashed_colours(f.props)
        if colours not in made:
            made[colours] = make(colours)
        return alphas.attach(made[colours], n, f.props.get(ALPHA))

    blank = vs.core.std.BlankClip(clip, format=wanted.id, keep=True)
    return vs.core.std.FrameEval(
        blank, choose, prop_src=[props], clip_src=[clip] if converted is None else [clip, converted]
    )


def plane_format(wanted: vs.VideoFormat, height: int, props: Mapping[str, object]) -> PlaneFormat | None:
    """The format, as torch can write it, of an upscaled frame of this height whose source came with these properties.

    The same choices as for core.resize. None: its matrix needs a transfer function, which is core.resize's affair.
    """
    return _plane_format(wanted, height, _stashed_colours(props))


class _Alphas:
    """The frames of the property `_Alpha` at the size of a clip."""

    def __init__(self, clip: vs.VideoNode) -> None:
        self._clip = clip
        self._frames: dict[int, vs.VideoFrame] = {}
        self._nodes: dict[Any, vs.VideoNode] = {}

    def attach(self, clip: vs.VideoNode, n: int, alpha: object) -> vs.VideoNode:
        """A clip whose frame n is that of `clip` with `alpha` enlarged. Ask it for frame n, once.

        What is no plane that core.resize can enlarge stays as it is.
        """
        if not isinstance(alpha, vs.VideoFrame) or alpha.format.color_family != vs.GRAY:
            return clip
        if alpha.format.sample_type == vs.INTEGER and alpha.format.bits_per_sample > 16:
            return clip
        self._frames[n] = alpha
        kind = alpha.format.id, alpha.width, alpha.height, _number(alpha.props.get("_Range"))
        if kind not in self._nodes:
            self._nodes[kind] = self._enlarged(*kind)
        if (kind, clip) not in self._nodes:
            self._nodes[kind, clip] = _uncached(clip.std.ClipToProp(self._nodes[kind], prop=ALPHA))
        return self._nodes[kind, clip]

    def _enlarged(self, format_id: int, width: int, height: int, range_: int | None) -> vs.VideoNode:
        """The clip of the alpha planes of one kind. Opacity has no matrix, and no fields either."""
        blank = vs.core.std.BlankClip(self._clip, width=width, height=height, format=format_id, keep=True)
        alpha = _uncached(blank.std.ModifyFrame([blank], lambda n, f: self._frames.pop(n)))
        for name in REWRITTEN_PROPS:  # one by one: R81 reads freed memory when it is given several names
            alpha = _uncached(alpha.std.RemoveFrameProps(name))
        large = _uncached(alpha.resize.Lanczos(self._clip.width, self._clip.height))
        if large.format.sample_type == vs.FLOAT:  # integers end where opacity does
            large = _uncached(large.std.Limiter(0, 1))
        return large if range_ is None else _uncached(large.std.SetFrameProps(_Range=range_))


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
    arguments = {"range": _range(wanted, known)}
    if wanted.color_family != vs.RGB:
        arguments["matrix"] = _matrix(clip.height // SCALE, known)
    if wanted.color_family == vs.YUV and (location := _chroma_location(known)) is not None:
        arguments["chromaloc"] = location
    return _with_original_props(_uncached(clip.resize.Bicubic(format=wanted.id, **arguments)), wanted, colours)


def _plane_format(wanted: vs.VideoFormat, height: int, colours: _Colours) -> PlaneFormat | None:
    known = dict(zip(REWRITTEN_PROPS, colours, strict=True))
    matrix = _matrix(height // SCALE, known)
    is_rgb = wanted.color_family == vs.RGB
    if matrix not in MATRICES and not is_rgb:
        return None
    return PlaneFormat(
        family="rgb" if is_rgb else "yuv" if wanted.color_family == vs.YUV else "grey",
        bits=wanted.bits_per_sample,
        is_float=wanted.sample_type == vs.FLOAT,
        is_full_range=_range(wanted, known) == vs.RANGE_FULL,
        subsampling=(wanted.subsampling_w, wanted.subsampling_h),
        matrix=matrix if matrix in MATRICES else 1,  # of RGB, which needs none
        chroma_location=_chroma_location(known) or 0,  # on the left, as core.resize takes it
    )


def _with_original_props(clip: vs.VideoNode, wanted: vs.VideoFormat, colours: _Colours) -> vs.VideoNode:
    """The clip with the properties that its frames came with, those that travelled under names of our own, and with
    those that were assumed.
    """
    known = dict(zip(REWRITTEN_PROPS, colours, strict=True))
    travelled = {name: value for name, value in known.items() if value is not None}
    present = travelled | _assumed(wanted, clip.height // SCALE, colours)
    unwanted = [name for name in known if name not in present] + [_STASH + name for name in travelled]
    if unwanted:
        clip = _uncached(clip.std.RemoveFrameProps(unwanted))
    return _uncached(clip.std.SetFrameProps(**present)) if present else clip


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


def _range(wanted: vs.VideoFormat, known: Mapping[str, int | None]) -> int:
    """The frame's own range where it names one, else limited, full for RGB."""
    named = known["_Range"]
    if named is not None and named in _VALID["_Range"]:
        return named
    return int(vs.RANGE_FULL if wanted.color_family == vs.RGB else vs.RANGE_LIMITED)


def _chroma_location(known: Mapping[str, int | None]) -> int | None:
    location = known["_ChromaLocation"]
    return location if location in _VALID["_ChromaLocation"] else None


def _assumed(form: vs.VideoFormat, height: int, colours: _Colours) -> dict[str, int]:
    """What a frame leaves open of its colours, and what it is taken for. Nothing of RGB: nobody takes it for else."""
    known = dict(zip(REWRITTEN_PROPS, colours, strict=True))
    if form.color_family == vs.RGB:
        return {}
    assumed = {}
    if known["_Matrix"] in (None, _UNSPECIFIED):
        assumed["_Matrix"] = _matrix(height, known)
    if known["_Range"] is None:
        assumed["_Range"] = _range(form, known)
    if known["_ChromaLocation"] is None and (form.subsampling_w or form.subsampling_h):
        assumed["_ChromaLocation"] = int(vs.CHROMA_LEFT)
    return assumed


def _stashed_colours(props: Mapping[str, object]) -> _Colours:
    return tuple(_number(props.get(_STASH + name)) for name in REWRITTEN_PROPS)


def _colours_of(props: Mapping[str, object]) -> _Colours:
    return tuple(_number(props.get(name)) for name in REWRITTEN_PROPS)


def _number(value: object) -> int | None:
    return int(value) if isinstance(value, int) else None
