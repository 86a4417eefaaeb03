"""Applying recipes: torch on the clip's device, codecs on the CPU.

Between steps the frames are a list of pieces (n, 3, h, w), consecutive frames of one size: float32 in [0, 1] with
overshoot, or uint8 where the step before gave bytes. A step that needs bytes clips overshoot first.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from training.degradations import codecs, kernels, noise
from training.degradations.colour import as_bytes, as_floats, planes_from_rgb, rgb_from_planes
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
    Walk,
)
from training.degradations.resizing import resized

type Pieces = list[Tensor]

SCALE = 4
"""Ratio of the clip's size to the degraded clip's."""

_CPU_VALUES = 1 << 18
"""Values in a piece that stay in a CPU's cache while noise and colours are processed. A GPU processes everything at
once."""


def apply(recipe: Recipe, clip: Tensor, *, run_codec: codecs.RunCodec = codecs.run) -> Tensor:
    """Degrade a clip by a recipe.

    Equal recipes and clips give equal bits on equal kinds of device.

    Args:
        recipe: The steps.
        clip: uint8 (T, 3, H, W), H and W multiples of 4; not modified.
        run_codec: Runs codec steps and JPEG, for example in another process; see `codecs.run`.

    Returns:
        The degraded clip, uint8 (T, 3, H / 4, W / 4), on the device of `clip`.

    Raises:
        ValueError: The clip has another layout, or the recipe is for another number of frames or does not end at a
            quarter of the clip's size.
    """
    pieces: Pieces = [clip]
    for _, pieces in apply_steps(recipe, clip, run_codec=run_codec):  # noqa: B007 - the last one counts
        pass
    size = (clip.shape[2] // SCALE, clip.shape[3] // SCALE)
    if any(piece.shape[2:] != size for piece in pieces):
        raise ValueError(
            f"apply: the recipe leaves frames of {[tuple(piece.shape[2:]) for piece in pieces]}, not of {size}."
            " It needs a Resize with scale=None that no other Resize follows."
        )
    return torch.cat([as_bytes(piece) for piece in pieces])


def apply_steps(
    recipe: Recipe, clip: Tensor, *, run_codec: codecs.RunCodec = codecs.run
) -> Iterator[tuple[Step, Pieces]]:
    """Yield each step of the recipe with the frames after it, in pieces; see `apply`.

    The next step may overwrite the frames that were yielded: copy them to keep them.
    """
    _check_clip(recipe, clip)
    size = (clip.shape[2] // SCALE, clip.shape[3] // SCALE)
    pieces: Pieces = [clip]
    for step in recipe.steps:
        match step:
            case Blur() | SincBlur():
                pieces = _blur(step, pieces)
            case Resize():
                pieces = _resize(step, pieces, size)
            case GaussianNoise() | PoissonNoise():
                pieces = _add_noise(step, pieces)
            case ChromaNoise():
                pieces = _add_chroma_noise(step, pieces)
            case Jpeg():
                pieces = _compress_frames(step, pieces, run_codec)
            case VideoCodec():
                pieces = _compress_video(step, pieces, run_codec)
        yield step, pieces


def blur_kernels(step: Blur | SincBlur) -> Tensor:
    """Return the kernels of a blur: (T, size, size), or (T, size) if they are the product of equal rows and columns."""
    if isinstance(step, SincBlur):
        return kernels.sinc_kernels(_tensor(step.cutoff_radians), step.size_px)
    sigma_x, sigma_y = _tensor(step.sigma_x_px), _tensor(step.sigma_y_px)
    angle, beta = _tensor(step.angle_radians), _tensor(step.beta)
    match step.family:
        case "iso":
            return kernels.gaussian_line(sigma_x, step.size_px)
        case "aniso":
            return kernels.gaussian_kernels(sigma_x, sigma_y, angle, step.size_px)
        case "generalized_iso" | "generalized_aniso":
            return kernels.generalised_kernels(sigma_x, sigma_y, angle, beta, step.size_px)
        case "plateau_iso" | "plateau_aniso":
            return kernels.plateau_kernels(sigma_x, sigma_y, angle, beta, step.size_px)


def _blur(step: Blur | SincBlur, pieces: Pieces) -> Pieces:
    device = pieces[0].device
    weights = torch.split(blur_kernels(step).to(device), [len(piece) for piece in pieces])
    return [out for piece, some in zip(pieces, weights, strict=True) for out in kernels.blurred(piece, some)]


def _resize(step: Resize, pieces: Pieces, output_size: tuple[int, int]) -> Pieces:
    num_frames = sum(len(piece) for piece in pieces)
    if step.scale is None:
        sizes = [output_size] * num_frames
    else:
        height, width = pieces[0].shape[2:]
        sizes = [(_even(height * scale), _even(width * scale)) for scale in step.scale]
    out: Pieces = []
    first = 0
    for piece in pieces:
        start = 0
        for size, group in groupby(sizes[first : first + len(piece)]):
            stop = start + len(list(group))
            x = piece[start:stop]
            if size != tuple(x.shape[2:]):
                x = resized(as_floats(x), *size, filter_name=step.filter, antialias=step.antialias)
            out.append(x)
            start = stop
        first += len(piece)
    return out


def _add_noise(step: GaussianNoise | PoissonNoise, pieces: Pieces) -> Pieces:
    device = pieces[0].device
    generator = torch.Generator(device).manual_seed(step.seed)
    out: Pieces = []
    if isinstance(step, GaussianNoise):
        strength = torch.tensor(step.sigma_255, device=device) / 255
    else:
        strength = torch.tensor(step.scale, device=device)
    first = 0
    for piece in _small(pieces):
        x = as_floats(piece)
        some = strength[first : first + len(x)]
        if isinstance(step, GaussianNoise):
            noise.add_gaussian(x, some, grey=step.grey, generator=generator)
        else:
            noise.add_poisson(x, some, grey=step.grey, generator=generator)
        out.append(x)
        first += len(x)
    return out


def _add_chroma_noise(step: ChromaNoise, pieces: Pieces) -> Pieces:
    generator = torch.Generator(pieces[0].device).manual_seed(step.seed)
    sigma = torch.tensor(step.sigma_255, device=pieces[0].device) / 255
    out: Pieces = []
    before: Tensor | None = None
    first = 0
    for piece in pieces:
        if before is not None and piece.shape[2:] != out[-1].shape[2:]:
            before = None  # cells of another size
        x = as_floats(piece).clone() if piece.dtype == torch.float32 else as_floats(piece)
        before = noise.add_chroma(
            x,
            sigma[first : first + len(x)],
            cell_px=step.cell_px,
            before=before,
            persistence=step.persistence,
            generator=generator,
        )
        out.append(x)
        first += len(x)
    return out


def _compress_frames(step: Jpeg, pieces: Pieces, run_codec: codecs.RunCodec) -> Pieces:
    out: Pieces = []
    first = 0
    for piece in _small(pieces):
        some = replace(step, quality=step.quality[first : first + len(piece)])
        coded = run_codec(some, as_bytes(piece).cpu().numpy())
        out.append(torch.from_numpy(coded).to(piece.device))
        first += len(piece)
    return out


def _compress_video(step: VideoCodec, pieces: Pieces, run_codec: codecs.RunCodec) -> Pieces:
    height, width = pieces[0].shape[2:]
    planes = torch.cat([_planes(piece, height, width) for piece in _small(pieces)]).cpu().numpy()
    coded = run_codec(step, planes)
    if coded.shape != planes.shape:
        raise RuntimeError(f"apply: the codec was given {planes.shape} and returned {coded.shape}, {step}.")
    back = torch.from_numpy(coded).to(pieces[0].device)
    return [rgb_from_planes(some)[:, :, :height, :width] for some in _small([back])]


def _planes(piece: Tensor, height: int, width: int) -> Tensor:
    """Return the piece for the encoder, in the size of the clip's first frame, padded by a line where that is odd."""
    if piece.shape[2:] != (height, width):
        # as PyAV does with frames of another size than the first one
        piece = resized(as_floats(piece), height, width, filter_name="bilinear", antialias=True)
    if height % 2 or width % 2:
        piece = F.pad(as_floats(piece), (0, width % 2, 0, height % 2), mode="replicate")
    return planes_from_rgb(piece)


def _small(pieces: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yield the pieces; on a CPU in smaller ones."""
    for piece in pieces:
        if piece.is_cuda:
            yield piece
        else:
            yield from torch.split(piece, max(1, _CPU_VALUES // max(piece[0].numel(), 1)))


def _even(size: float) -> int:
    return max(2, int(size) // 2 * 2)


def _tensor(walk: Walk) -> Tensor:
    return torch.tensor(walk, dtype=torch.float64)


def _check_clip(recipe: Recipe, clip: Tensor) -> None:
    if clip.ndim != 4 or clip.shape[1] != 3 or clip.dtype != torch.uint8 or not clip.numel():
        raise ValueError(f"apply: clip must be uint8 (T, 3, H, W) with T > 0, got {clip.dtype} {tuple(clip.shape)}.")
    if clip.shape[2] % SCALE or clip.shape[3] % SCALE:
        raise ValueError(f"apply: height and width must be multiples of {SCALE}, got {tuple(clip.shape)}. Crop them.")
    if recipe.num_frames not in (None, len(clip)):
        raise ValueError(
            f"apply: the recipe is for {recipe.num_frames} frames, the clip has {len(clip)}."
            f" Draw one with num_frames={len(clip)}."
        )
