"""A network's output for the measured frames of a sequence, in little memory.

The network processes the whole sequence, as in the paper; for a frame that is not measured, no high-resolution image is
computed and no state is kept longer than the next frame needs it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from training.benchmarking.sequences import Clip, pieces
from training.evaluation.metrics import to_bytes
from vsrealbasicvsr.errors import UserError
from vsrealbasicvsr.model import RealBasicVSR, refine

MAX_ROWS = 64
"""Low-resolution rows that are reconstructed at once: an enlarged map of 64 channels of 640x360 takes 0.18 GB so,
0.94 GB as a whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """Settings with which a network is run.

    Attributes:
        theta: As in Upscale.
        cleaning: As in Upscale.
        num_passes: Number of cleaning passes for every frame, instead of theta (Fig. 6b).
        length: Frames of the pieces that the sequence is cut into, which are processed independently (Fig. 2); None:
            one.
    """

    theta: float = 5.0
    cleaning: float = 1.0
    num_passes: int | None = None
    length: int | None = None

    def __post_init__(self) -> None:
        if not self.theta >= 0:
            raise UserError(f"theta must be at least 0, got {self.theta:g}")
        if not 0 <= self.cleaning <= 1:
            raise UserError(f"cleaning must be between 0 and 1, got {self.cleaning:g}")
        if self.num_passes is not None and self.num_passes < 0:
            raise UserError(f"--fixed-passes must be at least 0, got {self.num_passes}")
        if self.length is not None and self.length < 1:
            raise UserError(f"--length must be at least 1, got {self.length}")


def super_resolve_measured(model: RealBasicVSR, clip: Clip, way: Way) -> Tensor:
    """Super-resolve a sequence and return its measured frames.

    The result is that of `model.super_resolve` on the cleaned sequence, but for rounding. In memory at a time are the
    cleaned frames, five low-resolution planes for each frame, two states, and states and images of the measured frames.
    Pieces without a measured frame are not computed.

    Args:
        model: The network.
        clip: The sequence.
        way: How the network is run.

    Returns:
        (M, 3, S*H, S*W) on the CPU, rounded to 8 bits, in [0, 1].
    """
    device = next(model.parameters()).device
    made: dict[int, Tensor] = {}
    with torch.inference_mode():
        for piece in pieces(len(clip.frames), way.length):
            wanted = {number - piece.start for number in clip.measured if number in piece}
            if not wanted:
                continue
            frames = torch.from_numpy(clip.frames[piece.start : piece.stop]).permute(0, 3, 1, 2).contiguous()
            cleaned = [_cleaned(model, frame[None].to(device).float() / 255, way) for frame in frames]
            made |= {piece.start + i: picture for i, picture in propagated(model, cleaned, wanted).items()}
    return torch.cat([made[number] for number in clip.measured])


def _cleaned(model: RealBasicVSR, frame: Tensor, way: Way) -> Tensor:
    """Return a frame (1, 3, H, W), cleaned."""
    if way.num_passes is None:
        return refine(model, frame[None], theta=way.theta, cleaning=way.cleaning)[0][0]
    for _ in range(way.num_passes if way.cleaning else 0):
        frame = frame + way.cleaning * model.cleaning_residue(frame)
    return frame


def propagated(model: RealBasicVSR, cleaned: list[Tensor], wanted: Collection[int]) -> dict[int, Tensor]:
    """Return the images (1, 3, S*H, S*W) of the frames in `wanted`, from both directions.

    cleaned: each frame of the sequence (1, 3, H, W).
    """
    first, last = min(wanted), max(wanted)
    flows_forward: dict[int, Tensor] = {}  # by the frame that they lead to; frames after the last need none
    backward: dict[int, Tensor] = {}
    state: Tensor | None = None
    for i in reversed(range(len(cleaned))):
        flow = None
        if i + 1 < len(cleaned):
            forward_flow, flow = model.flows(cleaned[i], cleaned[i + 1])
            if i + 1 <= last:
                flows_forward[i + 1] = forward_flow
        if i >= first:
            state = model.propagate_backward(cleaned[i], state, flow)
            if i in wanted:
                backward[i] = state
    made: dict[int, Tensor] = {}
    state = None
    for i in range(last + 1):
        state = model.propagate_forward(cleaned[i], state, flows_forward.pop(i, None))
        if i in wanted:
            tiles = model.reconstruct_in_tiles(cleaned[i], backward.pop(i), state, rows=MAX_ROWS)
            made[i] = to_bytes(torch.cat([tile for _, tile in tiles], dim=2)).cpu()
    return made
