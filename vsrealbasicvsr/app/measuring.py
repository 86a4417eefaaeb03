"""`rbvsr benchmark`: frames per second of rbvsr.Upscale on this machine, at the usual sizes."""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import vapoursynth as vs

from vsrealbasicvsr.errors import UserError, printable

from .interrupting import computed

DEFAULT_SIZES = ((160, 112), (320, 180), (640, 360), (720, 480), (1280, 720), (1920, 1080))
NUM_WARM_FRAMES = 2
"""Of the short clip that is computed first."""
MIN_FRAMES, MAX_FRAMES = 5, 120
FILM_FRAMES_PER_SECOND = 24
_NOISE_SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One size. `fps` is frames per second; `is_estimate`: from the size before, for want of time."""

    width: int
    height: int
    num_frames: int
    fps: float
    is_estimate: bool

    @property
    def hours_for_one_hour(self) -> float:
        """Hours that an hour of film takes."""
        return FILM_FRAMES_PER_SECOND / self.fps


def parse_sizes(text: str) -> tuple[tuple[int, int], ...]:
    """Return sizes from 320x180,640x360. Raises UserError."""
    sizes = []
    for part in text.split(","):
        width, _, height = part.strip().lower().partition("x")
        if not (width.isdecimal() and height.isdecimal() and 0 < int(width) < 1 << 14 and 0 < int(height) < 1 << 14):
            raise UserError(f"--sizes takes WIDTHxHEIGHT,..., such as 320x180,640x360, got {printable(text, 100)!r}")
        sizes.append((int(width), int(height)))
    return tuple(sorted(sizes, key=lambda size: size[0] * size[1]))


def measure_sizes(sizes: Sequence[tuple[int, int]], arguments: dict[str, Any], seconds: float) -> Iterator[Measured]:
    """Measure one size after another, from small to large; what would go beyond `seconds` is estimated.

    Args:
        sizes: (width, height) of the source, in rising order.
        arguments: Of rbvsr.Upscale.
        seconds: What all sizes together may take, roughly.

    Raises:
        UserError: rbvsr.Upscale refuses an argument or cannot compute a frame.
    """
    probed, spent = _measure(*sizes[0], MIN_FRAMES, arguments)  # only frames count, not the making of filters
    seconds_per_pixel = probed / (sizes[0][0] * sizes[0][1])
    for number, (width, height) in enumerate(sizes):
        remaining = seconds - spent
        expected = seconds_per_pixel * width * height
        if expected * (MIN_FRAMES + NUM_WARM_FRAMES) > remaining:
            if number:
                yield Measured(width=width, height=height, num_frames=0, fps=1 / expected, is_estimate=True)
            else:
                yield Measured(width=width, height=height, num_frames=MIN_FRAMES, fps=1 / probed, is_estimate=False)
            continue
        budget = remaining / (len(sizes) - number)
        num_frames = max(MIN_FRAMES, min(int(budget / expected) - NUM_WARM_FRAMES, MAX_FRAMES))
        per_frame, took = _measure(width, height, num_frames, arguments)
        spent += took
        seconds_per_pixel = per_frame / (width * height)
        yield Measured(width=width, height=height, num_frames=num_frames, fps=1 / per_frame, is_estimate=False)


def _measure(width: int, height: int, num_frames: int, arguments: dict[str, Any]) -> tuple[float, float]:
    """Return the seconds of a frame in a long scene, and the seconds that it took to find out."""
    if not _has_plugin():
        raise UserError("the plugin core.rbvsr is not there: run rbvsr doctor")
    # A GPU's graphs are made on a filter's first frames. On a CPU, where a frame takes long, a short clip of its own
    # shows what its beginning and its end cost, which a long scene has once.
    same_filter = torch.cuda.is_available()
    num_warm = num_frames if same_filter else NUM_WARM_FRAMES
    given = {"scene_cuts": "off", **arguments}
    try:
        clip = _moving_clip(width, height, num_warm + num_frames)
        if same_filter:
            upscaled = vs.core.rbvsr.Upscale(clip, **given)
            warm, counted = _compute(upscaled[:num_warm]), _compute(upscaled[num_warm:])
        else:
            warm, counted = (
                _compute(vs.core.rbvsr.Upscale(part, **given)) for part in (clip[:num_warm], clip[num_warm:])
            )
    except vs.Error as error:
        raise UserError(printable(str(error).removeprefix("rbvsr.Upscale: "), 1000)) from None
    if same_filter or counted <= warm:
        return counted / num_frames, warm + counted
    return (counted - warm) / (num_frames - num_warm), warm + counted


def _compute(clip: vs.VideoNode) -> float:
    begun = time.perf_counter()
    for _ in computed(clip):
        pass
    return time.perf_counter() - begun


def _moving_clip(width: int, height: int, num_frames: int) -> vs.VideoNode:
    """Return a picture with detail, panned by a pixel a frame, as YUV420P8."""
    random = np.random.default_rng(_NOISE_SEED)
    large = (width + 128, height + 16)
    small = vs.core.std.BlankClip(width=large[0] // 4, height=large[1] // 4, format=vs.GRAY8, length=1)

    def fill(n: int, f: vs.VideoFrame) -> vs.VideoFrame:
        made = f.copy()
        np.asarray(made[0])[:] = random.integers(16, 235, np.asarray(made[0]).shape, np.uint8)
        return made

    picture = small.std.ModifyFrame(small, fill).resize.Bicubic(*large, format=vs.YUV444P8, matrix=1)
    parts = [picture.std.CropAbs(width, height, left=n % 128, top=0) for n in range(num_frames)]
    even = vs.core.std.Splice(parts) if len(parts) > 1 else parts[0]
    format_id = vs.YUV420P8 if width % 2 == 0 and height % 2 == 0 else vs.YUV444P8
    return even.std.AssumeFPS(fpsnum=24, fpsden=1).resize.Bicubic(format=format_id)


def run_benchmark(
    sizes: Sequence[tuple[int, int]], arguments: dict[str, Any], seconds: float, *, as_json: bool
) -> None:
    """Print a line for each size as it is measured, or a JSON object at the end. Raises UserError."""
    versions = {name: _text(value) for name, value in dict(vs.core.rbvsr.Version()).items()} if _has_plugin() else {}
    if not as_json:
        print(
            ", ".join(
                f"{name} {versions[name]}" for name in ("rbvsr", "torch", "kernels", "devices") if name in versions
            )
        )
        print(f"{'source':>10} {'output':>10} {'frames a second':>16}   an hour of film takes")
    rows = []
    for one in measure_sizes(sizes, arguments, seconds):
        rows.append({**asdict(one), "hours_for_one_hour": one.hours_for_one_hour})
        if not as_json:
            sign = "~" if one.is_estimate else " "
            sizes_text = f"{f'{one.width}x{one.height}':>10} {f'{4 * one.width}x{4 * one.height}':>10}"
            print(
                f"{sizes_text} {sign + format(one.fps, '.3g'):>16}   {sign}{one.hours_for_one_hour:.3g} h", flush=True
            )
    if as_json:
        print(json.dumps({"versions": versions, "sizes": rows}, indent=1))
    elif any(row["is_estimate"] for row in rows):
        print("~ estimated from the size before; --seconds gives more time")


def _has_plugin() -> bool:
    return hasattr(vs.core, "rbvsr")


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value))
    return value.decode() if isinstance(value, bytes) else str(value)
