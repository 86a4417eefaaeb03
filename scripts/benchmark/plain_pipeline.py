"""A plain pipeline of degradations, to compare with: frame by frame with OpenCV and NumPy, codecs through PyAV.

The published order and the published tools. Frames are float32 (H, W, 3) in [0, 1], RGB, one after another.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any

import av
import cv2
import numpy as np
import numpy.typing as npt
from scipy import special

from training.degradations import (
    Blur,
    ChromaNoise,
    GaussianNoise,
    Jpeg,
    PoissonNoise,
    Resize,
    SincBlur,
    Step,
    VideoCodec,
    codecs,
)

from .cpu_clock import Watch

type Bytes = npt.NDArray[np.uint8]
type Floats = npt.NDArray[np.float32]

LEVELS = "  of it, counting levels"
"""Row of the time that counting the levels of Poisson noise takes."""


def plain_unsharp(frame: Floats) -> Floats:
    """Sharpen with the published mask: two convolutions with 51 x 51 taps."""
    line = cv2.getGaussianKernel(51, 8.0)
    kernel = line @ line.T
    difference = frame - cv2.filter2D(frame, -1, kernel)
    edges = cv2.filter2D((np.abs(difference) * 255 > 10).astype(np.float32), -1, kernel)
    sharp = np.clip(frame + 0.5 * difference, 0, 1)
    return np.asarray(edges * sharp + (1 - edges) * frame, dtype=np.float32)


def plain_step(step: Step, frames: list[Floats], output_size: tuple[int, int], watch: Watch) -> list[Floats]:
    """Return the frames after a step of the recipe, computed one by one; output_size is (height, width)."""
    match step:
        case Blur() | SincBlur():
            return [
                np.asarray(cv2.filter2D(frame, -1, plain_kernel(step, t)), dtype=np.float32)
                for t, frame in enumerate(frames)
            ]
        case Resize():
            return plain_resize(step, frames, output_size)
        case GaussianNoise():
            generator = np.random.RandomState(step.seed)
            noise = (generator.randn(*frame.shape[:2], 1 if step.grey else 3).astype(np.float32) for frame in frames)
            strengths = np.array(step.sigma_255, dtype=np.float32) / 255
            return [frame + sigma * some for frame, sigma, some in zip(frames, strengths, noise, strict=True)]
        case PoissonNoise():
            return plain_poisson(step, frames, watch)
        case ChromaNoise():
            return plain_chroma_noise(step, frames)
        case Jpeg():
            return [plain_jpeg(frame, round(quality)) for frame, quality in zip(frames, step.quality, strict=True)]
        case VideoCodec():
            return plain_codec(step, frames)


def plain_chroma_noise(step: ChromaNoise, frames: list[Floats]) -> list[Floats]:
    """Add blotches of colour, independent in every frame."""
    generator = np.random.RandomState(step.seed)
    out = []
    for frame, sigma in zip(frames, step.sigma_255, strict=True):
        cells = generator.randn(frame.shape[0] // step.cell_px + 2, frame.shape[1] // step.cell_px + 2, 2)
        blue, red = np.moveaxis(cv2.resize(cells * sigma * 1.5 / 255, frame.shape[1::-1]), 2, 0)
        added = np.stack([1.402 * red, -0.344136 * blue - 0.714136 * red, 1.772 * blue], axis=2)
        out.append(frame + added.astype(np.float32))
    return out


def plain_kernel(step: Blur | SincBlur, t: int) -> npt.NDArray[np.float64]:
    """Return the kernel of frame t, (size, size)."""
    offsets = np.arange(step.size_px) - step.size_px // 2
    x, y = np.meshgrid(offsets, offsets)
    if isinstance(step, SincBlur):
        cutoff, radius = step.cutoff_radians[t], np.maximum(np.hypot(x, y), 1e-9)
        kernel = cutoff * special.j1(cutoff * radius) / (2 * np.pi * radius)
        kernel[radius < 0.5] = cutoff**2 / (4 * np.pi)
        return np.asarray(kernel / kernel.sum())
    cos, sin = np.cos(step.angle_radians[t]), np.sin(step.angle_radians[t])
    q = ((x * cos + y * sin) / step.sigma_x_px[t]) ** 2 + ((y * cos - x * sin) / step.sigma_y_px[t]) ** 2
    power = q ** step.beta[t] if step.beta[t] != 1 else q
    kernel = 1 / (1 + power) if step.family.startswith("plateau") else np.exp(-0.5 * power)
    return np.asarray(kernel / kernel.sum())


def plain_resize(step: Resize, frames: list[Floats], output_size: tuple[int, int]) -> list[Floats]:
    """Resize every frame to its own size, by OpenCV, without antialiasing."""
    names = {"bilinear": cv2.INTER_LINEAR, "area": cv2.INTER_AREA, "bicubic": cv2.INTER_CUBIC}
    height, width = frames[0].shape[:2]
    sizes = [output_size] * len(frames)
    if step.scale is not None:
        sizes = [(max(2, int(height * s) // 2 * 2), max(2, int(width * s) // 2 * 2)) for s in step.scale]
    return [
        np.asarray(cv2.resize(frame, size[::-1], interpolation=names[step.filter]), dtype=np.float32)
        for frame, size in zip(frames, sizes, strict=True)
    ]


def plain_poisson(step: PoissonNoise, frames: list[Floats], watch: Watch) -> list[Floats]:
    """Add photon noise. The published code counts as many photons at white as the frame has different levels."""
    generator = np.random.RandomState(step.seed)
    out: list[Floats] = []
    for frame, scale in zip(frames, step.scale, strict=True):
        light = (np.clip((frame * 255).round(), 0, 255) / 255).astype(np.float32)
        if step.grey:
            light = np.asarray(cv2.cvtColor(light, cv2.COLOR_RGB2GRAY), dtype=np.float32)[..., None]
        with watch.on(LEVELS):
            photons = 2 ** np.ceil(np.log2(len(np.unique(light))))
        noise = generator.poisson(light * photons) / photons - light
        out.append(frame + noise.astype(np.float32) * np.float32(scale))
    return out


def plain_jpeg(frame: Floats, quality: int) -> Floats:
    """Encode a frame as JPEG and decode it."""
    fine, encoded = cv2.imencode(".jpg", plain_bytes(frame)[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not fine:
        raise RuntimeError(f"plain_jpeg: OpenCV failed to encode a frame of {frame.shape}.")
    return plain_floats(np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR))[:, :, ::-1])


def plain_codec(step: VideoCodec, frames: list[Floats]) -> list[Floats]:
    """Encode the clip into an MP4 in memory and decode it, with FFmpeg's default number of threads."""
    buffer, options = BytesIO(), {"preset": step.preset or ""} if step.codec != "mpeg4" else {}
    if step.crf is not None:
        options["crf"] = str(step.crf)
    height, width = frames[0].shape[:2]
    with av.open(buffer, "w", format="mp4") as file:
        stream = file.add_stream(codecs.IMPLEMENTATIONS[step.codec].encoder, rate=1, options=options)
        if not isinstance(stream, av.VideoStream):
            raise RuntimeError(f"plain_codec: {step.codec} is no video codec.")
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        if step.bits_per_frame is not None:
            stream.bit_rate = step.bits_per_frame
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(plain_bytes(frame), format="rgb24")))
        file.mux(stream.encode())
    buffer.seek(0)
    with av.open(buffer, "r") as file:
        return [plain_floats(picture.to_ndarray(format="rgb24")) for picture in file.decode(video=0)]


def plain_bytes(frame: Floats) -> Bytes:
    """Round to 8 bits, overshoot clipped. The published code lets it wrap around, which takes as long."""
    return np.asarray(np.clip(frame * 255, 0, 255).round(), dtype=np.uint8)


def plain_floats(frame: npt.NDArray[Any]) -> Floats:
    """Return the frame in [0, 1]."""
    return frame.astype(np.float32) / np.float32(255)
