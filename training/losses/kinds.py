"""What a loss is: its function, what it is computed from, and which parts of the network get its gradient.

A loss is one file of this folder and one line of `LossSettings`, which names it beside the field of its weight.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, Flag, auto

from torch import Tensor, nn

from training.losses.distances import Distance

type Flows = tuple[Tensor, Tensor]
"""(N, T - 1, 2, H, W) each, in pixels: frame t sampled along it looks like frame t + 1, and t + 1 like t."""


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
    """What must be there for a loss to be computed, beside the input, the output and the ground truth."""

    NOTHING = 0
    MOTION = auto()
    """The flow of the ground truth, and so two frames or more."""
    VGG = auto()
    """The perceptual network."""
    DISCRIMINATOR = auto()
    FEATURES = auto()
    """The discriminator's features of the output and of the ground truth."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipTensors:
    """What losses of whole clips are computed from. S is the scale, 4.

    lr (N, T, 3, H, W), hr and gt (N, T, 3, S*H, S*W), cleaned (N, T, 3, H, W), all in [0, 1]. clean is one cleaning
    pass, flow the flow network. `distance` is that of the settings; rest_frame the frame that the rest loss looks at.
    """

    lr: Tensor
    hr: Tensor
    gt: Tensor
    cleaned: Tensor
    clean: Callable[[Tensor], Tensor]
    flow: Callable[[Tensor, Tensor], Tensor]
    flows_px: Flows | None
    distance: Distance
    colour_block_px: int
    rest_frame: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewTensors:
    """What losses of a few frames at a time are computed from: B views of the output, and other networks' answers.

    views (B, C, S*H, S*W): the output as the discriminator sees it, which for the perceptual network is (B, 3, ...);
    gt (B, 3, S*H, S*W). logits are None without a discriminator, features empty where it has none (the U-Net).
    """

    views: Tensor
    gt: Tensor
    vgg: nn.Module | None
    logits: Tensor | None
    features: list[Tensor]
    features_gt: list[Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss[T: (ClipTensors, ViewTensors)]:
    """A loss of the generator: a scalar, unweighted, and the rules for its gradient.

    is_always_logged: computed even if its weight is 0 or the part of the network that it reaches is frozen.
    rises: its weight rises from 0 over the first adversarial_warm_up_iterations.
    """

    compute: Callable[[T], Tensor]
    reaches: Reach
    needs: Needs = Needs.NOTHING
    is_always_logged: bool = False
    rises: bool = False
