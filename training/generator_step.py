"""One step's gradients, of the generator and of the discriminator: which loss reaches which part of the network.

The paper (after Eq. 3) keeps the perceptual and adversarial losses away from the cleaning module: its frames are to be
free of artefacts, not rich in detail. The published code lets them through. Knows no optimiser, no data, no files.

Perceptual and adversarial loss look at single frames, so that their gradient at the output comes first, a few frames at
a time, and their graphs are gone before the network's own backward pass begins.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from training.discriminator import UNetDiscriminator
from training.losses import (
    COLOUR_BLOCK_PX,
    Distance,
    LossWeights,
    averaged,
    cleaning_loss,
    colour_loss,
    discriminator_loss,
    feature_matching_loss,
    flicker_loss,
    flow_rest_loss,
    generator_adversarial_loss,
    hinge_discriminator_loss,
    hinge_generator_loss,
    output_loss,
    psnr_loss,
    rest_loss,
    squared_error_loss,
)
from training.patch_discriminator import PatchDiscriminator
from training.perceptual import PerceptualLoss
from vsrealbasicvsr.model import SCALE, RealBasicVSR, run_directly

FRAMES_AT_ONCE = 8
FRAMES_AT_ONCE_GPU = 64
"""Frames that the perceptual network and the discriminator see at a time; changes memory, not results."""

type Discriminator = UNetDiscriminator | PatchDiscriminator
type Flows = tuple[Tensor, Tensor]
"""(N, T - 1, 2, H, W) each: with which frame t looks like frame t + 1, and frame t + 1 like frame t."""


def generator_step(
    model: RealBasicVSR, lr: Tensor, truth: Tensor, *, weights: LossWeights, **options: Any
) -> tuple[dict[str, float], Tensor]:
    """`generator_gradients`, its losses as numbers. Reading them waits for the device."""
    losses, hr = generator_gradients(model, lr, truth, weights=weights, **options)
    return _numbers(losses), hr


def discriminator_step(discriminator: Discriminator, hr: Tensor, truth: Tensor, **options: Any) -> dict[str, float]:
    """`discriminator_gradients`, its losses as numbers. Reading them waits for the device."""
    return _numbers(discriminator_gradients(discriminator, hr, truth, **options))


def generator_gradients(
    model: RealBasicVSR,
    lr: Tensor,
    truth: Tensor,
    *,
    weights: LossWeights,
    distance: Distance = "charbonnier",
    perceptual: PerceptualLoss | None = None,
    discriminator: Discriminator | None = None,
    flows_px: Flows | None = None,
    cleaning_gets_perceptual: bool = False,
    rest_frame: int = 0,
    colour_block_px: int = COLOUR_BLOCK_PX,
    autocast_dtype: torch.dtype | None = None,
    checkpointing: bool = False,
    frames_at_once: int | None = None,
) -> tuple[dict[str, Tensor], Tensor]:
    """Add the gradients of one batch to `.grad` of the network's parameters; the losses, unweighted, and the output.

    lr (N, T, 3, H, W) and truth, the sharpened ground truth (N, T, 3, S*H, S*W), float32 in [0, 1]. What each reaches:

                                   cleaning module   flow, propagation, reconstruction
        output, colour, squared
          error, PSNR, flicker           yes               yes
        cleaning, rest                   yes               -
        flow rest                        -                 flow
        perceptual, adversarial,
          feature matching               -                 yes
          with cleaning_gets_perceptual  yes               yes

    Parameters with requires_grad False get nothing, and gradients pass through them. The discriminator is only looked
    through: neither its gradients nor its spectral norms move here. autocast_dtype is that of the convolutions (None:
    as they are stored); flow, pictures and losses are float32. checkpointing keeps the activations of no step but
    computes them again. flows_px: the truth's motion, see `motion_of`; made here if it is needed and not given.
    rest_frame: the frame of each clip that the rest loss looks at, if its weight is not 0. colour_block_px: of the
    colour loss.

    The losses are those of this step under "output", "cleaning", "perceptual", ...: only those that count. The output
    (N, T, 3, S*H, S*W) is detached, ready for `discriminator_step`. Raises ValueError for clips that do not fit.
    """
    _check_pair("generator_step", lr, truth, SCALE)
    run = _run_again_in_backward if checkpointing else run_directly
    with torch.autocast(lr.device.type, autocast_dtype, enabled=autocast_dtype is not None):
        cleaned = run(model.clean, lr)
        hr = model.super_resolve(cleaned, run=run)

    # What every part of the network learns from, as a gradient at the output.
    output = hr.detach().requires_grad_()
    losses = {"output": output_loss(output, truth, distance=distance)}
    total = weights.output * losses["output"]
    if weights.squared_error:
        losses["squared_error"] = squared_error_loss(output, truth)
        total = total + weights.squared_error * losses["squared_error"]
    if weights.psnr:
        losses["psnr"] = psnr_loss(output, truth)
        total = total + weights.psnr * losses["psnr"]
    if weights.colour:
        losses["colour"] = colour_loss(output, lr, block_px=colour_block_px)
        total = total + weights.colour * losses["colour"]
    if weights.flicker and lr.shape[1] > 1:
        flows_px = flows_px or motion_of(model, truth)
        losses["flicker"] = flicker_loss(output, truth, flows_px[0], distance=distance)
        total = total + weights.flicker * losses["flicker"]
    cleaning, others = _learning(model.image_cleaning), _learning(model.basicvsr)
    if lr.device.type == "cpu" and not total.isfinite():
        return _without_gradient(losses, output, cleaning + others)
    (for_all,) = torch.autograd.grad(total, output)

    # What perhaps only the part behind the cleaning module learns from.
    for_the_rest, looks = _gradient_of_looks(
        output.detach(),
        truth,
        lr,
        flows_px if flows_px is not None or not sees_neighbours(discriminator) else motion_of(model, truth),
        weights=weights,
        perceptual=perceptual,
        discriminator=discriminator,
        autocast_dtype=autocast_dtype,
        frames_at_once=_frames_at_once(lr) if frames_at_once is None else frames_at_once,
    )
    losses |= looks

    # What only the cleaning module learns from.
    losses["cleaning"] = cleaning_loss(cleaned, truth, distance=distance)
    for_cleaning = weights.cleaning * losses["cleaning"]
    if weights.rest and cleaning:
        one = slice(rest_frame, rest_frame + 1)
        with torch.autocast(lr.device.type, autocast_dtype, enabled=autocast_dtype is not None):
            losses["rest"] = rest_loss(model.clean, cleaned[:, one], truth[:, one], distance=distance)
        for_cleaning = for_cleaning + weights.rest * losses["rest"]

    for_flow: list[tuple[Tensor, Tensor | None]] = []
    if weights.flow_rest and _learning(model.basicvsr.spynet):
        losses["flow_rest"] = flow_rest_loss(model.basicvsr.spynet, cleaned[:, 0])
        for_flow = [(weights.flow_rest * losses["flow_rest"], None)]

    if lr.device.type == "cpu" and not all(loss.isfinite() for loss in losses.values()):
        return _without_gradient(losses, output, cleaning + others)
    if for_the_rest is None or cleaning_gets_perceptual:
        at_output = for_all if for_the_rest is None else for_all + for_the_rest
        _backward([(hr, at_output), (for_cleaning, None), *for_flow], cleaning + others)
    else:
        # Two gradients meet at the cleaned frames and only one may pass, so the way back is gone twice: first for the
        # weights behind the cleaning module, without the flow where it is frozen; then for the cleaning module alone.
        _backward([(hr, for_all + for_the_rest), *for_flow], others, again=bool(cleaning))
        _backward([(hr, for_all), (for_cleaning, None)], cleaning)
    return losses, output.detach()


def discriminator_gradients(
    discriminator: Discriminator,
    hr: Tensor,
    truth: Tensor,
    *,
    lr: Tensor | None = None,
    flows_px: Flows | None = None,
    autocast_dtype: torch.dtype | None = None,
    frames_at_once: int | None = None,
) -> dict[str, Tensor]:
    """Add the gradients of one batch to `.grad` of the discriminator's parameters; its losses on real and fake frames.

    hr: the output of `generator_step`; truth: the ground truth as it was *before* sharpening. Both (N, T, 3, H, W). lr
    and flows_px, as of `generator_step`, are what a patch discriminator looks at besides. The two losses are added, as
    published. The spectral norms' estimates move on by one power iteration, here and nowhere else: the published code
    makes three in a step (generator, real, fake).

    Raises ValueError for clips that do not fit each other.
    """
    _check_pair("discriminator_step", hr, truth, 1)
    discriminator.advance_spectral_norms()
    with torch.no_grad():
        fake, real = (_views(discriminator, clip, lr, flows_px) for clip in (hr.detach(), truth))
    frames_at_once = _frames_at_once(hr) if frames_at_once is None else frames_at_once
    sums = {"discriminator_real": hr.new_zeros(()), "discriminator_fake": hr.new_zeros(())}
    for part in _parts(len(fake), frames_at_once):
        share = len(fake[part]) / len(fake)
        with torch.autocast(hr.device.type, autocast_dtype, enabled=autocast_dtype is not None):
            logits_real, logits_fake = (_judged(discriminator, views[part])[0].float() for views in (real, fake))
        distance = hinge_discriminator_loss if isinstance(discriminator, PatchDiscriminator) else discriminator_loss
        loss_real, loss_fake = distance(logits_real, logits_fake)
        _backward([(share * (loss_real + loss_fake), None)], _learning(discriminator))
        sums["discriminator_real"] += share * loss_real.detach()
        sums["discriminator_fake"] += share * loss_fake.detach()
    return sums


def _without_gradient(
    losses: dict[str, Tensor], output: Tensor, parameters: Sequence[nn.Parameter]
) -> tuple[dict[str, Tensor], Tensor]:
    """The end of a step whose losses are not finite: gradients of NaN, with no way back through the network.

    torch's grid_sample on the CPU ends the process in its backward pass when a coordinate is NaN.
    """
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, math.nan)
    return losses, output.detach()


@torch.no_grad()
def motion_of(model: RealBasicVSR, truth: Tensor) -> Flows:
    """The flows between neighbouring frames of the ground truth (N, T, 3, S*H, S*W), T >= 2, at the input's size.

    By the network's own flow network; nothing learns from it.
    """
    small = averaged(truth)
    onto_next, onto_previous = model.flows(small[:, :-1].flatten(0, 1), small[:, 1:].flatten(0, 1))
    shape = (small.shape[0], -1, 2, *small.shape[-2:])
    return onto_next.view(shape), onto_previous.view(shape)


def sees_neighbours(discriminator: Discriminator | None) -> bool:
    """Whether it needs the motion of the clip."""
    return isinstance(discriminator, PatchDiscriminator) and discriminator.num_frames > 1


def _frames_at_once(clip: Tensor) -> int:
    return FRAMES_AT_ONCE if clip.device.type == "cpu" else FRAMES_AT_ONCE_GPU


def _views(discriminator: Discriminator | None, hr: Tensor, lr: Tensor | None, flows_px: Flows | None) -> Tensor:
    """What the discriminator looks at, an entry for each frame of the clip."""
    if not isinstance(discriminator, PatchDiscriminator):
        return hr.flatten(0, 1)
    if lr is None:
        raise ValueError("discriminator_step: a patch discriminator looks at the input too: give lr")
    return discriminator.views(hr, lr, flows_px)


def _judged(discriminator: Discriminator, views: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits and features; the U-Net has no features to be matched."""
    if isinstance(discriminator, PatchDiscriminator):
        return discriminator(views)  # type: ignore[no-any-return]
    return discriminator(views), []


def _gradient_of_looks(
    hr: Tensor,
    truth: Tensor,
    lr: Tensor,
    flows_px: Flows | None,
    *,
    weights: LossWeights,
    perceptual: PerceptualLoss | None,
    discriminator: Discriminator | None,
    autocast_dtype: torch.dtype | None,
    frames_at_once: int,
) -> tuple[Tensor | None, dict[str, Tensor]]:
    """The gradient of the weighted perceptual and adversarial losses at the output, shaped like it, and the losses.

    None where neither counts.
    """
    if perceptual is None or not weights.perceptual:
        perceptual = None
    if discriminator is None or not weights.adversarial:
        discriminator = None
    if perceptual is None and discriminator is None:
        return None, {}
    hr = hr.requires_grad_()
    frames_truth = truth.flatten(0, 1)
    views = _views(discriminator, hr, lr, flows_px)
    views_truth = _views(discriminator, truth, lr, flows_px) if weights.feature_matching else None
    gradient = torch.empty_like(views)
    losses: dict[str, Tensor] = {}
    for part in _parts(len(views), frames_at_once):
        seen = views[part].detach().requires_grad_()
        share = len(seen) / len(views)
        found: dict[str, tuple[float, Tensor]] = {}
        with torch.autocast(hr.device.type, autocast_dtype, enabled=autocast_dtype is not None):
            if perceptual is not None:
                found["perceptual"] = weights.perceptual, share * perceptual(seen, frames_truth[part])
            if discriminator is not None:
                logits, features = _judged(discriminator, seen)
                adversarial = hinge_generator_loss if features else generator_adversarial_loss
                found["adversarial"] = weights.adversarial, share * adversarial(logits.float())
            if discriminator is not None and views_truth is not None:
                with torch.no_grad():
                    _, features_truth = _judged(discriminator, views_truth[part])
                matching = feature_matching_loss(features, features_truth)
                found["feature_matching"] = weights.feature_matching, share * matching
        # With respect to the views only: nothing is added to the gradients of the networks that look.
        (gradient[part],) = torch.autograd.grad([weight * loss for weight, loss in found.values()], seen)
        for name, (_, loss) in found.items():
            losses[name] = losses.get(name, loss.new_zeros(())) + loss.detach()
    (at_output,) = torch.autograd.grad(views, hr, gradient)
    return at_output, losses


def _run_again_in_backward[*Ts, R](step: Callable[[*Ts], R], /, *arguments: *Ts) -> R:
    """Run a step without keeping its activations: the backward pass computes them again. No step draws numbers."""
    return checkpoint(step, *arguments, use_reentrant=False, preserve_rng_state=False)


def _backward(
    roots: list[tuple[Tensor, Tensor | None]], parameters: list[nn.Parameter], *, again: bool = False
) -> None:
    """Add to `.grad` of these parameters, and of no others, what comes from the roots (tensor, its gradient).

    again: the graph is kept for another way back.
    """
    roots = [root for root in roots if root[0].requires_grad]
    if roots and parameters:  # frozen parts have nothing to learn, and autograd takes no empty list
        tensors, gradients = zip(*roots, strict=True)
        torch.autograd.backward(tensors, gradients, retain_graph=again, inputs=parameters)


def _learning(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def _parts(num_frames: int, frames_at_once: int) -> list[slice]:
    """The frames in runs of at most frames_at_once: 5 by 2 is 0..1, 2..3, 4."""
    if frames_at_once < 1:
        raise ValueError(f"frames_at_once must be at least 1, got {frames_at_once}")
    return [slice(first, first + frames_at_once) for first in range(0, num_frames, frames_at_once)]


def _numbers(losses: dict[str, Tensor]) -> dict[str, float]:
    """All of them at once: each reading of a number waits for the GPU."""
    values = torch.stack([loss.detach() for loss in losses.values()]).tolist()
    return dict(zip(losses, values, strict=True))


def _check_pair(function: str, clip: Tensor, truth: Tensor, scale: int) -> None:
    """Raise ValueError unless both are float32 clips and truth has `scale` times the size of clip."""
    expected = (*clip.shape[:3], *(scale * size for size in clip.shape[3:]))
    if clip.ndim != 5 or truth.shape != expected or clip.dtype != torch.float32 or truth.dtype != torch.float32:
        raise ValueError(
            f"{function}: expected float32 clips (N, T, 3, H, W) and a ground truth {scale} times as large, got"
            f" {tuple(clip.shape)} of {clip.dtype} and {tuple(truth.shape)} of {truth.dtype}"
        )
