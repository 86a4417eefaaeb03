"""Degradations in two steps: `sample` draws a recipe, `apply` applies it, with the same bits every time.

A recipe is plain data: printable, JSON, replayable. Clips are uint8 (T, 3, H, W), RGB, gamma-encoded. What torch can
compute runs on the clip's device, all frames together; video codecs run on the CPU, on one thread. From the inside out:
walks, kernels, resizing, noise, colour; recipe; codecs; sampling, chains and applying.
"""

from training.degradations.applying import SCALE, Pieces, apply, apply_steps
from training.degradations.chains import (
    clean_recipe,
    evaluation_recipe,
    harsh_recipe,
    mild_recipe,
    usual_recipe,
)
from training.degradations.colour import as_bytes
from training.degradations.presets import MIXABLE, draw_settings, mixture
from training.degradations.recipe import (
    Blur,
    ChromaNoise,
    GaussianNoise,
    Jpeg,
    PoissonNoise,
    Recipe,
    Resize,
    SincBlur,
    Step,
    VideoCodec,
    describe,
)
from training.degradations.sampling import MODERATE, PUBLISHED, DegradationSettings, sample
from training.degradations.sharpening import sharpened, unsharp

__all__ = [
    "MIXABLE",
    "MODERATE",
    "PUBLISHED",
    "SCALE",
    "Blur",
    "ChromaNoise",
    "DegradationSettings",
    "GaussianNoise",
    "Jpeg",
    "Pieces",
    "PoissonNoise",
    "Recipe",
    "Resize",
    "SincBlur",
    "Step",
    "VideoCodec",
    "apply",
    "apply_steps",
    "as_bytes",
    "clean_recipe",
    "describe",
    "draw_settings",
    "evaluation_recipe",
    "harsh_recipe",
    "mild_recipe",
    "mixture",
    "sample",
    "sharpened",
    "unsharp",
    "usual_recipe",
]
