"""Edges of the cleaned frames' error where the ground truth is plain: codec blocks and bands. Not in the paper."""

import torch
import torch.nn.functional as F
from torch import Tensor

from training.losses.distances import averaged, soft_absolute
from training.losses.kinds import CleaningTensors, Loss, Reach
from vsrealbasicvsr.luma import luma

PLAIN = 2 / 255
"""Change of the ground truth around a pixel at which that pixel counts half: two steps of 8 bits."""
_NEARBY_PX = 2
"""How far around a pixel the ground truth must be plain, in pixels of the input."""
_SPANS_PX = (1, 2, 4, 8)
"""Distances of the pixels that are compared. Codecs make blocks of colour of 16 pixels: an edge that is only made
softer, over a few pixels, still counts in the longer spans."""
_STEP = 1 / 255
"""Changes above this count in proportion, those far below by their square: the height of an edge is what is seen, and a
slow shading is no edge."""
LEAST_CROP_PX = _SPANS_PX[-1] + 1
"""Side of the smallest input that holds all spans."""


def banding_loss(cleaned: Tensor, gt: Tensor) -> Tensor:
    """Return the mean change of the cleaned frames' error over short distances, in plain areas.

    On walls and in skies, codecs leave blocks and bands whose edges are one or two steps of 8 bits high. They are seen,
    but to a pixel loss they are nothing beside the errors in textures. So the changes of the error to the right and
    downwards are taken, in the luma and in both colour differences, over 1 to 8 pixels; a change over k pixels counts
    1 / sqrt(k).

    Args:
        cleaned: The cleaned clip (N, T, 3, H, W) in [0, 1].
        gt: The ground truth (N, T, 3, S*H, S*W).
    """
    target = averaged(gt, gt.shape[-1] // cleaned.shape[-1])
    error, plain = _planes(cleaned - target), plainness(target)
    found = []
    for span_px in _SPANS_PX:
        for axis in (-1, -2):
            first, second = (slice(None, -span_px), slice(span_px, None))
            weight = torch.minimum(_along(plain, axis, first), _along(plain, axis, second))
            change = _along(error, axis, second) - _along(error, axis, first)
            found.append((soft_absolute(change, _STEP) * weight).mean() / span_px**0.5)
    return torch.stack(found).mean()


def plainness(frames: Tensor) -> Tensor:
    """Return how plain frames (N, T, 3, H, W) are around each pixel, (N*T, 1, H, W): 1 on a wall, 0 in texture.

    It is 1 / (1 + (g / PLAIN)^4), where g is the largest change between neighbours nearby, in the luma and in both
    colour differences.
    """
    planes = _planes(frames)
    right = F.pad(planes[..., :, 1:] - planes[..., :, :-1], (0, 1))
    down = F.pad(planes[..., 1:, :] - planes[..., :-1, :], (0, 0, 0, 1))
    largest = torch.cat((right, down), dim=1).abs().amax(dim=1, keepdim=True)
    nearby = F.max_pool2d(largest, 2 * _NEARBY_PX + 1, stride=1, padding=_NEARBY_PX)
    return 1 / (1 + (nearby / PLAIN) ** 4)


def _along(planes: Tensor, axis: int, part: slice) -> Tensor:
    return planes[..., part] if axis == -1 else planes[..., part, :]


def _planes(clip: Tensor) -> Tensor:
    """Return the luma, and red and blue less the luma: (N, T, 3, H, W) to (N*T, 3, H, W)."""
    rgb = clip.flatten(0, 1).float()
    y = luma(rgb).unsqueeze(1)
    return torch.cat([y, rgb[:, :1] - y, rgb[:, 2:] - y], dim=1)


LOSS: Loss[CleaningTensors] = Loss(
    compute=lambda tensors: banding_loss(tensors.cleaned, tensors.gt),
    reaches=Reach.CLEANING,
)
