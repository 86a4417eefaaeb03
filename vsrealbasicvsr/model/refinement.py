"""Dynamic refinement: how often each frame is cleaned (paper, section 3.3, Eq. 5)."""

import math
from typing import Literal, Protocol

import torch
from torch import Tensor

from .network import check_clip

MAX_CLEANING_PASSES = 3

DecidePer = Literal["frame", "sequence"]


class CleansFrames(Protocol):
    """The part of a network that refinement needs."""

    def cleaning_residue(self, frames: Tensor) -> Tensor:
        """Return what one cleaning pass adds: (B, 3, H, W) to the same."""
        ...


def refine(
    model: CleansFrames,
    lr: Tensor,
    *,
    theta: float = 5.0,
    cleaning: float = 1.0,
    decide_per: DecidePer = "frame",
) -> tuple[Tensor, Tensor]:
    """Clean a clip, and clean again what still changes much: at most three passes.

    A frame is cleaned again while its mean absolute change in the last pass is at least theta / 255 (Eq. 5). The change
    is what was added: a pass that hardly shows is never repeated, whatever the whole residue would have been.

    Args:
        model: The network, or a backend of it.
        lr: (N, T, 3, H, W). It is not changed.
        theta: Threshold, at least 0, in units of 1/255 (`dynamic_refine_thres` of the published code).
        cleaning: Share of the residue that a pass adds, in [0, 1] (not in the paper). 1 is published; with 0 no pass is
            computed.
        decide_per: "frame": each frame is decided independently, so that its result depends on that frame alone.
            "sequence": the mean over the whole call decides, as in the published code.

    Returns:
        The cleaned clip, shaped like lr, and the number of passes of each frame, (N, T) int64.

    Raises:
        ValueError: lr has another shape, theta is below 0, cleaning is outside of [0, 1], or the rule is unknown.
    """
    check_clip("refine", lr)
    if not theta >= 0:
        raise ValueError(f"refine: theta must be at least 0, got {theta}")
    if not 0 <= cleaning <= 1:
        raise ValueError(f"refine: cleaning must be between 0 and 1, got {cleaning}")
    if decide_per not in ("frame", "sequence"):
        raise ValueError(f'refine: decide_per must be "frame" or "sequence", got {decide_per!r}')
    if cleaning == 0:
        return lr.clone(), torch.zeros(lr.shape[:2], dtype=torch.int64, device=lr.device)
    threshold = theta / 255.0
    cleaned = lr.flatten(0, 1)
    num_passes = torch.zeros(cleaned.shape[0], dtype=torch.int64, device=lr.device)
    active = torch.arange(cleaned.shape[0], device=lr.device)
    for _ in range(MAX_CLEANING_PASSES):
        added = model.cleaning_residue(cleaned[active])
        if cleaning != 1:
            added = added * cleaning
        cleaned = cleaned.index_add(0, active, added)
        num_passes[active] += 1
        changes = _mean_changes(added.detach())
        if decide_per == "sequence":
            changes = [math.fsum(changes) / len(changes)] * len(changes)
        active = active[torch.tensor([change >= threshold for change in changes], device=active.device)]
        if len(active) == 0:
            break
    return cleaned.view_as(lr), num_passes.view(lr.shape[:2])


def _mean_changes(added: Tensor) -> list[float]:
    """Return the mean magnitude of each frame of (B, 3, H, W); values beyond 64 count as 64, NaN as 0.

    It is the same for any number of threads, on any device and in any batch: the values are summed as whole multiples
    of 2^-24, and a sum of integers does not depend on the order.
    """
    unit = 2.0**-24
    magnitudes = (added.float().abs() / unit).nan_to_num_(posinf=64 / unit).clamp_(max=64 / unit).round_()
    sums: list[int] = magnitudes.to(torch.int32).flatten(1).sum(1, dtype=torch.int64).tolist()
    return [total * unit / added[0].numel() for total in sums]
