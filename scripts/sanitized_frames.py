"""Frames through a real core, for `scripts.sanitize`: every way in which the two C files are used.

python scripts/sanitized_frames.py NUM_THREADS INSTRUCTION_SET
"""

import ctypes
import random
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import vapoursynth as vs

from vsrealbasicvsr.backends.cpu import load_kernels

ARGUMENTS = {"device": "cpu", "length": 6, "overlap": 2}


def main() -> None:
    """Run everything, and print the number of frames at the end."""
    num_threads, instruction_set = int(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(num_threads)  # may be more than there are cores
    core = vs.core.core
    core.num_threads = num_threads
    ctypes.CDLL(core.rbvsr.plugin_path)  # keeps it loaded after the core is freed, for the symbols of leak reports
    kernels = load_kernels()
    assert (kernels.name if kernels else "off") == instruction_set
    num_frames = sum(
        [
            frames_of_many_formats(core, num_threads),
            frames_in_any_order(core, num_threads),
            frames_beside_a_source_that_fails(core),
            frames_that_are_given_up(core),
            errors(core),
        ]
    )
    print(f"{num_frames} frames are whole, {num_threads} threads")


def moving(core: vs.Core, format_id: int, num_frames: int = 10, width: int = 20, height: int = 18) -> vs.VideoNode:
    """Return a clip of a moving pattern with noise."""
    blank = core.std.BlankClip(format=vs.RGB24, width=width, height=height, length=num_frames)
    noise = np.random.default_rng(0).integers(0, 40, (height, 4 * width), np.uint8)

    def fill(n: int, f: vs.VideoFrame) -> vs.VideoFrame:
        frame = f.copy()
        for plane in range(3):
            np.copyto(np.asarray(frame[plane]), noise[:, n * 2 + plane : n * 2 + plane + width] * 5)
        return frame

    clip = core.std.ModifyFrame(blank, blank, fill)
    is_rgb = core.get_video_format(format_id).color_family == vs.RGB
    return clip.resize.Bicubic(format=format_id, **({} if is_rgb else {"matrix": vs.MATRIX_BT709}))


def frames_of_many_formats(core: vs.Core, num_threads: int) -> int:
    """Read frames with named, unnamed and wrong colours, in one tile and in many. Return their number."""
    count = 0
    for format_id in (vs.YUV420P8, vs.GRAYH):
        clip = moving(core, format_id)
        wrong = {"_Matrix": 14, "_Range": [1, 1], "_Field": 7, "_FieldBased": "x", "a_name_that_is_rather_long": 1}
        clip = core.std.Splice([clip[:3], clip[3:6].std.RemoveFrameProps(), clip[6:].std.SetFrameProps(**wrong)])
        for more in ({}, {"tile": 16, "theta": 0.0}):
            out = clip.rbvsr.Upscale(**ARGUMENTS, **more)
            count += sum(1 for _ in out.frames(prefetch=2 * num_threads, backlog=2 * num_threads, close=True))
    return count


def frames_in_any_order(core: vs.Core, num_threads: int) -> int:
    """Read frames with as many callers as threads, and a cache that is too small. Return their number."""
    before, core.max_cache_size = core.max_cache_size, 1
    out = moving(core, vs.YUV420P8, 12).rbvsr.Upscale(**ARGUMENTS)
    wanted = [n % 12 for n in range(24)]
    random.Random(0).shuffle(wanted)
    with ThreadPoolExecutor(num_threads) as callers:
        made = list(callers.map(lambda n: out.get_frame(n).width, wanted))
    core.max_cache_size = before
    return len(made)


def frames_beside_a_source_that_fails(core: vs.Core) -> int:
    """Read frames while some source frames fail. Return the number of those that succeeded."""
    clip = moving(core, vs.YUV420P8)

    def fail(n: int, f: vs.VideoFrame) -> vs.VideoFrame:
        if n in (3, 8):
            raise vs.Error("damaged")
        return f

    out = core.std.ModifyFrame(clip, clip, fail).rbvsr.Upscale(**ARGUMENTS)
    count = 0
    for n in list(range(10)) * 2:
        try:
            count += out.get_frame(n).width == 4 * clip.width
        except vs.Error:
            continue
    assert count >= 12
    return count


def frames_that_are_given_up(core: vs.Core) -> int:
    """Free the filter while requests are in progress. Return the number of frames that were read."""
    for _ in range(2):
        out = moving(core, vs.YUV420P8).rbvsr.Upscale(**ARGUMENTS)
        frames = out.frames(prefetch=8, backlog=8, close=True)
        next(frames)
        frames.close()
        del frames, out
    return 2


def errors(core: vs.Core) -> int:
    """Provoke the plugin's errors. Return 0, as no frame is read."""
    clip = moving(core, vs.RGB24, 2)
    for arguments in ({"theta": -1.0}, {"model": "no/such.pth"}, {"scene_cuts": "x" * 5000}):
        try:
            clip.rbvsr.Upscale(**arguments)
        except vs.Error:
            continue
        raise AssertionError(arguments)
    assert core.rbvsr.Version()["rbvsr"]
    for answer in ([9, 9], [0], [0, 0, 0], 5, b"x"):
        served = core.rbvsr.Serve([clip], clip, lambda n, frames=None, failed=None, answer=answer: answer)
        try:
            served.get_frame(0)
        except vs.Error:
            continue
        raise AssertionError(answer)
    return 0


if __name__ == "__main__":
    main()
