"""Settings that recipes are drawn from, and the drawing.

Source: the published RealBasicVSR configuration; paper, section 3.3, for the walks.
"""

import math
from dataclasses import dataclass, fields

import numpy as np

from training.degradations import codecs
from training.degradations.recipe import (
    CODECS,
    FAMILIES,
    PRESETS,
    WITHOUT_CRF,
    Blur,
    ChromaNoise,
    Family,
    GaussianNoise,
    Jpeg,
    PoissonNoise,
    Recipe,
    Resize,
    SincBlur,
    Step,
    VideoCodec,
)
from training.degradations.resizing import FILTERS
from training.degradations.walks import walk
from vsrealbasicvsr.errors import UserError

type Range = tuple[float, float]

SINC = "sinc"


def _check(fine: bool, name: str, value: object, rule: str) -> None:
    if not fine:
        raise UserError(f"DegradationSettings: {name}: {rule}, got {value}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class DegradationSettings:
    """Probabilities, ranges and steps of a random recipe; the defaults are the published one.

    A range is uniform and includes both ends. A `step` is the largest change of a value from one frame to the next. 1
    and 2 are the first and the second pass: blur 1, resize 1, noise 1, JPEG 1, codec 1, blur 2, resize 2, noise 2, JPEG
    2, and then, in either order, codec 2 and {the output's size, final sinc}.

    Raises UserError, naming the field, if a value makes no sense or if this PyAV lacks an encoder.
    """

    stochastic: bool = True
    """Let values walk from frame to frame (paper, 3.3); False: each keeps its first value."""
    downscale_first: bool = False
    """Resize to the output's size right after blur 1 instead of resize 1: noise and compression then act on small
    frames, as in a video that was small before it was compressed."""

    blur1_probability: float = 1.0
    blur2_probability: float = 0.8
    blur_sizes_px: tuple[int, ...] = (7, 9, 11, 13, 15, 17, 19, 21)
    blur_families: tuple[str, ...] = (*FAMILIES, SINC)
    blur_family_probabilities: tuple[float, ...] = (0.405, 0.225, 0.108, 0.027, 0.108, 0.027, 0.1)
    blur1_sigma_px: Range = (0.2, 3.0)
    blur2_sigma_px: Range = (0.2, 1.5)
    blur_sigma_step_px: float = 0.02
    blur_angle_radians: Range = (-math.pi, math.pi)
    blur_angle_step_radians: float = 0.314
    generalized_beta: Range = (0.5, 4.0)
    generalized_beta_step: float = 0.05
    plateau_beta: Range = (1.0, 2.0)
    plateau_beta_step: float = 0.1
    sinc_cutoff_radians: Range = (math.pi / 3, math.pi)
    sinc_large_cutoff_radians: Range = (math.pi / 5, math.pi)
    sinc_large_size_px: int = 13
    """Size from which sinc blurs take the second range of cutoffs."""
    sinc_cutoff_step_radians: float = 0.0628

    resize1_probabilities: tuple[float, float, float] = (0.2, 0.7, 0.1)
    """Up (1 to the largest scale), down (the smallest scale to 1), keep (starts at 1, walks like the others)."""
    resize1_scale: Range = (0.15, 1.5)
    resize1_scale_step: float = 0.015
    resize2_probabilities: tuple[float, float, float] = (0.3, 0.4, 0.3)
    resize2_scale: Range = (0.3, 1.2)
    resize2_scale_step: float = 0.03
    resize_filters: tuple[str, ...] = FILTERS
    resize_antialias_probability: float = 0.0
    """Probability of antialiasing for each resize. Without it bilinear and bicubic read 2 and 4 neighbours at any
    scale, as in OpenCV and the published pipeline."""

    noise1_probability: float = 1.0
    noise2_probability: float = 1.0
    noise_gaussian_probability: float = 0.5
    """Probability that noise is Gaussian; otherwise it is Poisson noise."""
    noise_grey_probability: float = 0.4
    noise1_sigma_255: Range = (1.0, 30.0)
    noise2_sigma_255: Range = (1.0, 25.0)
    noise_sigma_step_255: float = 0.1
    noise1_poisson_scale: Range = (0.05, 3.0)
    noise2_poisson_scale: Range = (0.05, 2.5)
    noise_poisson_scale_step: float = 0.005

    chroma_noise_probability: float = 0.0
    """Probability of blotches of colour after noise 1; not in the published recipe."""
    chroma_noise_sigma_255: Range = (1.0, 8.0)
    chroma_noise_cells_px: tuple[int, ...] = (3, 5, 8)
    chroma_noise_persistence: Range = (0.0, 0.9)

    jpeg1_probability: float = 1.0
    jpeg2_probability: float = 1.0
    jpeg_quality: Range = (30.0, 95.0)
    jpeg_quality_step: float = 3.0

    codec1_probability: float = 1.0
    codec2_probability: float = 1.0
    codecs: tuple[str, ...] = ("h264", "mpeg4")
    """Some of h264, mpeg4, h265, vp9, av1, mpeg2."""
    codec_probabilities: tuple[float, ...] = (2 / 3, 1 / 3)
    """One for each codec. The published configuration draws from libx264, h264 and mpeg4, of which the first two are
    the same encoder."""
    codec_presets: tuple[str, ...] = ("ultrafast", "veryfast")
    """Some of ultrafast, veryfast, medium; drawn for each clip. The published pipeline always uses medium, which
    takes as long as all other degradations together."""
    codec_bits_per_frame: Range = (1e4, 1e5)
    codec_crf_probability: float = 0.0
    """Probability of a CRF instead of a bitrate (mpeg2 and mpeg4 always get a bitrate)."""
    codec_crf: tuple[int, int] = (18, 35)
    codec2_last_probability: float = 0.5

    final_sinc_probability: float = 0.8
    final_sinc_cutoff_radians: Range = (math.pi / 3, math.pi)

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.endswith("_probability"):
                _check(0 <= value <= 1, field.name, value, "a probability lies in 0..1")
            elif field.name.endswith("_probabilities"):
                fine = all(part >= 0 for part in value) and math.isclose(sum(value), 1, abs_tol=1e-6)
                _check(fine, field.name, value, "probabilities are not negative and sum to 1")
            elif "_step" in field.name:
                _check(value >= 0, field.name, value, "a step is not negative")
        self._check_choices("blur_families", "blur_family_probabilities", (*FAMILIES, SINC))
        self._check_choices("codecs", "codec_probabilities", CODECS)
        self._check_choices("codec_presets", None, PRESETS)
        self._check_choices("resize_filters", None, FILTERS)
        cells = self.chroma_noise_cells_px
        _check(bool(cells) and min(cells) >= 1, "chroma_noise_cells_px", cells, "cells are 1 pixel or more")
        sizes = self.blur_sizes_px
        _check(bool(sizes) and all(s % 2 == 1 and s > 0 for s in sizes), "blur_sizes_px", sizes, "sizes are odd")
        for name, low, high in (
            ("blur_angle_radians", -math.inf, math.inf),
            ("blur1_sigma_px", 1e-3, math.inf),
            ("blur2_sigma_px", 1e-3, math.inf),
            ("generalized_beta", 1e-3, math.inf),
            ("plateau_beta", 1e-3, math.inf),
            ("sinc_cutoff_radians", 1e-3, math.pi),
            ("sinc_large_cutoff_radians", 1e-3, math.pi),
            ("final_sinc_cutoff_radians", 1e-3, math.pi),
            ("resize1_scale", 1e-3, 8.0),
            ("resize2_scale", 1e-3, 8.0),
            ("noise1_sigma_255", 0.0, math.inf),
            ("noise2_sigma_255", 0.0, math.inf),
            ("noise1_poisson_scale", 0.0, math.inf),
            ("noise2_poisson_scale", 0.0, math.inf),
            ("chroma_noise_sigma_255", 0.0, math.inf),
            ("chroma_noise_persistence", 0.0, 0.999),
            ("jpeg_quality", 1.0, 100.0),
            ("codec_bits_per_frame", 1000.0, 1e9),
            ("codec_crf", 0, 51),
        ):
            value = getattr(self, name)
            _check(
                low <= value[0] <= value[1] <= high,
                name,
                value,
                f"a range goes from low to high, within {low:g}..{high:g}",
            )
        for name in ("resize1", "resize2"):
            up, down, keep = getattr(self, f"{name}_probabilities")
            low, high = getattr(self, f"{name}_scale")
            fine = (not up or high >= 1) and (not down or low <= 1) and (not keep or low <= 1 <= high)
            _check(fine, f"{name}_scale", (low, high), "going up, down or keeping needs a range that reaches 1")
        for codec in CODECS:
            if codec in self.codecs:
                codecs.require(codec)

    def _check_choices(self, name: str, probabilities_name: str | None, known: tuple[str, ...]) -> None:
        chosen = getattr(self, name)
        unknown = [choice for choice in chosen if choice not in known]
        _check(bool(chosen) and not unknown, name, chosen, f"choose among {', '.join(known)}")
        if probabilities_name is not None:
            probabilities = getattr(self, probabilities_name)
            rule = f"there must be one for each of {name}, {len(chosen)}"
            _check(len(probabilities) == len(chosen), probabilities_name, probabilities, rule)


PUBLISHED = DegradationSettings()
"""The degradations that the published network was trained with."""

MODERATE = DegradationSettings(
    downscale_first=True,
    blur_families=("iso", "aniso"),
    blur_family_probabilities=(0.8, 0.2),
    blur1_sigma_px=(0.6, 2.0),
    blur_sizes_px=(13,),
    blur2_probability=0.0,
    resize2_probabilities=(0.0, 0.0, 1.0),
    resize2_scale_step=0.0,
    resize_antialias_probability=1.0,
    noise_gaussian_probability=0.8,
    noise_grey_probability=0.3,
    noise1_sigma_255=(2.0, 8.0),
    noise1_poisson_scale=(0.125, 0.5),  # deviations of 2 to 8 / 255 at white
    noise2_probability=0.0,
    jpeg1_probability=0.1,
    jpeg2_probability=0.0,
    jpeg_quality=(55.0, 95.0),
    codec1_probability=0.95,
    codec2_probability=0.0,
    codecs=("h264",),
    codec_probabilities=(1.0,),
    codec_presets=PRESETS,
    codec_crf_probability=1.0,
    codec_crf=(23, 32),
    final_sinc_probability=0.0,
)
"""One generation of what most videos have gone through: blur, a quarter of the size, noise, sometimes JPEG, nearly
always H.264."""


def sample(settings: DegradationSettings, generator: np.random.Generator, *, num_frames: int = 30) -> Recipe:
    """Draw a recipe for clips of `num_frames` frames; it depends on the arguments alone."""
    draw = _Draw(settings, generator, num_frames)
    steps: list[Step] = []
    if draw.chance(settings.blur1_probability):
        steps.append(draw.blur(settings.blur1_sigma_px))
    if settings.downscale_first:
        steps.append(draw.output_size())
    else:
        steps += draw.resize(settings.resize1_probabilities, settings.resize1_scale, settings.resize1_scale_step)
    if draw.chance(settings.noise1_probability):
        steps.append(draw.noise(settings.noise1_sigma_255, settings.noise1_poisson_scale))
    if settings.chroma_noise_probability and draw.chance(settings.chroma_noise_probability):
        steps.append(draw.chroma_noise())
    if draw.chance(settings.jpeg1_probability):
        steps.append(draw.jpeg())
    if draw.chance(settings.codec1_probability):
        steps.append(draw.video_codec())
    if draw.chance(settings.blur2_probability):
        steps.append(draw.blur(settings.blur2_sigma_px))
    second = draw.resize(settings.resize2_probabilities, settings.resize2_scale, settings.resize2_scale_step)
    steps += second
    if draw.chance(settings.noise2_probability):
        steps.append(draw.noise(settings.noise2_sigma_255, settings.noise2_poisson_scale))
    if draw.chance(settings.jpeg2_probability):
        steps.append(draw.jpeg())
    end: list[Step] = [] if settings.downscale_first and not second else [draw.output_size()]
    if draw.chance(settings.final_sinc_probability):
        end.append(draw.sinc_blur(draw.blur_size(), settings.final_sinc_cutoff_radians))
    if draw.chance(settings.codec2_probability):
        codec = draw.video_codec()
        end = [*end, codec] if draw.chance(settings.codec2_last_probability) else [codec, *end]
    return Recipe((*steps, *end))


@dataclass(frozen=True, slots=True)
class _Draw:
    """Draws the values of one recipe."""

    settings: DegradationSettings
    generator: np.random.Generator
    num_frames: int

    def chance(self, probability: float) -> bool:
        return bool(self.generator.random() < probability)

    def choice[T](self, choices: tuple[T, ...], probabilities: tuple[float, ...] | None = None) -> T:
        weights = None if probabilities is None else np.array(probabilities) / sum(probabilities)
        return choices[int(self.generator.choice(len(choices), p=weights))]

    def walk(self, bounds: Range, step: float, *, start: float | None = None) -> tuple[float, ...]:
        """Return a random walk from a uniform start, or from a given one."""
        first = min(float(self.generator.uniform(*bounds)), bounds[1]) if start is None else start
        move = step if self.settings.stochastic else 0.0
        return walk(self.generator, start=first, step=move, bounds=bounds, num_frames=self.num_frames)

    def still(self, value: float) -> tuple[float, ...]:
        return (value,) * self.num_frames

    def seed(self) -> int:
        return int(self.generator.integers(2**32))

    def blur_size(self) -> int:
        return self.choice(self.settings.blur_sizes_px)

    def blur(self, sigma_px: Range) -> Blur | SincBlur:
        settings = self.settings
        name = self.choice(settings.blur_families, settings.blur_family_probabilities)
        size_px = self.blur_size()
        if name == SINC:
            large = size_px >= settings.sinc_large_size_px
            return self.sinc_blur(
                size_px, settings.sinc_large_cutoff_radians if large else settings.sinc_cutoff_radians
            )
        family: Family = next(known for known in FAMILIES if known == name)
        sigma_x_px = sigma_y_px = self.walk(sigma_px, settings.blur_sigma_step_px)
        angle_radians = beta = self.still(0.0)
        if family.endswith("aniso"):
            sigma_y_px = self.walk(sigma_px, settings.blur_sigma_step_px)
            angle_radians = self.walk(settings.blur_angle_radians, settings.blur_angle_step_radians)
        if family.startswith("generalized"):
            beta = self.walk(settings.generalized_beta, settings.generalized_beta_step)
        elif family.startswith("plateau"):
            beta = self.walk(settings.plateau_beta, settings.plateau_beta_step)
        else:
            beta = self.still(1.0)
        return Blur(
            family=family,
            size_px=size_px,
            sigma_x_px=sigma_x_px,
            sigma_y_px=sigma_y_px,
            angle_radians=angle_radians,
            beta=beta,
        )

    def sinc_blur(self, size_px: int, cutoff_radians: Range) -> SincBlur:
        walked = self.walk(cutoff_radians, self.settings.sinc_cutoff_step_radians)
        return SincBlur(size_px=size_px, cutoff_radians=walked)

    def resize(self, probabilities: tuple[float, float, float], scale: Range, step: float) -> list[Step]:
        """Return one Resize, or nothing if it would have no effect."""
        low, high = scale
        match self.choice(("up", "down", "keep"), probabilities):
            case "up":
                start = float(self.generator.uniform(max(low, 1.0), high))
            case "down":
                start = float(self.generator.uniform(low, min(high, 1.0)))
            case _:
                start = 1.0
        walked = self.walk(scale, step, start=min(max(start, low), high))
        name = self.choice(FILTERS, self._filter_probabilities())
        antialias = self._antialiases()
        if set(walked) == {1.0}:
            return []
        return [Resize(filter=name, scale=walked, antialias=antialias)]

    def output_size(self) -> Resize:
        name = self.choice(FILTERS, self._filter_probabilities())
        return Resize(filter=name, scale=None, antialias=self._antialiases())

    def _antialiases(self) -> bool:
        probability = self.settings.resize_antialias_probability
        if probability in (0, 1):  # uses no random number, so that older settings give the same recipes
            return bool(probability)
        return self.chance(probability)

    def _filter_probabilities(self) -> tuple[float, ...]:
        chosen = self.settings.resize_filters
        return tuple(chosen.count(name) / len(chosen) for name in FILTERS)

    def noise(self, sigma_255: Range, poisson_scale: Range) -> GaussianNoise | PoissonNoise:
        settings = self.settings
        gaussian = self.chance(settings.noise_gaussian_probability)
        grey = self.chance(settings.noise_grey_probability)
        if gaussian:
            walked = self.walk(sigma_255, settings.noise_sigma_step_255)
            return GaussianNoise(sigma_255=walked, grey=grey, seed=self.seed())
        walked = self.walk(poisson_scale, settings.noise_poisson_scale_step)
        return PoissonNoise(scale=walked, grey=grey, seed=self.seed())

    def chroma_noise(self) -> ChromaNoise:
        settings = self.settings
        return ChromaNoise(
            sigma_255=self.walk(settings.chroma_noise_sigma_255, settings.noise_sigma_step_255),
            cell_px=self.choice(settings.chroma_noise_cells_px),
            persistence=float(self.generator.uniform(*settings.chroma_noise_persistence)),
            seed=self.seed(),
        )

    def jpeg(self) -> Jpeg:
        return Jpeg(quality=self.walk(self.settings.jpeg_quality, self.settings.jpeg_quality_step))

    def video_codec(self) -> VideoCodec:
        settings = self.settings
        name = self.choice(settings.codecs, settings.codec_probabilities)
        codec = next(known for known in CODECS if known == name)
        preset = self.choice(settings.codec_presets)
        bits_per_frame = round(float(self.generator.uniform(*settings.codec_bits_per_frame)))
        crf = int(self.generator.integers(*settings.codec_crf, endpoint=True))
        if codec in WITHOUT_CRF:
            return VideoCodec(codec=codec, preset=None, bits_per_frame=bits_per_frame)
        if self.chance(settings.codec_crf_probability):
            return VideoCodec(codec=codec, preset=preset, crf=crf)
        return VideoCodec(codec=codec, preset=preset, bits_per_frame=bits_per_frame)
