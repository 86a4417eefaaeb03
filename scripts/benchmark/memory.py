"""The peak memory of vspipe while it upscales a clip, and the time of a frame.

Real vspipe, in a process of its own: YUV420P8 in and out, an image that moves back and forth along its diagonal, every
argument of Upscale at its default but `model` and `length`. The frames are dropped, as by a pipe. The source is one
image that is cropped, so it takes hardly any memory itself. Memory grows until two windows are cached.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch

from vsrealbasicvsr.engine.device import cpu_kernels
from vsrealbasicvsr.errors import UserError

from .report import machine, print_machine, write_json
from .subjects import build_network, size_of, smooth_picture, weights_for_upscale
from .vspipe import Vspipe

TRAVEL_PX = 30
"""Distance that the image moves, out and back, two pixels a frame."""

_SCRIPT = """
    import numpy as np
    import vapoursynth as vs

    core = vs.core
    width, height, num_frames, travel = int(width), int(height), int(num_frames), int(travel)
    planes = np.load(picture)

    def draw(n, f):
        frame = f.copy()
        for plane in range(3):
            np.copyto(np.asarray(frame[plane]), planes[plane])
        return frame

    still = core.std.BlankClip(format=vs.RGB24, width=width + travel, height=height + travel, length=1)
    still = still.std.ModifyFrame(still, draw).resize.Bicubic(format=vs.YUV420P8, matrix=vs.MATRIX_BT709)
    places = [*range(0, travel, 2), *range(travel, 0, -2)]
    moving = core.std.Splice([still.std.CropAbs(width, height, left=place, top=place) for place in places])
    clip = moving.std.Loop(-(-num_frames // len(places)))[:num_frames]
    core.rbvsr.Upscale(clip, model=model, length=int(length)).set_output()
"""


def run_memory(arguments: argparse.Namespace) -> None:
    """Measure, print, write the JSON. Raise UserError or OSError for an error that the user can mend."""
    width, height = size_of(arguments.size)
    if width % 2 or height % 2:
        raise UserError(f"--size must be even, for YUV420P8 has half as much chroma, got {arguments.size}")
    num_frames = 2 * arguments.length if arguments.frames is None else arguments.frames
    for name, value in (("length", arguments.length), ("frames", num_frames)):
        if value <= 0:
            raise UserError(f"--{name} must be above 0, got {value}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        picture = smooth_picture(width + TRAVEL_PX, height + TRAVEL_PX, torch.Generator().manual_seed(0))
        np.save(folder / "picture.npy", (picture * 255).round().byte().numpy())
        piped = Vspipe.configured_in(folder).run(
            _SCRIPT,
            {
                "picture": str(folder / "picture.npy"),
                "width": width,
                "height": height,
                "num_frames": num_frames,
                "travel": TRAVEL_PX,
                "model": weights_for_upscale(arguments.model, folder),
                "length": arguments.length,
            },
        )
    about = {**machine(), "kernels": cpu_kernels(), "num_torch_threads": torch.get_num_threads()}
    print_machine(about)
    peak = "unknown on this system" if piped.peak_bytes is None else f"{piped.peak_bytes / 2**30:.2f} GiB"
    seconds_per_frame = piped.seconds / piped.num_frames
    scale = build_network(arguments.model).sizes.scale
    print(
        f"{width}x{height} to {scale * width}x{scale * height}, {arguments.model}, {num_frames} frames,"
        f" length {arguments.length}: peak of the vspipe process {peak}, {seconds_per_frame:.3f} s a frame"
    )
    report = {
        "part": "memory",
        "machine": about,
        "width": width,
        "height": height,
        "model": arguments.model,
        "num_frames": num_frames,
        "length": arguments.length,
        "peak_bytes": piped.peak_bytes,
        "seconds_per_frame": seconds_per_frame,
    }
    write_json(arguments.json, report)
