"""Measure how much windows of frames differ from the whole clip as one sequence, for several lengths and overlaps.

python scripts/measure_windows.py VIDEO [--frames 120] [--width 256] [--lengths 30] [--overlaps 0 2 4 8]
"""

import argparse
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor

from vsrealbasicvsr import load_model
from vsrealbasicvsr.engine import Grid, WindowUpscaler, choose_device


def read_frames(path: Path, num_frames: int, width: int | None) -> list[Tensor]:
    """Read the first frames of a video, (3, H, W) float32 in [0, 1], scaled to `width` if it is given."""
    with av.open(str(path)) as container:
        frames = []
        for frame in itertools.islice(container.decode(video=0), num_frames):
            height = round(frame.height * width / frame.width) if width else frame.height
            rgb = frame.reformat(width=width or frame.width, height=height, format="rgb24").to_ndarray()
            frames.append(torch.from_numpy(rgb).permute(2, 0, 1).float() / 255)
    return frames


def upscaled(upscaler: WindowUpscaler, frames: list[Tensor]) -> Iterator[Tensor]:
    """Yield the upscaled frames of the clip, in order."""
    for hr in upscaler.upscale_frames(frames):
        yield hr.clamp(0, 1)


def main() -> int:
    """Measure, and print the table. Return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", type=Path)
    parser.add_argument("--frames", type=int, default=120)
    parser.add_argument("--width", type=int, help="scale the video to this width first")
    parser.add_argument("--lengths", type=int, nargs="+", default=[30])
    parser.add_argument("--overlaps", type=int, nargs="+", default=[0, 2, 4, 8])
    parser.add_argument("--model", default="default")
    parser.add_argument("--theta", type=float, default=5.0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    arguments = parser.parse_args()

    try:
        frames = read_frames(arguments.video, arguments.frames, arguments.width)
    except (OSError, av.FFmpegError) as error:
        print(f"measure_windows: {arguments.video} cannot be read ({error}).", file=sys.stderr)
        return 1
    compute = choose_device(arguments.device, arguments.precision)

    def upscaler(length: int, overlap: int) -> WindowUpscaler:
        grid = Grid(num_frames=len(frames), length=length, overlap=overlap)
        return WindowUpscaler(load_model(arguments.model), compute, grid, theta=arguments.theta, scene_cuts="off")

    whole = [frame.half() for frame in upscaled(upscaler(len(frames), 0), frames)]
    height, width = frames[0].shape[1:]
    print(f"{arguments.video.name}: {len(frames)} frames of {width}x{height}, against one sequence")
    print("| length | overlap | worst frame | mean | propagation steps |\n|---|---|---|---|---|")
    for length, overlap in itertools.product(arguments.lengths, arguments.overlaps):
        windowed = upscaler(length, overlap)
        errors = [
            (ours - reference.float()).square().mean().item()
            for ours, reference in zip(upscaled(windowed, frames), whole, strict=True)
        ]
        psnr_db = -10 * np.log10(np.maximum(errors, 1e-9))
        extra = windowed.statistics.forward_steps / len(frames) - 1
        print(f"| {length} | {overlap} | {psnr_db.min():.1f} dB | {psnr_db.mean():.1f} dB | +{extra:.0%} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
