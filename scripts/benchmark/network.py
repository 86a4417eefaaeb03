"""Time and memory of a frame, three ways side by side: the plain network, the engine alone, and vspipe with all.

plain: the published structure as it is written: torch, eager, float32, contiguous, the clip as one sequence.
engine: WindowUpscaler, used as VapourSynth uses it, with several concurrent requests.
vspipe: the same frames through core.rbvsr.Upscale in a real vspipe, which drops the output. Its source is RGBS frames
    in memory. The script upscales the whole clip once before vspipe starts its own clock.
peers describes the stand-ins and the other upscalers.

Times of engine and vspipe are those with default arguments: theta=5, scene_cuts="auto". They may clean a frame more
than once, which plain does not, and report how often. A time is always that of the whole clip, from pixels in memory to
pixels in memory, divided by the number of its frames. Building networks and filters does not count. FLOP/s are
effective: multiplications and additions of the plain network, divided by the time of whatever was measured; a faster
algorithm shows as a higher rate. PSNR is of a run with the arguments that compute what plain does.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from vsrealbasicvsr.engine import DeviceConfig, choose_device
from vsrealbasicvsr.engine.device import cpu_kernels
from vsrealbasicvsr.errors import UserError

from .network_report import NetworkReport, Row, rows_of
from .peak_rate import measure_peak
from .report import machine, print_machine, write_json
from .subjects import MODELS, moving_clip, size_of
from .turns import measure_in_turns
from .vspipe import Vspipe, VspipeError
from .ways import VSPIPE, Setting, all_ways

CPU_SIZES = "64x64,128x96,320x180"
GPU_SIZES = f"{CPU_SIZES},640x360,720x480,1280x720"
CPU_FRAMES, GPU_FRAMES = 10, 90
"""Default length of the clip: on a GPU three windows, so that it is busy with one while the CPU fills the next."""


def run_network(arguments: argparse.Namespace) -> None:
    """Measure, print the tables, write the JSON. Raise UserError if an argument cannot be used."""
    for name in ("repeats", "frames", "requests"):
        value = getattr(arguments, name)
        if value is not None and value <= 0:
            raise UserError(f"--{name} must be above 0, got {value}")
    models = [name.strip() for name in arguments.models.split(",")]
    if unknown := [name for name in models if name not in MODELS]:
        raise UserError(f'--models must be of {", ".join(MODELS)}, got "{unknown[0]}"')
    compute = choose_device(arguments.device, arguments.precision)
    on_gpu = compute.device.type == "cuda"
    sizes = [size_of(text) for text in (arguments.sizes or (GPU_SIZES if on_gpu else CPU_SIZES)).split(",")]
    num_frames = arguments.frames or (GPU_FRAMES if on_gpu else CPU_FRAMES)
    num_requests = arguments.requests or os.cpu_count() or 1
    computes = [DeviceConfig(compute.device, dtype) for dtype in dict.fromkeys([torch.float32, compute.dtype])]
    peaks = [measure_peak(each) for each in computes] if arguments.peaks else []
    rows: list[Row] = []
    not_measured: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as name:
        folder, vspipe = Path(name), None
        try:
            vspipe = Vspipe.configured_in(folder) if arguments.vspipe else None
        except VspipeError as error:
            not_measured[VSPIPE] = str(error)
        for width, height in sizes:
            print(f"{width}x{height} ...", file=sys.stderr, flush=True)
            frames, file = moving_clip(num_frames, width, height), folder / f"{width}x{height}.npy"
            np.save(file, frames.numpy())
            setting = Setting(
                frames=frames,
                file=file,
                compute=compute,
                precision=arguments.precision,
                folder=folder,
                vspipe=vspipe,
                num_requests=num_requests,
                with_stand_ins=arguments.stand_ins,
                with_peaks=arguments.peaks,
            )
            new_rows, reasons = measure_size(setting, models, arguments.repeats)
            rows += new_rows
            not_measured |= reasons
            file.unlink()
    # Measured before and after: another program may have used the machine for a while.
    peaks = [before.larger_of(measure_peak(each)) for before, each in zip(peaks, computes, strict=False)]
    about = {**machine(), "kernels": cpu_kernels(), "num_torch_threads": torch.get_num_threads()}
    about["device"] = torch.cuda.get_device_name(compute.device) if on_gpu else str(compute.device)
    report = NetworkReport(
        num_frames=num_frames,
        num_repeats=arguments.repeats,
        num_requests=num_requests,
        peaks=peaks,
        rows=[row.with_share_of(peaks) for row in rows],
        not_measured=not_measured,
    )
    print_machine(about)
    print(report.describe())
    write_json(arguments.json, {"part": "network", "machine": about, **dataclasses.asdict(report)})


def measure_size(setting: Setting, models: list[str], num_repeats: int) -> tuple[list[Row], dict[str, str]]:
    """Return the rows of one clip, and why other ways have none."""
    ways, not_measured = all_ways(setting, models)
    turns = measure_in_turns(ways, num_repeats)
    size = f"{setting.size[0]}x{setting.size[1]}"
    for index, reason in turns.failed.items():
        not_measured[f"{size} {ways[index].model} {ways[index].name}"] = reason
    return rows_of(setting, ways, turns), not_measured
