"""Source frames: what the caller supplies of a frame, and what is computed from that frame alone."""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vsrealbasicvsr.scenes import Thumbnail


@dataclass(slots=True)
class SourceFrame:
    """A frame of the clip as the caller supplies it, and later what was computed from it alone.

    Attributes:
        rgb: (3, H, W) float32 on the CPU, gamma-encoded, or a function that returns it, which is called at most once.
            Dropped once the frame is cleaned.
        begins_scene: Whether a scene begins at this frame; None: unknown.
        ends_scene: Whether a scene ends at this frame; None: unknown.
        user_data: Opaque value of the caller, returned with the upscaled frame.
        planes: Returns the frame's planes (H, W) where they lie, so that it can be looked at before it is copied. None:
            `rgb` is looked at.
        cleaned: The cleaned frame as it is cached, see `memory.packed`.
        thumbnail: What the scene detector sees of the frame.
        is_cut_before: Whether the detector finds a cut between the frame before this one and this one; None: not asked.
        flow_to_next: Flow that aligns this frame's state to the next frame.
        flow_from_next: Flow that aligns the next frame's state to this frame.
        index: Position in the clip, known once the frame is supplied.
        is_limited: Whether the samples of `rgb` are known to be within the limits of `scene_cuts`.
        lock: Held while the frame is cleaned or looked at: two devices may share it.
    """

    rgb: Tensor | Callable[[], Tensor] | None
    begins_scene: bool | None = None
    ends_scene: bool | None = None
    user_data: object = None
    planes: Callable[[], Sequence[npt.NDArray[np.float32]]] | None = None
    cleaned: Tensor | None = None
    thumbnail: Thumbnail | None = None
    is_cut_before: bool | None = None
    flow_to_next: Tensor | None = None
    flow_from_next: Tensor | None = None
    index: int = -1
    is_limited: bool = False
    lock: threading.RLock = field(default_factory=threading.RLock)


def source_frames(frames: Iterable[Tensor | SourceFrame]) -> Iterator[SourceFrame]:
    """Yield the frames of a clip as source frames.

    Raises:
        ValueError: A tensor is not (3, H, W) float32, or not of the size of those before it.
    """
    shape: torch.Size | None = None
    for i, frame in enumerate(frames):
        if isinstance(frame, SourceFrame):
            yield frame
            continue
        shape = shape or frame.shape
        if frame.ndim != 3 or frame.shape[0] != 3 or frame.dtype != torch.float32 or frame.shape != shape:
            raise ValueError(
                f"frames must be (3, H, W) float32 of one size, got {tuple(frame.shape)} {frame.dtype} at frame {i}"
            )
        yield SourceFrame(frame)
