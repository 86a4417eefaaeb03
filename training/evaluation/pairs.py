"""Clips of prepared folders, and their degradation: the ground truth, and the low-resolution input of each chain."""

from __future__ import annotations

import copy
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from training import degradations
from training.data.camera import moved_photograph
from training.data.dataset import ClipDataset
from training.degradations import SCALE
from vsrealbasicvsr.errors import UserError

CHAINS = ("mild", "usual", "harsh", "clean", "evaluation", "moderate", "published")
"""Names of the chains. moderate and published are drawn for each clip, as in training; the others are equal for
every clip but for the noise, see training.degradations.chains."""

FRAMES_PER_SECOND = 25.0
"""Frame rate of clips whose files state none, and of photographs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Footage:
    """A ground truth clip.

    Attributes:
        name: Of the clip.
        source: File that it was cut from.
        truth: (T, 3, S*H, S*W) float32 in [0, 1], of 8 bits.
        frames_per_second: Of the source.
        generator: Random numbers for this clip; copied before each use.
    """

    name: str
    source: str
    truth: Tensor
    frames_per_second: float
    generator: np.random.Generator


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A clip after one chain.

    Attributes:
        footage: The ground truth.
        chain: Name of the chain.
        recipe: The degradation.
        lr: (T, 3, H, W) float32 in [0, 1], of 8 bits.
    """

    footage: Footage
    chain: str
    recipe: degradations.Recipe
    lr: Tensor

    @property
    def scale(self) -> int:
        """Ratio of the ground truth's size to the input's."""
        return self.truth.shape[-1] // self.lr.shape[-1]

    @property
    def truth(self) -> Tensor:
        return self.footage.truth

    @property
    def name(self) -> str:
        return self.footage.name


def read_footage(
    folders: Path | Sequence[Path] | ClipDataset, *, num_clips: int | None, num_frames: int, crop_px: int, seed: int
) -> Iterator[Footage]:
    """Yield the clips of prepared folders, one at a time: the middle of their first frames.

    Photographs get a moving camera, as in training. Random numbers depend on the seed and the clip's name.

    Args:
        folders: Prepared folders.
        num_clips: Take only this many, evenly spaced; None: all.
        num_frames: Maximum number of frames.
        crop_px: Side of the low-resolution crop; smaller clips are taken whole.
        seed: Of the random numbers.

    Raises:
        UserError: The folders hold no clips.
    """
    dataset = folders if isinstance(folders, ClipDataset) else ClipDataset.open(folders)
    numbers: Sequence[int] = range(len(dataset))
    if num_clips is not None and num_clips < len(dataset):
        numbers = [round(place) for place in np.linspace(0, len(dataset) - 1, num_clips)]
    stems = [Path(dataset[number].file).stem for number in range(len(dataset))]
    names = _each_once(stems)
    for number in numbers:
        clip, name = dataset[number], stems[number]
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
            name=names[number],
            source=clip.source,
            truth=torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous().float() / 255,
            frames_per_second=clip.frames_per_second or FRAMES_PER_SECOND,
            generator=generator,
        )


def _each_once(names: Iterable[str]) -> list[str]:
    """Return the names, the second of two equal ones, of two folders, with _2: sheets and inputs are named by them."""
    seen: Counter[str] = Counter()
    found = []
    for name in names:
        seen[name] += 1
        found.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return found


def degrade(footage: Footage, chain: str) -> Pair:
    """Degrade a clip by one of CHAINS; the result does not depend on the other chains."""
    recipe = make_recipe(chain, copy.deepcopy(footage.generator), num_frames=len(footage.truth))
    truth = (footage.truth * 255).round().byte()
    lr = degradations.apply(recipe, truth).float() / 255
    return Pair(footage=footage, chain=chain, recipe=recipe, lr=lr)


def make_recipe(chain: str, generator: np.random.Generator, *, num_frames: int) -> degradations.Recipe:
    """Return the recipe of one of CHAINS for a clip. Raise UserError for another name."""
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
