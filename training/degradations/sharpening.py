"""Unsharp masks: the published one of the ground truth, and a fine one."""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from training.degradations.kernels import gaussian_line, reflected_index
from training.degradations.streams import stream_of

SIZE_PX = 51
SIGMA_PX = 8.0
WEIGHT = 0.5
THRESHOLD_255 = 10.0

FINE_SIGMA_PX = 2.0
_FINE_SIZE_PX = 13

_LARGEST_LEFT_OUT = 1e-3
"""Largest singular value that is left out, relative to the first: ripples of a Gaussian cut at 51 taps."""
_CPU_FRAMES = 1


def unsharp(clip: Tensor) -> Tensor:
    """Sharpen a clip where it differs from its blurred self by more than the threshold.

    Each frame is sharpened by itself, so sharpening a clip before it is mirrored in time gives the same frames as
    afterwards, at half the cost.

    Args:
        clip: (T, 3, H, W) uint8.

    Returns:
        The same shape and type.

    Raises:
        ValueError: The clip has another layout.
    """
    if clip.ndim != 4 or clip.shape[1] != 3 or clip.dtype != torch.uint8:
        raise ValueError(f"unsharp: clip must be uint8 (T, 3, H, W), got {clip.dtype} {tuple(clip.shape)}.")
    out = torch.empty_like(clip)
    num_frames = max(len(clip), 1) if clip.is_cuda else _CPU_FRAMES
    for some, target in zip(torch.split(clip, num_frames), torch.split(out, num_frames), strict=True):
        x = some.to(torch.float32)
        difference = x - _wide_blur(x)
        edges = _wide_blur((difference.abs() > THRESHOLD_255).to(torch.float32))
        sharp = difference.mul_(WEIGHT).add_(x).clamp_(0, 255)
        target.copy_(x.lerp_(sharp, edges).add_(0.5).clamp_(0, 255))
    return out


def sharpened(frames: Tensor, amount: float) -> Tensor:
    """Sharpen frames by adding `amount` times what a Gaussian of FINE_SIGMA_PX takes away, clipped to [0, 1].

    Edges and fine detail gain contrast; flat areas do not change.

    Args:
        frames: (..., 3, H, W) float32 in [0, 1].
        amount: 0 changes nothing.

    Returns:
        The same shape and type.
    """
    x = frames.flatten(0, -4)
    line = gaussian_line(torch.tensor([FINE_SIGMA_PX]), _FINE_SIZE_PX)[0].to(x.device, x.dtype)
    channels, half = x.shape[1], _FINE_SIZE_PX // 2
    padded = F.pad(x, (half, half, half, half), mode="reflect")
    rows = F.conv2d(padded, line.view(1, 1, -1, 1).repeat(channels, 1, 1, 1), groups=channels)
    blurred = F.conv2d(rows, line.view(1, 1, 1, -1).repeat(channels, 1, 1, 1), groups=channels)
    return torch.lerp(blurred, x, 1 + amount).clamp(0, 1).view_as(frames)


def _wide_blur(x: Tensor) -> Tensor:
    """Return the frames (T, C, H, W) float32, blurred with the mask's Gaussian, reflected at the borders."""
    stream = stream_of(x.device)
    rows_out, rows_in = _blur_factors(x.shape[2], x.device, stream)
    columns_out, columns_in = _blur_factors(x.shape[3], x.device, stream)
    small = torch.matmul(torch.matmul(rows_in, x), columns_in.T)
    return torch.matmul(torch.matmul(rows_out, small), columns_out.T)


@lru_cache(maxsize=64)
def _blur_factors(size: int, device: torch.device, stream: int) -> tuple[Tensor, Tensor]:
    """Return the blur's matrix for a line of `size` pixels as a product (size, rank) (rank, size), float32.

    A wide Gaussian passes few frequencies: of 256 singular values 36 are above 1e-3. Multiplying by two thin matrices
    is several times as fast as 51 taps in either direction.
    """
    line = gaussian_line(torch.tensor([SIGMA_PX]), SIZE_PX)[0]
    index = reflected_index(size, SIZE_PX // 2, torch.device("cpu"))
    blur = torch.zeros(size, size, dtype=torch.float64)
    for tap, weight in enumerate(line):
        blur[torch.arange(size), index[tap : tap + size]] += weight
    left, strengths, right = torch.linalg.svd(blur)
    rank = int((strengths > _LARGEST_LEFT_OUT).sum())
    return (left[:, :rank] * strengths[:rank]).float().to(device), right[:rank].float().to(device)
