"""Views of a clip for the discriminator and the perceptual network, a few at a time, and the clip's motion."""

import torch
from torch import Tensor

from training.discriminators.patch import PatchDiscriminator
from training.discriminators.unet import UNetDiscriminator
from training.losses.distances import averaged
from training.losses.kinds import Flows
from vsrealbasicvsr.model import RealBasicVSR

FRAMES_AT_ONCE = 8


FRAMES_AT_ONCE_GPU = 64
"""Frames that the perceptual network and the discriminator see at a time, on a GPU; changes memory, not results."""


type Discriminator = UNetDiscriminator | PatchDiscriminator


@torch.no_grad()
def motion_of(model: RealBasicVSR, gt: Tensor) -> Flows:
    """Return the flows between neighbouring frames of the ground truth, by the network's own flow network.

    Args:
        model: Its flow network gets no gradient.
        gt: (N, T, 3, S*H, S*W), T >= 2.

    Returns:
        Flows at the size of the input, see `Flows`.
    """
    small = averaged(gt, model.sizes.scale)
    onto_next, onto_previous = model.flows(small[:, :-1].flatten(0, 1), small[:, 1:].flatten(0, 1))
    shape = (small.shape[0], -1, 2, *small.shape[-2:])
    return onto_next.view(shape), onto_previous.view(shape)


def sees_neighbours(discriminator: Discriminator | None) -> bool:
    """Return whether the discriminator needs the motion of the clip."""
    return isinstance(discriminator, PatchDiscriminator) and discriminator.num_frames > 1


def frames_at_once_on(device: torch.device) -> int:
    """Return the number of views that are processed at once on this device."""
    return FRAMES_AT_ONCE if device.type == "cpu" else FRAMES_AT_ONCE_GPU


def views_of(discriminator: Discriminator | None, hr: Tensor, lr: Tensor | None, flows_px: Flows | None) -> Tensor:
    """Return the discriminator's views of a clip, one for each frame: (N * T, C, H, W).

    Args:
        discriminator: None, or a U-Net, sees single frames.
        hr: The clip, (N, T, 3, H, W).
        lr: The input; a patch discriminator needs it.
        flows_px: Motion of the ground truth; a patch discriminator of three frames needs it.
    """
    if not isinstance(discriminator, PatchDiscriminator):
        return hr.flatten(0, 1)
    if lr is None:
        raise ValueError("discriminator_step: a patch discriminator looks at the input too: give lr")
    return discriminator.views(hr, lr, flows_px)


def judged(discriminator: Discriminator, views: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return the discriminator's logits and features; the U-Net has no features to be matched."""
    if isinstance(discriminator, PatchDiscriminator):
        return discriminator(views)  # type: ignore[no-any-return]
    return discriminator(views), []


def parts_of(num_frames: int, frames_at_once: int) -> list[slice]:
    """Return slices of at most frames_at_once frames: 5 by 2 are 0..1, 2..3, 4."""
    if frames_at_once < 1:
        raise ValueError(f"frames_at_once must be at least 1, got {frames_at_once}")
    return [slice(first, first + frames_at_once) for first in range(0, num_frames, frames_at_once)]
