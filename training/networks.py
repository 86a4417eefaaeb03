"""The networks of a run, their optimisers and the moving average of the generator."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from training.discriminators.patch import PatchDiscriminator
from training.discriminators.unet import UNetDiscriminator
from training.processes import TrainingError
from training.run_folder import CheckpointError, newest_checkpoint
from training.settings import Settings
from vsrealbasicvsr.model import CLEANING_LEVELS_KEY, START_PASSES_KEY, RealBasicVSR
from vsrealbasicvsr.weights import DEFAULT_WEIGHTS, WeightsError, read_discriminator, read_tensors
from vsrealbasicvsr.weights.reading import build_network, read_network


class Networks:
    """The trained networks (the generator, its moving average, perhaps a discriminator) and their optimisers."""

    def __init__(self, settings: Settings, device: torch.device) -> None:
        torch.manual_seed(settings.data.seed)
        self.settings = settings
        self.device = device
        self.model = self.make_model()
        self.discriminator = make_discriminator(settings)
        self.ema: dict[str, Tensor] = {}

    def make_model(self) -> RealBasicVSR:
        """Return the generator at its random start, which enlarges bilinearly and does not clean."""
        model = RealBasicVSR(self.settings.architecture)
        with torch.no_grad():
            model.basicvsr.conv_last.weight.mul_(0.1)
            model.image_cleaning[1].weight.mul_(0.1)  # type: ignore[operator]
        return model

    def start_from(self, start: Path | None, spynet: Path | None) -> None:
        """Load initial weights.

        Args:
            start: A run's folder (its networks, not the moving average, as published), a file, or "default"; None:
                random.
            spynet: Weights of the flow network.

        Raises:
            TrainingError: The weights do not fit, or a part that the settings freeze has none.
            CheckpointError: The run has no complete checkpoint.
            WeightsError: A file cannot be used.
        """
        if start is not None and start.is_dir():
            state, warnings = newest_checkpoint(start)
            for warning in warnings:
                print(f"training train: {warning}", file=sys.stderr)
            self._load(self.model, self._with_own_levels(state["model"]), start)
            if self.discriminator is not None and state.get("discriminator") is not None:
                self._load(self.discriminator, state["discriminator"], start)
        elif start is not None:
            tensors = faithful_weights(start, self.settings.architecture.start_passes)
            self._load(self.model, self._with_own_levels(tensors), start)
            if self.discriminator is not None:
                try:
                    if isinstance(self.discriminator, UNetDiscriminator):
                        self._load(self.discriminator, read_discriminator(start), start)
                except WeightsError as error:
                    print(f"training train: the discriminator begins anew: {error}", file=sys.stderr)
        if spynet is not None:
            self._load(self.model.basicvsr.spynet, read_tensors(spynet), spynet)
        if start is None and spynet is None and self.settings.flow_learning_rate > 0 and self.settings.flow_from_share:
            print(
                "training train: the flow network begins with random weights; python -m training flow, then --spynet,"
                " gives a better start",
                file=sys.stderr,
            )
        for option, part in (("cleaning", "cleaning module"), ("basicvsr", "BasicVSR")):
            if start is None and getattr(self.settings, f"freeze_{option}"):
                raise TrainingError(
                    f"there is no {part} to keep as it is: begin --from weights, or without --freeze-{option}"
                )
        if start is None and spynet is None and self.settings.flow_learning_rate == 0:
            raise TrainingError(
                "there is no flow network to begin with, and it is frozen: give one with --spynet FILE (python -m"
                " training flow makes one), begin --from weights, or let it learn with --flow-learning-rate 2.5e-5"
            )

    def _with_own_levels(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors with the settings' number of cleaning levels: the weights are the same for any number.

        Raises TrainingError if the cleaning module is frozen and would clean otherwise.
        """
        wanted, found = self.settings.architecture.num_cleaning_levels, int(tensors.get(CLEANING_LEVELS_KEY, 1))
        if self.settings.freeze_cleaning and found != wanted:
            raise TrainingError(
                "the frozen cleaning module cleans at another number of sizes than the settings say"
                f" ({found}, not {wanted}): add --architecture.num-cleaning-levels {found}"
            )
        own = {name: tensor for name, tensor in self.model.state_dict().items() if name == CLEANING_LEVELS_KEY}
        return {name: tensor for name, tensor in tensors.items() if name != CLEANING_LEVELS_KEY} | own

    def prepare(self) -> None:
        """Move everything to the device and create the optimisers. Call it after the weights are loaded."""
        settings = self.settings
        self.model.to(self.device).to(memory_format=torch.channels_last).train()
        self.model.image_cleaning.requires_grad_(not settings.freeze_cleaning)
        self.model.basicvsr.requires_grad_(not settings.freeze_basicvsr)
        self.ema = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
        flow = list(self.model.basicvsr.spynet.parameters())
        own = {id(parameter) for parameter in flow}
        rest = [parameter for parameter in self.model.parameters() if id(parameter) not in own]
        self.parameters = rest + flow
        self.flow_parameters = flow
        self.optimizer = self._adam([rest, flow], settings.learning_rate)
        self.discriminator_optimizer = None
        if self.discriminator is not None:
            self.discriminator.to(self.device).train()
            self.discriminator_optimizer = self._adam(
                [list(self.discriminator.parameters())], settings.discriminator_learning_rate
            )

    def _adam(self, groups: list[list[nn.Parameter]], rate: float) -> torch.optim.Adam:
        """Return Adam. For captured steps its learning rates are tensors on the device, where they can be changed."""
        betas = self.settings.adam_betas
        if not (self.settings.cuda_graph and self.device.type == "cuda"):
            return torch.optim.Adam([{"params": group} for group in groups], lr=rate, betas=betas)
        rates = [torch.tensor(rate, device=self.device) for _ in groups]
        return torch.optim.Adam(
            [{"params": group, "lr": own} for group, own in zip(groups, rates, strict=True)],
            lr=rates[0],
            betas=betas,
            capturable=True,
            fused=True,
        )

    def set_learning_rates(self, iteration: int) -> None:
        """Set the learning rates of this step, and whether the flow network is trained in it."""
        settings = self.settings
        share = iteration / settings.iterations
        rest, flow = self.optimizer.param_groups
        _set_rate(rest, learning_rate(iteration, settings))
        flow_learns = (
            settings.flow_learning_rate > 0 and share >= settings.flow_from_share and not settings.freeze_basicvsr
        )
        peak = settings.flow_learning_rate
        _set_rate(flow, learning_rate(iteration, settings, peak=peak) if flow_learns else 0.0)
        for parameter in self.flow_parameters:
            parameter.requires_grad_(flow_learns)

    def update_ema(self, iteration: int) -> None:
        """Update the moving average. It follows faster in the first steps, so that the random start is forgotten."""
        decay = min(self.settings.ema_decay, (iteration + 1) / (iteration + 10))
        state = self.model.state_dict()
        with torch.no_grad():
            torch._foreach_lerp_(list(self.ema.values()), [state[name] for name in self.ema], 1 - decay)

    def ema_model(self) -> RealBasicVSR:
        """Return the moving average as a network of its own, on the CPU."""
        return RealBasicVSR.from_state_dict({name: tensor.cpu() for name, tensor in self.ema.items()}).eval()

    def state(self, iteration: int) -> dict[str, Any]:
        """Return everything that is needed to resume after `iteration` steps. The data needs only their number."""
        return {
            "iteration": iteration,
            "model": self.model.state_dict(),
            "ema": self.ema,
            "optimizer": self.optimizer.state_dict(),
            "discriminator": None if self.discriminator is None else self.discriminator.state_dict(),
            "discriminator_optimizer": (
                None if self.discriminator_optimizer is None else self.discriminator_optimizer.state_dict()
            ),
            "random_state": torch.get_rng_state(),
        }

    def restore(self, state: Mapping[str, Any], where: Path) -> int:
        """Restore a checkpoint's state. Return the number of steps done.

        Raises:
            TrainingError: The state does not fit the settings.
            CheckpointError: It has no discriminator, but the settings need one.
        """
        self._load(self.model, state["model"], where)
        for name, tensor in state["ema"].items():
            self.ema[name].copy_(tensor)
        load_optimizer(self.optimizer, state["optimizer"])
        if self.discriminator is not None and self.discriminator_optimizer is not None:
            if state.get("discriminator") is None:
                raise CheckpointError(f"{where} has no discriminator, but the run's settings ask for one.")
            self._load(self.discriminator, state["discriminator"], where)
            load_optimizer(self.discriminator_optimizer, state["discriminator_optimizer"])
        torch.set_rng_state(state["random_state"])
        return int(state["iteration"])

    @staticmethod
    def _load(network: nn.Module, tensors: Mapping[str, Tensor], where: Path) -> None:
        own = network.state_dict()
        wrong = [
            f"{name} {tuple(tensors[name].shape)} instead of {tuple(own[name].shape)}"
            if name in own and name in tensors
            else f"{name} {'missing' if name in own else 'not known'}"
            for name in sorted(own.keys() | tensors.keys())
            if name not in own or name not in tensors or own[name].shape != tensors[name].shape
        ]
        if wrong:
            raise TrainingError(
                f"{where} holds a {type(network).__name__} of other sizes than the settings ask for"
                f" ({len(wrong)} tensors differ, first {wrong[0]}). Use the preset and --architecture.* options that"
                " it was trained with."
            )
        try:
            network.load_state_dict(tensors)
        except RuntimeError as error:
            raise TrainingError(f"{where} does not fit the settings: {' '.join(str(error).split())}.") from None


def faithful_weights(start: Path, start_passes: int = 0) -> dict[str, Tensor]:
    """Return the tensors of the network in a file, or of "default"; of two sets the faithful one.

    Args:
        start: The file, or "default".
        start_passes: Number of start passes to set (see Architecture), since a file's eight would slow training down;
            0 keeps the file's.

    Raises:
        WeightsError: It holds no network.
    """
    path = DEFAULT_WEIGHTS if str(start) == "default" else start
    stored = read_network(path)
    tensors = build_network(path, stored, detail=0 if stored.sharp else None).state_dict()
    if start_passes:
        tensors[START_PASSES_KEY] = torch.tensor(float(start_passes))
    return tensors


def _set_rate(group: dict[str, Any], rate: float) -> None:
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Restore the moments of a checkpoint. How the optimiser runs (device, captured or not) does not change."""
    own = [{name: group[name] for name in _HOW if name in group} for group in optimizer.param_groups]
    # torch puts the step counts where the saved groups say (capturable, fused); a fused kernel reads them on the GPU.
    groups = [saved | how for saved, how in zip(state["param_groups"], own, strict=True)]
    optimizer.load_state_dict(dict(state) | {"param_groups": groups})
    for group, how in zip(optimizer.param_groups, own, strict=True):
        group.update(how)  # the very tensors of learning rates, not copies


_HOW = ("lr", "capturable", "fused", "foreach")


def make_discriminator(settings: Settings) -> UNetDiscriminator | PatchDiscriminator | None:
    """Build the discriminator that the settings ask for; None without an adversarial loss."""
    if settings.losses.adversarial_weight == 0:
        return None
    if settings.losses.discriminator == "unet":
        return UNetDiscriminator()
    return PatchDiscriminator(settings.losses.discriminator_num_frames, settings.losses.discriminator_width)


def learning_rate(iteration: int, settings: Settings, *, peak: float | None = None) -> float:
    """Return the learning rate of a step: linear warm-up, then a cosine from learning_rate to final_learning_rate.

    Args:
        iteration: Number of steps done.
        settings: Of the run.
        peak: The rate after the warm-up, instead of learning_rate; the final rate is scaled with it.
    """
    warm_up = settings.warm_up_iterations
    final = settings.final_learning_rate
    if peak is not None:
        final *= peak / settings.learning_rate if settings.learning_rate > 0 else 0.0
    peak = settings.learning_rate if peak is None else peak
    if iteration < warm_up:
        return peak * (iteration + 1) / warm_up
    share = min((iteration - warm_up) / max(settings.iterations - warm_up, 1), 1)
    return final + (peak - final) * (1 + math.cos(math.pi * share)) / 2


def autocast_dtype_of(settings: Settings, device: torch.device) -> torch.dtype | None:
    """Return the dtype of the convolutions; None for float32. The only place that decides precision.

    bfloat16 has float32's range, so losses need no scaling; gradients are float32. "auto" uses it only where it is
    fast: not on CPUs, most of which do not multiply it (AVX512-BF16, AMX), and not on GPUs below capability 8.0, for
    which cuDNN has no convolutions in bfloat16 (although torch's is_bf16_supported says yes).
    """
    is_auto = settings.precision == "auto" and device.type == "cuda"
    wanted = settings.precision == "bf16" or (is_auto and torch.cuda.get_device_capability(device) >= (8, 0))
    return torch.bfloat16 if wanted else None
