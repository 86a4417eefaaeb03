"""The losses (paper, Eq. 1 to 3), and some of ours for short trainings. Knows no network and no gradients' ways."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vsrealbasicvsr.luma import luma
from vsrealbasicvsr.model import SCALE, flow_warp

Distance = Literal["charbonnier", "l1"]

MIN_SQUARED_ERROR = 1e-6
"""A frame that is off by less, 60 dB, teaches nothing more."""

COLOUR_BLOCK_PX = 16
"""Side of the blocks whose colour is held, in pixels of the input."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossWeights:
    """What each loss is multiplied with; the defaults are the paper's, and 0 switches a loss off.

    Perceptual and adversarial count where their networks are given: without them this is stage 1.
    """

    output: float = 1.0
    cleaning: float = 1.0
    perceptual: float = 1.0
    adversarial: float = 0.05
    squared_error: float = 0.0
    psnr: float = 0.0
    colour: float = 0.0
    flicker: float = 0.0
    rest: float = 0.0
    flow_rest: float = 0.0
    feature_matching: float = 0.0


# ---- the paper's -----------------------------------------------------------------------------------------------------


def charbonnier(a: Tensor, b: Tensor, *, epsilon: float = 1e-3) -> Tensor:
    """The mean of sqrt((a - b)^2 + epsilon^2): the paper's rho, an L1 that is smooth at zero."""
    return ((a - b).square() + epsilon**2).sqrt().mean()


def l1(a: Tensor, b: Tensor) -> Tensor:
    """The mean of |a - b|: what the published code takes for rho."""
    return F.l1_loss(a, b)


def output_loss(hr: Tensor, truth: Tensor, *, distance: Distance = "charbonnier") -> Tensor:
    """Distance of the super-resolved clip to the ground truth, both (N, T, 3, S*H, S*W)."""
    return _between(hr, truth, distance)


def cleaning_loss(cleaned: Tensor, truth: Tensor, *, distance: Distance = "charbonnier") -> Tensor:
    """Distance of the cleaned clip (N, T, 3, H, W) to the ground truth (N, T, 3, S*H, S*W), averaged by S x S."""
    return _between(cleaned, averaged(truth), distance)


def averaged(truth: Tensor) -> Tensor:
    """The ground truth (N, T, 3, S*H, S*W) at the size of the input: (N, T, 3, H, W), each value the mean of S x S."""
    small = F.avg_pool2d(truth.flatten(0, 1), SCALE)
    return small.view(*truth.shape[:2], *small.shape[1:])


def generator_adversarial_loss(logits_fake: Tensor) -> Tensor:
    """How far the discriminator is from calling every pixel of the output real: binary cross-entropy with logits."""
    return F.binary_cross_entropy_with_logits(logits_fake, torch.ones_like(logits_fake))


def discriminator_loss(logits_real: Tensor, logits_fake: Tensor) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy of (real pictures against 1, fake ones against 0); the published code adds the two."""
    real = F.binary_cross_entropy_with_logits(logits_real, torch.ones_like(logits_real))
    fake = F.binary_cross_entropy_with_logits(logits_fake, torch.zeros_like(logits_fake))
    return real, fake


def hinge_generator_loss(logits_fake: Tensor) -> Tensor:
    """How far a discriminator trained with `hinge_discriminator_loss` is from calling the output real."""
    return -logits_fake.mean()


def hinge_discriminator_loss(logits_real: Tensor, logits_fake: Tensor) -> tuple[Tensor, Tensor]:
    """(real, fake): nothing is gained beyond 1 for real and -1 for fake pictures (Lim and Ye, 2017)."""
    return F.relu(1 - logits_real).mean(), F.relu(1 + logits_fake).mean()


def feature_matching_loss(fake: list[Tensor], real: list[Tensor]) -> Tensor:
    """Mean distance of a discriminator's features of the output to those of the truth (Wang et al., CVPR 2018)."""
    return torch.stack([l1(a.float(), b.float()) for a, b in zip(fake, real, strict=True)]).mean()


# ---- ours ------------------------------------------------------------------------------------------------------------


def squared_error_loss(hr: Tensor, truth: Tensor) -> Tensor:
    """The mean squared error of the output, both (N, T, 3, S*H, S*W): for networks that are to be exact, not crisp."""
    return F.mse_loss(hr, truth)


def psnr_loss(hr: Tensor, truth: Tensor) -> Tensor:
    """Minus the mean PSNR of the frames' luma (BT.601), in bels: the mean of log10 of their mean squared errors.

    hr and truth (N, T, 3, S*H, S*W) in [0, 1]. The squared error is nearly all that of the frames that are far off
    already; by this one a quiet frame counts as much as a loud one, so a network learns not to harm it.
    """
    error = luma(hr - truth).square().mean(dim=(2, 3))
    return (error + MIN_SQUARED_ERROR).log10().mean()


def colour_loss(hr: Tensor, lr: Tensor, *, block_px: int = COLOUR_BLOCK_PX) -> Tensor:
    """Distance of the block means of the output (N, T, 3, S*H, S*W) to those of the input (N, T, 3, H, W).

    Not in the paper. A network trained for hours keeps a shift of about 1/255 in flat areas, small for the other losses
    and visible to the eye. Compared with the input, since a degradation's own shift cannot be known from one clip.
    block_px is the side of a block in pixels of the input.
    """
    means_hr = F.avg_pool2d(hr.flatten(0, 1), block_px * SCALE)
    return charbonnier(means_hr, F.avg_pool2d(lr.flatten(0, 1), block_px))


def flicker_loss(hr: Tensor, truth: Tensor, flow_px: Tensor, *, distance: Distance = "charbonnier") -> Tensor:
    """How much the output's error changes from a frame to the next along the motion; T >= 2 frames.

    Not in the paper. What is missing in every frame alike (fine detail) costs nothing here, what comes and goes does: a
    viewer sees only the latter as flicker. hr and truth (N, T, 3, S*H, S*W); flow_px (N, T - 1, 2, H, W), of the truth
    at the size of the input: the flow with which frame t, sampled by `flow_warp`, looks like frame t + 1. What comes
    into view is compared with whatever the flow finds for it. NaN if the flow is not finite.
    """
    error = hr - truth
    flow_hr_px = SCALE * F.interpolate(flow_px.flatten(0, 1), scale_factor=SCALE, mode="bilinear", align_corners=False)
    carried = flow_warp(error[:, :-1].flatten(0, 1), flow_hr_px, padding="border")
    return _between(carried, error[:, 1:].flatten(0, 1), distance) + 0 * flow_px.sum()  # padding hides a NaN


def rest_loss(
    clean: Callable[[Tensor], Tensor], cleaned: Tensor, truth: Tensor, *, distance: Distance = "charbonnier"
) -> Tensor:
    """Distance to the averaged ground truth of what is cleaned once more: the cleaned clip, and that truth itself.

    Not in the paper. Training sees one cleaning pass, core.rbvsr.Upscale up to three; a module trained for hours also
    sharpens, and sharpens again on the next pass. cleaned (N, T, 3, H, W) gets no gradient; `clean` is one pass on
    (2N, T, 3, H, W); truth (N, T, 3, S*H, S*W).
    """
    target = averaged(truth)
    again = clean(torch.cat((cleaned.detach(), target)))
    return _between(again, torch.cat((target, target)), distance)


def flow_rest_loss(flow: Callable[[Tensor, Tensor], Tensor], frames: Tensor) -> Tensor:
    """Mean length in pixels, along each axis, of the flow between a frame (N, 3, H, W) and itself.

    Not in the paper. A flow network trained through the output alone keeps a constant offset, which what comes after it
    learns to undo: 0.39 px were seen. A sequence that begins, or a picture that stands still, then changes for several
    frames. `flow` is that of SPyNet; the frames get no gradient.
    """
    frames = frames.detach()
    return flow(frames, frames).abs().mean()


def _between(a: Tensor, b: Tensor, distance: Distance) -> Tensor:
    if distance == "charbonnier":
        return charbonnier(a, b)
    if distance == "l1":
        return l1(a, b)
    raise ValueError(f'losses: distance must be "charbonnier" or "l1", got {distance!r}')
