"""Networks and clips to measure, the same ones for the same arguments."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from vsrealbasicvsr import load_model
from vsrealbasicvsr.errors import UserError
from vsrealbasicvsr.model import RealBasicVSR
from vsrealbasicvsr.weights import write_weights

MODELS = ("published", "default")
"""The published sizes with random weights, and the weights in the package."""


def size_of(text: str) -> tuple[int, int]:
    """Parse a size such as "320x180" into (width, height), in pixels. Raise UserError for anything else."""
    width, _, height = text.strip().partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise UserError(f'a size is written like 320x180, got "{text}"')
    return int(width), int(height)


def build_network(model: str) -> RealBasicVSR:
    """Build the network of one of MODELS: float32, in evaluation mode, on the CPU. Random weights are always the same.

    Random cleaning is scaled down until it changes little, as trained cleaning does: a frame is cleaned once.
    """
    if model == "default":
        return load_model("default")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = RealBasicVSR().eval().requires_grad_(False)
    last = network.image_cleaning[-1]
    assert isinstance(last, torch.nn.Conv2d)
    for parameter in last.parameters():
        parameter.mul_(0.1)
    return network


def weights_for_upscale(model: str, folder: Path) -> str:
    """Return the argument `model` of Upscale for one of MODELS; random weights are written to a file in `folder`."""
    if model == "default":
        return "default"
    path = folder / f"{model}.safetensors"
    if not path.exists():
        write_weights(build_network(model), path, metadata={"note": "random"}, dtype=torch.float32)
    return str(path)


def moving_clip(num_frames: int, width: int, height: int) -> Tensor:
    """Return a smooth image that drifts a pixel a frame, with some noise: (T, 3, H, W) float32 in [0, 1]."""
    generator = torch.Generator().manual_seed(0)
    picture = smooth_picture(width + num_frames - 1, height, generator)
    views = torch.stack([picture[:, :, n : n + width] for n in range(num_frames)])
    return (views + torch.randn(views.shape, generator=generator) * 0.02).clamp(0, 1)


def smooth_picture(width: int, height: int, generator: torch.Generator) -> Tensor:
    """Return a random image (3, H, W) in [0, 1] with detail of some eight pixels."""
    coarse = torch.rand(1, 3, height // 8 + 2, width // 8 + 2, generator=generator)
    return F.interpolate(coarse, size=(height, width), mode="bicubic")[0].clamp(0, 1)
