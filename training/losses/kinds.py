"""The parts of a loss: its function, its inputs, and the parts of the network that get its gradient.

A loss is one file of this folder and one line of `LossSettings`, which names it beside the field of its weight.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, Flag, auto

from torch import Tensor

from training.losses.distances import Distance

type Flows = tuple[Tensor, Tensor]
"""Two tensors (N, T - 1, 2, H, W) in pixels: frame t sampled along the first looks like frame t + 1, and frame t + 1
sampled along the second like frame t."""


class Reach(Enum):
    """The parts of the network that get a loss's gradient.

    The paper (after Eq. 3) keeps the perceptual and adversarial losses away from the cleaning module C: its frames are
    to be free of artefacts, not rich in detail.
    """

    EVERYTHING = auto()
    """The cleaning module, the flow network, propagation and reconstruction."""
    CLEANING = auto()
    """The cleaning module alone."""
    FLOW = auto()
    """The flow network alone."""
    BEHIND_CLEANING = auto()
    """Everything but the cleaning module; with cleaning_gets_perceptual, as in the published code, everything."""


class Needs(Flag):
    """Requirements of a loss, besides the input, the output and the ground truth."""

    NOTHING = 0
    MOTION = auto()
    """The flow of the ground truth, and so two frames or more."""
    TEACHER = auto()
    """The output of the teacher."""
    TEACHER_CLEANING = auto()
    """The frames that the teacher cleans, see Teacher.nearest_cleaned."""
    VGG = auto()
    """The perceptual network."""
    DISCRIMINATOR = auto()
    FEATURES = auto()
    """The discriminator's features of the output and of the ground truth."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipTensors:
    """Inputs of losses of whole clips. S is the network's scale.

    Attributes:
        lr: Input (N, T, 3, H, W), in [0, 1] like all clips here.
        hr: Output (N, T, 3, S*H, S*W).
        gt: Ground truth (N, T, 3, S*H, S*W).
        cleaned: Cleaned input (N, T, 3, H, W).
        flow: The flow network.
        flows_px: Motion of the ground truth, if a loss needs it.
        faithful: Output of the teacher, of hr's shape, if a loss needs it.
        distance: Of the settings.
        colour_block_px: Of the settings.
        coarse_contrast: Of the settings.
        contrast_strength: Of the settings.
        texture_quantile: Of the settings.
    """

    lr: Tensor
    hr: Tensor
    gt: Tensor
    cleaned: Tensor
    flow: Callable[[Tensor, Tensor], Tensor]
    flows_px: Flows | None
    faithful: Tensor | None
    distance: Distance
    colour_block_px: int
    coarse_contrast: float
    contrast_strength: float
    texture_quantile: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CleaningTensors:
    """Inputs of losses of the cleaning module alone. S is the network's scale.

    Attributes:
        gt: Ground truth (N, T, 3, S*H, S*W), in [0, 1] like all clips here.
        cleaned: Cleaned input (N, T, 3, H, W).
        clean: One cleaning pass.
        faithful: What the teacher cleans (Teacher.nearest_cleaned), of cleaned's shape, if a loss needs it.
        distance: Of the settings.
        keep_everywhere: Of the settings.
        rest_frame: Frame that the rest loss looks at.
    """

    gt: Tensor
    cleaned: Tensor
    clean: Callable[[Tensor], Tensor]
    faithful: Tensor | None
    distance: Distance
    keep_everywhere: bool
    rest_frame: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameTensors:
    """Inputs of losses of the perceptual network: what it makes of B frames, a few at a time.

    Attributes:
        features: Of the output, by stage, see PerceptualLoss.features_of.
        features_gt: Of the ground truth.
        distance: PerceptualLoss.distance.
        texture_quantile: Of the settings.
    """

    features: list[Tensor]
    features_gt: list[Tensor]
    distance: Callable[[list[Tensor], list[Tensor]], Tensor]
    texture_quantile: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewTensors:
    """Inputs of losses of the discriminator: what it makes of B views of the output, a few at a time.

    Attributes:
        logits: What it thinks of them.
        features: Of the output; empty if the discriminator has none (the U-Net).
        features_gt: Of the ground truth.
    """

    logits: Tensor
    features: list[Tensor]
    features_gt: list[Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss[T: (ClipTensors, CleaningTensors, FrameTensors, ViewTensors)]:
    """A loss of the generator: a scalar, unweighted, and the rules for its gradient.

    Attributes:
        compute: Returns the loss.
        reaches: Parts of the network that get its gradient.
        needs: Requirements.
        is_always_logged: Compute it even if its weight is 0 or the part of the network that it reaches is frozen.
        rises: Raise its weight from 0 over the first adversarial_warm_up_iterations.
        is_for_mixtures: Compute it for mixtures with the teacher too, see training/mixture.py.
    """

    compute: Callable[[T], Tensor]
    reaches: Reach
    needs: Needs = Needs.NOTHING
    is_always_logged: bool = False
    rises: bool = False
    is_for_mixtures: bool = False
