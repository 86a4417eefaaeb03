"""One step's gradients, of the generator and of the discriminator: which loss reaches which part of the network.

The paper (after Eq. 3) keeps the perceptual and adversarial losses away from the cleaning module: its frames are to be
free of artefacts, not rich in detail. The published code lets them through. Knows no optimiser, no data, no files.

Perceptual and adversarial loss look at single frames, so that their gradient at the output comes first, a few frames at
a time, and their graphs are gone before the network's own backward pass begins.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from training.discriminator import UNetDiscriminator
from training.losses import (
    Distance,
    LossWeights,
    averaged,
    cleaning_loss,
    colour_loss,
    discriminator_loss,
    flicker_loss,
    generator_adversarial_loss,
    output_loss,
    psnr_loss,
    rest_loss,
    squared_error_loss,
)
from training.perceptual import PerceptualLoss
from vsrealbasicvsr.model import SCALE, RealBasicVSR, run_directly

FRAMES_AT_ONCE = 8
"""Frames that the perceptual network and the discriminator see at a time; changes memory, not results."""


def generator_step(
    model: RealBasicVSR,
    lr: Tensor,
    truth: Tensor,
    *,
    weights: LossWeights,
    distance: Distance = "charbonnier",
    perceptual: PerceptualLoss | None = None,
    discriminator: UNetDiscriminator | None = None,
    cleaning_gets_perceptual: bool = False,
    rest_frame: int = 0,
    autocast_dtype: torch.dtype | None = None,
    checkpointing: bool = False,
    frames_at_once: int = FRAMES_AT_ONCE,
) -> tuple[dict[str, float], Tensor]:
    """Add the gradients of one batch to `.grad` of the network's parameters; the losses, unweighted, and the output.

    lr (N, T, 3, H, W) and truth, the sharpened ground truth (N, T, 3, S*H, S*W), float32 in [0, 1]. What each reaches:

                                   cleaning module   flow, propagation, reconstruction
        output, colour, squared
          error, PSNR, flicker           yes               yes
        cleaning, rest                   yes               -
        perceptual, adversarial          -                 yes
          with cleaning_gets_perceptual  yes               yes

    Parameters with requires_grad False get nothing, and gradients pass through them. The discriminator is only looked
    through: neither its gradients nor its spectral norms move here. autocast_dtype is that of the convolutions (None:
    as they are stored); flow, pictures and losses are float32. checkpointing keeps the activations of no step but
    computes them again. rest_frame: the frame of each clip that the rest loss looks at, if its weight is not 0.

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
        losses["colour"] = colour_loss(output, lr)
        total = total + weights.colour * losses["colour"]
    if weights.flicker and lr.shape[1] > 1:
        losses["flicker"] = flicker_loss(output, truth, _motion(model, truth), distance=distance)
        total = total + weights.flicker * losses["flicker"]
    cleaning, others = _learning(model.image_cleaning), _learning(model.basicvsr)
    if lr.device.type == "cpu" and not total.isfinite():
        return _without_gradient(losses, output, cleaning + others)
    (for_all,) = torch.autograd.grad(total, output)

    # What perhaps only the part behind the cleaning module learns from.
    for_the_rest, looks = _gradient_of_looks(
        output.detach(),
        truth,
        weights=weights,
        perceptual=perceptual,
        discriminator=discriminator,
        autocast_dtype=autocast_dtype,
        frames_at_once=frames_at_once,
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

    if lr.device.type == "cpu" and not all(loss.isfinite() for loss in losses.values()):
        return _without_gradient(losses, output, cleaning + others)
    if for_the_rest is None or cleaning_gets_perceptual:
        at_output = for_all if for_the_rest is None else for_all + for_the_rest
        _backward([(hr, at_output), (for_cleaning, None)], cleaning + others)
    else:
        # Two gradients meet at the cleaned frames and only one may pass, so the way back is gone twice: first for the
        # weights behind the cleaning module, without the flow where it is frozen; then for the cleaning module alone.
        _backward([(hr, for_all + for_the_rest)], others, again=bool(cleaning))
        _backward([(hr, for_all), (for_cleaning, None)], cleaning)
    return _numbers(losses), output.detach()


def discriminator_step(
    discriminator: UNetDiscriminator,
    hr: Tensor,
    truth: Tensor,
    *,
    autocast_dtype: torch.dtype | None = None,
    frames_at_once: int = FRAMES_AT_ONCE,
) -> dict[str, float]:
    """Add the gradients of one batch to `.grad` of the discriminator's parameters; its losses on real and fake frames.

    hr: the output of `generator_step`; truth: the ground truth as it was *before* sharpening. Both (N, T, 3, H, W),
    taken as single frames. Their losses are added, as published. The spectral norms' estimates move on by one power
    iteration, here and nowhere else: the published code makes three in a step (generator, real, fake).

    Raises ValueError for clips that do not fit each other.
    """
    _check_pair("discriminator_step", hr, truth, 1)
    discriminator.advance_spectral_norms()
    fake, real = hr.detach().flatten(0, 1), truth.flatten(0, 1)
    sums = {"discriminator_real": hr.new_zeros(()), "discriminator_fake": hr.new_zeros(())}
    for part in _parts(len(fake), frames_at_once):
        share = len(fake[part]) / len(fake)
        with torch.autocast(hr.device.type, autocast_dtype, enabled=autocast_dtype is not None):
            logits_real, logits_fake = discriminator(real[part]), discriminator(fake[part])
        loss_real, loss_fake = discriminator_loss(logits_real.float(), logits_fake.float())
        _backward([(share * (loss_real + loss_fake), None)], _learning(discriminator))
        sums["discriminator_real"] += share * loss_real.detach()
        sums["discriminator_fake"] += share * loss_fake.detach()
    return _numbers(sums)


def _without_gradient(
    losses: dict[str, Tensor], output: Tensor, parameters: Sequence[nn.Parameter]
) -> tuple[dict[str, float], Tensor]:
    """The end of a step whose losses are not finite: gradients of NaN, with no way back through the network.

    torch's grid_sample on the CPU ends the process in its backward pass when a coordinate is NaN.
    """
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, math.nan)
    return _numbers(losses), output.detach()


@torch.no_grad()
def _motion(model: RealBasicVSR, truth: Tensor) -> Tensor:
    """The flow (N, T - 1, 2, H, W) with which each frame of the ground truth looks like the next, by the network's own
    flow network; nothing learns from it.
    """
    small = averaged(truth)
    flow_px = model.basicvsr.spynet(small[:, 1:].flatten(0, 1), small[:, :-1].flatten(0, 1))
    return flow_px.view(small.shape[0], -1, 2, *small.shape[-2:])  # type: ignore[no-any-return]


def _gradient_of_looks(
    hr: Tensor,
    truth: Tensor,
    *,
    weights: LossWeights,
    perceptual: PerceptualLoss | None,
    discriminator: UNetDiscriminator | None,
    autocast_dtype: torch.dtype | None,
    frames_at_once: int,
) -> tuple[Tensor | None, dict[str, Tensor]]:
    """The gradient of the weighted perceptual and adversarial losses at the output, shaped like it, and the losses.

    None where neither counts.
    """
    frames, frames_truth = hr.flatten(0, 1), truth.flatten(0, 1)
    gradient = torch.empty_like(frames)
    losses: dict[str, Tensor] = {}
    for part in _parts(len(frames), frames_at_once):
        seen = frames[part].requires_grad_()
        share = len(seen) / len(frames)
        found: dict[str, tuple[float, Tensor]] = {}
        with torch.autocast(hr.device.type, autocast_dtype, enabled=autocast_dtype is not None):
            if perceptual is not None and weights.perceptual:
                found["perceptual"] = weights.perceptual, share * perceptual(seen, frames_truth[part])
            if discriminator is not None and weights.adversarial:
                logits = discriminator(seen).float()
                found["adversarial"] = weights.adversarial, share * generator_adversarial_loss(logits)
        if not found:
            return None, {}
        # With respect to the frames only: nothing is added to the gradients of the networks that look.
        (gradient[part],) = torch.autograd.grad([weight * loss for weight, loss in found.values()], seen)
        for name, (_, loss) in found.items():
            losses[name] = losses.get(name, loss.new_zeros(())) + loss.detach()
    return gradient.view_as(hr), losses


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
