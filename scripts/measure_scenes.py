"""Measure missed and false scene cuts in images with borders, dim ones, and in motion.

    python scripts/measure_scenes.py [--photographs FOLDER] [--videos FOLDER ...] [--pairs 300]

Cuts are pairs of different photographs; motion, flashes and fades are made from each photograph, and neighbouring
frames of videos are real ones. Without --photographs those in scikit-image are used.
"""

import argparse
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import skimage.data
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from vsrealbasicvsr.engine import is_scene_cut, thumbnail

PHOTOGRAPHS = (
    *("astronaut", "coffee", "cat", "rocket", "camera", "coins", "immunohistochemistry"),
    *("hubble_deep_field", "grass", "gravel", "brick", "moon", "clock", "page"),
)
"""Images in scikit-image that look like photographs."""

LINES = 360
"""Height of a photograph, more or less."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Framing:
    """An image inside a frame.

    Attributes:
        frame: Height and width.
        picture: Height and width of the image.
        corner: Row and column of its upper left corner; None: in the middle.
    """

    frame: tuple[int, int]
    picture: tuple[int, int]
    corner: tuple[int, int] | None = None


FRAMINGS = {
    "16:9": Framing(frame=(180, 320), picture=(180, 320)),
    "4:3": Framing(frame=(240, 320), picture=(240, 320)),
    "2.39 in 16:9": Framing(frame=(180, 320), picture=(134, 320)),
    "2.39 in 4:3": Framing(frame=(240, 320), picture=(134, 320)),
    "16:9 in 4:3": Framing(frame=(240, 320), picture=(180, 320)),
    "4:3 in 16:9": Framing(frame=(180, 320), picture=(180, 240)),
    "9:16 in 16:9": Framing(frame=(180, 320), picture=(180, 101)),
    "16:9 in 9:16": Framing(frame=(320, 180), picture=(101, 180)),
    "on all sides": Framing(frame=(240, 320), picture=(135, 240)),
    "below only": Framing(frame=(180, 320), picture=(150, 320), corner=(0, 0)),
    "on the left only": Framing(frame=(180, 320), picture=(180, 260), corner=(0, 60)),
    "8 black columns": Framing(frame=(240, 320), picture=(240, 312), corner=(0, 4)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """Brightness, border and text of a frame.

    Attributes:
        gain: Brightness of the image.
        border: Grey of the border.
        noise: Of the border, as left by a codec.
        has_text: A logo and a line of subtitles are drawn over the frame.
    """

    gain: float = 1.0
    border: float = 0.0
    noise: float = 0.0
    has_text: bool = False


LOOKS = {
    "plain": Look(),
    "dim, 0.4": Look(gain=0.4),
    "dim, 0.2": Look(gain=0.2),
    "grey borders": Look(border=0.3),
    "noise, logo, subtitles": Look(noise=1.5 / 255, has_text=True),
    "the same, dim": Look(gain=0.4, noise=1.5 / 255, has_text=True),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """Motion of the camera from one frame to the next: shares of the view to the right and down, a factor, degrees."""

    right: float = 0.0
    down: float = 0.0
    zoom: float = 1.0
    degrees: float = 0.0


MOVES: dict[str, Callable[[np.random.Generator], Move]] = {
    "still, with noise": lambda _: Move(),
    "pan of 3 %": lambda rng: Move(right=0.03 * rng.choice((-1, 1))),
    "pan of 7 %": lambda rng: Move(right=0.07 * rng.choice((-1, 1))),
    "tilt of 5 %": lambda rng: Move(down=0.05 * rng.choice((-1, 1))),
    "zoom of 4 %": lambda rng: Move(zoom=rng.choice((0.96, 1.04))),
    "zoom of 8 %": lambda rng: Move(zoom=rng.choice((0.92, 1.08))),
    "shaking": lambda rng: Move(right=rng.normal(0, 0.025), down=rng.normal(0, 0.025), degrees=rng.normal()),
}

CHANGES: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "flash, 0.6 x + 0.4": lambda x, _: (x, 0.6 * x + 0.4),
    "flash, 2 x, cut off": lambda x, _: (x, (2 * x).clamp(max=1)),
    "fade, x to x / 2": lambda x, _: (x, x / 2),
    "fade, x / 5 to x / 10": lambda x, _: (x / 5, x / 10),
    "cross-fade, first 12 %": lambda x, y: (x, 0.88 * x + 0.12 * y),
    "cross-fade, 45 to 55 %": lambda x, y: (0.55 * x + 0.45 * y, 0.45 * x + 0.55 * y),
    "cross-fade, 40 to 60 %": lambda x, y: (0.6 * x + 0.4 * y, 0.4 * x + 0.6 * y),
    "cross-fade, 25 to 50 %": lambda x, y: (0.75 * x + 0.25 * y, 0.5 * x + 0.5 * y),
}


def photograph(image: np.ndarray) -> Tensor:
    """Return an image's luma, (H, W) in [0, 1], of some 360 lines."""
    grey = torch.from_numpy(np.asarray(Image.fromarray(image).convert("L"), np.float32) / 255)
    factor = LINES / min(grey.shape)
    size = tuple(max(round(length * factor), LINES) for length in grey.shape)
    return F.interpolate(grey[None, None], size=size, mode="bilinear", antialias=True)[0, 0]


def photographs(folder: Path | None) -> list[Tensor]:
    """Return the photographs in a folder, or scikit-image's."""
    if folder is None:
        return [photograph(_eight_bits(getattr(skimage.data, name)())) for name in PHOTOGRAPHS]
    paths = sorted(path for path in folder.iterdir() if path.suffix in {".webp", ".png", ".jpg"})
    return [photograph(np.asarray(Image.open(path).convert("RGB"))) for path in paths]


def _eight_bits(image: np.ndarray) -> np.ndarray:
    return image if image.dtype == np.uint8 else (image / image.max() * 255).astype(np.uint8)


def view(picture: Tensor, size: tuple[int, int], move: Move | None = None, *, share: float = 0.72) -> Tensor:
    """Return the image's middle as a camera sees it, filling a view.

    Args:
        picture: (H, W).
        size: Height and width of the view.
        move: Motion of the camera; None: none.
        share: Part of the image that is seen without motion; below 1 leaves room to move.
    """
    move = move or Move()
    height, width = size
    scale = min(picture.shape[0] / height, picture.shape[1] / width) * share
    smaller = tuple(max(round(length / max(scale, 1)), 1) for length in picture.shape)
    seen = F.interpolate(picture[None, None], size=smaller, mode="bilinear", antialias=True)
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    y, x, angle = y - height / 2, x - width / 2, torch.tensor(move.degrees).deg2rad()
    factor = min(scale, 1.0) * move.zoom
    across = factor * (x * angle.cos() - y * angle.sin()) + move.right * width * min(scale, 1.0)
    down = factor * (x * angle.sin() + y * angle.cos()) + move.down * height * min(scale, 1.0)
    grid = torch.stack((across * 2 / smaller[1], down * 2 / smaller[0]), dim=-1)[None].float()
    return F.grid_sample(seen, grid, padding_mode="reflection", align_corners=False)[0, 0]


def framed(picture: Tensor, framing: Framing, look: Look, *, seed: int = 0) -> Tensor:
    """Return a frame (3, H, W) that shows the image."""
    (height, width), (picture_height, picture_width) = framing.frame, framing.picture
    y, x = framing.corner or ((height - picture_height) // 2, (width - picture_width) // 2)
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, 1, height // 4, width // 4, generator=generator) * look.noise
    frame = look.border + F.interpolate(coarse, size=(height, width), mode="bilinear")[0, 0]
    frame[y : y + picture_height, x : x + picture_width] = picture * look.gain
    if look.has_text:
        frame = torch.maximum(frame, _text(height, width))
    return frame.clamp(0, 1).expand(3, -1, -1)


def _text(height: int, width: int) -> Tensor:
    """Draw a logo in the upper right corner and a line of subtitles, (H, W)."""
    image = Image.new("L", (width, height))
    draw = ImageDraw.Draw(image)
    draw.rectangle((int(width * 0.86), int(height * 0.04), int(width * 0.94), int(height * 0.12)), fill=200)
    font = ImageFont.load_default(max(min(height // 16, width // 20), 6))
    draw.text((width / 2, height * 0.97), "It was the best of times", fill=255, anchor="ms", font=font)
    return torch.from_numpy(np.asarray(image, np.float32) / 255)


def missed_cuts(views: Sequence[Tensor], framing: Framing, look: Look, *, num_pairs: int) -> tuple[int, int]:
    """Count the pairs of different views that are taken for one scene. Return this number and that of all pairs."""
    thumbnails = [thumbnail(framed(one, framing, look, seed=seed)) for seed, one in enumerate(views)]
    pairs = list(itertools.permutations(range(len(views)), 2))
    chosen = np.random.default_rng(0).permutation(len(pairs))[:num_pairs]
    return sum(not is_scene_cut(*(thumbnails[i] for i in pairs[k])) for k in chosen), len(chosen)


def false_cuts(pictures: Sequence[Tensor], framing: Framing, look: Look) -> Iterator[tuple[str, bool]]:
    """Yield pairs of frames of one scene, several of each image: their kind, and whether a cut is found."""
    rng = np.random.default_rng(0)
    noise = torch.Generator().manual_seed(0)

    def seen(first: Tensor, second: Tensor) -> bool:
        one, other = (framed(picture, framing, look, seed=seed) for seed, picture in enumerate((first, second)))
        return is_scene_cut(thumbnail(one), thumbnail(other + 0.01 * torch.randn(other.shape, generator=noise)))

    views = [view(picture, framing.picture) for picture in pictures]
    for number, picture in enumerate(pictures):
        for name, make in MOVES.items():
            yield name, seen(views[number], view(picture, framing.picture, make(rng)))
        for name, change in CHANGES.items():
            yield name, seen(*change(views[number], views[number - 1]))


def read_frames(path: Path) -> list[Tensor]:
    """Read the frames of a video as `photograph` returns them, 240 at most."""
    with av.open(str(path)) as container:
        frames = itertools.islice(container.decode(video=0), 240)
        return [photograph(frame.to_ndarray(format="rgb24")) for frame in frames]


def measure_videos(paths: Sequence[Path]) -> None:
    """Print how many cuts are found between neighbouring frames of videos, each of which shows one scene."""
    print("\n| neighbouring frames of | frames apart | pairs | taken for cuts |\n|---|---|---|---|")
    for path in paths:
        frames = read_frames(path)
        for apart in (1, 3):
            found = num = 0
            for name in ("16:9", "2.39 in 4:3", "4:3 in 16:9", "9:16 in 16:9"):
                framing = FRAMINGS[name]
                views = [view(frame, framing.picture, share=1.0) for frame in frames]
                seen = [thumbnail(framed(one, framing, LOOKS["dim, 0.4"])) for one in views]
                pairs = list(zip(seen, seen[apart:], strict=False))
                found, num = found + sum(is_scene_cut(*pair) for pair in pairs), num + len(pairs)
            print(f"| {path.name} | {apart} | {num} | {found / num:.1%} |", flush=True)


def main() -> int:
    """Measure, and print the tables. Return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=Path)
    parser.add_argument("--videos", type=Path, nargs="*", default=[])
    parser.add_argument("--pairs", type=int, default=300, help="of photographs in each framing and look")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # small pictures
    pictures = photographs(arguments.photographs)
    print(f"Missed cuts, of {arguments.pairs} pairs of {len(pictures)} photographs each:\n")
    print(f"| picture | {' | '.join(LOOKS)} |\n|---{'|---' * len(LOOKS)}|")
    for name, framing in FRAMINGS.items():
        views = [view(picture, framing.picture) for picture in pictures]
        counts = [missed_cuts(views, framing, look, num_pairs=arguments.pairs) for look in LOOKS.values()]
        print(f"| {name} | {' | '.join(f'{missed / num:.1%}' for missed, num in counts)} |", flush=True)

    looks = [LOOKS[name] for name in ("plain", "dim, 0.4", "noise, logo, subtitles")]
    framings = [FRAMINGS[name] for name in ("16:9", "2.39 in 16:9", "2.39 in 4:3", "4:3 in 16:9", "9:16 in 16:9")]
    found: dict[str, list[bool]] = {}
    for framing, look in itertools.product(framings, looks):
        for name, is_cut in false_cuts(pictures, framing, look):
            found.setdefault(name, []).append(is_cut)
    print("\n| one scene | pairs | taken for cuts |\n|---|---|---|")
    for name, cuts in found.items():
        print(f"| {name} | {len(cuts)} | {sum(cuts) / len(cuts):.1%} |")
    measure_videos([path for folder in arguments.videos for path in sorted(folder.glob("*.mp4"))])
    return 0


if __name__ == "__main__":
    sys.exit(main())
