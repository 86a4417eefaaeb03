"""Everything that decides a run's result: one frozen dataclass, its checks and its JSON.

What only affects speed (device, workers) is an argument of the training loop.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from training.data.settings import DataSettings
from training.degradations import SCALE
from training.fields import AtLeast1, Count, NotNegative, Range, SettingsError, Share, check_fields, from_plain, written
from training.losses.kinds import Reach
from training.losses.settings import LOSSES, LossSettings
from vsrealbasicvsr.model import (
    MAX_BLOCKS,
    MAX_CLEANING_LEVELS,
    MAX_FLOW_LEVELS,
    MAX_START_PASSES,
    STRIDES,
    Architecture,
)

MAX_CHANNELS = 1024
"""Maximum width of any layer; the published network has 64."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that decides a run's result, apart from the clips and the code. The defaults are the paper's stage 1.

    Learning rates are Adam's; 0 freezes. Raises SettingsError for values out of range or that exclude each other.
    """

    architecture: Architecture = field(default_factory=Architecture)
    data: DataSettings = field(default_factory=DataSettings)
    losses: LossSettings = field(default_factory=LossSettings)

    iterations: AtLeast1 = 300_000
    """Number of training steps."""
    batch: AtLeast1 = 16
    """Clips in one step of one process."""
    learning_rate: NotNegative = 1e-4
    """Adam's rate at the start, after the warm-up."""
    final_learning_rate: NotNegative = 1e-4
    """Rate at the end, reached by a cosine from learning_rate; equal: constant, as published."""
    discriminator_learning_rate: NotNegative = 1e-4
    """Adam's rate for the discriminator, constant."""
    flow_learning_rate: NotNegative = 0.0
    """0, as published: SPyNet is frozen; gradients still pass through it."""
    freeze_cleaning: bool = False
    """Freeze the cleaning module; only what comes after it is trained."""
    freeze_basicvsr: bool = False
    """Freeze BasicVSR, its flow network included; only the cleaning module is trained."""
    flow_from_share: Share = 0.0
    """Share of the run after which the flow network is trained."""
    warm_up_iterations: Count = 0
    """Steps in which the learning rate rises from 0."""
    adam_betas: tuple[float, float] = (0.9, 0.99)
    """Adam's decay rates of the first and the second moment."""
    max_gradient_norm: NotNegative = 0.0
    """Gradients of a larger norm are scaled down to it; 0: gradients are not clipped."""
    ema_decay: Share = 0.999
    """Decay of the moving average of the weights for each step."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Type of the convolutions; flow and losses are float32. auto: bf16 on CUDA, fp32 elsewhere."""
    cuda_graph: bool = False
    """On a GPU, take steps as one captured CUDA graph: launching kernels otherwise limits small networks."""
    gradient_checkpointing: bool = False
    """Compute activations twice instead of keeping them: half as much time again, a quarter of the memory."""
    max_skipped_steps: AtLeast1 = 20
    """Maximum number of successive steps with non-finite gradients; then the run stops."""

    checkpoint_every: AtLeast1 = 1000
    """Steps between two checkpoints."""
    keep_checkpoints: AtLeast1 = 3
    """Number of checkpoints that are kept."""
    log_every: AtLeast1 = 100
    """Steps whose mean losses make one record of the log."""
    images_every: AtLeast1 = 1000
    """Steps between two images in TensorBoard."""

    def __post_init__(self) -> None:
        check_fields(self)
        if not all(0 <= beta < 1 for beta in self.adam_betas):
            raise SettingsError(f"adam_betas must be from 0 to below 1, got {written(self.adam_betas)}")
        _check_architecture(self.architecture)
        if self.architecture.scale != SCALE:
            raise SettingsError(
                f"architecture.scale must be {SCALE}, to which the degradations shrink, got {self.architecture.scale}"
            )
        self.losses.check_sample(num_frames=self.data.num_frames, crop_px=self.data.crop_px)
        self._check_frozen()

    def _check_frozen(self) -> None:
        """Raise SettingsError if nothing is trained, or if losses are asked for that reach only what is frozen."""
        if not self.freeze_basicvsr:
            return
        if self.freeze_cleaning:
            raise SettingsError("freeze_cleaning and freeze_basicvsr leave nothing to train: choose one of them")
        unused = [
            f"{name}_weight"
            for name, loss in LOSSES.items()
            if self.losses.weight(name) > 0 and loss.reaches is Reach.BEHIND_CLEANING
        ]
        if unused and not self.losses.cleaning_gets_perceptual:
            raise SettingsError(
                f"with freeze_basicvsr the cleaning module alone is trained, and {', '.join(unused)} must be 0, for the"
                " paper keeps these losses from it (or set cleaning_gets_perceptual)"
            )

    @property
    def trains_cleaning_alone(self) -> bool:
        """Whether steps need no output: only the cleaning module is trained, by losses of the cleaned frames."""
        return self.freeze_basicvsr and self.losses.are_of_cleaning_alone

    def to_json(self) -> str:
        """Return the settings as the text of settings.json."""
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"

    @staticmethod
    def from_json(text: str) -> "Settings":
        """Return the settings that `to_json` wrote, in this version or before losses and data were nested.

        Raises:
            SettingsError: A field is unknown or its value wrong.
        """
        try:
            plain = json.loads(text)
        except ValueError as error:
            raise SettingsError(f"not JSON: {error}") from None
        return from_plain(Settings, upgraded(plain))


def upgraded(plain: Any) -> Any:
    """Return the plain data of settings.json as it is written today.

    Losses and data are nested; until 2026-11 all their fields were flat. Losses that were removed are left out where
    they did not count.
    """
    if not isinstance(plain, Mapping):
        return plain
    if isinstance(plain.get("losses"), Mapping):
        kept = {name: value for name, value in plain["losses"].items() if name not in _REMOVED or value != 0}
        return {**plain, "losses": kept}
    if "losses" in plain or "data" in plain:
        return plain
    nested: dict[str, Any] = dict(plain)
    for group, kind in (("data", DataSettings), ("losses", LossSettings)):
        names = [entry.name for entry in dataclasses.fields(kind)]
        nested[group] = {name: nested.pop(name) for name in names if name in nested}
    return nested


_REMOVED = ("fine_weight", "teacher_mix", "teacher_fine")


def changed(settings: Settings, changes: Mapping[str, Any]) -> Settings:
    """Return the settings with some fields replaced.

    Args:
        settings: The settings to begin with.
        changes: New values by names with dots, such as "losses.flicker_weight"; "losses." and "data." may be left out.

    Raises:
        SettingsError: A field is unknown or a value does not fit.
    """
    tree: dict[str, Any] = dataclasses.asdict(settings)
    for name, value in changes.items():
        *path, last = full_name(name).split(".")
        place = tree
        for part in path:
            place = place[part]
        place[last] = value
    return from_plain(Settings, tree)


SHORT = {
    entry.name: f"{group}.{entry.name}"
    for group, kind in (("data", DataSettings), ("losses", LossSettings))
    for entry in dataclasses.fields(kind)
}
"""Full names of the fields that may be named without their group."""


def full_name(name: str) -> str:
    """Return the name of a field with its group: "data.crop_px" for "crop_px"."""
    first, dot, rest = name.partition(".")
    return SHORT.get(first, first) + dot + rest


def read_settings(path: Path) -> Settings:
    """Read the settings of a run. Raise SettingsError, naming the file, if that fails."""
    try:
        return Settings.from_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path} cannot be read ({error.strerror}): is this the folder of a run?") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{path} is damaged: it is no text. Begin a new run with --from {path.parent}") from None
    except SettingsError as error:
        way_out = f". If another version wrote it, begin a new run with --from {path.parent}"
        raise SettingsError(f"{path}: {error}{way_out}") from None


def _check_architecture(architecture: Architecture) -> None:
    """Raise SettingsError for sizes of which no network can be built, or that could not be read back from a file."""
    numbers = dataclasses.asdict(architecture)
    widths = {name: numbers[name] for name in numbers if name.endswith("_channels") and name != "flow_channels"}
    widths |= {f"flow_channels[{place}]": width for place, width in enumerate(architecture.flow_channels)}
    counts = {name: numbers[name] for name in numbers if name.endswith("_blocks")}
    for sizes, allowed in (
        (widths, Range(1, MAX_CHANNELS)),
        (counts, Range(1, MAX_BLOCKS)),
        ({"num_flow_levels": architecture.num_flow_levels}, Range(1, MAX_FLOW_LEVELS)),
        ({"start_passes": architecture.start_passes}, Range(0, MAX_START_PASSES)),
        ({"num_cleaning_levels": architecture.num_cleaning_levels}, Range(1, MAX_CLEANING_LEVELS)),
    ):
        for name, size in sizes.items():
            if not allowed.low <= size <= allowed.high:
                raise SettingsError(f"architecture.{name} must be {allowed}, got {size}")
    if architecture.flow_stride not in (1, *STRIDES):
        raise SettingsError(f"architecture.flow_stride must be one of {(1, *STRIDES)}, got {architecture.flow_stride}")
