"""Blur kernels of the seven published families, one for each frame, and blurring with them.

Kernels are (T, size, size), size odd, centred, and sum to 1. x counts to the right, y downwards; an angle turns from x
towards y. Sources: Real-ESRGAN, 2021, 3.1 (families, after Liu et al., 2020) and 3.2 (sinc).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

NEGLIGIBLE = 1e-4
"""Share of a kernel below which outer taps are not computed: 1/40 of an 8-bit level."""

_CPU_FRAMES = 16
"""Frames that are blurred at once on a CPU: 48 channels, a multiple of the 16 that the grouped convolution processes
at a time. Measured at 256 x 256, 21 x 21 taps, 30 frames: 42 ms; frame by frame 180 ms."""

_TWO_PASSES_ABOVE = 9
"""Maximum number of taps that a CPU filters faster in one pass than in two."""


def gaussian_line(sigma_px: Tensor, size: int) -> Tensor:
    """Return Gaussians on a line, (T, size) float64, each of which sums to 1; sigma_px (T)."""
    _check_size(size)
    offsets = _offsets(size, sigma_px.device)
    line = torch.exp(-0.5 * (offsets / sigma_px.double()[:, None]).square())
    return line / line.sum(dim=1, keepdim=True)


def gaussian_kernels(sigma_x_px: Tensor, sigma_y_px: Tensor, angle_radians: Tensor, size: int) -> Tensor:
    """Return exp(-q / 2), q the squared distance in units of the sigmas on axes turned by the angle. All inputs (T)."""
    return _normalised(torch.exp(-0.5 * _squared_distance(sigma_x_px, sigma_y_px, angle_radians, size)))


def generalised_kernels(
    sigma_x_px: Tensor, sigma_y_px: Tensor, angle_radians: Tensor, beta: Tensor, size: int
) -> Tensor:
    """Return exp(-q^beta / 2): peaked with long tails for a small beta, box-like for a large one, Gaussian for 1."""
    q = _squared_distance(sigma_x_px, sigma_y_px, angle_radians, size)
    return _normalised(torch.exp(-0.5 * q.pow(beta.double()[:, None, None])))


def plateau_kernels(sigma_x_px: Tensor, sigma_y_px: Tensor, angle_radians: Tensor, beta: Tensor, size: int) -> Tensor:
    """Return 1 / (1 + q^beta), which is flat in the middle."""
    q = _squared_distance(sigma_x_px, sigma_y_px, angle_radians, size)
    return _normalised(1 / (1 + q.pow(beta.double()[:, None, None])))


def sinc_kernels(cutoff_radians: Tensor, size: int) -> Tensor:
    """Return ideal circular low passes, cut to `size`: ringing, as from sharpening and compression.

    k(r) = w J1(w r) / (2 pi r) (Real-ESRGAN, Eq. 6).

    Args:
        cutoff_radians: w, (T); pi is the highest frequency that pixels hold.
        size: Of the kernels, odd.
    """
    _check_size(size)
    offsets = _offsets(size, cutoff_radians.device)
    radius = torch.hypot(offsets[:, None], offsets)
    cutoff = cutoff_radians.double()[:, None, None]
    away = radius.clamp(min=1)  # the centre is computed separately
    kernels = cutoff * torch.special.bessel_j1(cutoff * away) / (2 * torch.pi * away)
    return _normalised(torch.where(radius == 0, cutoff.square() / (4 * torch.pi), kernels))


def blurred(x: Tensor, kernels: Tensor) -> list[Tensor]:
    """Filter each frame with its own kernel, reflected at the borders.

    Args:
        x: (T, 3, H, W): uint8, or float32 in [0, 1].
        kernels: (T, size, size), or (T, size) for the two passes of a separable one.

    Returns:
        float32 in [0, 1] with overshoot, in pieces along T, which is how a CPU computes them fastest.
    """
    kernels = trimmed(kernels)
    if kernels.ndim == 2 and kernels.shape[1] <= _TWO_PASSES_ABOVE:
        kernels = kernels[:, :, None] * kernels[:, None]
    if x.dtype == torch.uint8:
        kernels = kernels * (1 / 255 if kernels.ndim == 3 else 255**-0.5)
    kernels = kernels.float()
    num_frames = len(x) if x.is_cuda else _CPU_FRAMES
    return [
        _filtered(some, weights)
        for some, weights in zip(torch.split(x, num_frames), torch.split(kernels, num_frames), strict=True)
    ]


def trimmed(kernels: Tensor) -> Tensor:
    """Return the kernels (T, size[, size]) without outer taps of less than NEGLIGIBLE; they sum to 1 again."""
    size = kernels.shape[-1]
    two_dimensional = kernels.ndim == 3
    across = kernels.abs().sum(dim=-2) if two_dimensional else kernels.abs()
    if two_dimensional:
        across = torch.maximum(across, kernels.abs().sum(dim=-1))
    # what lies outside of the middle 2 r + 1 taps, r = 0 .. size // 2, the largest of the frames
    halves = across[:, size // 2 :] + across[:, : size // 2 + 1].flip(1)
    outside = halves.flip(1).cumsum(1).flip(1).amax(dim=0)[1:]
    cut = size // 2 - int((outside >= NEGLIGIBLE).sum())
    if cut == 0:
        return kernels
    inner = kernels[..., cut : size - cut]
    if two_dimensional:
        inner = inner[:, cut : size - cut]
    return inner / inner.sum(dim=tuple(range(1, inner.ndim)), keepdim=True)


def reflected_index(size: int, margin: int, device: torch.device) -> Tensor:
    """Return which of `size` pixels each of size + 2 margin shows: 2 1 | 0 1 2 3 | 2 1, borders not repeated."""
    period = max(2 * (size - 1), 1)
    index = torch.arange(-margin, size + margin, device=device).remainder(period)
    return torch.minimum(index, period - index).clamp(max=size - 1)


def _filtered(x: Tensor, kernels: Tensor) -> Tensor:
    num_frames, num_channels, height, width = x.shape
    margin = kernels.shape[-1] // 2
    num_planes = num_frames * num_channels
    padded = _reflected(x, margin).view(1, num_planes, height + 2 * margin, width + 2 * margin)
    weights = kernels.repeat_interleave(num_channels, dim=0)[:, None]
    if weights.ndim == 4:
        out = F.conv2d(padded, weights, groups=num_planes)
    else:
        out = F.conv2d(padded, weights[..., None], groups=num_planes)
        out = F.conv2d(out, weights[:, :, None], groups=num_planes)
    return out.view(x.shape)


def _reflected(x: Tensor, margin: int) -> Tensor:
    """Return x in float32 with a reflected margin, in one copy: torch's padding takes neither bytes nor tiny frames."""
    height, width = x.shape[2:]
    if margin >= min(height, width):
        rows = reflected_index(height, margin, x.device)
        columns = reflected_index(width, margin, x.device)
        return x[:, :, rows[:, None], columns].float()
    out = torch.empty((*x.shape[:2], height + 2 * margin, width + 2 * margin), dtype=torch.float32, device=x.device)
    out[:, :, margin : margin + height, margin : margin + width] = x
    if margin:
        rows = out[:, :, :, margin : margin + width]
        rows[:, :, :margin] = rows[:, :, margin + 1 : 2 * margin + 1].flip(2)
        rows[:, :, margin + height :] = rows[:, :, height - 1 : margin + height - 1].flip(2)
        out[:, :, :, :margin] = out[:, :, :, margin + 1 : 2 * margin + 1].flip(3)
        out[:, :, :, margin + width :] = out[:, :, :, width - 1 : margin + width - 1].flip(3)
    return out


def _squared_distance(sigma_x_px: Tensor, sigma_y_px: Tensor, angle_radians: Tensor, size: int) -> Tensor:
    """Return (T, size, size) float64: squared distances of the taps from the centre, in sigmas."""
    _check_size(size)
    offsets = _offsets(size, sigma_x_px.device)
    cos, sin = (part.double()[:, None, None] for part in (angle_radians.cos(), angle_radians.sin()))
    along = offsets * cos + offsets[:, None] * sin
    across = offsets[:, None] * cos - offsets * sin
    sigma_x, sigma_y = (sigma.double()[:, None, None] for sigma in (sigma_x_px, sigma_y_px))
    return (along / sigma_x).square() + (across / sigma_y).square()


def _offsets(size: int, device: torch.device) -> Tensor:
    return torch.arange(size, dtype=torch.float64, device=device) - size // 2


def _normalised(kernels: Tensor) -> Tensor:
    return kernels / kernels.sum(dim=(1, 2), keepdim=True)


def _check_size(size: int) -> None:
    if size < 1 or size % 2 == 0:
        raise ValueError(f"kernels: the size must be odd and positive, got {size}.")
