"""Show what the degradations do to a clip: a contact sheet, a row for each step, and the recipe as JSON."""

import argparse
from dataclasses import replace
from itertools import islice, takewhile
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from training import degradations
from training.data.sources import TimedFrame, read_video
from training.degradations import Jpeg, Pieces, Recipe, VideoCodec
from training.degradations.codecs import Planes, decode, encode, run_jpeg
from vsrealbasicvsr.errors import UserError
from vsrealbasicvsr.whole_file import whole_file

type Picture = npt.NDArray[np.uint8]

SETTINGS = {"published": degradations.PUBLISHED, "moderate": degradations.MODERATE}
LARGEST_PX = 512

_NUM_COLUMNS = 4
_LABEL_HEIGHT_PX = 22
_MARGIN_PX = 4
_TEXT_SCALE = 0.45


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m training degrade`."""
    parser.add_argument("clip", type=Path, help="a video file")
    parser.add_argument("--seed", type=int, default=0, help="of the recipe (default 0)")
    parser.add_argument("--frames", type=int, default=30, help="how many, from the start (default 30)")
    parser.add_argument(
        "--settings", choices=sorted(SETTINGS), default="published", help="what the recipe is drawn from"
    )
    parser.add_argument("--recipe", type=Path, help="apply this recipe.json instead of drawing one")
    parser.add_argument(
        "--unsharp", action=argparse.BooleanOptionalAction, default=True, help="sharpen first, as training"
    )
    parser.add_argument("--stochastic", action=argparse.BooleanOptionalAction, default=True, help="let values walk")
    parser.add_argument("--out", type=Path, default=Path(), help="for degraded.png and recipe.json (default: here)")


def run(arguments: argparse.Namespace) -> int:
    """Write both files and print the recipe.

    Returns:
        The exit status, 0.

    Raises:
        UserError: The clip or the recipe cannot be used.
        OSError: The folder cannot be written.
    """
    if arguments.seed < 0:
        raise UserError(f"--seed must be at least 0, got {arguments.seed}")
    clip = read_clip(arguments.clip, num_frames=arguments.frames)
    recipe = _recipe(arguments, num_frames=len(clip))
    sheet = contact_sheet(recipe, clip, unsharp=arguments.unsharp)
    fine, png = cv2.imencode(".png", sheet[:, :, ::-1])
    if not fine:
        raise UserError(f"degrade: OpenCV cannot write a PNG of {sheet.shape[1]}x{sheet.shape[0]}. Cut the clip first.")
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, content in (("recipe.json", f"{recipe.to_json(indent=1)}\n".encode()), ("degraded.png", png.tobytes())):
        with whole_file(arguments.out / name) as file:
            file.write(content)
    print(recipe)
    print(f"written: {arguments.out / 'degraded.png'}, {arguments.out / 'recipe.json'}")
    return 0


def read_clip(path: Path, *, num_frames: int) -> Tensor:
    """Read the first frames of a video, cropped around the middle to multiples of 4 up to LARGEST_PX.

    Gaps are skipped; a change of size ends the clip.

    Args:
        path: The video.
        num_frames: Maximum number of frames.

    Returns:
        uint8 (T, 3, H, W).

    Raises:
        UserError: The video cannot be read or is smaller than 16 pixels, or num_frames is below 1.
    """
    if num_frames < 1:
        raise UserError(f"read_clip: asked for {num_frames} frames. Ask for 1 or more.")
    if not path.is_file():
        raise UserError(f"there is no file {path}. Name a video file.")
    try:
        decoded = (item.picture for item in read_video(path) if isinstance(item, TimedFrame))
        taken = list(islice(decoded, num_frames))
    except UserError as error:  # its advice is for a folder of many files
        reason, _, _ = str(error).removeprefix("read_video: ").partition(". Leave it out")
        raise UserError(f"{reason}. Name another video file, or encode it again.") from None
    if not taken:
        raise UserError(f"{path}: no frame can be decoded. Name another video file.")
    alike = list(takewhile(lambda picture: picture.shape == taken[0].shape, taken))
    frames = np.stack(alike)
    height, width = (min(size, LARGEST_PX) // 4 * 4 for size in frames.shape[1:3])
    if min(height, width) < 16:
        raise UserError(
            f"read_clip: {path} is {frames.shape[2]}x{frames.shape[1]}, smaller than 16 pixels. Take another."
        )
    top, left = (frames.shape[1] - height) // 2, (frames.shape[2] - width) // 2
    cut = frames[:, top : top + height, left : left + width]
    return torch.from_numpy(np.ascontiguousarray(cut.transpose(0, 3, 1, 2)))


def contact_sheet(recipe: Recipe, clip: Tensor, *, unsharp: bool) -> Picture:
    """Draw the clip before and after each step of a recipe, a row for each, with what the step does.

    Columns are frames from the first to the last; smaller ones are enlarged without smoothing.

    Args:
        recipe: Of the degradation.
        clip: (T, 3, H, W) uint8.
        unsharp: Sharpen the clip first.

    Returns:
        An image (H, W, 3), RGB.
    """
    height, width = clip.shape[2:]
    shown = np.unique(np.linspace(0, len(clip) - 1, _NUM_COLUMNS).round().astype(int))
    rows = [_row(f"input, frames {', '.join(str(number) for number in shown)}", [clip], shown, height, width)]
    if unsharp:
        clip = degradations.unsharp(clip)
        rows.append(_row("unsharp mask", [clip], shown, height, width))
    spent: list[str] = []

    def run_codec(step: VideoCodec | Jpeg, planes: Planes) -> Planes:
        if isinstance(step, Jpeg):
            return run_jpeg(step, planes)
        encoded = encode(step, planes)
        spent.append(f" -> {encoded.encoder}, {encoded.num_bits / len(planes):.0f} bits a frame")
        return decode(step, encoded, shape=planes.shape)

    for number, (step, pieces) in enumerate(degradations.apply_steps(recipe, clip, run_codec=run_codec), start=1):
        label = f"{number} {degradations.describe(step)}{spent.pop() if spent else ''}"
        rows.append(_row(label, pieces, shown, height, width))
    return np.concatenate(rows)


def _recipe(arguments: argparse.Namespace, *, num_frames: int) -> Recipe:
    if arguments.recipe is not None:
        try:
            recipe = Recipe.from_json(arguments.recipe.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text"
            raise UserError(
                f"{arguments.recipe} cannot be read ({reason}). Give --recipe a recipe.json that degrade has written."
            ) from None
        if recipe.num_frames not in (None, num_frames):
            raise UserError(
                f"{arguments.recipe} is for {recipe.num_frames} frames, the clip has {num_frames}."
                f" Give --frames {recipe.num_frames} and a clip that has as many."
            )
        return recipe
    settings = SETTINGS[arguments.settings]
    generator = np.random.default_rng(arguments.seed)
    return degradations.sample(replace(settings, stochastic=arguments.stochastic), generator, num_frames=num_frames)


def _row(label: str, pieces: Pieces, shown: npt.NDArray[np.int64], height: int, width: int) -> Picture:
    frames = [degradations.as_bytes(frame) for piece in pieces for frame in piece]
    sizes = sorted({(frame.shape[2], frame.shape[1]) for frame in frames})
    size = " to ".join("{}x{}".format(*size) for size in (sizes[:1] if len(sizes) == 1 else (sizes[0], sizes[-1])))
    text = np.full((_LABEL_HEIGHT_PX, len(shown) * (width + _MARGIN_PX), 3), 32, dtype=np.uint8)
    words = f"{label}   [{size}]"
    (needed, _), _ = cv2.getTextSize(words, cv2.FONT_HERSHEY_SIMPLEX, _TEXT_SCALE, 1)
    scale = _TEXT_SCALE * min(1.0, (text.shape[1] - 8) / needed)
    cv2.putText(text, words, (4, 15), cv2.FONT_HERSHEY_SIMPLEX, scale, (255, 255, 255), 1, cv2.LINE_AA)
    cells = []
    for number in shown:
        picture = np.ascontiguousarray(frames[number].permute(1, 2, 0).numpy())
        cells.append(cv2.resize(picture, (width, height), interpolation=cv2.INTER_NEAREST))
        cells.append(np.full((height, _MARGIN_PX, 3), 32, dtype=np.uint8))
    return np.concatenate([text, np.concatenate(cells, axis=1)])
