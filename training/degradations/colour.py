"""Conversion to 8 bits, and to the planes that video codecs take.

Planes are those of yuv420p, one above the other: (T, 3 H / 2, W) uint8, BT.601, limited range, a colour sample in the
middle of its 2 x 2 pixels. swscale's conversion is not used because, with PyAV's flags, it makes every frame about
1/255 darker, and a network would learn to make all video brighter. This one also runs on the frames' device, and halves
what is transferred.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vsrealbasicvsr.luma import BLUE, GREEN, RED, lean_luma

_LUMA_RANGE, _COLOUR_RANGE = 219.0, 224.0
_LUMA_ZERO, _COLOUR_ZERO = 16.0, 128.0
_RED_PER_V, _BLUE_PER_U = 2 * (1 - RED), 2 * (1 - BLUE)


def as_bytes(x: Tensor) -> Tensor:
    """Return frames as uint8. Overshoot of float32 frames in [0, 1] is clipped before rounding."""
    if x.dtype == torch.uint8:
        return x
    return x.mul(255).add_(0.5).clamp_(0, 255).to(torch.uint8)


def as_floats(x: Tensor) -> Tensor:
    """Return frames as float32 in [0, 1]; float32 frames are returned themselves."""
    return x.to(torch.float32).mul_(1 / 255) if x.dtype == torch.uint8 else x


def planes_from_rgb(x: Tensor) -> Tensor:
    """Return the planes of frames (T, 3, H, W) of even size, float32 in [0, 1] or uint8; overshoot is clipped first."""
    num_frames, _, height, width = x.shape
    x, white = (x.to(torch.float32), 255.0) if x.dtype == torch.uint8 else (x.clamp(0, 1), 1.0)
    out = torch.empty((num_frames, height * 3 // 2, width), dtype=torch.uint8, device=x.device)
    luma = lean_luma(x).mul_(_LUMA_RANGE / white).add_(_LUMA_ZERO + 0.5)
    out[:, :height] = luma  # the cast truncates; with the added half it rounds
    rows = x[:, :, 0::2] + x[:, :, 1::2]
    small = rows[..., 0::2].add_(rows[..., 1::2])  # sums of four
    difference = small[:, [2, 0]].sub_(lean_luma(small)[:, None])  # blue and red against the luma: U and V
    per_u = _COLOUR_RANGE / (4 * white)
    difference[:, 0].mul_(per_u / _BLUE_PER_U)
    difference[:, 1].mul_(per_u / _RED_PER_V)
    out[:, height:].view(num_frames, 2, height // 2, width // 2).copy_(difference.add_(_COLOUR_ZERO + 0.5))
    return out


def rgb_from_planes(planes: Tensor) -> Tensor:
    """Return the frames (T, 3, H, W) of planes, float32 in [0, 1]; colour is interpolated linearly."""
    num_frames, width = len(planes), planes.shape[2]
    height = planes.shape[1] * 2 // 3
    luma = planes[:, :height].to(torch.float32).sub_(_LUMA_ZERO).mul_(1 / _LUMA_RANGE)
    small = planes[:, height:].reshape(num_frames, 2, height // 2, width // 2).to(torch.float32)
    small.sub_(_COLOUR_ZERO).mul_(1 / _COLOUR_RANGE)
    u, v = F.interpolate(small, size=(height, width), mode="bilinear", align_corners=False).unbind(1)
    out = torch.empty((num_frames, 3, height, width), dtype=torch.float32, device=planes.device)
    red, green, blue = out.unbind(1)
    torch.add(luma, v, alpha=_RED_PER_V, out=red)
    torch.add(luma, u, alpha=_BLUE_PER_U, out=blue)
    torch.sub(luma, u, alpha=_BLUE_PER_U * BLUE / GREEN, out=green)
    green.sub_(v, alpha=_RED_PER_V * RED / GREEN)
    return out.clamp_(0, 1)
