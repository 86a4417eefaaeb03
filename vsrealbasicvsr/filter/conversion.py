"""Conversion from any constant format to RGBS and back, with the colours that each frame names in its properties.

`_Matrix`, `_Range`, `_ChromaLocation` and the other properties that core.resize rewrites are copied to names of our own
on the RGBS frame and restored at the end, so a frame leaves with the properties that it came with. Only the colours
that had to be assumed are added: the filters that follow might assume others, as the matrix is assumed by the height,
which is four times as large by then.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import vapoursynth as vs

from vsrealbasicvsr.engine import MATRICES, PlaneFormat
from vsrealbasicvsr.errors import printable

REWRITTEN_PROPS = (
    *("_Matrix", "_Transfer", "_Primaries", "_Range", "_ChromaLocation"),
    *("_FieldBased", "_Field", "_SARNum", "_SARDen"),
)
"""Properties that core.resize reads, and writes or drops. For most of them it fails on a frame with an unexpected
value."""

STASH = "_rbvsr"
"""Prefix of the names under which the original values are kept on the RGBS frames."""

SD_MAX_HEIGHT = 576
"""Maximum height, in rows, of a clip that is assumed to be BT.601 if its frames name no matrix; BT.709 above it."""

ALPHA = "_Alpha"
"""Property that holds an alpha plane, as a frame: std.ClipToProp, BestSource and `set_output(alpha=)` use it."""

MAX_KINDS = 64
"""Maximum number of combinations of colour properties whose conversions are cached; others are built for each frame."""

_RGB_MATRIX, _UNSPECIFIED = 0, 2
_PLAIN_MATRICES = frozenset({1, 4, 5, 6, 7, 8, 9})
_TRANSFERS = frozenset({1, 4, 5, 6, 7, *range(9, 19)})
_PRIMARIES = frozenset({1, 4, 5, 6, 7, 8, 9, 11, 12, 22})
_NEEDS_TRANSFER: Mapping[int, tuple[frozenset[int], frozenset[int]]] = {
    10: (frozenset({1, 6, 7, 14, 15}), _PRIMARIES | {_UNSPECIFIED, 10}),
    12: (_TRANSFERS | {_UNSPECIFIED, 8}, _PRIMARIES),
    13: (_TRANSFERS, _PRIMARIES),
    14: (frozenset({16, 18}), frozenset({9})),
}
"""Matrices (ITU-T H.273) that core.resize needs transfer and primaries for: the combinations that it accepts, found by
trying all. Those of _PLAIN_MATRICES need neither."""
_VALID = {"_Range": range(2), "_ChromaLocation": range(6), "_FieldBased": range(3)}

_MEANING = {
    ("_Matrix", int(vs.MATRIX_ST170_M)): f"BT.601, by its height of {SD_MAX_HEIGHT} at most",
    ("_Matrix", int(vs.MATRIX_BT709)): f"BT.709, by its height above {SD_MAX_HEIGHT}",
    ("_Range", int(vs.RANGE_LIMITED)): "limited",
    ("_ChromaLocation", int(vs.CHROMA_LEFT)): "left",
}
"""Assumed values in words, for the log."""

_Colours = tuple[object, ...]
"""Values of REWRITTEN_PROPS of one frame, of any type; None for an absent property."""

_UNNAMED: _Colours = (None,) * len(REWRITTEN_PROPS)

INTERLACED = (
    "rbvsr.Upscale: frame {n} is marked as interlaced (_FieldBased) and is upscaled as a progressive one. "
    "Deinterlace the clip first."
)
ASSUMED = (
    "rbvsr.Upscale: frame {n} does not name all of its colours. Assumed and written to the upscaled frames: {colours}. "
    "If that is wrong, name them before: std.SetFrameProps."
)


def cached(clip: vs.VideoNode, num_frames: int) -> vs.VideoNode:
    """Return the clip with a cache of its last `num_frames` frames.

    `to_rgbs` reads each frame twice, first for its properties. The first reads of a whole window may all come before
    the second ones, and the core's own caches begin with 20 frames: without this cache each frame of a longer window
    was decoded twice.
    """
    kept = clip.std.RemoveFrameProps("_rbvsr")  # a property that no frame has: the user's own node is left unchanged
    kept.std.SetVideoCache(mode=1, fixedsize=1, maxsize=num_frames, maxhistory=0)
    return kept


def to_rgbs(clip: vs.VideoNode) -> vs.VideoNode:
    """Convert a clip to RGBS; each frame carries its original colour properties for `from_rgbs`.

    Matrix, range and chroma location are those that the frame names. Otherwise: BT.601 up to a height of 576 and BT.709
    above, limited range (full for RGB), chroma on the left. Frames are treated as progressive. Assumptions and
    properties that cannot be used are logged, once each.
    """
    # A second reader beside FrameEval from the beginning: the core caches only nodes with several readers.
    converted = {_UNNAMED: _to_rgbs(clip, _UNNAMED)}
    is_told = False
    warned: set[str] = set()

    def make(colours: _Colours) -> vs.VideoNode:
        return _to_rgbs(clip, colours)

    def choose(n: int, f: vs.VideoFrame) -> vs.VideoNode:
        nonlocal is_told
        colours = _colours_of(f.props)
        if not is_told and (assumed := _assumed(clip.format, clip.height, colours)):
            is_told = True
            told = ", ".join(f"{name}={value} ({_MEANING[name, value]})" for name, value in assumed.items())
            vs.core.log_message(vs.MESSAGE_TYPE_INFORMATION, ASSUMED.format(n=n, colours=told))
        for name, warning in _warnings(n, clip, colours, f.props):
            if name not in warned:
                vs.core.log_message(vs.MESSAGE_TYPE_WARNING, warning)
            warned.add(name)
        return _kept(converted, colours, make)

    form = vs.core.std.BlankClip(clip, format=vs.RGBS, keep=True)
    return _uncached(vs.core.std.FrameEval(form, choose, prop_src=[clip], clip_src=[clip]))


def from_rgbs(
    clip: vs.VideoNode, props: vs.VideoNode, form: vs.VideoNode, converted: vs.VideoNode | None = None
) -> vs.VideoNode:
    """Convert an RGBS clip to the format of `form`, with the colours and properties that `to_rgbs` found or assumed.

    A frame in the property `_Alpha` is enlarged to the clip's size by Lanczos interpolation.

    Args:
        clip: The upscaled clip, RGBS.
        props: A clip whose frames carry the properties of those of `clip`. It must be cheap: each of its frames is read
            before the frame of `clip`, once.
        form: Any clip of the wanted format; its frames are not read.
        converted: The same clip in the wanted format already, for the frames that have a `plane_format`.
    """
    wanted = form.format

    def make(colours: _Colours) -> vs.VideoNode:
        if converted is not None and _plane_format(wanted, form.height, colours):
            return _with_original_props(converted, form, colours)
        return _from_rgbs(clip, form, colours)

    made = {_UNNAMED: make(_UNNAMED)}
    alphas = _Alphas(clip)

    def choose(n: int, f: vs.VideoFrame) -> vs.VideoNode:
        return alphas.attach(_kept(made, _stashed_colours(f.props), make), n, f.props.get(ALPHA))

    blank = vs.core.std.BlankClip(clip, format=wanted.id, keep=True)
    return vs.core.std.FrameEval(
        blank, choose, prop_src=[props], clip_src=[clip] if converted is None else [clip, converted]
    )


def plane_format(wanted: vs.VideoFormat, height: int, props: Mapping[str, object]) -> PlaneFormat | None:
    """Return the format, as the engine can write it, of an upscaled frame whose source has these properties.

    The choices are those of the conversion by core.resize.

    Args:
        wanted: Format of the clip.
        height: Height of the source frame, in rows.
        props: Properties of the source frame, as `to_rgbs` leaves them.

    Returns:
        None if the matrix needs a transfer function: only core.resize converts such frames.
    """
    return _plane_format(wanted, height, _stashed_colours(props))


def matrix_of(height: int, props: Mapping[str, object]) -> int:
    """Return the matrix that a YUV frame of this height and these properties is converted with."""
    return _matrix(height, dict(zip(REWRITTEN_PROPS, _colours_of(props), strict=True)))


class _Alphas:
    """Alpha planes (property `_Alpha`) enlarged to the size of a clip."""

    def __init__(self, clip: vs.VideoNode) -> None:
        self._clip = clip
        self._frames: dict[int, vs.VideoFrame] = {}
        self._nodes: dict[Any, vs.VideoNode] = {}

    def attach(self, clip: vs.VideoNode, n: int, alpha: object) -> vs.VideoNode:
        """Return a clip whose frame n is that of `clip` with `alpha` enlarged. Request frame n from it, once.

        A value that core.resize cannot enlarge is left unchanged.
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
        """Return the clip of the enlarged planes of one kind. Opacity has neither a matrix nor fields."""
        blank = vs.core.std.BlankClip(self._clip, width=width, height=height, format=format_id, keep=True)
        alpha = _uncached(blank.std.ModifyFrame([blank], lambda n, f: self._frames.pop(n)))
        large = _uncached(_without(alpha, REWRITTEN_PROPS).resize.Lanczos(self._clip.width, self._clip.height))
        if large.format.sample_type == vs.FLOAT:  # Lanczos overshoots; integers cannot leave opacity's range
            large = _uncached(large.std.Limiter(0, 1))
        return large if range_ is None else _uncached(large.std.SetFrameProps(_Range=range_))


def _to_rgbs(clip: vs.VideoNode, colours: _Colours) -> vs.VideoNode:
    known = dict(zip(REWRITTEN_PROPS, colours, strict=True))
    needed = {name: _number(known[name]) for name in ("_Transfer", "_Primaries")}
    used: dict[str, int | None] = {"_Matrix": _RGB_MATRIX}
    if clip.format.color_family != vs.RGB:
        used["_Matrix"] = _matrix(clip.height, known)
    # core.resize fails on any property value that it cannot use, even one that it does not need.
    if used["_Matrix"] not in _NEEDS_TRANSFER:
        needed = dict.fromkeys(needed, _UNSPECIFIED)
    used |= {name: value for name, value in needed.items() if known[name] is not None}
    if known["_Range"] is not None:
        used["_Range"] = _range(clip.format, known)
    if known["_ChromaLocation"] is not None:
        used["_ChromaLocation"] = _chroma_location(known) or 0
    if known["_FieldBased"] is not None:
        used["_FieldBased"] = 0
    if known["_Field"] is not None:
        clip = _without(clip, ["_Field"])
    rgb = _uncached(clip.std.SetFrameProps(**used).resize.Bicubic(format=vs.RGBS))
    return _uncached(
        rgb.std.SetFrameProps(**{STASH + name: value for name, value in known.items() if value is not None})
    )


def _from_rgbs(clip: vs.VideoNode, form: vs.VideoNode, colours: _Colours) -> vs.VideoNode:
    wanted = form.format
    known = dict(zip(REWRITTEN_PROPS, colours, strict=True))
    arguments = {"range": _range(wanted, known)}
    if wanted.color_family != vs.RGB:
        arguments["matrix"] = _matrix(form.height, known)
    if wanted.color_family == vs.YUV and (location := _chroma_location(known)) is not None:
        arguments["chromaloc"] = location
    return _with_original_props(_uncached(clip.resize.Bicubic(format=wanted.id, **arguments)), form, colours)


def _plane_format(wanted: vs.VideoFormat, height: int, colours: _Colours) -> PlaneFormat | None:
    known = dict(zip(REWRITTEN_PROPS, colours, strict=True))
    matrix = _matrix(height, known)
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


def _with_original_props(clip: vs.VideoNode, form: vs.VideoNode, colours: _Colours) -> vs.VideoNode:
    """Return the clip with the original properties of its frames restored, and with the assumed colours."""
    known = dict(zip(REWRITTEN_PROPS, colours, strict=True))
    travelled = {name: value for name, value in known.items() if value is not None}
    present = travelled | _assumed(form.format, form.height, colours)
    clip = _without(clip, [name for name in REWRITTEN_PROPS[:5] if name not in present])
    return _uncached(clip.std.SetFrameProps(**present)) if present else clip


def _without(clip: vs.VideoNode, names: Iterable[str]) -> vs.VideoNode:
    """Return the clip without these frame properties.

    One call for each: with several names, std.RemoveFrameProps of R81 reads freed memory
    (docs/upstream/remove_frame_props.md).
    """
    for name in names:
        clip = _uncached(clip.std.RemoveFrameProps(name))
    return clip


def _uncached(clip: vs.VideoNode) -> vs.VideoNode:
    """Return the clip with its cache disabled: each frame is read once, and may be large."""
    clip.std.SetVideoCache(mode=0)
    return clip


def _matrix(height: int, known: Mapping[str, object]) -> int:
    """Return the matrix to convert with: the frame's own if it names a usable one, else the one for this height."""
    matrix = _number(known["_Matrix"])
    if matrix is not None and matrix in _NEEDS_TRANSFER:
        transfers, primaries = _NEEDS_TRANSFER[matrix]
        usable = _number(known["_Transfer"]) in transfers and _number(known["_Primaries"]) in primaries
    else:
        usable = matrix in _PLAIN_MATRICES
    if matrix is not None and usable:
        return matrix
    return int(vs.MATRIX_ST170_M if height <= SD_MAX_HEIGHT else vs.MATRIX_BT709)


def _range(wanted: vs.VideoFormat, known: Mapping[str, object]) -> int:
    """Return the frame's own range if it names one, else limited, or full for RGB."""
    named = _valid(known, "_Range")
    return named if named is not None else int(vs.RANGE_FULL if wanted.color_family == vs.RGB else vs.RANGE_LIMITED)


def _chroma_location(known: Mapping[str, object]) -> int | None:
    return _valid(known, "_ChromaLocation")


def _valid(known: Mapping[str, object], name: str) -> int | None:
    value = _number(known[name])
    return value if value in _VALID[name] else None


def _warnings(n: int, clip: vs.VideoNode, colours: _Colours, props: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """Yield (name, warning) for each property of frame n that cannot be used, or not as it is meant."""
    known = dict(zip(REWRITTEN_PROPS, colours, strict=True))
    form, named = clip.format, known["_Matrix"]

    def of(name: str, value: object, taken_for: str, why: str = "") -> tuple[str, str]:
        shown = printable(repr(value), 60)
        return name, (
            f"rbvsr.Upscale: frame {n} has {name}={shown}, which cannot be used{why}: taken for {taken_for}. "
            f"Set it right with std.SetFrameProps({name}=...)."
        )

    if form.color_family == vs.YUV and named is not None and named != _UNSPECIFIED:
        matrix = _matrix(clip.height, known)
        if matrix != named:
            why = ""
            if _number(named) in _NEEDS_TRANSFER:
                beside = {name: known[name] for name in ("_Transfer", "_Primaries") if known[name] is not None}
                named_so = " and ".join(f"{name}={printable(repr(value), 20)}" for name, value in beside.items())
                why = f" with {named_so}" if named_so else " without _Transfer and _Primaries"
            yield of("_Matrix", named, f"{matrix} ({vs.MatrixCoefficients(matrix).name.removeprefix('MATRIX_')})", why)
    if known["_Range"] is not None and _valid(known, "_Range") is None:
        full = _range(form, known) == vs.RANGE_FULL
        yield of("_Range", known["_Range"], "1 (full)" if full else "0 (limited)")
    is_subsampled = form.subsampling_w + form.subsampling_h > 0
    if is_subsampled and known["_ChromaLocation"] is not None and _chroma_location(known) is None:
        yield of("_ChromaLocation", known["_ChromaLocation"], "0 (left)")
    if known["_FieldBased"] is not None:
        if _valid(known, "_FieldBased") is None:
            yield of("_FieldBased", known["_FieldBased"], "0 (progressive)")
        elif known["_FieldBased"]:
            yield "interlaced", INTERLACED.format(n=n)
    for name in ("_SceneChangePrev", "_SceneChangeNext"):
        if (value := props.get(name)) is not None and not isinstance(value, int):
            yield of(name, value, "absent")


def _kept(
    kept: dict[_Colours, vs.VideoNode], colours: _Colours, make: Callable[[_Colours], vs.VideoNode]
) -> vs.VideoNode:
    """Return make(colours), cached by its argument: for up to MAX_KINDS combinations, and only if all are numbers."""
    if not all(value is None or isinstance(value, int) for value in colours):
        return make(colours)
    if colours not in kept:
        if len(kept) >= MAX_KINDS:
            return make(colours)
        kept[colours] = make(colours)
    return kept[colours]


def _assumed(form: vs.VideoFormat, height: int, colours: _Colours) -> dict[str, int]:
    """Return the colour properties that a frame does not name, and the assumed values. Empty for RGB: it needs none."""
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
    return tuple(_plain(props.get(STASH + name)) for name in REWRITTEN_PROPS)


def _colours_of(props: Mapping[str, object]) -> _Colours:
    return tuple(_plain(props.get(name)) for name in REWRITTEN_PROPS)


def _plain(value: object) -> object:
    """Return the value; of an enumeration its number."""
    return int(value) if isinstance(value, int) else value


def _number(value: object) -> int | None:
    return int(value) if isinstance(value, int) else None
