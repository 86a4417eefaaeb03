"""Clips of prepared folders, and what befalls them: the truth, and the low-resolution input of each chain.

Knows no networks and no metrics.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from training import degradations
from training.data.camera import moved_photograph
from training.data.dataset import ClipDataset
from vsrealbasicvsr.errors import UserError
from vsrealbasicvsr.model import SCALE

CHAINS = ("mild", "usual", "harsh", "clean", "evaluation", "moderate", "published")
"""The first five are the same for every clip but for its noise, see training.degradations.chains; moderate and
published are drawn for each clip, as in training."""

FRAMES_PER_SECOND = 25.0
"""Of clips whose files say none, and of photographs that are moved over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Footage:
    """A clip as it should look. truth (T, 3, S*H, S*W): float32 in [0, 1], of 8 bits."""

    name: str
    source: str
    truth: Tensor
    frames_per_second: float
    generator: np.random.Generator
    """Of what is drawn for this clip; copied before each use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A clip and what became of it in one chain. lr (T, 3, H, W): float32 in [0, 1], of 8 bits."""

    footage: Footage
    chain: str
    recipe: degradations.Recipe
    lr: Tensor

    @property
    def truth(self) -> Tensor:
        return self.footage.truth

    @property
    def name(self) -> str:
        return self.footage.name


def read_footage(
    folders: Path | Sequence[Path], *, num_clips: int | None, num_frames: int, crop_px: int, seed: int
) -> Iterator[Footage]:
    """Yield the clips of prepared folders, one at a time: the middle of their first frames.

    crop_px: side of the low-resolution picture; smaller clips are taken as large as they are. num_clips: that many,
    evenly spaced. A photograph is moved over as in training. What is drawn depends on the seed and the clip's name.

    Raises UserError if the folders hold no clips.
    """
    dataset = ClipDataset.open(folders)
    numbers: Sequence[int] = range(len(dataset))
    if num_clips is not None and num_clips < len(dataset):
        numbers = [round(place) for place in np.linspace(0, len(dataset) - 1, num_clips)]
    for number in numbers:
        clip = dataset[number]
        name = Path(clip.file).stem
        generator = np.random.default_rng((seed, zlib.crc32(name.encode())))
        height, width = (min(side, SCALE * crop_px) // SCALE * SCALE for side in (clip.height, clip.width))
        if clip.kind == "photograph":
            frames = moved_photograph(
                dataset.read(number)[0], num_frames=num_frames, height=height, width=width, generator=generator
            )
        else:
            frames = dataset.read(
                number,
                num_frames=min(num_frames, clip.num_frames),
                top=(clip.height - height) // 2,
                left=(clip.width - width) // 2,
                height=height,
                width=width,
            )
        yield Footage(
            name=name,
            source=clip.source,
            truth=torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous().float() / 255,
            frames_per_second=clip.frames_per_second or FRAMES_PER_SECOND,
            generator=generator,
        )


def degrade(footage: Footage, chain: str) -> Pair:
    """Return the clip after one of CHAINS; the same every time, whatever other chains there are."""
    recipe = make_recipe(chain, copy.deepcopy(footage.generator), num_frames=len(footage.truth))
    truth = (footage.truth * 255).round().byte()
    lr = degradations.apply(recipe, truth).float() / 255
    return Pair(footage=footage, chain=chain, recipe=recipe, lr=lr)


def make_recipe(chain: str, generator: np.random.Generator, *, num_frames: int) -> degradations.Recipe:
    """Return one of CHAINS, written out for a clip."""
    match chain:
        case "clean":
            return degradations.clean_recipe()
        case "mild":
            return degradations.mild_recipe()
        case "moderate" | "published":
            settings = {"moderate": degradations.MODERATE, "published": degradations.PUBLISHED}[chain]
            return degradations.sample(settings, generator, num_frames=num_frames)
    seed = int(generator.integers(2**32))
    match chain:
        case "usual":
            return degradations.usual_recipe(seed, num_frames)
        case "harsh":
            return degradations.harsh_recipe(seed, num_frames)
        case "evaluation":
            return degradations.evaluation_recipe(seed, num_frames)
    raise UserError(f"unknown chain {chain!r}. Known are {', '.join(CHAINS)}.")
