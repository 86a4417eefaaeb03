"""Stages that measure the device from within one process: whether it is right, and how fast each piece is.

Each stage is called with (setting, results) and adds what it finds as soon as it is known.
"""

from __future__ import annotations

import itertools
import os
import platform
import subprocess
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scripts.benchmark.engine_runs import Arguments, engine_waits, make_upscaler, run_engine
from scripts.benchmark.peak_rate import measure_peak
from scripts.benchmark.subjects import moving_clip
from scripts.benchmark.turns import psnr_db
from vsrealbasicvsr.backends import triton_version
from vsrealbasicvsr.engine import DeviceConfig, SceneCuts
from vsrealbasicvsr.model import flow_warp

from .results import Results
from .setting import DTYPES, Setting, median_ms, network, pictures

SCENE_CUTS: tuple[SceneCuts, ...] = ("off", "auto")
FLOW_CHANNELS = ((8, 32), (32, 64), (64, 32), (32, 16), (16, 2))
"""(in, out) of the flow network's 7x7 convolutions."""
FLOPS_PER_PX = 12.9e6
"""Multiplications and additions of the published network for an input pixel and frame."""


def about(setting: Setting, results: Results) -> None:
    """Record the machine, and what it has."""
    results.add(
        "machine",
        device=torch.cuda.get_device_name(0) if setting.device == "cuda" else setting.device,
        capability=torch.cuda.get_device_capability(0) if setting.device == "cuda" else None,
        torch=torch.__version__,
        cudnn=torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        triton=triton_version(),
        python=platform.python_version(),
        cores=os.cpu_count(),
        shared_memory_gib=_free_gib(Path("/dev/shm")),
    )
    if setting.device == "cuda":
        done = subprocess.run(["nvidia-smi"], capture_output=True, text=True, check=False)
        results.add("nvidia-smi", text=done.stdout or done.stderr)


def _free_gib(folder: Path) -> float | None:
    try:
        found = os.statvfs(folder)
    except (AttributeError, OSError):
        return None
    return round(found.f_bavail * found.f_frsize / 2**30, 2)


# ---- parity, graphs --------------------------------------------------------------------------------------------------


def parity(setting: Setting, results: Results) -> None:
    """Every step against the CPU's in float32, and the same bytes twice."""
    for model, (width, height) in itertools.product(setting.models, setting.parity_sizes):
        frames = pictures(4, width, height)
        on_cpu = DeviceConfig(torch.device("cpu"), torch.float32)
        reference = _all_steps(on_cpu, on_cpu.prepare(network(model)), frames)
        for precision in setting.precisions:
            compute = setting.compute(precision)
            prepared = compute.prepare(network(model))
            one, two = (_all_steps(compute, prepared, frames) for _ in range(2))
            results.add(
                f"{model} {width}x{height} {precision}",
                apart=max(_apart(a, b) for a, b in zip(one, reference, strict=True)),
                hr_psnr_db=psnr_db(one[-1][None], reference[-1][None]),
                same_bytes_twice=all(map(torch.equal, one, two)),
                finite=all(bool(made.isfinite().all()) for made in one),
                notes=list(prepared.notes),
            )


def graphs(setting: Setting, results: Results) -> None:
    """Compare captured steps with the eager ones, bit by bit, with and without what ran before."""
    for model, (width, height), precision in itertools.product(setting.models, setting.sizes, setting.precisions):
        compute = setting.compute(precision)
        prepared = compute.prepare(network(model))
        eager = getattr(prepared, "_eager", prepared)  # only a CUDA network captures
        frames = pictures(4, width, height)
        _all_steps(compute, prepared, frames[::-1])
        made, expected = (_all_steps(compute, one, frames) for one in (prepared, eager))
        results.add(
            f"{model} {width}x{height} {precision}",
            has_graphs=eager is not prepared,
            same_bits=all(map(torch.equal, made, expected)),
            notes=list(prepared.notes),
        )


def _all_steps(compute: DeviceConfig, prepared: Any, frames: Sequence[Tensor]) -> list[Tensor]:
    """All that is made of frames, both directions at once, states carried on; float32, on the CPU."""

    def job() -> list[Tensor]:
        made: list[Tensor] = []
        back, ahead = None, None
        on_device = [compute.to_device(frame)[None] for frame in frames]
        for this, after in itertools.pairwise(on_device):
            cleaned = this + prepared.cleaning_residue(this)
            there, here = prepared.flow(cleaned, after), prepared.flow(after, cleaned)
            back = prepared.propagate_backward(cleaned, back, there)
            ahead = prepared.propagate_forward(cleaned, ahead, here)
            hr = torch.cat([rows for _, rows in prepared.reconstruct(cleaned, back, ahead)], dim=1)
            made += [cleaned, there, here, back, ahead, hr]
        return made

    return [made.float() for made in compute.on_host(compute.run(job))]


def _apart(made: Tensor, reference: Tensor) -> float:
    """Relative distance; 0 of two states in different layouts, which cannot be compared."""
    if made.shape != reference.shape:
        return 0.0
    return float((made - reference).norm() / reference.norm().clamp(min=1e-12))


# ---- pieces ----------------------------------------------------------------------------------------------------------


def convolutions(setting: Setting, results: Results) -> None:
    """CuDNN's convolutions of the network's shapes, what comes after them, and the warp of a state."""
    from vsrealbasicvsr.backends.cuda.epilogue import by_torch, by_triton

    device = setting.compute("fp32").device
    half = DTYPES[setting.fastest]
    epilogue = by_triton if device.type == "cuda" else by_torch
    for width, height in setting.sizes:
        size = f"{width}x{height}"
        for benchmark, deterministic in ((False, True), (False, False), (True, False)):
            found = _convolution(setting, 64, 64, 3, (width, height), half, (benchmark, deterministic))
            results.add(f"{size} 3x3 64-64", benchmark=benchmark, deterministic=deterministic, **found)
        for channels in ((67, 64), (72, 64), (3, 64), (8, 64), (64, 3), (64, 8), (64, 256)):
            found = _convolution(setting, *channels, 3, (width, height), half)
            results.add(f"{size} 3x3 {channels[0]}-{channels[1]}", **found)
        for channels, dtype in itertools.product(FLOW_CHANNELS, {torch.float32, half}):
            found = _convolution(setting, *channels, 7, (width, height), dtype)
            results.add(f"{size} 7x7 {channels[0]}-{channels[1]} {dtype}", **found)
        x = _maps(64, (width, height), device, half)
        bias, flow = torch.randn(64, device=device, dtype=half), torch.randn(1, 2, height, width, device=device)
        with torch.inference_mode():
            results.add(f"{size} epilogue", ms=median_ms(partial(epilogue, x, bias, 0.0), device))
            results.add(f"{size} epilogue with residual", ms=median_ms(partial(epilogue, x, bias, 1.0, x), device))
            results.add(f"{size} warp of a state", ms=median_ms(partial(flow_warp, x, flow), device))
            with torch.backends.cudnn.flags(enabled=False):
                results.add(f"{size} warp without cuDNN", ms=median_ms(partial(flow_warp, x, flow), device))


def _maps(channels: int, size: tuple[int, int], device: torch.device, dtype: torch.dtype) -> Tensor:
    made = torch.randn(1, channels, size[1], size[0], device=device, dtype=dtype)
    return made.contiguous(memory_format=torch.channels_last)


def _convolution(
    setting: Setting,
    channels_in: int,
    channels_out: int,
    side: int,
    size: tuple[int, int],
    dtype: torch.dtype,
    switches: tuple[bool, bool] = (False, True),
) -> dict[str, float]:
    """Milliseconds and TFLOP/s of one convolution; switches: cuDNN's benchmark and deterministic."""
    device = setting.compute("fp32").device
    x = _maps(channels_in, size, device, dtype)
    weight = torch.randn(channels_out, channels_in, side, side, device=device, dtype=dtype)
    weight = weight.contiguous(memory_format=torch.channels_last)
    fixed = ((1, 1), (side // 2,) * 2, (1, 1), False, (0, 0), 1, *switches, True, True)
    with torch.inference_mode():
        ms = median_ms(lambda: torch._convolution(x, weight, None, *fixed), device)
    return {"ms": ms, "tflops": 2 * side**2 * channels_in * channels_out * size[0] * size[1] / ms / 1e9}


def peaks(setting: Setting, results: Results) -> None:
    """Measure what the device can do at most: products, a convolution, a copy."""
    for precision in setting.precisions:
        found = measure_peak(setting.compute(precision), tiny=setting.tiny)
        results.add(precision, product_tflops=found.product / 1e12, convolution_tflops=found.convolution / 1e12)
    device = setting.compute("fp32").device
    x = torch.zeros((1 << 22) if setting.tiny else (1 << 31), dtype=torch.uint8, device=device)
    y = torch.empty_like(x)
    results.add("copy", tb_per_second=2 * x.numel() / median_ms(lambda: y.copy_(x), device) / 1e9)


def steps(setting: Setting, results: Results) -> None:
    """Milliseconds of each step of a frame, in the precision that users get, and of the plain network."""
    for model, (width, height) in itertools.product(setting.models, setting.sizes):
        compute = setting.compute(setting.fastest)
        prepared = compute.prepare(network(model))
        found = compute.run(lambda: _step_times(compute, prepared, pictures(1, width, height)[0]))  # noqa: B023
        found["frame"] = sum(found.values()) + found["flow"]  # there and back
        if model == "published":
            found["tflops"] = FLOPS_PER_PX * width * height / found["frame"] / 1e9
        results.add(f"{model} {width}x{height} engine {setting.fastest}", **found, notes=list(prepared.notes))
    for (width, height), precision in itertools.product(setting.sizes, {"fp32", setting.fastest}):
        compute = setting.compute(precision)
        plain = network("default" if setting.tiny else "published").to(compute.device, compute.dtype)
        clip = torch.stack(pictures(4, width, height))[None].to(compute.device)
        with torch.inference_mode():
            ms = median_ms(lambda: plain(clip), compute.device, repeats=3) / 4  # noqa: B023
        results.add(f"{width}x{height} plain {precision}", frame=ms)


def _step_times(compute: DeviceConfig, prepared: Any, picture: Tensor) -> dict[str, float]:
    x = compute.to_device(picture)[None]
    state, flow = prepared.propagate_backward(x, None, None), prepared.flow(x, x)
    jobs: dict[str, Callable[[], object]] = {
        "cleaning": lambda: prepared.cleaning_residue(x),
        "flow": lambda: prepared.flow(x, x),
        "backward": lambda: prepared.propagate_backward(x, state, flow),
        "forward": lambda: prepared.propagate_forward(x, state, flow),
        "reconstruction": lambda: list(prepared.reconstruct(x, state, state)),
    }
    return {name: median_ms(job, compute.device) for name, job in jobs.items()}


def engine(setting: Setting, results: Results) -> None:
    """Frames a second of the engine alone, with several requests in flight, with and without scene detection."""
    num_frames = 4 if setting.tiny else 90
    compute = setting.compute(setting.fastest)
    for (width, height), scene_cuts in itertools.product(setting.sizes, SCENE_CUTS):
        clip, model = moving_clip(num_frames, width, height), network("default" if setting.tiny else "published")
        for num_requests in (1, 4):
            upscaler = make_upscaler(model, compute, num_frames, Arguments(scene_cuts=scene_cuts))
            run = run_engine(upscaler, clip, num_requests)
            results.add(
                f"{width}x{height} scene_cuts={scene_cuts}",
                num_requests=num_requests,
                frames_per_second=num_frames / run.seconds,
                steady_frames_per_second=run.steady_frames_per_second,
                passes_per_frame=run.passes_per_frame,
                gpu_gib=torch.cuda.max_memory_allocated() / 2**30 if setting.device == "cuda" else None,
            )
        if scene_cuts == "auto":
            results.add(f"{width}x{height} host waits", **engine_waits(model, compute, clip, 4))
