"""One training step: losses, gradients, both optimisers; plainly, or captured as one CUDA graph.

Knows neither data nor files.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from training.generator_step import (
    Flows,
    discriminator_gradients,
    discriminator_step,
    generator_gradients,
    generator_step,
    motion_of,
    sees_neighbours,
)
from training.graphed_step import GraphedStep, clip_gradients
from training.losses import LossWeights
from training.networks import Networks, Processes, autocast_dtype_of
from training.perceptual import PerceptualLoss
from training.settings import Settings
from vsrealbasicvsr.errors import UserError


class LossError(UserError):
    """The losses of captured steps are not finite."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What came of a step. stepped: False if a gradient was not finite. hr: the output, None of a captured step."""

    stepped: bool
    hr: Tensor | None


class Steps:
    """Takes training steps, and keeps their losses until they are read."""

    def __init__(self, networks: Networks, processes: Processes, perceptual: PerceptualLoss | None) -> None:
        settings = networks.settings
        self._networks, self._processes, self._perceptual = networks, processes, perceptual
        self._weights = loss_weights(settings)
        self._dtype = autocast_dtype_of(settings, processes.device)
        self._needs_motion = settings.num_frames > 1 and (
            settings.flicker_weight > 0 or sees_neighbours(networks.discriminator)
        )
        self._graph: GraphedStep | None = None
        self._graph_learns_flow = False
        self._sums: dict[str, float] = {}
        self._graph_sums: tuple[list[str], Tensor] | None = None
        self._num_summed = 0

    def take(self, lr: Tensor, truth: Tensor, real: Tensor, iteration: int) -> Taken:
        """Train the networks with one batch: input, ground truth, and the discriminator's real frames."""
        self._networks.set_learning_rates(iteration)
        taken = self._take_graphed(lr, truth, real) if self._is_graphed(iteration) else None
        if taken is None:
            taken = self._take_plain(lr, truth, real, iteration)
        return taken

    def read_losses(self) -> dict[str, float]:
        """Each loss's mean over the steps since the last reading; empty if there were none. Waits for the device.

        Raises LossError if those of captured steps are not finite: their gradients have been applied.
        """
        means = {name: value / max(self._num_summed, 1) for name, value in self._sums.items()}
        if self._graph_sums is not None:
            names, sums = self._graph_sums
            for name, value in zip(names, sums.tolist(), strict=True):
                means[name] = means.get(name, 0.0) + value / self._num_summed
            if not all(map(math.isfinite, means.values())):
                raise LossError(f"losses are not finite: {means}")
        self._sums, self._graph_sums, self._num_summed = {}, None, 0
        return means

    # ---- plain -------------------------------------------------------------------------------------------------------

    def _take_plain(self, lr: Tensor, truth: Tensor, real: Tensor, iteration: int) -> Taken:
        networks, settings = self._networks, self._networks.settings
        networks.optimizer.zero_grad(set_to_none=True)
        flows_px = self._motion(truth)
        losses, hr = generator_step(
            networks.model,
            lr,
            truth,
            weights=weights_at(self._weights, iteration, settings),
            flows_px=flows_px,
            distance=settings.distance,
            perceptual=self._perceptual,
            discriminator=networks.discriminator,
            cleaning_gets_perceptual=settings.cleaning_gets_perceptual,
            rest_frame=iteration % settings.num_frames,
            colour_block_px=settings.colour_block_px,
            autocast_dtype=self._dtype,
            checkpointing=settings.gradient_checkpointing,
        )
        self._processes.average(networks.parameters)
        norm = gradient_norm(networks.parameters)
        stepped = math.isfinite(norm.item())
        if stepped and networks.discriminator is not None and networks.discriminator_optimizer is not None:
            networks.discriminator_optimizer.zero_grad(set_to_none=True)
            losses |= discriminator_step(
                networks.discriminator, hr, real, lr=lr, flows_px=flows_px, autocast_dtype=self._dtype
            )
            its_parameters = list(networks.discriminator.parameters())
            self._processes.average(its_parameters)
            stepped = math.isfinite(gradient_norm(its_parameters).item())
            if stepped:
                networks.discriminator_optimizer.step()
        if stepped:  # both networks learn from a batch, or neither
            if settings.max_gradient_norm > 0:
                nn.utils.clip_grads_with_norm_(networks.parameters, settings.max_gradient_norm, norm)
            networks.optimizer.step()
            self._num_summed += 1
            self._sums = {name: self._sums.get(name, 0.0) + value for name, value in losses.items()}
        return Taken(stepped, hr)

    def _motion(self, truth: Tensor) -> Flows | None:
        return motion_of(self._networks.model, truth) if self._needs_motion else None

    # ---- captured ----------------------------------------------------------------------------------------------------

    def _is_graphed(self, iteration: int) -> bool:
        settings = self._networks.settings
        return (
            settings.cuda_graph
            and self._processes.device.type == "cuda"
            and self._processes.num == 1
            and self._perceptual is None
            and not settings.gradient_checkpointing
            and iteration >= settings.adversarial_warm_up_iterations
        )

    def _take_graphed(self, lr: Tensor, truth: Tensor, real: Tensor) -> Taken | None:
        """None if the step cannot be captured; it is then taken plainly from now on."""
        networks = self._networks
        learns_flow = any(parameter.requires_grad for parameter in networks.flow_parameters)
        if self._graph is None or learns_flow != self._graph_learns_flow:
            self._graph, self._graph_learns_flow = GraphedStep(self.captured), learns_flow
        try:
            names, losses = self._graph(lr, truth, real)
        except RuntimeError as error:
            networks.settings = dataclasses.replace(networks.settings, cuda_graph=False)
            print(f"training train: the step cannot be captured, it goes on plainly: {str(error).splitlines()[0]}")
            torch.cuda.synchronize()
            return None
        if self._graph_sums is None:
            self._graph_sums = names, losses.clone()
        else:
            self._graph_sums[1].add_(losses)
        self._num_summed += 1
        return Taken(True, None)

    def captured(self, lr: Tensor, truth: Tensor, real: Tensor) -> dict[str, Tensor]:
        """A step that waits for nothing: what a graph is made of. The rest loss looks at the middle frame."""
        networks, settings = self._networks, self._networks.settings
        networks.optimizer.zero_grad(set_to_none=True)
        flows_px = self._motion(truth)
        losses, hr = generator_gradients(
            networks.model,
            lr,
            truth,
            weights=self._weights,
            flows_px=flows_px,
            distance=settings.distance,
            discriminator=networks.discriminator,
            cleaning_gets_perceptual=settings.cleaning_gets_perceptual,
            rest_frame=settings.num_frames // 2,
            colour_block_px=settings.colour_block_px,
            autocast_dtype=self._dtype,
        )
        clip_gradients(networks.parameters, settings.max_gradient_norm)
        networks.optimizer.step()
        if networks.discriminator is not None and networks.discriminator_optimizer is not None:
            networks.discriminator_optimizer.zero_grad(set_to_none=True)
            losses |= discriminator_gradients(
                networks.discriminator, hr, real, lr=lr, flows_px=flows_px, autocast_dtype=self._dtype
            )
            networks.discriminator_optimizer.step()
        return losses


def loss_weights(settings: Settings) -> LossWeights:
    """The settings' weights, as the generator's step takes them."""
    return LossWeights(
        output=settings.output_weight,
        cleaning=settings.cleaning_weight,
        perceptual=settings.perceptual_weight,
        adversarial=settings.adversarial_weight,
        squared_error=settings.squared_error_weight,
        psnr=settings.psnr_weight,
        colour=settings.colour_weight,
        flicker=settings.flicker_weight,
        rest=settings.rest_weight,
        flow_rest=settings.flow_rest_weight,
        feature_matching=settings.feature_matching_weight,
    )


def weights_at(weights: LossWeights, iteration: int, settings: Settings) -> LossWeights:
    """The weights of this step: those of the discriminator's losses rise while it is new."""
    share = min((iteration + 1) / max(settings.adversarial_warm_up_iterations, 1), 1.0)
    if share == 1:
        return weights
    return dataclasses.replace(
        weights, adversarial=share * weights.adversarial, feature_matching=share * weights.feature_matching
    )


def gradient_norm(parameters: list[nn.Parameter]) -> Tensor:
    """The norm of all gradients together, a scalar: not finite if one of them is not."""
    return nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
