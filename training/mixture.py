"""Mixtures of a sharp network's weights and its teacher's, as `detail` between 0 and 1 makes them.

A mixture may show a weave that neither network shows: the sharp one's late layers cancel what its early layers begin,
and half of each does not cancel. So the losses against weaves and false colours look at mixtures too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import torch

from training.settings import Settings
from vsrealbasicvsr.model import RealBasicVSR

SHARES = (0.3, 0.8)
"""Range of the sharp network's share in a mixture."""
_STREAM = 6 << 32  # no number of a sample's streams, see data/sampler.py


def draw_share(settings: Settings, iteration: int) -> float | None:
    """Draw the sharp network's share in the mixture that step `iteration` looks at; None if it looks at none."""
    if not settings.losses.looks_at_mixtures:
        return None
    generator = np.random.default_rng((settings.data.seed, _STREAM, iteration))
    is_drawn, share = generator.random() < settings.losses.mixture_probability, generator.uniform(*SHARES)
    return float(share) if is_drawn else None


@contextlib.contextmanager
def mixed(model: RealBasicVSR, teacher: RealBasicVSR, share: float) -> Iterator[None]:
    """Give the model, while the block runs, `share` of its own weights and the rest of the teacher's.

    The gradient with respect to the model's own weights is `share` times the one that the block computes.
    """
    pairs = list(zip(model.parameters(), teacher.parameters(), strict=True))
    own = [parameter.detach().clone() for parameter, _ in pairs]
    with torch.no_grad():
        for parameter, of_teacher in pairs:
            parameter.lerp_(of_teacher, 1 - share)
    try:
        yield
    finally:
        with torch.no_grad():
            for (parameter, _), kept in zip(pairs, own, strict=True):
                parameter.copy_(kept)
