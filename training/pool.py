"""A folder of finished clips to train from, made once, so that training does not wait for codecs.

    python -m training.pool --images DIR --videos DIR --out DIR --clips 900 --frames 10 --size 96 --seed 0 --workers 2

Clip i is three files: `000123.hr.npy` uint8 (T, 4h, 4w, 3), `000123.json` (source, recipe) and `000123.lr.npy` uint8
(T, h, w, 3), put in place in this order: where there is an lr file the clip is complete. `pool.json` says how the pool
was made. A clip depends on the plan that stands there and on its index alone, so an interrupted run can go on.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from training.clips import (
    PHOTOGRAPH_SUFFIXES,
    Frames,
    cut_video,
    moved_photograph,
    read_photograph,
    read_photographs,
    read_videos,
)
from training.degradations import SCALE, USUAL, Recipe, Settings, apply, moderate_recipe, sample

HELD_OUT_EVERY = 12
HELD_OUT_VIDEOS = frozenset({"sam2_04_coffee"})
RANDOM = {"random": Settings(), "usual": USUAL}
"""What random recipes are drawn from; "moderate" is the same for every clip."""
CLIPS_PER_VIDEO_CLIP = 7
"""Every 7th clip comes from a video."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolPlan:
    """All that the clips of a pool depend on. `size_px` is the side of the low-resolution square."""

    photographs: tuple[Path, ...]
    videos: tuple[Path, ...]
    num_frames: int
    size_px: int
    seed: int
    recipe: Literal["random", "usual", "moderate"]

    def __post_init__(self) -> None:
        if not self.photographs:
            raise ValueError("PoolPlan: there are no photographs to make clips from. Name a folder that holds some.")
        if self.num_frames < 1 or self.size_px < 8:
            raise ValueError(f"PoolPlan: clips need 1 frame and 8 pixels, got {self.num_frames} and {self.size_px}.")

    def to_json(self) -> str:
        """The plan for people and for comparison: sources by name, not by folder."""
        plain = asdict(self)
        for kind in ("photographs", "videos"):
            plain[kind] = [path.name for path in plain[kind]]
        return (
            json.dumps({**plain, "settings": asdict(RANDOM[self.recipe]) if self.recipe in RANDOM else None}, indent=1)
            + "\n"
        )


def held_out(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """The paths, sorted by name, parted into those to train from and those that training never sees.

    Held out are every 12th photograph, beginning with the first one, and the videos named in HELD_OUT_VIDEOS.
    """
    train: list[Path] = []
    held: list[Path] = []
    num_photographs = 0
    for path in sorted(paths, key=lambda path: path.name):
        if path.suffix.lower() in PHOTOGRAPH_SUFFIXES:
            chosen = num_photographs % HELD_OUT_EVERY == 0
            num_photographs += 1
        else:
            chosen = path.stem in HELD_OUT_VIDEOS
        (held if chosen else train).append(path)
    return train, held


def make_clip(plan: PoolPlan, index: int) -> tuple[Frames, Frames, Recipe, str]:
    """Clip `index` of the plan: lr (T, h, w, 3), hr (T, 4h, 4w, 3), the recipe and the name of the source.

    Raises ValueError, naming the file, if the source cannot be read.
    """
    generator = np.random.default_rng([plan.seed, index])
    side = plan.size_px * SCALE
    shape = {"num_frames": plan.num_frames, "height": side, "width": side}
    if plan.videos and index % CLIPS_PER_VIDEO_CLIP == CLIPS_PER_VIDEO_CLIP - 1:
        source = plan.videos[index // CLIPS_PER_VIDEO_CLIP % len(plan.videos)]
        hr = cut_video(source, **shape, generator=generator)
    else:
        number = index - index // CLIPS_PER_VIDEO_CLIP if plan.videos else index
        source = plan.photographs[number % len(plan.photographs)]
        other = plan.photographs[int(generator.integers(len(plan.photographs)))]
        image = read_photograph(source)
        foreground = read_photograph(other) if generator.random() < 0.5 else None
        hr = moved_photograph(image, **shape, generator=generator, foreground=foreground)
    settings = RANDOM.get(plan.recipe)
    recipe = moderate_recipe(index) if settings is None else sample(settings, generator)
    return apply(recipe, hr), hr, recipe, source.name


def clip_path(folder: Path, index: int, suffix: str) -> Path:
    """Where a file of clip `index` lies: `folder`/000123.`suffix`."""
    return folder / f"{index:06d}.{suffix}"


def is_complete(folder: Path, index: int) -> bool:
    """Whether all three files of the clip are in place."""
    return all(clip_path(folder, index, suffix).exists() for suffix in ("hr.npy", "json", "lr.npy"))


def write_clip(plan: PoolPlan, folder: Path, index: int) -> str | None:
    """None when the clip's files are in place, or why its source could not be used."""
    try:
        lr, hr, recipe, source = make_clip(plan, index)
    except ValueError as error:
        return str(error)
    _write_array(clip_path(folder, index, "hr.npy"), hr)
    _write_text(clip_path(folder, index, "json"), json.dumps({"source": source, "recipe": recipe.to_plain()}) + "\n")
    _write_array(clip_path(folder, index, "lr.npy"), lr)
    return None


def fill_pool(plan: PoolPlan, folder: Path, *, num_clips: int, num_workers: int) -> int:
    """How many of the clips 0 <= i < num_clips are missing in the end because their source was unusable.

    Clips that are there already are left as they are. Progress and failures go to stderr.

    Raises ValueError if the folder holds a pool that was made otherwise.
    """
    folder.mkdir(parents=True, exist_ok=True)
    note = folder / "pool.json"
    if note.exists() and note.read_text() != plan.to_json():
        raise ValueError(f"fill_pool: {folder} holds a pool that was made otherwise, see {note}. Name an empty folder.")
    _write_text(note, plan.to_json())
    missing = [index for index in range(num_clips) if not is_complete(folder, index)]
    # one thread for each worker's matrix products: told through the environment, before the worker imports NumPy
    for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(variable, "1")
    started = time.monotonic()
    num_failed = 0
    work = partial(_write_clip_named, plan, folder)
    with multiprocessing.get_context("spawn").Pool(num_workers, initializer=_start_worker) as workers:
        for done, (index, failure) in enumerate(workers.imap_unordered(work, missing), start=1):
            if failure is not None:
                num_failed += 1
                print(f"\nclip {index} skipped: {failure}", file=sys.stderr)
            rate = done / (time.monotonic() - started)
            end = "\n" if done % 50 == 0 or done == len(missing) else "\r"
            print(f"{done}/{len(missing)} clips, {rate:.2f} a second", end=end, file=sys.stderr, flush=True)
    return num_failed


def _write_clip_named(plan: PoolPlan, folder: Path, index: int) -> tuple[int, str | None]:
    return index, write_clip(plan, folder, index)


def _start_worker() -> None:
    cv2.setNumThreads(1)
    if hasattr(os, "nice"):
        os.nice(10)


def _write_array(path: Path, array: Frames) -> None:
    unfinished = path.with_suffix(".unfinished")
    with unfinished.open("wb") as file:
        np.save(file, array)
    unfinished.replace(path)


def _write_text(path: Path, text: str) -> None:
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(text)
    unfinished.replace(path)


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status of the command line."""
    parser = argparse.ArgumentParser(prog="python -m training.pool", description="Make a pool of training clips.")
    parser.add_argument("--images", type=Path, required=True, help="folder of photographs (.webp, .png, .jpg)")
    parser.add_argument("--videos", type=Path, help="folder of videos; without it all clips come from photographs")
    parser.add_argument("--out", type=Path, required=True, help="folder of the pool, made or continued")
    parser.add_argument("--clips", type=int, required=True, help="number of clips")
    parser.add_argument("--frames", type=int, default=10, help="frames in a clip (default 10)")
    parser.add_argument("--size", type=int, default=96, help="side of the low-resolution frames in pixels (default 96)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="processes (default 2)")
    parser.add_argument("--held-out", action="store_true", help="use the held-out sources instead of the others")
    parser.add_argument("--recipe", choices=("random", "usual", "moderate"), default="random")
    options = parser.parse_args(arguments)
    try:
        side = int(options.held_out)
        plan = PoolPlan(
            photographs=tuple(held_out(read_photographs(options.images))[side]),
            videos=tuple(held_out(read_videos(options.videos))[side]) if options.videos else (),
            num_frames=options.frames,
            size_px=options.size,
            seed=options.seed,
            recipe=options.recipe,
        )
        num_failed = fill_pool(plan, options.out, num_clips=options.clips, num_workers=options.workers)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return 1 if num_failed else 0


if __name__ == "__main__":
    sys.exit(main())
