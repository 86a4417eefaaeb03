"""Recipes: the steps that a clip goes through, as plain data that contains every random value.

A value that walks is a tuple with one entry for each frame.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal, get_args

from training.degradations.resizing import FILTERS, Filter
from vsrealbasicvsr.errors import UserError

type Walk = tuple[float, ...]
type Codec = Literal["h264", "mpeg4", "h265", "vp9", "av1", "mpeg2"]
type Family = Literal["iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso"]

CODECS: tuple[Codec, ...] = get_args(Codec.__value__)
WITHOUT_CRF: frozenset[Codec] = frozenset({"mpeg2", "mpeg4"})
"""Codecs that support bitrates only."""
PRESETS = ("ultrafast", "veryfast", "medium")
FAMILIES: tuple[Family, ...] = get_args(Family.__value__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Blur:
    """Convolution with a kernel of a bivariate family, `size_px` (odd) taps wide.

    The angle turns the x axis towards y (downwards). iso: both sigmas are equal. beta shapes the generalised and the
    plateau families and is 1 for the others.
    """

    name: ClassVar[str] = "blur"
    family: Family
    size_px: int
    sigma_x_px: Walk
    sigma_y_px: Walk
    angle_radians: Walk
    beta: Walk

    def __post_init__(self) -> None:
        _check(self.family in FAMILIES, self, f"family must be one of {', '.join(FAMILIES)}")
        _check(self.size_px > 0 and self.size_px % 2 == 1, self, "size_px must be odd and positive")
        _check_walks(self, self.sigma_x_px, self.sigma_y_px, self.angle_radians, self.beta)
        _check(min(*self.sigma_x_px, *self.sigma_y_px, *self.beta) > 0, self, "sigmas and betas must be positive")
        if self.family.endswith("_iso") or self.family == "iso":
            _check(self.sigma_x_px == self.sigma_y_px, self, "the two sigmas of an iso family must be equal")


@dataclass(frozen=True, slots=True, kw_only=True)
class SincBlur:
    """Convolution with a circular low pass cut off at `size_px` (odd) taps, which rings. A cutoff of pi passes all."""

    name: ClassVar[str] = "sinc_blur"
    size_px: int
    cutoff_radians: Walk

    def __post_init__(self) -> None:
        _check(self.size_px > 0 and self.size_px % 2 == 1, self, "size_px must be odd and positive")
        _check_walks(self, self.cutoff_radians)
        _check(0 < min(self.cutoff_radians) <= max(self.cutoff_radians) <= math.pi, self, "cutoffs lie in 0..pi")


@dataclass(frozen=True, slots=True, kw_only=True)
class Resize:
    """Resizing to `scale` times the size of the first frame, rounded down to even; None: to the output's size.

    The frames of a clip may differ in size afterwards; the next VideoCodec or Resize(scale=None) makes them equal.
    """

    name: ClassVar[str] = "resize"
    filter: Filter
    scale: Walk | None
    antialias: bool = False

    def __post_init__(self) -> None:
        _check(self.filter in FILTERS, self, f"filter must be one of {', '.join(FILTERS)}")
        if self.scale is not None:
            _check_walks(self, self.scale)
            _check(min(self.scale) > 0, self, "scales must be positive")


@dataclass(frozen=True, slots=True, kw_only=True)
class GaussianNoise:
    """Normal noise of `sigma_255` / 255, independent in every frame; grey: equal in the three channels."""

    name: ClassVar[str] = "gaussian_noise"
    sigma_255: Walk
    grey: bool
    seed: int

    def __post_init__(self) -> None:
        _check_walks(self, self.sigma_255)
        _check(min(self.sigma_255) >= 0, self, "sigmas must not be negative")


@dataclass(frozen=True, slots=True, kw_only=True)
class PoissonNoise:
    """`scale` times the noise of counting 256 photons at white, where its deviation is scale * 15.9 / 255.

    It is proportional to the root of the light; grey: that of the luma, equal in the three channels.
    """

    name: ClassVar[str] = "poisson_noise"
    scale: Walk
    grey: bool
    seed: int

    def __post_init__(self) -> None:
        _check_walks(self, self.scale)
        _check(min(self.scale) >= 0, self, "scales must not be negative")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChromaNoise:
    """Blotches of colour: normal noise of the two colour differences, smooth over cells of `cell_px` pixels.

    It imitates the coloured noise that low bitrates and the noise reduction of cameras leave. `persistence` is the
    correlation of one frame's noise with the next one's. The luma does not change.
    """

    name: ClassVar[str] = "chroma_noise"
    sigma_255: Walk
    cell_px: int
    persistence: float
    seed: int

    def __post_init__(self) -> None:
        _check_walks(self, self.sigma_255)
        _check(min(self.sigma_255) >= 0, self, "sigmas must not be negative")
        _check(self.cell_px >= 1, self, "cell_px must be 1 or more")
        _check(0 <= self.persistence < 1, self, "persistence lies in [0, 1)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Jpeg:
    """JPEG compression of every frame; `quality` 1..100 is rounded."""

    name: ClassVar[str] = "jpeg"
    quality: Walk

    def __post_init__(self) -> None:
        _check_walks(self, self.quality)
        _check(1 <= min(self.quality) <= max(self.quality) <= 100, self, "qualities lie in 1..100")


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoCodec:
    """Video compression of the clip, yuv420p, one thread.

    Exactly one of `bits_per_frame` (an average over the clip) and `crf` (constant quality, in the encoder's own scale,
    at 25 frames a second) is given. mpeg2 and mpeg4 support neither CRF nor presets: their preset is None.
    """

    name: ClassVar[str] = "video_codec"
    codec: Codec
    preset: str | None
    bits_per_frame: int | None = None
    crf: int | None = None

    def __post_init__(self) -> None:
        _check(self.codec in CODECS, self, f"codec must be one of {', '.join(CODECS)}")
        _check((self.crf is None) != (self.bits_per_frame is None), self, "give either crf or bits_per_frame")
        if self.codec in WITHOUT_CRF:
            _check(self.crf is None and self.preset is None, self, f"{self.codec} knows neither crf nor preset")
        else:
            _check(self.preset in PRESETS, self, f"preset must be one of {', '.join(PRESETS)}")
        _check(self.bits_per_frame is None or self.bits_per_frame >= 1000, self, "bits_per_frame must be 1000 or more")
        _check(self.crf is None or 0 <= self.crf <= 51, self, "crf lies in 0..51")


type Step = Blur | SincBlur | Resize | GaussianNoise | PoissonNoise | ChromaNoise | Jpeg | VideoCodec

STEPS: dict[str, type[Step]] = {
    kind.name: kind for kind in (Blur, SincBlur, Resize, GaussianNoise, PoissonNoise, ChromaNoise, Jpeg, VideoCodec)
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """Steps in the order in which they are applied; they contain everything that `apply` needs."""

    steps: tuple[Step, ...]

    def __post_init__(self) -> None:
        lengths = {len(walk) for step in self.steps for walk in walks_of(step).values()}
        if len(lengths) > 1:
            raise UserError(f"Recipe: the walks of all steps must be equally long, got {sorted(lengths)} frames.")

    @property
    def num_frames(self) -> int | None:
        """Number of frames that the recipe was drawn for; None if no value walks, and it fits any number."""
        return next((len(walk) for step in self.steps for walk in walks_of(step).values()), None)

    def to_plain(self) -> list[dict[str, Any]]:
        """Return the steps as JSON values: [{"step": "blur", "family": "iso", ...}, ...]."""
        return [{"step": step.name, **asdict(step)} for step in self.steps]

    def to_json(self, *, indent: int | None = None) -> str:
        """Return the recipe as JSON; `from_json` reads it back."""
        return json.dumps(self.to_plain(), indent=indent)

    @staticmethod
    def from_json(text: str) -> Recipe:
        """Return the recipe that `to_json` wrote.

        Raises:
            UserError: It is not JSON, or a step or a field is unknown.
        """
        try:
            plain = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"Recipe.from_json: this is no JSON: {error}.") from error
        if not isinstance(plain, list) or not all(isinstance(values, dict) for values in plain):
            raise UserError(f"Recipe.from_json: expected a list of steps, got {text[:100]!r}.")
        return Recipe(tuple(_step_from_plain(values) for values in plain))

    def __str__(self) -> str:
        return "\n".join(f"{number:2d}  {describe(step)}" for number, step in enumerate(self.steps, start=1))


def walks_of(step: Step) -> dict[str, Walk]:
    """Return the values of a step that walk, by the names of their fields."""
    values = {field.name: getattr(step, field.name) for field in fields(step)}
    return {name: value for name, value in values.items() if isinstance(value, tuple)}


def describe(step: Step) -> str:
    """Return one line about a step, ASCII, each walk as first..last frame's value."""
    match step:
        case Blur():
            text = f"blur {step.family} {step.size_px} taps, sigma {_ends(step.sigma_x_px)}"
            if step.sigma_x_px != step.sigma_y_px:
                turned = tuple(math.degrees(angle) for angle in step.angle_radians)
                text += f" by {_ends(step.sigma_y_px)} px, turned by {_ends(turned)} degrees"
            else:
                text += " px"
            return text if set(step.beta) == {1.0} else f"{text}, beta {_ends(step.beta)}"
        case SincBlur():
            return f"sinc {step.size_px} taps, cutoff {_ends(tuple(w / math.pi for w in step.cutoff_radians))} pi"
        case Resize():
            size = "to the output's size" if step.scale is None else f"by {_ends(step.scale)}"
            return f"resize {size}, {step.filter}{', antialiased' if step.antialias and step.filter != 'area' else ''}"
        case GaussianNoise():
            return f"Gaussian noise, sigma {_ends(step.sigma_255)} / 255, {'grey' if step.grey else 'coloured'}"
        case PoissonNoise():
            return f"Poisson noise, scale {_ends(step.scale)}, {'grey' if step.grey else 'coloured'}"
        case ChromaNoise():
            return f"chroma noise, sigma {_ends(step.sigma_255)} / 255, cells of {step.cell_px} px"
        case Jpeg():
            return f"JPEG, quality {_ends(tuple(float(round(quality)) for quality in step.quality))}"
        case VideoCodec():
            preset = "" if step.preset is None else f" {step.preset}"
            amount = f"crf {step.crf}" if step.bits_per_frame is None else f"{step.bits_per_frame} bits a frame"
            return f"video codec {step.codec}{preset}, {amount}"


def _ends(walk: Walk) -> str:
    first, last = (f"{value:.3g}" for value in (walk[0], walk[-1]))
    return first if first == last else f"{first}..{last}"


def _step_from_plain(plain: dict[str, Any]) -> Step:
    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in plain.items()}
    kind = STEPS.get(values.pop("step", ""))
    if kind is None:
        raise UserError(f"Recipe.from_json: unknown step {plain.get('step')!r}. Known are {', '.join(STEPS)}.")
    try:
        return kind(**values)
    except TypeError as error:  # a field too many or too few
        raise UserError(f"Recipe.from_json: step {kind.name}: {error}.") from error


def _check(fine: bool, step: Step, rule: str) -> None:
    if not fine:
        raise UserError(f"{type(step).__name__}: {rule}, got {step}.")


def _check_walks(step: Step, *walks: Walk) -> None:
    _check(all(walks) and len({len(walk) for walk in walks}) == 1, step, "walks need one value for each frame")
