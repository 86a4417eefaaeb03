"""Enlargement of low-resolution clips by bicubic interpolation, by networks and by other programs."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from training.evaluation.metrics import to_bytes
from training.evaluation.pairs import Pair
from training.evaluation.peers import Peer
from training.evaluation.scoring import BICUBIC
from vsrealbasicvsr.model import SCALE, RealBasicVSR, refine


def super_resolve(model: RealBasicVSR, lr: Tensor, theta: float, cleaning: float = 1.0) -> Tensor:
    """Return the clip (T, 3, H, W) as core.rbvsr.Upscale makes it in one window: (T, 3, S*H, S*W)."""
    with torch.inference_mode():
        return model.super_resolve(refine(model, lr[None], theta=theta, cleaning=cleaning)[0])[0]


def bicubic(lr: Tensor) -> Tensor:
    """Return the clip (T, 3, H, W), enlarged without a network: (T, 3, S*H, S*W)."""
    return F.interpolate(lr, scale_factor=SCALE, mode="bicubic", align_corners=False)


def enlargements(
    models: Mapping[str, RealBasicVSR],
    pair: Pair,
    *,
    theta: float,
    cleaning: float = 1.0,
    peers: Mapping[str, Peer] | None = None,
) -> dict[str, Tensor]:
    """Return the clip by bicubic, by each peer and by each network, rounded to 8 bits, on the CPU."""
    enlarged = {BICUBIC: to_bytes(bicubic(pair.lr))}
    enlarged |= {name: to_bytes(peer(pair)) for name, peer in (peers or {}).items()}
    for name, model in models.items():
        device = next(model.parameters()).device
        # the same numbers every time on one GPU: no kernel chosen by a race, no sums in the order of arrival
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            enlarged[name] = to_bytes(super_resolve(model, pair.lr.to(device), theta, cleaning)).cpu()
    return enlarged
