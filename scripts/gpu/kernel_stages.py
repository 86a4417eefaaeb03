"""A stage that measures our own kernels against cuDNN's convolutions, and other ways to divide their work."""

from __future__ import annotations

import dataclasses
import itertools
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vsrealbasicvsr.backends.cuda import epilogue
from vsrealbasicvsr.backends.cuda.backend import CudaBackend
from vsrealbasicvsr.backends.cuda.convolution import capability_of, pack
from vsrealbasicvsr.backends.cuda.convolution_task import Plan, Task, plan_for
from vsrealbasicvsr.backends.cuda.fused import BY_TORCH, BY_TRITON, LayerKind, flow_kinds_of, kinds_of

from .results import Results
from .setting import DTYPES, Setting, median_ms, network


def fused(setting: Setting, results: Results) -> None:
    """Time the flow with and without, each fused convolution against cuDNN, and last plans that might be better."""
    device = setting.compute("fp32").device
    kernels = BY_TRITON if device.type == "cuda" else BY_TORCH
    for size, some in itertools.product(setting.sizes, (kernels, None)):
        layers = network(setting.models[-1]).to(device, DTYPES["fp16"])
        prepared = CudaBackend(layers.to(memory_format=torch.channels_last), kernels=some)
        frame = torch.rand(1, 3, size[1], size[0], device=device)
        with torch.inference_mode():
            ms = median_ms(partial(prepared.flow, frame, frame), device)
        results.add(f"{size[0]}x{size[1]} flow", fused=some is not None, ms=ms, notes=prepared.notes)
    for size, kind in itertools.product(setting.sizes[:2], _kinds(setting.models)):
        task = _task(kind, size, device)
        with torch.inference_mode():
            ms = median_ms(partial(kernels.convolve, task), device)
            cudnn_ms = median_ms(partial(_by_cudnn, kind, task), device)
        results.add(_name(kind, size), ms=ms, cudnn_ms=cudnn_ms)
    if device.type == "cuda":  # each is compiled anew: a second or so, of which the others lose none
        for kind in _kinds(setting.models[-1:]):
            with torch.inference_mode():
                plans = _plans(_task(kind, setting.sizes[1], device), device)
            results.add(f"plans of {_name(kind, setting.sizes[1])}", **plans)


def _kinds(models: list[str]) -> list[LayerKind]:
    layers = [network(model) for model in models]
    return sorted(set().union(*(kinds_of(one) | flow_kinds_of(one) for one in layers)), key=repr)


def _name(kind: LayerKind, size: tuple[int, int]) -> str:
    layer = f"{kind.side}x{kind.side} {kind.channels}-{kind.channels_out} {kind.residual}"
    return f"{size[0]}x{size[1]} {layer}{' shuffle' if kind.shuffle else ''}{' planar' if kind.planar else ''}"


def _plans(task: Task, device: torch.device) -> dict[str, float]:
    """Milliseconds with other plans than ours; 0 where one does not fit the GPU."""
    from vsrealbasicvsr.backends.cuda.convolution_triton import launch

    ours = plan_for(task.packed, capability_of(device))
    found = {}
    for changes in (
        {"num_stages": 2},
        {"num_stages": 4},
        {"tile_height": 16, "num_warps": 8},
        {"tile_height": 4},
        {"pixels_are_columns": not ours.pixels_are_columns},
    ):
        plan: Plan = dataclasses.replace(ours, **changes)
        try:
            ms = median_ms(partial(launch, task, plan), device)
        except Exception:  # out of shared memory or registers, in whatever way Triton says it
            ms = 0.0
        found[", ".join(f"{name}={value}" for name, value in changes.items())] = ms
    return found


def _task(kind: LayerKind, size: tuple[int, int], device: torch.device) -> Task:
    dtype = DTYPES["fp16"]
    width, height = size

    def random(*shape: int, dtype: torch.dtype = dtype, planar: bool = False) -> Tensor:
        made = torch.randn(shape, device=device).to(dtype)
        return made if planar else made.contiguous(memory_format=torch.channels_last)

    weight = torch.randn(kind.channels_out, kind.channels, kind.side, kind.side, device=device) * 0.05
    packed = pack(weight, torch.randn(kind.channels_out, device=device), dtype, shuffle=kind.shuffle)
    shape = (
        (1, kind.channels_out // 4, 2 * height, 2 * width) if kind.shuffle else (1, kind.channels_out, height, width)
    )
    out = random(*shape, dtype=torch.float32 if kind.planar else dtype, planar=kind.planar)
    residual = None
    if kind.residual == "map":
        residual = torch.randn_like(out)
    elif kind.residual == "small":
        residual = random(1, kind.channels_out, height // 4, width // 4, dtype=torch.float32, planar=True)
    return Task(
        x=random(1, kind.channels, height, width),
        packed=packed,
        slope=kind.slope,
        out=out,
        residual=residual,
        residual_is_small=kind.residual == "small",
        shuffle=kind.shuffle,
        planar=kind.planar,
        limit=kind.limit,
    )


def _by_cudnn(kind: LayerKind, task: Task) -> Tensor:
    """Compute what stands in a fused convolution's place: cuDNN's, and the epilogue where there is one for it."""
    shape = (kind.channels_out, kind.side, kind.side, kind.channels)
    weight = task.packed.weight[: kind.channels_out, : kind.side**2 * kind.channels].view(shape).permute(0, 3, 1, 2)
    fixed: Any = ((1, 1), (kind.side // 2,) * 2, (1, 1), False, (0, 0), 1, False, True, True, True)
    made = torch._convolution(task.x, weight, None, *fixed)
    if kind.planar:
        return made
    after = epilogue.by_triton if made.device.type == "cuda" else epilogue.by_torch
    residual = task.residual if kind.residual == "map" else None
    return after(made, task.packed.bias.to(made.dtype), kind.slope, residual, shuffle=kind.shuffle)
