"""The state of one device while a clip is upscaled."""

from collections.abc import Iterable
from dataclasses import astuple, dataclass, field

from torch import Tensor

from vsrealbasicvsr.backends import Backend

from .device import DeviceConfig
from .memory import Budget, free_bytes


@dataclass(slots=True)
class Statistics:
    """Counters of the work done so far."""

    frames_supplied: int = 0
    frames_cleaned: int = 0
    cleaning_passes: int = 0
    flows: int = 0
    windows_computed: int = 0
    backward_steps: int = 0
    forward_steps: int = 0
    frames_reconstructed: int = 0
    times_out_of_memory: int = 0

    @classmethod
    def total(cls, parts: Iterable["Statistics"]) -> "Statistics":
        """Return the sum of several counters."""
        return cls(*map(sum, zip(*map(astuple, parts), strict=True)))


@dataclass(slots=True)
class Worker:
    """A device, the network on it, and what may be cached there. Used by the device's compute thread alone.

    Attributes:
        device: The device.
        backend: The steps of the network on it.
        state_channels: Channels of a hidden state.
        start_passes: How often the first frame of a sequence is processed before the pass that counts.
        scale: Output pixels per input pixel, on each axis.
        num_frames: Frames that a window reads, at most.
        budget: What may be cached; known once a frame was cleaned.
        height: Rows of the clip's frames; known once a frame was cleaned, or cleaning it failed.
        statistics: Work done on this device.
    """

    device: DeviceConfig
    backend: Backend
    state_channels: int
    start_passes: int
    scale: int
    num_frames: int
    budget: Budget | None = None
    height: int | None = None
    statistics: Statistics = field(default_factory=Statistics)

    def set_budget(self, frame: Tensor) -> None:
        """Decide what may be cached, by the size (.., H, W) of a frame and the memory that is free now."""
        height, width = frame.shape[-2:]
        self.height = height
        self.budget = Budget.of(
            height=height,
            width=width,
            channels=self.state_channels,
            num_frames=self.num_frames,
            free_bytes=free_bytes(self.device.device),
        )
