"""What reconstruction in bands saves: peak memory and time of one window of two frames, whole frames against bands.

    python scripts/measure_bands.py --width 640 --height 360

The published network's sizes with random weights, on the CPU, each in a process of its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import time
from collections.abc import Sequence

import torch

from vsrealbasicvsr.engine import Grid, SourceFrame, WindowUpscaler, choose_compute, compute
from vsrealbasicvsr.model import RealBasicVSR

NUM_FRAMES = 2


def measure(width: int, height: int, banded: bool) -> str:
    """One row: rows of a band, seconds for the two frames, and the process's peak memory."""
    if not banded:
        compute.MAX_BAND_PX_CPU = width * height
    torch.manual_seed(0)
    frames = {i: SourceFrame(torch.rand(3, height, width)) for i in range(NUM_FRAMES)}
    where, grid = choose_compute("cpu", "fp32"), Grid(num_frames=NUM_FRAMES, length=NUM_FRAMES, overlap=0)
    upscaler = WindowUpscaler(RealBasicVSR(), where, grid, theta=255.0, scene_cuts="off")
    upscaler.supply(upscaler.expect(0), frames)
    started = time.monotonic()
    for n in range(NUM_FRAMES):
        upscaler.upscale(n)
    seconds = time.monotonic() - started
    # Linux counts in KiB, macOS in bytes.
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
    return f"{where.band_rows(height, width):>4} rows at once   {seconds:7.1f} s   peak {peak_gib:.2f} GiB"


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status of the command line."""
    parser = argparse.ArgumentParser(description="Peak memory and time of two frames, whole and in bands.")
    parser.add_argument("--width", type=int, default=320)
    parser.add_argument("--height", type=int, default=180)
    options = parser.parse_args(arguments)
    if min(options.width, options.height) < 1:
        parser.error("--width and --height must be at least 1")
    print(f"{options.width}x{options.height}, {NUM_FRAMES} frames, published sizes, {torch.get_num_threads()} threads")
    for banded in (False, True):
        # A process of its own: a peak never goes down again.
        with multiprocessing.get_context("spawn").Pool(1) as process:
            print(process.apply(measure, (options.width, options.height, banded)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
