"""A network's pictures of a degraded clip, and their scores against the truth. Depends on no files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from training.benchmarking.measured import Way, propagated
from training.benchmarking.naturalness import niqe_of
from training.benchmarking.sequences import pieces
from training.evaluation.enlarging import bicubic
from training.evaluation.metrics import (
    NIQE_PATCH_PX,
    colour_shift_255,
    estimated_motion,
    flicker_255,
    psnr_db,
    to_bytes,
)
from training.evaluation.pairs import Footage, Pair
from training.losses.distances import averaged
from training.studies.report import Bytes
from vsrealbasicvsr.luma import luma
from vsrealbasicvsr.model import RealBasicVSR, refine

MAX_NIQE_FRAMES = 3
ONE_PASS = Way(theta=255.0)
"""One cleaning pass over the whole sequence, as in training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What became of a clip, on the CPU.

    pictures (M, 3, S*H, S*W) of the measured frames, of 8 bits in [0, 1]; cleaned frames (T, 3, H, W); num_passes: the
    cleaning passes of each frame.
    """

    pictures: Tensor
    cleaned: Tensor
    num_passes: Sequence[int]


def spread(num_frames: int, number: int) -> list[int]:
    """Return so many frames in the middles of equal parts of the clip: 3 of 12 are 2, 6, 10."""
    number = min(number, num_frames)
    return sorted({int((place + 0.5) * num_frames / number) for place in range(number)})


def enlarge(model: RealBasicVSR, lr: Tensor, way: Way, measured: Sequence[int]) -> Made:
    """Return the measured frames of the clip lr (T, 3, H, W).

    Pieces of `way.length` do not see each other. A clip is cleaned as a whole, so that a recurrent module sees the
    previous frames of its piece; refinement (Eq. 5) and fixed numbers of passes are of single images.
    """
    device = next(model.parameters()).device
    made: dict[int, Tensor] = {}
    cleaned, num_passes = lr.clone(), [0] * len(lr)
    flags = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    with flags, torch.inference_mode():
        for piece in pieces(len(lr), way.length):
            wanted = {number - piece.start for number in measured if number in piece}
            if not wanted:
                continue
            part, passes = _cleaned(model, lr[piece.start : piece.stop].to(device), way)
            cleaned[piece.start : piece.stop] = part.cpu()
            num_passes[piece.start : piece.stop] = passes
            found = propagated(model, [part[number : number + 1] for number in range(len(part))], wanted)
            made |= {piece.start + number: picture for number, picture in found.items()}
    return Made(pictures=torch.cat([made[number] for number in measured]), cleaned=cleaned, num_passes=num_passes)


def _cleaned(model: RealBasicVSR, lr: Tensor, way: Way) -> tuple[Tensor, list[int]]:
    """Return the piece (T, 3, H, W), cleaned, and the number of passes of each frame."""
    if way.num_passes is None and way.theta < 255:
        refined, passes = refine(model, lr[None], theta=way.theta)
        return refined[0], passes[0].tolist()
    number = 1 if way.num_passes is None else way.num_passes
    for _ in range(number):
        lr = model.clean(lr[None])[0]
    return lr, [number] * len(lr)


def scores_of(made: Made, pair: Pair, measured: Sequence[int]) -> dict[str, Any]:
    """Return the scores of one clip as plain JSON.

    psnr_db of the luma, psnr_by_frame, niqe (of three frames at most), cleaned_db of the cleaned frames against the
    averaged truth, flicker_255 where every frame is measured, colour_shift_255 from bicubic, and chroma_error_255, the
    mean error of the two colour differences. None where there is nothing to measure.
    """
    truth = pair.truth[list(measured)]
    by_frame = [psnr_db(luma(a[None]), luma(b[None])) for a, b in zip(made.pictures, truth, strict=True)]
    few = [made.pictures[number] for number in spread(len(measured), MAX_NIQE_FRAMES)]
    niqes = [niqe_of(picture) for picture in few] if min(truth.shape[-2:]) >= 2 * NIQE_PATCH_PX else []
    there = [value for value in niqes if not math.isnan(value)]
    is_whole = list(measured) == list(range(len(pair.truth))) and len(measured) > 1
    flicker = flicker_255(made.pictures, estimated_motion(pair.truth)) if is_whole else math.nan
    return {
        "clip": pair.name,
        "psnr_db": psnr_db(luma(made.pictures), luma(truth)),
        "psnr_by_frame": by_frame,
        "niqe": float(np.mean(there)) if there else None,
        "cleaned_db": psnr_db(to_bytes(made.cleaned), averaged(pair.truth[None], pair.scale)[0]),
        "flicker_255": None if math.isnan(flicker) else flicker,
        "colour_shift_255": colour_shift_255(made.pictures, to_bytes(bicubic(pair.lr[list(measured)], pair.scale))),
        "chroma_error_255": float((_chroma(made.pictures) - _chroma(truth)).abs().mean()) * 255,
        "num_passes": list(made.num_passes),
    }


def _chroma(frames: Tensor) -> Tensor:
    """Return red and blue less luma, (T, 2, H, W), of frames (T, 3, H, W)."""
    return frames[:, ::2] - luma(frames)[:, None]


def pixels(frame: Tensor) -> Bytes:
    """Return a frame (3, H, W) in [0, 1] as (H, W, 3) of 8 bits."""
    return np.asarray((to_bytes(frame) * 255).round().byte().permute(1, 2, 0).cpu().numpy(), dtype=np.uint8)


def scaled(picture: Bytes, factor: int) -> Bytes:
    """Return a picture with every pixel repeated, as small frames are shown."""
    return np.asarray(picture.repeat(factor, axis=0).repeat(factor, axis=1), dtype=np.uint8)


def png_of(picture: Bytes) -> bytes:
    """Return a picture as a PNG file."""
    fine, encoded = cv2.imencode(".png", np.ascontiguousarray(picture[:, :, ::-1]))
    if not fine:
        raise RuntimeError(f"png_of: OpenCV failed to encode {picture.shape} as PNG.")
    return encoded.tobytes()


def picture_of(content: bytes) -> Bytes | None:
    """Return the picture of a PNG file; None if it is damaged."""
    found = cv2.imdecode(np.frombuffer(content, dtype=np.uint8), cv2.IMREAD_COLOR)
    return None if found is None else np.asarray(found[:, :, ::-1], dtype=np.uint8)


def footage_identity(footage: Sequence[Footage]) -> Mapping[str, Any]:
    """Return what tells these clips from others, as plain JSON."""
    return {"clips": [clip.name for clip in footage], "shape": list(footage[0].truth.shape)}
