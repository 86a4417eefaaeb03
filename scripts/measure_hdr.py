"""Measures HDR pictures upscaled as they are against upscaled in the gamma that the network was trained on.

    python -m scripts.measure_hdr [--photographs astronaut ...] [--frames 8] [--width 384] [--height 256]

Photographs of scikit-image pan slowly, with their light scaled to 1000 cd/m2; a quarter of the size, PQ or HLG, 10 bits
of x264. Printed is the PSNR of the PQ signal (of RGB, [0, 1]) against the photograph, and the largest and mean error of
its highlights, in cd/m2.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import vapoursynth as vs
from skimage import data

from vsrealbasicvsr.app.encoding import Encoder, SegmentWriter, Tags
from vsrealbasicvsr.app.hdr import TRANSFER_HLG, TRANSFER_PQ, Light, from_network, to_network

SCALE, PEAK_NITS, HIGHLIGHT_NITS = 4, 1000.0, 500.0
PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket")
BT2020 = 9

Upscale = Callable[[vs.VideoNode], vs.VideoNode]


def light_of_photograph(name: str, num_frames: int, width: int, height: int) -> Iterator[np.ndarray[Any, Any]]:
    """Yield frames (height, width, 3) of light, 1.0 = 1000 cd/m2."""
    photograph = getattr(data, name)() / 255.0
    linear = np.where(photograph <= 0.04045, photograph / 12.92, ((photograph + 0.055) / 1.055) ** 2.4)
    for n in range(num_frames):
        yield linear[20 + n : 20 + n + height, 20 + 2 * n : 20 + 2 * n + width].astype(np.float32)


def as_clip(frames: list[np.ndarray[Any, Any]]) -> vs.VideoNode:
    """Return frames of light as RGBS of linear light, 1.0 = 1000 cd/m2."""
    height, width, _ = frames[0].shape
    blank = vs.core.std.BlankClip(format=vs.RGBS, width=width, height=height, length=len(frames), fpsnum=25, keep=True)

    def fill(n: int, f: vs.VideoFrame) -> vs.VideoFrame:
        made = f.copy()
        for plane in range(3):
            np.asarray(made[plane])[:] = frames[n][..., plane]
        return made

    return blank.std.ModifyFrame(blank, fill).std.SetFrameProps(_Matrix=0, _Transfer=8, _Primaries=BT2020)


def degraded(clip: vs.VideoNode, transfer: int, crf: float, folder: Path) -> vs.VideoNode:
    """Return the clip at a quarter of its size, through x264 at 10 bits."""
    small = clip.resize.Bicubic(
        clip.width // SCALE,
        clip.height // SCALE,
        format=vs.YUV420P10,
        matrix=BT2020,
        transfer=transfer,
        nominal_luminance=PEAK_NITS,
        approximate_gamma=False,
        dither_type="error_diffusion",
    )
    encoder = Encoder(codec="libx264", options={"crf": f"{crf:g}", "preset": "fast"}, pix_fmt="yuv420p10le")
    tags = Tags(rate=Fraction(25), color_range=1, colorspace=9, color_primaries=9, color_trc=transfer)
    path = folder / f"{transfer}.mkv"
    writer = SegmentWriter(path, small, encoder, tags)
    for frame in small.frames(close=True):
        writer.write(frame)
    writer.close()
    return vs.core.bs.VideoSource(str(path), cachemode=0, showprogress=False)


def in_pq(clip: vs.VideoNode) -> np.ndarray[Any, Any]:
    """Return all frames (T, H, W, 3) as RGB of PQ, [0, 1]."""
    given = {} if clip.format.color_family == vs.RGB else {"matrix_in": BT2020}
    pq = clip.resize.Bicubic(
        format=vs.RGBS, transfer=TRANSFER_PQ, nominal_luminance=PEAK_NITS, approximate_gamma=False, **given
    )
    frames = [np.stack([np.asarray(frame[plane]) for plane in range(3)], -1) for frame in pq.frames(close=True)]
    return np.stack(frames)


def nits(pq: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return cd/m2 of a PQ signal: BT.2100, table 4, EOTF."""
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 4096 * 128, 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
    root: np.ndarray[Any, Any] = np.clip(pq, 0, None) ** (1 / m2)
    light: np.ndarray[Any, Any] = 10000 * (np.maximum(root - c1, 0) / (c2 - c3 * root)) ** (1 / m1)
    return light


def methods(transfer: int, detail: float) -> dict[str, Upscale]:
    """Return the ways to upscale a clip of a transfer function."""
    light = Light(matrix=BT2020, primaries=BT2020, transfer=transfer, color_range=0)

    def network(clip: vs.VideoNode) -> vs.VideoNode:
        return vs.core.rbvsr.Upscale(clip, device="cpu", detail=detail)

    def converted(peak_nits: float) -> Upscale:
        def run(clip: vs.VideoNode) -> vs.VideoNode:
            made = network(to_network(clip, light, peak_nits=peak_nits))
            return from_network(made, clip.format, light, peak_nits=peak_nits)

        return run

    found: dict[str, Upscale] = {
        "bicubic": lambda clip: clip.resize.Bicubic(clip.width * SCALE, clip.height * SCALE),
        "direct": network,
    }
    for peak in (1000.0, 4000.0, 10000.0):
        found[f"gamma, 1.0 = {peak:g}"] = converted(peak)
    return found


def measure(truth: np.ndarray[Any, Any], made: np.ndarray[Any, Any]) -> tuple[float, float, float]:
    """Return PSNR in PQ, and the largest (99.9 % of them) and mean error of highlights in cd/m2."""
    psnr = -10 * np.log10(np.mean((truth - np.clip(made, 0, 1)) ** 2))
    bright = nits(truth).max(-1) > HIGHLIGHT_NITS
    error = np.abs(nits(truth)[bright] - nits(made)[bright])
    return float(psnr), float(np.quantile(error, 0.999)), float(error.mean())


def main() -> None:
    """Print a line for each transfer function and way to upscale."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", nargs="+", choices=PHOTOGRAPHS, default=PHOTOGRAPHS)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--height", type=int, default=256)
    parser.add_argument("--crf", type=float, default=20)
    parser.add_argument("--detail", type=float, default=0.6)
    arguments = parser.parse_args()
    print(f"{'':<22} {'PSNR (PQ)':>10} {'highlights, 99.9 %':>20} {'mean':>8}   cd/m2")
    with tempfile.TemporaryDirectory() as folder:
        for transfer, name in ((TRANSFER_PQ, "PQ"), (TRANSFER_HLG, "HLG")):
            rows: dict[str, list[tuple[float, float, float]]] = {}
            for photograph in arguments.photographs:
                frames = [*light_of_photograph(photograph, arguments.frames, arguments.width, arguments.height)]
                clip = as_clip(frames)
                truth = in_pq(clip)
                place = Path(folder) / photograph
                place.mkdir(exist_ok=True)
                source = degraded(clip, transfer, arguments.crf, place)
                for method, upscale in methods(transfer, arguments.detail).items():
                    rows.setdefault(method, []).append(measure(truth, in_pq(upscale(source))))
            for method, found in rows.items():
                psnr, largest, mean = np.mean(found, axis=0)
                print(f"{name + ' ' + method:<22} {psnr:10.2f} {largest:20.1f} {mean:8.1f}", flush=True)


if __name__ == "__main__":
    main()
