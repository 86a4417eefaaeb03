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
from vsrealbasicvsr.model import RealBasicVSR, refine


def super_resolve(model: RealBasicVSR, lr: Tensor, theta: float, cleaning: float = 1.0) -> Tensor:
    """Return the clip (T, 3, H, W) enlarged as core.rbvsr.Upscale does in one window: (T, 3, S*H, S*W).

    Args:
        model: The network.
        lr: The clip, in [0, 1], on the network's device.
        theta: As in Upscale.
        cleaning: As in Upscale.
    """
    with torch.inference_mode():
        return model.super_resolve(refine(model, lr[None], theta=theta, cleaning=cleaning)[0])[0]


def bicubic(lr: Tensor, scale: int) -> Tensor:
    """Return the clip (T, 3, H, W) enlarged without a network: (T, 3, S*H, S*W)."""
    return F.interpolate(lr, scale_factor=scale, mode="bicubic", align_corners=False)


def enlargements(
    models: Mapping[str, RealBasicVSR],
    pair: Pair,
    *,
    theta: float,
    cleaning: float = 1.0,
    peers: Mapping[str, Peer] | None = None,
) -> dict[str, Tensor]:
    """Enlarge a clip by bicubic interpolation, by each peer and by each network.

    Args:
        models: Networks by name.
        pair: The clip.
        theta: As in Upscale.
        cleaning: As in Upscale.
        peers: Other programs by name.

    Returns:
        Clips by name, rounded to 8 bits, on the CPU.
    """
    enlarged = {BICUBIC: to_bytes(bicubic(pair.lr, pair.scale))}
    enlarged |= {name: to_bytes(peer(pair)) for name, peer in (peers or {}).items()}
    for name, model in models.items():
        device = next(model.parameters()).device
        # Reproducible on one GPU: no kernel is chosen by its speed, no sum depends on the order of threads.
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            enlarged[name] = to_bytes(super_resolve(model, pair.lr.to(device), theta, cleaning)).cpu()
    return enlarged
