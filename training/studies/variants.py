"""The networks that the studies compare: the paper's, one without a cleaning module, one with a recurrent module.

They have the interface of RealBasicVSR. Depends on no files and no data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from training.networks import Networks, faithful_weights
from training.settings import Settings
from vsrealbasicvsr.errors import UserError
from vsrealbasicvsr.model import Architecture, RealBasicVSR, flow_warp
from vsrealbasicvsr.model.network import ResidualTrunk

type Cleaning = Literal["image", "recurrent", "none"]
"""The cleaning module: the paper's, which sees one image; a recurrent one; none at all."""

FLOW_PREFIX, CLEANING_PREFIX = "basicvsr.spynet.", "image_cleaning."
FIRST_OF_CLEANING = f"{CLEANING_PREFIX}0.main.0.weight"


class OneStage(RealBasicVSR):
    """BasicVSR alone: frames are propagated as they come (paper, Fig. 2, "without cleaning")."""

    def __init__(self, sizes: Architecture | None = None) -> None:
        super().__init__(sizes)
        _check_levels(self.sizes)
        self.image_cleaning = nn.Sequential()

    def cleaning_residue(self, frames: Tensor, *, num_levels: int | None = None) -> Tensor:
        """Return zeros, shaped like the frames (B, 3, H, W): nothing is cleaned."""
        return torch.zeros_like(frames)

    def clean(self, lr: Tensor, *, num_levels: int | None = None) -> Tensor:
        """Return the clip (N, T, 3, H, W) as it is."""
        return lr


class RecurrentCleaning(RealBasicVSR):
    """A cleaning module that sees the features of the previous frame too (paper, Fig. 4).

    The state of the previous frame is sampled along the flow between the two input frames. The flow network gets no
    gradient from here.
    """

    def __init__(self, sizes: Architecture | None = None) -> None:
        super().__init__(sizes)
        _check_levels(self.sizes)
        channels = self.sizes.cleaning_channels
        self.image_cleaning = nn.Sequential(
            ResidualTrunk(3 + channels, channels, self.sizes.num_cleaning_blocks),
            nn.Conv2d(channels, 3, 3, padding=1),
        )

    def cleaning_residue(self, frames: Tensor, *, num_levels: int | None = None) -> Tensor:
        """Return what a pass adds to frames (B, 3, H, W) that have no previous frame."""
        return self._residue(frames, None)[0]

    def clean(self, lr: Tensor, *, num_levels: int | None = None) -> Tensor:
        """Return the clip (N, T, 3, H, W) after one pass from the first frame to the last."""
        cleaned, state, previous = [], None, None
        for frame in lr.unbind(dim=1):
            if state is not None and previous is not None:
                with torch.no_grad():
                    flow_px, _ = self.flows(previous, frame)
                state = flow_warp(state, flow_px)
            residue, state = self._residue(frame, state)
            cleaned.append(frame + residue)
            previous = frame
        return torch.stack(cleaned, dim=1)

    def _residue(self, frame: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        if state is None:
            state = frame.new_zeros((len(frame), self.sizes.cleaning_channels, *frame.shape[2:]), dtype=self.dtype)
        features = self.image_cleaning[0](torch.cat((frame.to(state.dtype), state), dim=1))
        return self.image_cleaning[1](features).to(frame.dtype), features


def _check_levels(sizes: Architecture) -> None:
    if sizes.num_cleaning_levels != 1:
        raise UserError(
            f"this network cleans at one size, got num_cleaning_levels {sizes.num_cleaning_levels}: give"
            " --architecture.num-cleaning-levels 1, so that all networks of the study do"
        )


KINDS: Mapping[Cleaning, type[RealBasicVSR]] = {
    "image": RealBasicVSR,
    "recurrent": RecurrentCleaning,
    "none": OneStage,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A network of a study and how it is trained. start: the variant whose weights it begins with."""

    name: str
    settings: Settings
    cleaning: Cleaning = "image"
    start: Variant | None = None


class VariantNetworks(Networks):
    """The networks of a run of a study."""

    def __init__(self, variant: Variant, device: torch.device) -> None:
        self._kind = KINDS[variant.cleaning]
        super().__init__(variant.settings, device)

    def make_model(self) -> RealBasicVSR:
        """Return the variant's generator at its random start, which enlarges bilinearly and does not clean."""
        model = self._kind(self.settings.architecture)
        with torch.no_grad():
            model.basicvsr.conv_last.weight.mul_(0.1)
            if len(model.image_cleaning):
                model.image_cleaning[1].weight.mul_(0.1)  # type: ignore[operator]
        return model

    def ema_model(self) -> RealBasicVSR:
        """Return the moving average as a network of its own, on the CPU."""
        return build(self._kind, self.settings, {name: tensor.cpu() for name, tensor in self.ema.items()})

    def take_default_weights(self) -> None:
        """Begin with the default weights, as far as this kind of network has them.

        A recurrent cleaning module begins as the module of images: what it takes from its state has weights of 0.
        Raises TrainingError if the sizes are not theirs.
        """
        tensors = self._with_own_levels(faithful_weights(Path("default"), self.settings.architecture.start_passes))
        if not len(self.model.image_cleaning):
            tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(CLEANING_PREFIX)}
        if isinstance(self.model, RecurrentCleaning):
            first = tensors[FIRST_OF_CLEANING]
            state = first.new_zeros((first.shape[0], self.settings.architecture.cleaning_channels, *first.shape[2:]))
            tensors[FIRST_OF_CLEANING] = torch.cat((first, state), dim=1)
        self._load(self.model, tensors, Path("default"))

    def take_default_flow(self) -> None:
        """Begin with the flow network of the default weights. Raises TrainingError if its sizes are not these."""
        tensors = faithful_weights(Path("default"))
        flow = {name.removeprefix(FLOW_PREFIX): t for name, t in tensors.items() if name.startswith(FLOW_PREFIX)}
        self._load(self.model.basicvsr.spynet, flow, Path("default"))


def build(kind: type[RealBasicVSR], settings: Settings, tensors: Mapping[str, Tensor]) -> RealBasicVSR:
    """Return the network of this kind and these sizes with these weights, for inference."""
    model = kind(settings.architecture)
    model.load_state_dict(dict(tensors))
    return model.eval()
