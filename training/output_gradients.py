"""The gradient at the output of the losses that other networks compute: the perceptual network, the discriminator.

They depend on single frames or views, so the gradient is computed a few of them at a time: the memory does not grow
with the length of a clip.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from training.losses.kinds import ClipTensors, FrameTensors, Loss, Needs, Reach, ViewTensors
from training.losses.perceptual import PerceptualLoss
from training.losses.settings import LossSettings
from training.views import Discriminator, frames_at_once_on, judged, parts_of, views_of


def need(counting: Mapping[str, Loss[Any]], need: Needs) -> bool:
    """Return whether one of the losses has this need."""
    return any(need in loss.needs for loss in counting.values())


def gradient_behind(
    clips: ClipTensors,
    losses: LossSettings,
    counting: Mapping[str, Loss[Any]],
    perceptual: PerceptualLoss | None,
    discriminator: Discriminator | None,
    first_frame: int,
    autocast: Callable[[], torch.autocast],
    frames_at_once: int | None,
) -> tuple[Tensor | None, dict[str, Tensor]]:
    """Return the gradient at the output of the weighted losses behind the cleaning module, and these losses.

    The gradient has the output's shape; it is None if no such loss counts.
    """
    counting = {name: loss for name, loss in counting.items() if loss.reaches is Reach.BEHIND_CLEANING}
    of_frames = {name: loss for name, loss in counting.items() if Needs.VGG in loss.needs}
    of_views = {name: loss for name, loss in counting.items() if name not in of_frames}
    at_once = frames_at_once_on(clips.lr.device) if frames_at_once is None else frames_at_once
    hr = clips.hr.detach().requires_grad_()
    gradients, found = list[Tensor](), dict[str, Tensor]()
    if of_frames and perceptual is not None:
        looked_at = slice(first_frame % losses.perceptual_every, None, losses.perceptual_every)
        frames, gt = hr[:, looked_at].flatten(0, 1), clips.gt[:, looked_at].flatten(0, 1)

        def frame_tensors(seen: Tensor, part: slice) -> FrameTensors:
            with torch.no_grad():
                features_gt = perceptual.features_of(gt[part])
            return FrameTensors(
                features=perceptual.features_of(seen),
                features_gt=features_gt,
                distance=perceptual.distance,
                texture_quantile=losses.texture_quantile,
            )

        gradients += [_gradient_in_parts(hr, frames, frame_tensors, of_frames, losses, autocast, at_once, found)]
    if of_views and discriminator is not None:
        views = views_of(discriminator, hr, clips.lr, clips.flows_px)
        needs_truth = need(of_views, Needs.FEATURES)
        views_gt = views_of(discriminator, clips.gt, clips.lr, clips.flows_px) if needs_truth else None

        def view_tensors(seen: Tensor, part: slice) -> ViewTensors:
            return _view_tensors(seen, discriminator, None if views_gt is None else views_gt[part])

        gradients += [_gradient_in_parts(hr, views, view_tensors, of_views, losses, autocast, at_once, found)]
    return functools.reduce(torch.add, gradients) if gradients else None, found


def _gradient_in_parts[T](
    hr: Tensor,
    images: Tensor,
    tensors_of: Callable[[Tensor, slice], T],
    counting: Mapping[str, Loss[Any]],
    losses: LossSettings,
    autocast: Callable[[], torch.autocast],
    at_once: int,
    found: dict[str, Tensor],
) -> Tensor:
    """Return the gradient at the output of weighted losses of images that are made of it, computed a few at a time.

    Args:
        hr: The output, a leaf.
        images: (B, ...), computed from hr.
        tensors_of: Returns the losses' inputs for images of a part, and the part.
        counting: The losses.
        losses: Weights.
        autocast: Type of the convolutions.
        at_once: Number of images.
        found: The unweighted losses are added here.
    """
    gradient = torch.empty_like(images)
    for part in parts_of(len(images), at_once):
        seen = images[part].detach().requires_grad_()
        share = len(seen) / len(images)
        with autocast():
            tensors = tensors_of(seen, part)
            computed = {name: share * loss.compute(tensors) for name, loss in counting.items()}
        # With respect to the images only: the gradients of VGG and the discriminator do not change.
        weighted = [losses.weight(name) * loss for name, loss in computed.items()]
        (gradient[part],) = torch.autograd.grad(weighted, seen)
        for name, loss in computed.items():
            found[name] = found.get(name, loss.new_zeros(())) + loss.detach()
    (at_output,) = torch.autograd.grad(images, hr, gradient)
    return at_output


def _view_tensors(views: Tensor, discriminator: Discriminator, views_gt: Tensor | None) -> ViewTensors:
    """Return what losses of single views are computed from; the ground truth's features get no gradient."""
    logits, features = judged(discriminator, views)
    features_gt = list[Tensor]()
    if views_gt is not None:
        with torch.no_grad():
            _, features_gt = judged(discriminator, views_gt)
    return ViewTensors(logits=logits, features=features, features_gt=features_gt)
