"""Draw images that photographs lack: titles, line art, screens of text, fine stripes, plain walls.

    python scripts/draw_graphics.py OUT [--num 24] [--seed 0]

They are training material for `python -m training prepare`: 1024x768, lossless WebP. The same arguments give the same
images.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageFont

WIDTH, HEIGHT = 1024, 768
SUPERSAMPLING = 2
TEXT = (
    "the quick brown fox jumps over a lazy dog while seven wizards make toxic brew for jovial queen Zoe and King Jack"
    " 0123456789 Chapter Episode directed by music THE END PRESENTS Night Station Exit No. 24 & Sons (1987) Berlin km/h"
)
WORDS = TEXT.split(" ")

type Draw = Callable[[ImageDraw.ImageDraw, np.random.Generator], None]


def colour(generator: np.random.Generator, low: int = 0, high: int = 255) -> tuple[int, int, int]:
    """Return a random RGB colour with all components in [low, high]."""
    red, green, blue = (int(value) for value in generator.integers(low, high + 1, size=3))
    return red, green, blue


def background(generator: np.random.Generator) -> Image.Image:
    """Return a plain colour, a smooth gradient of four, or a wall."""
    size = (WIDTH * SUPERSAMPLING, HEIGHT * SUPERSAMPLING)
    chance = generator.random()
    if chance < 0.2:
        return Image.new("RGB", size, colour(generator))
    if chance < 0.6:
        corners = generator.integers(0, 256, size=(2, 2, 3)).astype(np.uint8)
        return Image.fromarray(corners).resize(size, Image.Resampling.BICUBIC)
    return wall(size, generator)


def wall(size: tuple[int, int], generator: np.random.Generator, *, contrast: float = 1.0) -> Image.Image:
    """Return shades and tints that change slowly, half of the time with grain. Codecs make blocks and bands of them."""
    num = int(generator.integers(3, 14))
    tint = (generator.uniform(50, 215), *generator.normal(128, 12, size=2))
    points = (tint + contrast * generator.normal(0, (14, 4, 4), size=(num, num, 3))).astype(np.float32)
    planes = [Image.fromarray(points[..., i]).resize(size, Image.Resampling.BICUBIC) for i in range(3)]
    ycc = np.stack([np.asarray(plane) for plane in planes], axis=-1)
    if generator.random() < 0.5:
        ycc[..., 0] += generator.normal(0, generator.uniform(1, 8), size=ycc.shape[:2])
    dithered = ycc + generator.uniform(0, 1, size=ycc.shape)
    return Image.fromarray(dithered.clip(0, 255).astype(np.uint8), "YCbCr").convert("RGB")


def outline(generator: np.random.Generator, num_points: int = 160) -> npt.NDArray[np.float64]:
    """Return a random smooth closed curve (num_points, 2), in pixels."""
    turn = np.linspace(0, 2 * np.pi, num_points, endpoint=False)
    radius = np.ones(num_points)
    for order in range(2, 7):
        radius += generator.normal(0, 0.35 / order) * np.cos(order * turn + generator.uniform(0, 2 * np.pi))
    size = np.exp(generator.uniform(np.log(30), np.log(420))) * SUPERSAMPLING
    stretch = generator.uniform(0.4, 1.0)
    centre = generator.uniform(0, 1, size=2) * (WIDTH, HEIGHT) * SUPERSAMPLING
    curve: npt.NDArray[np.float64] = centre + size * np.stack(
        [radius * np.cos(turn), stretch * radius * np.sin(turn)], axis=1
    )
    return curve


def draw_shapes(canvas: ImageDraw.ImageDraw, generator: np.random.Generator, *, most: int = 39) -> None:
    """Draw flat shapes with dark outlines, and loose pen strokes, as in drawn animation."""
    for _ in range(int(generator.integers(min(12, most), most + 1))):
        points = [(float(x), float(y)) for x, y in outline(generator)]
        width = int(generator.integers(1, 8)) * SUPERSAMPLING
        ink = colour(generator, 0, 60)
        if generator.random() < 0.75:
            canvas.polygon(points, fill=colour(generator))
        if generator.random() < 0.8:
            canvas.line([*points, points[0]], fill=ink, width=width, joint="curve")
        else:
            canvas.line(points[: len(points) // 3], fill=ink, width=width, joint="curve")


def draw_titles(canvas: ImageDraw.ImageDraw, generator: np.random.Generator) -> None:
    """Draw a few lines of large text, half of them with an outline of another colour."""
    for _ in range(int(generator.integers(4, 12))):
        size = int(np.exp(generator.uniform(np.log(16), np.log(110)))) * SUPERSAMPLING
        text = " ".join(generator.choice(WORDS, size=int(generator.integers(1, 5))))
        place = (
            float(generator.uniform(-0.05, 0.7) * WIDTH * SUPERSAMPLING),
            float(generator.uniform(0, 0.95) * HEIGHT * SUPERSAMPLING),
        )
        stroke = int(generator.integers(0, 4)) * SUPERSAMPLING if generator.random() < 0.5 else 0
        canvas.text(
            place,
            text if generator.random() < 0.7 else text.upper(),
            fill=colour(generator),
            font=ImageFont.load_default(size),
            stroke_width=stroke,
            stroke_fill=colour(generator),
        )


def draw_screen(canvas: ImageDraw.ImageDraw, generator: np.random.Generator) -> None:
    """Draw windows with small text, lines and fine stripes, as in recordings of screens."""
    for _ in range(int(generator.integers(3, 7))):
        left, top = (
            generator.uniform(0, 0.7) * WIDTH * SUPERSAMPLING,
            generator.uniform(0, 0.7) * HEIGHT * SUPERSAMPLING,
        )
        right, bottom = (
            left + generator.uniform(200, 700) * SUPERSAMPLING,
            top + generator.uniform(120, 500) * SUPERSAMPLING,
        )
        paper, ink = (colour(generator, 200), colour(generator, 0, 70))
        if generator.random() < 0.4:
            paper, ink = ink, paper
        canvas.rectangle((left, top, right, bottom), fill=paper, outline=ink, width=SUPERSAMPLING)
        size = int(generator.integers(11, 26)) * SUPERSAMPLING
        font = ImageFont.load_default(size)
        if generator.random() < 0.3:
            period = int(generator.integers(3, 14)) * SUPERSAMPLING
            for x in range(int(left), int(right), period):
                canvas.line((x, top, x, bottom), fill=ink, width=max(1, period // 2))
            continue
        for y in range(int(top) + SUPERSAMPLING * 4, int(bottom) - size, int(size * 1.4)):
            text = " ".join(generator.choice(WORDS, size=12))
            length = int((right - left) / (0.55 * size))
            canvas.text((left + size / 2, y), text[: max(length - 2, 0)], fill=ink, font=font)


KINDS: tuple[tuple[Draw, ...], ...] = (
    (draw_shapes,),
    (draw_titles,),
    (draw_shapes, draw_titles),
    (draw_screen,),
    (draw_shapes,),
    (draw_screen, draw_titles),
    (),
    (),
)


def picture(number: int, seed: int) -> Image.Image:
    """Return image `number` of a seed, RGB."""
    generator = np.random.default_rng((seed, number))
    image = background(generator)
    canvas = ImageDraw.Draw(image)
    for draw in KINDS[number % len(KINDS)]:
        draw(canvas, generator)
    if generator.random() < 0.3:
        image = image.filter(ImageFilter.GaussianBlur(generator.uniform(0.5, 1.5)))
    return image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)


def plain_wall(number: int, seed: int) -> Image.Image:
    """Return wall `number` of a seed, RGB; flat shapes stand before every third one."""
    generator = np.random.default_rng((seed, number))
    contrast = float(np.exp(generator.uniform(np.log(0.15), np.log(1.0))))
    image = wall((WIDTH * SUPERSAMPLING, HEIGHT * SUPERSAMPLING), generator, contrast=contrast)
    if number % 3 == 0:
        draw_shapes(ImageDraw.Draw(image), generator, most=4)
    return image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)


def main() -> int:
    """Draw the images that the command line asks for. Return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--num", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--walls", action="store_true", help="plain walls alone, for the preset compact-cleaning")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for number in range(arguments.num):
        image = (plain_wall if arguments.walls else picture)(number, arguments.seed)
        name = "wall" if arguments.walls else "graphics"
        image.save(arguments.out / f"{name}_{number:03d}.webp", lossless=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
