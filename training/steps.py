"""One training step: losses, gradients, both optimisers; eagerly, or captured as one CUDA graph."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from training.discriminator_gradients import discriminator_gradients, discriminator_step
from training.gradients import cleaning_step, generator_gradients, generator_step
from training.graphed_step import GraphedStep, clip_gradients
from training.losses.kinds import Flows, Needs
from training.losses.perceptual import PerceptualLoss
from training.losses.settings import LOSSES
from training.mixture import draw_share, mixed
from training.networks import Networks, autocast_dtype_of
from training.processes import Processes
from training.teacher import Teacher
from training.views import motion_of, sees_neighbours
from vsrealbasicvsr.errors import UserError


class LossError(UserError):
    """The losses of captured steps are not finite."""


class StepTensors(NamedTuple):
    """A batch in float32 in [0, 1] on the device. S is the network's scale.

    Attributes:
        lr: Input (N, T, 3, H, W).
        gt: Ground truth (N, T, 3, S*H, S*W).
        real: The discriminator's real frames, of the same shape.
    """

    lr: Tensor
    gt: Tensor
    real: Tensor


@dataclass(frozen=True, slots=True)
class Taken:
    """Result of a step.

    Attributes:
        stepped: False if a gradient was not finite; no network was changed then.
        hr: The output; None after a captured step, and where the cleaning module alone is trained.
    """

    stepped: bool
    hr: Tensor | None


class Steps:
    """Takes training steps and sums their losses until they are read."""

    def __init__(
        self,
        networks: Networks,
        processes: Processes,
        perceptual: PerceptualLoss | None = None,
        teacher: Teacher | None = None,
    ) -> None:
        settings = networks.settings
        self._networks, self._processes, self._perceptual, self._teacher = networks, processes, perceptual, teacher
        self._dtype = autocast_dtype_of(settings, processes.device)
        self._needs_motion = settings.data.num_frames > 1 and (
            sees_neighbours(networks.discriminator)
            or any(settings.losses.weight(name) > 0 for name, loss in LOSSES.items() if Needs.MOTION in loss.needs)
        )
        self._graph: GraphedStep | None = None
        self._graph_learns_flow = False
        self._sums: dict[str, float] = {}
        self._num_of: dict[str, int] = {}
        self._graph_sums: tuple[list[str], Tensor] | None = None
        self._num_graphed = 0
        self._has_captured = False  # captured steps are among the summed ones

    def take(self, tensors: StepTensors, iteration: int) -> Taken:
        """Train the networks with one batch, unless a gradient is not finite; its losses are then left out too.

        Args:
            tensors: The batch.
            iteration: Number of steps done.

        Returns:
            Whether the networks were changed, and the output.
        """
        self._networks.set_learning_rates(iteration)
        taken = self._take_graphed(tensors) if self._is_graphed(iteration) else None
        if taken is None:
            taken = self._take_eager(tensors, iteration)
        return taken

    def read_losses(self) -> dict[str, float]:
        """Return each loss's mean over the steps that had it since the last reading; empty if none had. Synchronises.

        Raises:
            LossError: Losses of captured steps are not finite; their gradients have been applied.
        """
        self._read_graph_sums()
        means = {name: value / self._num_of[name] for name, value in self._sums.items()}
        if self._has_captured and not all(map(math.isfinite, means.values())):
            raise LossError(f"losses are not finite: {means}")
        self._sums, self._num_of, self._has_captured = {}, {}, False
        return means

    # ---- eager -------------------------------------------------------------------------------------------------------

    def _take_eager(self, tensors: StepTensors, iteration: int) -> Taken:
        networks, settings = self._networks, self._networks.settings
        lr, gt, real = tensors
        networks.optimizer.zero_grad(set_to_none=True)
        flows_px = self._motion(gt)
        losses, hr = self._generator_step(lr, gt, iteration, flows_px)
        self._processes.average(networks.parameters)
        norm = gradient_norm(networks.parameters)
        stepped = math.isfinite(norm.item())
        if stepped and networks.discriminator is not None and networks.discriminator_optimizer is not None:
            assert hr is not None, "losses of a discriminator need the output"
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
            self._add_losses(losses, 1)
        return Taken(stepped, hr)

    def _generator_step(
        self, lr: Tensor, gt: Tensor, iteration: int, flows_px: Flows | None
    ) -> tuple[dict[str, float], Tensor | None]:
        """Add the generator's gradients. Return its losses, and the output unless the cleaning alone is trained."""
        networks, settings = self._networks, self._networks.settings
        rest_frame = iteration % settings.data.num_frames
        faithful_cleaned = self._faithful_cleaned(lr, gt)
        if settings.trains_cleaning_alone:
            losses = cleaning_step(
                networks.model,
                lr,
                gt,
                losses=settings.losses,
                faithful_cleaned=faithful_cleaned,
                rest_frame=rest_frame,
                autocast_dtype=self._dtype,
            )
            return losses, None
        faithful = self._faithful(lr)
        losses, hr = generator_step(
            networks.model,
            lr,
            gt,
            losses=settings.losses.at(iteration),
            faithful=faithful,
            faithful_cleaned=faithful_cleaned,
            flows_px=flows_px,
            perceptual=self._perceptual,
            discriminator=networks.discriminator,
            rest_frame=rest_frame,
            autocast_dtype=self._dtype,
            checkpointing=settings.gradient_checkpointing,
        )
        return losses | self._mixture_step(lr, gt, iteration, faithful), hr

    def _mixture_step(self, lr: Tensor, gt: Tensor, iteration: int, faithful: Tensor | None) -> dict[str, float]:
        """Add the gradients of a mixture with the teacher, in some of the steps, and return its losses."""
        networks, settings = self._networks, self._networks.settings
        share = draw_share(settings, iteration)
        if share is None or self._teacher is None:
            return {}
        losses = settings.losses.of_mixture(share)
        with mixed(networks.model, self._teacher.network, share):
            found, _ = generator_step(
                networks.model,
                lr,
                gt,
                losses=losses,
                faithful=faithful,
                autocast_dtype=self._dtype,
                checkpointing=settings.gradient_checkpointing,
            )
        return {f"mixture_{name}": value for name, value in found.items() if losses.weight(name) > 0}

    def _motion(self, gt: Tensor) -> Flows | None:
        return motion_of(self._networks.model, gt) if self._needs_motion else None

    def _faithful(self, lr: Tensor) -> Tensor | None:
        needed = self._networks.settings.losses.needs(Needs.TEACHER)
        return self._teacher.output(lr, self._dtype) if needed and self._teacher is not None else None

    def _faithful_cleaned(self, lr: Tensor, gt: Tensor) -> Tensor | None:
        settings = self._networks.settings
        if self._teacher is None or not settings.losses.needs(Needs.TEACHER_CLEANING):
            return None
        num_levels = settings.architecture.num_cleaning_levels
        return self._teacher.nearest_cleaned(lr, gt, self._dtype, num_levels=num_levels)

    # ---- captured ----------------------------------------------------------------------------------------------------

    def _is_graphed(self, iteration: int) -> bool:
        settings = self._networks.settings
        return (
            settings.cuda_graph
            and self._processes.device.type == "cuda"
            and self._processes.num == 1
            and self._perceptual is None
            and not settings.gradient_checkpointing
            and not settings.trains_cleaning_alone
            and draw_share(settings, iteration) is None
            and iteration >= settings.losses.adversarial_warm_up_iterations
        )

    def _take_graphed(self, tensors: StepTensors) -> Taken | None:
        """Take a captured step. Return None if it cannot be captured; steps are eager from then on."""
        networks = self._networks
        learns_flow = any(parameter.requires_grad for parameter in networks.flow_parameters)
        if self._graph is None or learns_flow != self._graph_learns_flow:
            self._read_graph_sums()  # the new graph may have other losses
            self._graph, self._graph_learns_flow = GraphedStep(self.captured), learns_flow
        try:
            names, losses = self._graph(*tensors)
        except RuntimeError as error:
            networks.settings = dataclasses.replace(networks.settings, cuda_graph=False)
            print(f"training train: the step cannot be captured; training is eager now: {str(error).splitlines()[0]}")
            torch.cuda.synchronize()
            return None
        if self._graph_sums is None:
            self._graph_sums = names, losses.clone()
        else:
            self._graph_sums[1].add_(losses)
        self._num_graphed += 1
        self._has_captured = True
        return Taken(True, None)

    def _read_graph_sums(self) -> None:
        """Add the sums of captured steps, which are on the device, to the others. Synchronises."""
        if self._graph_sums is not None:
            names, sums = self._graph_sums
            self._add_losses(dict(zip(names, sums.tolist(), strict=True)), self._num_graphed)
        self._graph_sums, self._num_graphed = None, 0

    def _add_losses(self, sums: Mapping[str, float], num_steps: int) -> None:
        for name, value in sums.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
            self._num_of[name] = self._num_of.get(name, 0) + num_steps

    def captured(self, lr: Tensor, gt: Tensor, real: Tensor) -> dict[str, Tensor]:
        """Take one step without waiting for the device, for a graph to capture. The rest loss uses the middle frame."""
        networks, settings = self._networks, self._networks.settings
        networks.optimizer.zero_grad(set_to_none=True)
        flows_px = self._motion(gt)
        losses, hr = generator_gradients(
            networks.model,
            lr,
            gt,
            losses=settings.losses,
            faithful=self._faithful(lr),
            faithful_cleaned=self._faithful_cleaned(lr, gt),
            flows_px=flows_px,
            discriminator=networks.discriminator,
            rest_frame=settings.data.num_frames // 2,
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


def gradient_norm(parameters: list[nn.Parameter]) -> Tensor:
    """Return the norm of all gradients together, a scalar; not finite if any of them is not."""
    return nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
