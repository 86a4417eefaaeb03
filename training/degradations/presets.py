"""Named settings that a pool of clips can be mixed from, from clean masters to badly damaged footage."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from training.degradations.sampling import MODERATE, PUBLISHED, DegradationSettings
from vsrealbasicvsr.errors import UserError

CLEAN = replace(
    MODERATE,
    blur1_probability=0.4,
    blur1_sigma_px=(0.2, 0.9),
    resize_filters=("bicubic", "bicubic", "area", "bilinear"),
    resize_antialias_probability=0.9,
    noise1_probability=0.15,
    noise1_sigma_255=(0.0, 1.5),
    noise1_poisson_scale=(0.0, 0.1),
    jpeg1_probability=0.0,
    codec1_probability=0.35,
    codec_crf=(10, 19),
)
"""Good masters: shrunk, and at most coded at a rate without visible damage."""

MILD = replace(
    CLEAN,
    blur1_probability=0.5,
    blur1_sigma_px=(0.2, 1.2),
    noise1_probability=0.35,
    noise1_sigma_255=(0.5, 3.0),
    noise1_poisson_scale=(0.05, 0.2),
    codec1_probability=0.95,
    codecs=("h264", "h265"),
    codec_probabilities=(0.9, 0.1),
    codec_crf=(17, 26),
)
"""A good copy: coded once, hardly any noise."""

USUAL = replace(
    MODERATE,
    blur1_sigma_px=(0.7, 1.8),
    resize_filters=("bicubic", "area"),
    resize_antialias_probability=0.9,
    noise_gaussian_probability=0.9,
    noise_grey_probability=0.15,
    noise1_sigma_255=(3.0, 7.0),
    noise1_poisson_scale=(0.15, 0.5),
    codec1_probability=0.97,
    codec_presets=("veryfast", "medium", "medium"),
    codec_crf=(24, 31),
)
"""Most videos: a soft and noisy camera, then H.264."""

NOISY = replace(
    MODERATE,
    blur1_probability=0.7,
    blur1_sigma_px=(0.3, 2.0),
    noise_gaussian_probability=0.6,
    noise_grey_probability=0.4,
    noise1_sigma_255=(3.0, 16.0),
    noise1_poisson_scale=(0.2, 1.2),
    chroma_noise_probability=0.3,
    jpeg1_probability=0.1,
    codec1_probability=0.3,
    codec_crf=(18, 28),
)
"""Dim light: noise, with no codec or a gentle one."""

BLOCKY = replace(
    MODERATE,
    blur1_probability=0.7,
    blur1_sigma_px=(0.3, 1.6),
    noise1_probability=0.5,
    noise1_sigma_255=(1.0, 5.0),
    noise1_poisson_scale=(0.1, 0.4),
    chroma_noise_probability=0.5,
    jpeg1_probability=0.1,
    codec1_probability=1.0,
    codecs=("h264", "mpeg4", "mpeg2"),
    codec_probabilities=(0.5, 0.25, 0.25),
    codec_crf_probability=0.8,
    codec_crf=(30, 38),
    codec_bits_per_frame=(2500.0, 12000.0),
)
"""Too few bits: blocks and blotches of colour, from H.264, MPEG-4 and MPEG-2."""

STARVED = replace(BLOCKY, blur1_probability=0.3, noise1_probability=0.0, chroma_noise_probability=0.0)
"""Too few bits and no noise that would hide it: plain blocks and bands on walls and in skies."""

HARSH = replace(
    BLOCKY,
    blur1_probability=1.0,
    blur1_sigma_px=(0.6, 2.4),
    noise1_probability=1.0,
    noise1_sigma_255=(6.0, 20.0),
    noise1_poisson_scale=(0.4, 1.5),
    jpeg1_probability=0.8,
    jpeg_quality=(30.0, 70.0),
    codecs=("h264", "mpeg4"),
    codec_probabilities=(0.85, 0.15),
    codec_crf_probability=0.9,
    codec_crf=(28, 37),
)
"""Second order: blurred, noisy, through JPEG, then through a video codec at a low rate."""

MIXABLE: Mapping[str, DegradationSettings] = {
    "clean": CLEAN,
    "mild": MILD,
    "usual": USUAL,
    "noisy": NOISY,
    "blocky": BLOCKY,
    "starved": STARVED,
    "harsh": HARSH,
    "moderate": MODERATE,
    "published": PUBLISHED,
}


def mixture(parts: tuple[str, ...]) -> tuple[tuple[DegradationSettings, ...], tuple[float, ...]]:
    """Parse a mixture of named settings.

    Args:
        parts: "NAME:SHARE", such as ("usual:0.5", "clean:0.3", "harsh:0.2"). Shares are divided by their sum.

    Returns:
        The settings and their probabilities.

    Raises:
        UserError: A name is unknown or a share is no positive number.
    """
    names, shares = [], []
    for part in parts:
        name, _, share = part.partition(":")
        try:
            number = float(share or 1)
        except ValueError:
            number = -1.0
        if name not in MIXABLE or not number > 0:
            raise UserError(
                f"degradation_mix: write NAME:SHARE with commas between them, NAME one of {', '.join(MIXABLE)} and"
                f" SHARE above 0, got {part!r}."
            )
        names.append(name)
        shares.append(number)
    total = sum(shares)
    return tuple(MIXABLE[name] for name in names), tuple(share / total for share in shares)


def draw_settings(
    parts: tuple[str, ...], otherwise: DegradationSettings, generator: np.random.Generator
) -> DegradationSettings:
    """Draw settings from a mixture; without a mixture return `otherwise`, using no random number."""
    if not parts:
        return otherwise
    settings, probabilities = mixture(parts)
    return settings[int(generator.choice(len(settings), p=probabilities))]
