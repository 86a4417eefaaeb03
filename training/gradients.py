"""Gradients of one training step, for generator and discriminator: which loss reaches which part of the network.

The paper (after Eq. 3) keeps the perceptual and adversarial losses away from the cleaning module: its frames are to be
free of artefacts, not rich in detail. The published code lets them through.

The perceptual and adversarial losses depend on single frames, so their gradient with respect to the output is computed
first (output_gradients.py), and their graphs are freed before the network's own backward pass begins.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from training.backward import backward, check_pair, learning, numbers
from training.losses.kinds import CleaningTensors, ClipTensors, Flows, Loss, Needs, Reach
from training.losses.perceptual import PerceptualLoss
from training.losses.settings import LOSSES, LossSettings
from training.output_gradients import gradient_behind, need
from training.views import Discriminator, motion_of, sees_neighbours
from vsrealbasicvsr.model import RealBasicVSR, run_directly


def generator_step(
    model: RealBasicVSR, lr: Tensor, gt: Tensor, *, losses: LossSettings, **options: Any
) -> tuple[dict[str, float], Tensor]:
    """Return what `generator_gradients` returns, the losses as numbers. Reading them waits for the device."""
    found, hr = generator_gradients(model, lr, gt, losses=losses, **options)
    return numbers(found), hr


def generator_gradients(
    model: RealBasicVSR,
    lr: Tensor,
    gt: Tensor,
    *,
    losses: LossSettings,
    perceptual: PerceptualLoss | None = None,
    discriminator: Discriminator | None = None,
    faithful: Tensor | None = None,
    faithful_cleaned: Tensor | None = None,
    flows_px: Flows | None = None,
    rest_frame: int = 0,
    autocast_dtype: torch.dtype | None = None,
    checkpointing: bool = False,
    frames_at_once: int | None = None,
) -> tuple[dict[str, Tensor], Tensor]:
    """Add the gradients of one batch to `.grad` of the network's parameters; each loss reaches what its `Reach` names.

    Args:
        model: The network.
        lr: The input (N, T, 3, H, W), float32 in [0, 1].
        gt: The sharpened ground truth (N, T, 3, S*H, S*W), float32 in [0, 1].
        losses: Weights and options.
        perceptual: VGG for the perceptual loss; None leaves that loss out.
        discriminator: For its losses; it is not changed. None leaves them out.
        faithful: Output of a faithful network, of gt's shape, for its losses; None leaves them out.
        faithful_cleaned: Frames that it cleaned, of lr's shape, for the keep loss; None leaves it out.
        flows_px: Motion of the ground truth, see `motion_of`; computed here if needed and not given.
        rest_frame: Frame of each clip that the rest loss looks at, and one that the perceptual network sees.
        autocast_dtype: Type of the convolutions (None: as stored); flow, frames and losses are float32.
        checkpointing: Compute activations again in the backward pass instead of keeping them.
        frames_at_once: Number of frames that the other networks see at a time; changes memory, not results.

    Returns:
        The unweighted losses by name ("output", "cleaning", ...), and the output (N, T, 3, S*H, S*W), detached.

    Raises:
        ValueError: The clips' shapes or dtypes do not match.
    """
    _check_clips(lr, gt, faithful, model.sizes.scale)
    autocast = functools.partial(torch.autocast, lr.device.type, autocast_dtype, enabled=autocast_dtype is not None)
    cleaned, hr = _super_resolved(model, lr, autocast, checkpointing)
    counting = _losses_that_count(losses, model, _given(lr, perceptual, discriminator, faithful, faithful_cleaned))
    flows_px = _motion(model, gt, counting, discriminator) if flows_px is None else flows_px
    clips = _clip_tensors(model, lr, hr, gt, cleaned, flows_px, faithful, losses)
    cleaning = _cleaning_tensors(model, gt, cleaned, faithful_cleaned, losses, rest_frame, autocast)
    found = _compute(counting, Reach.EVERYTHING, clips)
    total = _weighted_sum(found, losses)
    if lr.device.type == "cpu" and not total.isfinite():
        return _without_gradient(found, hr, model)
    (at_output,) = torch.autograd.grad(total, clips.hr)
    behind, found_behind = gradient_behind(
        clips, losses, counting, perceptual, discriminator, rest_frame, autocast, frames_at_once
    )
    of_cleaning, of_flow = _compute(counting, Reach.CLEANING, cleaning), _compute(counting, Reach.FLOW, clips)
    found |= found_behind | of_cleaning | of_flow
    if lr.device.type == "cpu" and not all(loss.isfinite() for loss in found.values()):
        return _without_gradient(found, hr, model)
    _spread(model, hr, at_output, behind, of_cleaning, of_flow, losses)
    return found, hr.detach()


def cleaning_step(
    model: RealBasicVSR, lr: Tensor, gt: Tensor, *, losses: LossSettings, **options: Any
) -> dict[str, float]:
    """Return what `cleaning_gradients` returns, as numbers. Reading them waits for the device."""
    return numbers(cleaning_gradients(model, lr, gt, losses=losses, **options))


def cleaning_gradients(
    model: RealBasicVSR,
    lr: Tensor,
    gt: Tensor,
    *,
    losses: LossSettings,
    faithful_cleaned: Tensor | None = None,
    rest_frame: int = 0,
    autocast_dtype: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """Add the gradients of one batch to `.grad` of the cleaning module's parameters, without computing an output.

    They are those of `generator_gradients` for losses that reach the cleaning module alone, at a fraction of the cost.

    Args:
        model: The network.
        lr: The input (N, T, 3, H, W), float32 in [0, 1].
        gt: The ground truth (N, T, 3, S*H, S*W), float32 in [0, 1].
        losses: Weights and options.
        faithful_cleaned: Frames that a faithful network cleaned, of lr's shape, for the keep loss; None leaves it out.
        rest_frame: Frame of each clip that the rest loss looks at.
        autocast_dtype: Type of the convolutions; None: as stored.

    Returns:
        The unweighted losses by name.

    Raises:
        ValueError: The clips' shapes or dtypes do not match.
    """
    check_pair("cleaning_step", lr, gt, model.sizes.scale)
    autocast = functools.partial(torch.autocast, lr.device.type, autocast_dtype, enabled=autocast_dtype is not None)
    with autocast():
        cleaned = model.clean(lr)
    counting = _losses_that_count(losses, model, _given(lr, None, None, None, faithful_cleaned))
    tensors = _cleaning_tensors(model, gt, cleaned, faithful_cleaned, losses, rest_frame, autocast)
    found = _compute(counting, Reach.CLEANING, tensors)
    backward([(_weighted_sum(found, losses), None)], learning(model.image_cleaning))
    return found


def _super_resolved(
    model: RealBasicVSR, lr: Tensor, autocast: Callable[[], torch.autocast], checkpointing: bool
) -> tuple[Tensor, Tensor]:
    """Return the cleaned input, and the output."""
    run = _run_again_in_backward if checkpointing else run_directly
    with autocast():
        cleaned = run(model.clean, lr)
        return cleaned, model.super_resolve(cleaned, run=run)


def _losses_that_count(losses: LossSettings, model: RealBasicVSR, given: Needs) -> dict[str, Loss[Any]]:
    """Return the losses whose weight is not 0, whose needs are met and whose part of the network is trained."""
    learns = {
        Reach.CLEANING: bool(learning(model.image_cleaning)),
        Reach.FLOW: bool(learning(model.basicvsr.spynet)),
    }
    return {
        name: loss
        for name, loss in LOSSES.items()
        if loss.is_always_logged or (losses.weight(name) > 0 and loss.needs in given and learns.get(loss.reaches, True))
    }


def _given(
    lr: Tensor,
    perceptual: PerceptualLoss | None,
    discriminator: Discriminator | None,
    faithful: Tensor | None,
    faithful_cleaned: Tensor | None,
) -> Needs:
    """Return the needs that are met."""
    given = Needs.MOTION if lr.shape[1] > 1 else Needs.NOTHING
    given |= Needs.TEACHER if faithful is not None else Needs.NOTHING
    given |= Needs.TEACHER_CLEANING if faithful_cleaned is not None else Needs.NOTHING
    given |= Needs.VGG if perceptual is not None else Needs.NOTHING
    given |= Needs.DISCRIMINATOR | Needs.FEATURES if discriminator is not None else Needs.NOTHING
    return given


def _motion(
    model: RealBasicVSR, gt: Tensor, counting: Mapping[str, Loss[Any]], discriminator: Discriminator | None
) -> Flows | None:
    """Return the motion of the ground truth; None if nothing needs it."""
    return motion_of(model, gt) if need(counting, Needs.MOTION) or sees_neighbours(discriminator) else None


def _clip_tensors(
    model: RealBasicVSR,
    lr: Tensor,
    hr: Tensor,
    gt: Tensor,
    cleaned: Tensor,
    flows_px: Flows | None,
    faithful: Tensor | None,
    losses: LossSettings,
) -> ClipTensors:
    """Return the inputs of losses of whole clips; `hr` is a leaf, with respect to which gradients are taken."""
    return ClipTensors(
        lr=lr,
        hr=hr.detach().requires_grad_(),
        gt=gt,
        cleaned=cleaned,
        flow=model.basicvsr.spynet,
        flows_px=flows_px,
        faithful=faithful,
        distance=losses.distance,
        colour_block_px=losses.colour_block_px,
        coarse_contrast=losses.coarse_contrast,
        contrast_strength=losses.contrast_strength,
        texture_quantile=losses.texture_quantile,
    )


def _cleaning_tensors(
    model: RealBasicVSR,
    gt: Tensor,
    cleaned: Tensor,
    faithful: Tensor | None,
    losses: LossSettings,
    rest_frame: int,
    autocast: Callable[[], torch.autocast],
) -> CleaningTensors:
    """Return the inputs of losses of the cleaning module alone."""

    def clean(frames: Tensor) -> Tensor:
        with autocast():
            return model.clean(frames)

    return CleaningTensors(
        gt=gt,
        cleaned=cleaned,
        clean=clean,
        faithful=faithful,
        distance=losses.distance,
        keep_everywhere=losses.keep_everywhere,
        rest_frame=rest_frame,
    )


def _compute(
    counting: Mapping[str, Loss[Any]], reach: Reach, tensors: ClipTensors | CleaningTensors
) -> dict[str, Tensor]:
    """Return the losses that reach this part of the network."""
    return {name: loss.compute(tensors) for name, loss in counting.items() if loss.reaches is reach}


def _weighted_sum(found: Mapping[str, Tensor], losses: LossSettings) -> Tensor:
    """Return the weighted sum in the order of the losses; 0 if there are none."""
    weighted = [losses.weight(name) * loss for name, loss in found.items()]
    return functools.reduce(torch.add, weighted) if weighted else torch.zeros(())


def _spread(
    model: RealBasicVSR,
    hr: Tensor,
    at_output: Tensor,
    at_output_behind: Tensor | None,
    of_cleaning: Mapping[str, Tensor],
    of_flow: Mapping[str, Tensor],
    losses: LossSettings,
) -> None:
    """Run the backward passes, from the gradients at the output and the losses of single parts to `.grad`.

    Args:
        model: The network.
        hr: Its output, with its graph.
        at_output: Gradient at the output for every part of the network.
        at_output_behind: Gradient at the output for every part but the cleaning module; None if there is none.
        of_cleaning: Losses of the cleaning module alone, unweighted.
        of_flow: Losses of the flow network alone, unweighted.
        losses: Weights, and whether at_output_behind reaches the cleaning module all the same.
    """
    for_cleaning, for_flow = _weighted_sum(of_cleaning, losses), _weighted_sum(of_flow, losses)
    if at_output_behind is not None and losses.cleaning_gets_perceptual:
        at_output, at_output_behind = at_output + at_output_behind, None
    cleaning, others = learning(model.image_cleaning), learning(model.basicvsr)
    if at_output_behind is None:
        backward([(hr, at_output), (for_cleaning, None), (for_flow, None)], cleaning + others)
        return
    # Two gradients meet at the cleaned frames and only one may pass, so two backward passes are needed: first for the
    # weights behind the cleaning module, without the flow where it is frozen; then for the cleaning module alone.
    backward([(hr, at_output + at_output_behind), (for_flow, None)], others, again=bool(cleaning))
    backward([(hr, at_output), (for_cleaning, None)], cleaning)


def _without_gradient(losses: dict[str, Tensor], hr: Tensor, model: RealBasicVSR) -> tuple[dict[str, Tensor], Tensor]:
    """End a step whose losses are not finite: gradients of NaN, without a backward pass through the network.

    torch's grid_sample on the CPU ends the process in its backward pass when a coordinate is NaN.
    """
    for parameter in learning(model.image_cleaning) + learning(model.basicvsr):
        parameter.grad = torch.full_like(parameter, math.nan)
    return losses, hr.detach()


def _run_again_in_backward[*Ts, R](step: Callable[[*Ts], R], /, *arguments: *Ts) -> R:
    """Run a step without keeping its activations: the backward pass computes them again. No step is random."""
    return checkpoint(step, *arguments, use_reentrant=False, preserve_rng_state=False)


def _check_clips(lr: Tensor, gt: Tensor, faithful: Tensor | None, scale: int) -> None:
    """Raise ValueError for clips, or a faithful network's output, of shapes that do not match, or not in float32."""
    check_pair("generator_step", lr, gt, scale)
    if faithful is not None and (faithful.shape != gt.shape or faithful.dtype != torch.float32):
        raise ValueError(
            f"generator_step: expected faithful in float32 of gt's shape {tuple(gt.shape)}, got {tuple(faithful.shape)}"
            f" of {faithful.dtype}"
        )
