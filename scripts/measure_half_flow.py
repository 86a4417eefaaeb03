"""Measure what half precision costs the flow network: the distance of its flows from those in float32, in pixels.

`python -m scripts.measure_half_flow [WEIGHTS]`. Needs no GPU: convolutions have the arithmetic of the GPU's kernels
(vsrealbasicvsr/backends/cuda/half_flow.py), with inputs, weights and maps in float16 and sums in float32. The motion is
that of a camera over scikit-image's photographs, as in training. Prints a table: all levels in half precision, then
each level alone.
"""

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import skimage.data
import torch
from torch import Tensor

from training.data.camera import moved_photograph
from vsrealbasicvsr import load_model
from vsrealbasicvsr.backends.cuda.convolution import by_torch
from vsrealbasicvsr.backends.cuda.half_flow import HalfSPyNet, prepare_by_torch
from vsrealbasicvsr.model import SPyNet
from vsrealbasicvsr.weights import read_tensors

PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket")
NUM_FRAMES = 4
GOAL_PX = 0.02
"""A level whose flows lie further apart than this on average belongs into float32."""


def pairs(num_clips: int, size: tuple[int, int]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield neighbouring frames of moving photographs, each (1, 3, H, W) in [0, 1]."""
    width, height = size
    for number in range(num_clips):
        photograph = getattr(skimage.data, PHOTOGRAPHS[number % len(PHOTOGRAPHS)])()
        clip = moved_photograph(
            photograph, num_frames=NUM_FRAMES, height=height, width=width, generator=np.random.default_rng(number)
        )
        frames = torch.from_numpy(clip).permute(0, 3, 1, 2).float() / 255
        yield from itertools.pairwise(torch.split(frames, 1))


def distances_px(one: SPyNet | HalfSPyNet, other: SPyNet, frames: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the distance between the flows of two networks at each pixel of all pairs."""
    with torch.inference_mode():
        return torch.cat([(one(*pair) - other(*pair)).norm(dim=1).flatten() for pair in frames])


def main(arguments: list[str] | None = None) -> int:
    """Print the table; 1 if the whole network in half precision is beyond GOAL_PX."""
    parser = argparse.ArgumentParser(description="what half precision costs the flow network")
    parser.add_argument("weights", nargs="?", default="default", help="weights, or a flow network of training flow")
    parser.add_argument("--size", default="320x180", metavar="WxH")
    parser.add_argument("--clips", type=int, default=8)
    given = parser.parse_args(arguments)
    width, height = (int(part) for part in given.size.split("x"))
    spynet = _spynet(given.weights)
    frames = list(pairs(given.clips, (width, height)))
    with torch.inference_mode():
        lengths = torch.cat([spynet(*pair).norm(dim=1).flatten() for pair in frames])
    print(f"{given.weights}, {len(frames)} pairs of {width}x{height}; flows of {lengths.mean():.2f} px on average")
    print("| in half precision | mean | 99 % below | largest |\n|---|---|---|---|")
    levels = range(len(spynet.basic_module))
    means = []
    for half in (set(levels), *({level} for level in levels)):
        halved = HalfSPyNet(spynet, by_torch, prepare_by_torch, float_levels=set(levels) - half)
        found = distances_px(halved, spynet, frames)
        name = "all levels" if half == set(levels) else f"level {min(half)}"
        quantile = found.kthvalue(max(int(0.99 * len(found)), 1)).values
        print(f"| {name} | {found.mean():.5f} px | {quantile:.4f} px | {found.max():.3f} px |", flush=True)
        means.append(found.mean().item())
    return int(means[0] > GOAL_PX)


def _spynet(weights: str) -> SPyNet:
    if not weights.endswith(".pt"):
        return load_model(weights).basicvsr.spynet
    tensors = read_tensors(Path(weights))
    num_levels = 1 + max(int(key.split(".")[1]) for key in tensors if key.startswith("basic_module."))
    widths = [tensors[f"basic_module.0.basic_module.{layer}.conv.weight"].shape[0] for layer in range(4)]
    stride = int(tensors["stride"]) if "stride" in tensors else 1
    spynet = SPyNet(num_levels, (widths[0], widths[1], widths[2], widths[3]), stride)
    spynet.load_state_dict(tensors)
    return spynet.eval()


if __name__ == "__main__":
    raise SystemExit(main())
