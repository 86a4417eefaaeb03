"""What decides a run's result: one frozen dataclass, its presets, its JSON and its command line.

Knows no data, no network and no loop. What only decides how fast a run is (device, workers) stands in the loop's call.
"""

import argparse
import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from training.degradations import MODERATE, PUBLISHED, DegradationSettings, mixture
from training.losses import COLOUR_BLOCK_PX
from vsrealbasicvsr.errors import UserError
from vsrealbasicvsr.model import MAX_BLOCKS, MAX_FLOW_LEVELS, MAX_START_PASSES, STRIDES, Architecture

COMPACT_ARCHITECTURE = Architecture(
    cleaning_channels=32,
    num_cleaning_blocks=6,
    mid_channels=64,
    num_backward_blocks=5,
    num_forward_blocks=5,
    fusion_channels=64,
    quarter_channels=32,
    hr_channels=16,
    hr_out_channels=16,
    num_flow_levels=5,
    flow_channels=(16, 32, 16, 8),
    flow_stride=2,
    start_passes=1,
)
"""The default weights' sizes: 1,349,865 parameters."""

COMPACT_MIX = ("usual:0.45", "mild:0.15", "clean:0.12", "blocky:0.12", "harsh:0.1", "noisy:0.06")
"""What the default weights are trained with: mostly what most videos have been through, and all else besides."""

SMOKE_ARCHITECTURE = Architecture(
    cleaning_channels=16,
    num_cleaning_blocks=2,
    mid_channels=16,
    num_backward_blocks=2,
    num_forward_blocks=2,
    fusion_channels=16,
    quarter_channels=16,
    hr_channels=16,
    hr_out_channels=16,
    flow_channels=(8, 16, 8, 8),
)


MAX_CHANNELS = 1024
"""Of any layer; the published network has 64."""


class SettingsError(UserError):
    """A setting is unknown or out of its range; the text names it and what may stand there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that decides a run's result, with the clips and the code. The defaults are the paper's stage 1.

    Sizes: `crop_px` is the side of the low-resolution crop; the ground truth is S = 4 times as large. `batch` counts
    clips of one process. Learning rates are Adam's; 0 freezes.
    """

    # the network
    architecture: Architecture = field(default_factory=Architecture)

    # how long, and on what
    iterations: int = 300_000
    batch: int = 16
    num_frames: int = 30
    """L, frames that the network sees."""
    crop_px: int = 64
    stochastic: bool = True
    """The paper's scheme: load L/2 frames, mirror them in time, let every degradation walk. False: load L frames."""
    unsharp: bool = True
    """Sharpen the ground truth first, as published; the discriminator's real pictures stay as they are."""
    target_sharpening: float = 0.0
    """Sharpen what the output is compared with, and not the input, by so much of its fine detail."""
    degradations: DegradationSettings = PUBLISHED
    degradation_mix: tuple[str, ...] = ()
    """Named degradations and their shares, one drawn for each clip, in place of `degradations`: usual:0.5,clean:0.2,
    harsh:0.3. Names: clean, mild, usual, noisy, blocky, harsh, moderate, published."""
    hold_probability: float = 0.0
    """Share of the samples in which one frame stands still, noise and all."""
    still_probability: float = 0.0
    """Share of the clips made of photographs whose camera stands on a tripod; otherwise hardly any does."""
    seed: int = 0

    # a machine without a GPU: a finite number of degraded clips, each made once and kept on disk
    pool_clips: int = 0
    """0: every sample is degraded afresh."""
    pool_crop_px: int = 96
    pool_num_frames: int = 12
    pool_start_clips: int = 0
    """Clips that are there when the run begins; 0: all."""
    pool_growth: float = 0.0
    """Clips that come with each sample from then on."""

    # losses
    distance: Literal["charbonnier", "l1"] = "charbonnier"
    """Of the output, cleaning, rest and flicker losses: the paper's Charbonnier or the published code's L1."""
    output_weight: float = 1.0
    cleaning_weight: float = 1.0
    perceptual_weight: float = 0.0
    adversarial_weight: float = 0.0
    feature_matching_weight: float = 0.0
    """Features of the output in the patch discriminator against those of the truth."""
    discriminator: Literal["unet", "patch"] = "unet"
    """unet: published, single frames, cross-entropy. patch: small and conditional, hinge loss; for small networks."""
    discriminator_num_frames: int = 3
    """Of the patch discriminator: 1, or 3 with both neighbours warped onto the frame."""
    discriminator_width: int = 32
    """Of the patch discriminator: channels of its first layer."""
    adversarial_warm_up_iterations: int = 0
    """The adversarial and feature matching losses rise from 0 to their weights in so many steps."""
    cleaning_gets_perceptual: bool = False
    """False, the paper: no gradient of the perceptual and adversarial losses to C. True, the published code."""
    squared_error_weight: float = 0.0
    """Mean squared error of the output, for networks that are to be exact rather than crisp. Not in the paper."""
    psnr_weight: float = 0.0
    """Minus the PSNR of the luma in bels: see losses.psnr_loss. Not in the paper."""
    colour_weight: float = 0.0
    """Block means of the output against the input's: see losses.colour_loss. Not in the paper."""
    colour_block_px: int = COLOUR_BLOCK_PX
    """Side of these blocks. Codecs change the colour of blocks of 16 pixels: smaller ones keep that."""
    flicker_weight: float = 0.0
    """Change of the output's error along the motion that the flow network sees in the truth, so it should have learned
    to: see losses.flicker_loss. Not in the paper."""
    rest_weight: float = 0.0
    """What was cleaned stays as it is on the next pass: see losses.rest_loss. Not in the paper."""
    flow_rest_weight: float = 0.0
    """No motion between a frame and itself, while the flow network learns: see losses.flow_rest_loss. Not in the
    paper."""

    # optimisation
    learning_rate: float = 1e-4
    final_learning_rate: float = 1e-4
    """A cosine leads from learning_rate to it; equal: constant, as published."""
    discriminator_learning_rate: float = 1e-4
    flow_learning_rate: float = 0.0
    """0, as published: SPyNet is frozen; gradients still pass through it."""
    freeze_cleaning: bool = False
    """The cleaning module stays as it is, and only what comes after it learns."""
    flow_from_share: float = 0.0
    """Share of the run after which the flow network begins to learn."""
    warm_up_iterations: int = 0
    adam_betas: tuple[float, float] = (0.9, 0.99)
    max_gradient_norm: float = 0.0
    """0: gradients are not clipped."""
    ema_decay: float = 0.999
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of the convolutions; flow and losses are float32. auto: bf16 on CUDA, fp32 elsewhere."""
    cuda_graph: bool = False
    """On a GPU, take steps as one captured CUDA graph: small networks are otherwise bound by launching kernels."""
    gradient_checkpointing: bool = False
    """Compute activations twice instead of keeping them: half as much time again, a quarter of the memory."""
    max_skipped_steps: int = 20
    """Steps in a row whose gradient was not finite, after which the run stops."""

    # what is written when
    checkpoint_every: int = 1000
    keep_checkpoints: int = 3
    log_every: int = 100
    images_every: int = 1000

    def __post_init__(self) -> None:
        _check_numbers(self)
        if not all(0 <= beta < 1 for beta in self.adam_betas):
            raise SettingsError(f"adam_betas must be from 0 to below 1, got {_written(self.adam_betas)}")
        for name in ("distance", "precision", "discriminator"):
            choices = typing.get_args(typing.get_type_hints(Settings)[name])
            if getattr(self, name) not in choices:
                raise SettingsError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        if self.discriminator_num_frames not in (1, 3) or self.discriminator_width < 1:
            raise SettingsError(
                "discriminator_num_frames must be 1 or 3 and discriminator_width at least 1, got"
                f" {self.discriminator_num_frames} and {self.discriminator_width}"
            )
        if self.feature_matching_weight > 0 and not (self.discriminator == "patch" and self.adversarial_weight > 0):
            raise SettingsError(
                "feature_matching_weight needs --discriminator patch and an adversarial_weight above 0: the features"
                " are that discriminator's"
            )
        if self.adversarial_weight > 0 and self.discriminator == "patch" and self.crop_px % 4:
            raise SettingsError(f"the patch discriminator needs a crop_px that is a multiple of 4, got {self.crop_px}")
        if self.perceptual_weight > 0 and self.adversarial_weight > 0 and self.discriminator == "patch":
            raise SettingsError(
                "the patch discriminator sees no colours, so there is no perceptual loss beside it: set"
                " --perceptual-weight 0, or --discriminator unet"
            )
        try:
            mixture(self.degradation_mix) if self.degradation_mix else None
        except UserError as error:
            raise SettingsError(str(error)) from None
        _check_architecture(self.architecture)
        if not 0 <= self.architecture.start_passes <= MAX_START_PASSES:
            raise SettingsError(
                f"architecture.start_passes must be from 0 to {MAX_START_PASSES}, got {self.architecture.start_passes}"
            )
        if self.architecture.flow_stride not in (1, *STRIDES):
            raise SettingsError(
                f"architecture.flow_stride must be one of {(1, *STRIDES)}, got {self.architecture.flow_stride}"
            )
        if self.colour_weight > 0 and self.crop_px < self.colour_block_px:
            raise SettingsError(
                f"the colour loss needs a crop_px of {self.colour_block_px} (colour_block_px) or more, got"
                f" {self.crop_px}"
            )
        if self.flicker_weight > 0 and self.num_frames < 2:
            raise SettingsError(f"the flicker loss needs num_frames of 2 or more, got {self.num_frames}")
        if self.adversarial_weight > 0 and self.crop_px % 2:
            raise SettingsError(f"the discriminator needs an even crop_px, got {self.crop_px}")
        if self.pool_clips and (self.pool_crop_px < self.crop_px or self.pool_num_frames < self.num_frames):
            raise SettingsError(
                f"the pool's clips ({self.pool_num_frames} frames of {self.pool_crop_px} px) are smaller than the crops"
                f" ({self.num_frames} frames of {self.crop_px} px): raise pool_num_frames and pool_crop_px"
            )

    def to_json(self) -> str:
        """The settings as they lie beside a run's weights."""
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"

    @staticmethod
    def from_json(text: str) -> "Settings":
        """The settings that `to_json` wrote. Raises SettingsError on an unknown field or a wrong value."""
        try:
            plain = json.loads(text)
        except ValueError as error:
            raise SettingsError(f"not JSON: {error}") from None
        return typing.cast(Settings, _from_plain(Settings, plain, ""))

    @property
    def num_loaded_frames(self) -> int:
        """Frames that a sample reads: half of them, rounded up, with the stochastic scheme."""
        return -(-self.num_frames // 2) if self.stochastic else self.num_frames


def _check_numbers(settings: Settings) -> None:
    """Raise SettingsError for a number out of its range."""
    at_least_1 = "iterations batch num_frames crop_px pool_crop_px pool_num_frames max_skipped_steps"
    at_least_1 += " checkpoint_every keep_checkpoints log_every images_every"
    at_least_0 = "seed pool_clips output_weight cleaning_weight perceptual_weight adversarial_weight"
    at_least_1 += " colour_block_px"
    at_least_0 += (
        " flow_rest_weight feature_matching_weight adversarial_warm_up_iterations pool_start_clips pool_growth"
        " target_sharpening"
    )
    at_least_0 += " squared_error_weight psnr_weight colour_weight flicker_weight rest_weight learning_rate"
    at_least_0 += (
        " final_learning_rate discriminator_learning_rate flow_learning_rate warm_up_iterations max_gradient_norm"
    )
    for names, low, high in (
        (at_least_1, 1, math.inf),
        (at_least_0, 0, math.inf),
        ("still_probability hold_probability flow_from_share ema_decay", 0, 1),
    ):
        for name in names.split():
            value = getattr(settings, name)
            if not low <= value <= high or not math.isfinite(value):
                rule = f"at least {low}" if high == math.inf else f"from {low} to {high}"
                rule += " and finite" if value == math.inf else ""
                raise SettingsError(f"{name} must be {rule}, got {value}")


def _check_architecture(architecture: Architecture) -> None:
    """Raise SettingsError for sizes of which no network can be built, or read again from a file."""
    numbers = dataclasses.asdict(architecture)
    widths = {name: numbers[name] for name in numbers if name.endswith("_channels") and name != "flow_channels"}
    widths |= {f"flow_channels[{place}]": width for place, width in enumerate(architecture.flow_channels)}
    counts = {name: numbers[name] for name in numbers if name.endswith("_blocks")}
    for sizes, most in ((widths, MAX_CHANNELS), (counts, MAX_BLOCKS)):
        for name, size in sizes.items():
            if not 1 <= size <= most:
                raise SettingsError(f"architecture.{name} must be from 1 to {most}, got {size}")
    if not 1 <= architecture.num_flow_levels <= MAX_FLOW_LEVELS:
        raise SettingsError(
            f"architecture.num_flow_levels must be from 1 to {MAX_FLOW_LEVELS}, got {architecture.num_flow_levels}"
        )


STAGE_1 = Settings()

STAGE_2 = dataclasses.replace(
    STAGE_1,
    iterations=150_000,
    batch=8,
    perceptual_weight=1.0,
    adversarial_weight=0.05,
    learning_rate=5e-5,
    final_learning_rate=5e-5,
)

COMPACT = dataclasses.replace(
    STAGE_1,
    architecture=COMPACT_ARCHITECTURE,
    degradations=MODERATE,
    degradation_mix=COMPACT_MIX,
    hold_probability=0.12,
    iterations=6000,
    batch=6,
    num_frames=6,
    crop_px=48,
    stochastic=False,
    unsharp=False,
    pool_clips=2000,
    pool_num_frames=14,
    output_weight=0.5,
    cleaning_weight=0.25,
    psnr_weight=0.5,
    colour_weight=1.0,
    colour_block_px=48,
    flicker_weight=4.0,
    rest_weight=0.25,
    flow_rest_weight=0.1,
    learning_rate=6e-4,
    final_learning_rate=3e-6,
    flow_learning_rate=5e-5,
    flow_from_share=0.1,
    warm_up_iterations=100,
    max_gradient_norm=0.5,
    ema_decay=0.998,
    checkpoint_every=200,
    log_every=50,
    images_every=500,
)

PRESETS: Mapping[str, Settings] = {
    "stage1": STAGE_1,
    "stage2": STAGE_2,
    "finetune": dataclasses.replace(STAGE_2, iterations=20_000, batch=2, gradient_checkpointing=True),
    "compact": COMPACT,
    "compact-gan": dataclasses.replace(
        COMPACT,
        iterations=3000,
        output_weight=1.0,
        cleaning_weight=0.0,
        psnr_weight=0.0,
        rest_weight=0.0,
        flow_rest_weight=0.0,
        flicker_weight=6.0,
        discriminator="patch",
        adversarial_weight=0.05,
        feature_matching_weight=1.0,
        adversarial_warm_up_iterations=100,
        freeze_cleaning=True,
        learning_rate=2e-4,
        final_learning_rate=1e-5,
        flow_learning_rate=0.0,
        flow_from_share=0.0,
        discriminator_learning_rate=3e-4,
        warm_up_iterations=50,
        ema_decay=0.995,
    ),
    "smoke": dataclasses.replace(
        STAGE_1,
        architecture=SMOKE_ARCHITECTURE,
        degradations=MODERATE,
        iterations=300,
        batch=4,
        num_frames=4,
        crop_px=32,
        unsharp=False,
        pool_clips=48,
        pool_crop_px=48,
        pool_num_frames=6,
        colour_weight=1.0,
        learning_rate=2e-3,
        final_learning_rate=1e-4,
        flow_learning_rate=1e-4,
        flow_from_share=0.5,
        warm_up_iterations=10,
        max_gradient_norm=1.0,
        ema_decay=0.98,
        checkpoint_every=50,
        log_every=20,
        images_every=150,
    ),
}
"""stage1, stage2: the paper's. finetune: stage 2, short, for 24 GB. compact, compact-gan: the default weights' faithful
set, and the sharp one that begins from it; hours on a CPU, minutes on a GPU. smoke: minutes on a CPU."""


# ---- the command line ------------------------------------------------------------------------------------------------


SHORT_OPTIONS = {"num_frames": ("--length",)}


def add_options(parser: argparse.ArgumentParser) -> None:
    """An option for every field: --learning-rate 2e-4, --degradations.jpeg-quality 30,95, --no-stochastic.

    Without a default: only what the user wrote is in the parsed arguments, under the field's name with dots.
    """
    group = parser.add_argument_group("settings", "Every field of the preset can be changed; lists are written a,b.")
    for name, kind, default in _fields(Settings, PRESETS["stage1"], ""):
        options = ["--" + name.replace("_", "-"), *SHORT_OPTIONS.get(name, ())]
        text = f"stage1: {_written(default)}".replace("%", "%%")
        if kind is bool:
            action = argparse.BooleanOptionalAction
            group.add_argument(*options, dest=name, action=action, default=argparse.SUPPRESS, help=text)
        else:
            group.add_argument(*options, dest=name, metavar="V", default=argparse.SUPPRESS, help=text)


def changed(settings: Settings, arguments: Mapping[str, Any]) -> Settings:
    """The settings with what the command line says put in. Raises SettingsError for a value that does not fit."""
    tree: dict[str, Any] = dataclasses.asdict(settings)
    kinds = {name: kind for name, kind, _ in _fields(Settings, settings, "")}
    for name, value in arguments.items():
        if name not in kinds:
            continue
        *path, last = name.split(".")
        place = tree
        for part in path:
            place = place[part]
        place[last] = _parsed(value, kinds[name], name) if isinstance(value, str) else value
    return typing.cast(Settings, _from_plain(Settings, tree, ""))


def read_settings(path: Path) -> Settings:
    """The settings of a run. Raises SettingsError, naming the file."""
    try:
        return Settings.from_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path} cannot be read ({error.strerror}): is this the folder of a run?") from None
    except SettingsError as error:
        way_out = f". If another version wrote it, begin a new run with --from {path.parent}"
        raise SettingsError(f"{path}: {error}{way_out}") from None


def _fields(kind: type, value: Any, prefix: str) -> list[tuple[str, Any, Any]]:
    """(name with dots, type, value) of every plain field, dataclasses taken apart."""
    hints = typing.get_type_hints(kind)
    found: list[tuple[str, Any, Any]] = []
    for entry in dataclasses.fields(kind):
        inner, name = getattr(value, entry.name), f"{prefix}{entry.name}"
        if dataclasses.is_dataclass(hints[entry.name]):
            found += _fields(typing.cast(type, hints[entry.name]), inner, name + ".")
        else:
            found.append((name, hints[entry.name], inner))
    return found


def _written(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _without_alias(kind: Any) -> Any:
    return kind.__value__ if isinstance(kind, typing.TypeAliasType) else kind


def _parsed(text: str, kind: Any, name: str) -> Any:
    """A command line's text as plain data of this type."""
    kind = _without_alias(kind)
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        options = typing.get_args(kind)
        if type(None) in options and text.lower() == "none":
            return None
        kind = next(option for option in options if option is not type(None))
        return _parsed(text, kind, name)
    if origin is tuple:
        parts, inner = [part for part in text.split(",") if part], typing.get_args(kind)
        kinds = [inner[0]] * len(parts) if inner[-1] is Ellipsis else list(inner)
        if len(parts) != len(kinds):
            raise SettingsError(f"{name} takes {len(kinds)} values with commas between them, got {text!r}")
        return [_parsed(part, part_kind, name) for part, part_kind in zip(parts, kinds, strict=True)]
    if origin is Literal or kind is str:
        return text
    try:
        if kind is bool:
            return {"true": True, "false": False, "1": True, "0": False}[text.lower()]
        return kind(text)
    except (ValueError, KeyError):
        raise SettingsError(f"{name} must be of type {kind.__name__}, got {text!r}") from None


def _from_plain(kind: type, plain: Any, prefix: str) -> Any:
    """The dataclass of this plain data: lists become tuples, dictionaries dataclasses."""
    if not isinstance(plain, Mapping):
        raise SettingsError(f"{prefix.rstrip('.') or 'settings'} must be an object with fields, got {plain!r}")
    hints = typing.get_type_hints(kind)
    names = {entry.name for entry in dataclasses.fields(kind)}
    if unknown := sorted(set(plain) - names):
        raise SettingsError(f"unknown setting {prefix}{unknown[0]}; known are {', '.join(sorted(names))}")
    values = {}
    for name, value in plain.items():
        hint = hints[name]
        if dataclasses.is_dataclass(hint):
            values[name] = _from_plain(typing.cast(type, hint), value, f"{prefix}{name}.")
        else:
            values[name] = _checked(hint, value, f"{prefix}{name}")
    try:
        return kind(**values)
    except SettingsError:
        raise
    except UserError as error:
        raise SettingsError(str(error)) from None


def _checked(kind: Any, value: Any, name: str) -> Any:
    """Plain data as the field's type. Raises SettingsError if it is of another one."""
    kind = _without_alias(kind)
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        return _checked(next(o for o in typing.get_args(kind) if o is not type(None)), value, name)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise SettingsError(f"{name} must be a list, got {value!r}")
        inner = typing.get_args(kind)
        kinds = [inner[0]] * len(value) if inner[-1] is Ellipsis else list(inner)
        if len(kinds) != len(value):
            raise SettingsError(f"{name} must have {len(kinds)} entries, got {value!r}")
        return tuple(_checked(part_kind, part, name) for part_kind, part in zip(kinds, value, strict=True))
    if origin is Literal:
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is float and isinstance(value, float) and not math.isfinite(value):
        raise SettingsError(f"{name} must be a finite number, got {value}")
    if isinstance(kind, type) and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
        raise SettingsError(f"{name} must be of type {kind.__name__}, got {value!r}")
    return value
