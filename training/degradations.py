"""Degradations in two steps: `sample` draws a recipe, `apply` carries it out, to the bit the same every time.

A recipe is an ordered list of steps, each a frozen value class of plain data that knows how to change frames. Between
steps frames are float32 (T, H, W, 3), RGB, gamma-encoded, in [0, 1] with overshoot allowed; a step that needs 8 bits
(JPEG, video codec) rounds and clips first, so nothing wraps around. Knows neither files, nor where the clips come from,
nor tensors.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any, ClassVar, Literal

import av
import cv2
import numpy as np
import numpy.typing as npt

type Bytes = npt.NDArray[np.uint8]
type Floats = npt.NDArray[np.float32]
type Kernel = Literal["area", "bilinear", "bicubic"]
type Range = tuple[float, float]

SCALE = 4
FRAMES_PER_SECOND = 12
"""Told to the codec; only the bitrate mode takes notice."""

MIN_BLUR_SIGMA_PX = 0.1

_RED, _GREEN, _BLUE = 0.299, 0.587, 0.114
_YUV_FROM_RGB = np.array(
    [
        np.array([_RED, _GREEN, _BLUE]) * 219 / 255,
        np.array([-_RED, -_GREEN, 1 - _BLUE]) / (2 * (1 - _BLUE)) * 224 / 255,
        np.array([1 - _RED, -_GREEN, -_BLUE]) / (2 * (1 - _RED)) * 224 / 255,
    ],
    dtype=np.float32,
)
_YUV_OFFSET = np.array([16, 128, 128], dtype=np.float32)
_RGB_FROM_YUV = np.linalg.inv(_YUV_FROM_RGB.astype(np.float64)).astype(np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Blur:
    """Gaussian blur, turned by `angle_radians`; both sigmas walk by up to `sigma_walk_px` from frame to frame."""

    name: ClassVar[str] = "blur"
    sigma_major_px: float
    sigma_minor_px: float
    angle_radians: float = 0.0
    sigma_walk_px: float = 0.0
    seed: int = 0

    def apply(self, frames: Floats) -> Floats:
        walk = np.random.default_rng(self.seed).uniform(-self.sigma_walk_px, self.sigma_walk_px, size=len(frames))
        walk[:1] = 0
        out = np.empty_like(frames)
        for number, moved_px in enumerate(np.cumsum(walk)):
            major_px = max(self.sigma_major_px + float(moved_px), MIN_BLUR_SIGMA_PX)
            minor_px = max(self.sigma_minor_px + float(moved_px), MIN_BLUR_SIGMA_PX)
            if self.sigma_major_px == self.sigma_minor_px:
                line = np.ascontiguousarray(gaussian_line(major_px))
                out[number] = cv2.sepFilter2D(frames[number], -1, line, line, borderType=cv2.BORDER_REFLECT_101)
            else:
                kernel = gaussian_kernel(major_px, minor_px, self.angle_radians)
                out[number] = cv2.filter2D(frames[number], -1, kernel, borderType=cv2.BORDER_REFLECT_101)
        return out


@dataclass(frozen=True, slots=True, kw_only=True)
class Downscale:
    """Four times smaller with antialiasing; pixel centres stay: out pixel i lies at 4 i + 1.5 of the input.

    With `intermediate_scale` the frames first become that many times as large (of the input; 0.2 is smaller than the
    result), with `kernel`, and then get their final size with `second_kernel`.
    """

    name: ClassVar[str] = "downscale"
    kernel: Kernel
    intermediate_scale: float | None = None
    second_kernel: Kernel = "bicubic"

    def apply(self, frames: Floats) -> Floats:
        height, width = frames.shape[1] // SCALE, frames.shape[2] // SCALE
        if self.intermediate_scale is None:
            return resize(frames, height, width, self.kernel)
        between = [max(1, round(size * self.intermediate_scale)) for size in frames.shape[1:3]]
        return resize(resize(frames, between[0], between[1], self.kernel), height, width, self.second_kernel)


@dataclass(frozen=True, slots=True, kw_only=True)
class GaussianNoise:
    """Normal noise of `sigma_255` / 255, new in every frame; grey: the same for the three channels."""

    name: ClassVar[str] = "gaussian_noise"
    sigma_255: float
    grey: bool
    seed: int

    def apply(self, frames: Floats) -> Floats:
        shape = (*frames.shape[:3], 1 if self.grey else frames.shape[3])
        noise = np.random.default_rng(self.seed).standard_normal(shape, dtype=np.float32)
        return frames + noise * np.float32(self.sigma_255 / 255)


@dataclass(frozen=True, slots=True, kw_only=True)
class PoissonNoise:
    """Photon noise: its deviation is `sigma_at_white_255` / 255 at white and falls with the root of the light."""

    name: ClassVar[str] = "poisson_noise"
    sigma_at_white_255: float
    grey: bool
    seed: int

    def apply(self, frames: Floats) -> Floats:
        photons_at_white = (255 / self.sigma_at_white_255) ** 2
        light = np.clip(frames, 0, 1)
        if self.grey:
            light = (light @ np.array([_RED, _GREEN, _BLUE], dtype=np.float32))[..., None]
        expected = light.astype(np.float64) * photons_at_white
        counted = np.random.default_rng(self.seed).poisson(expected)
        return frames + ((counted - expected) / photons_at_white).astype(np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Jpeg:
    """Every frame through JPEG of `quality` (1..100), 4:2:0."""

    name: ClassVar[str] = "jpeg"
    quality: int

    def apply(self, frames: Floats) -> Floats:
        out = np.empty_like(frames)
        for number, frame in enumerate(to_bytes(frames)):
            bgr = np.ascontiguousarray(frame[:, :, ::-1])
            fine, encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, self.quality])
            decoded = cv2.imdecode(encoded, cv2.IMREAD_COLOR) if fine else None
            if decoded is None:
                raise RuntimeError(f"Jpeg: OpenCV failed to encode a frame of {frame.shape[1]}x{frame.shape[0]}.")
            out[number] = decoded[:, :, ::-1]
        return out / np.float32(255)


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoCodec:
    """The clip through a video codec, yuv420p; exactly one of `crf` and `bits_per_pixel` says how much is kept.

    bits_per_pixel is the average of the clip: a 768x432 video of 12 frames a second at 0.4 Mbit/s has 0.1.
    """

    name: ClassVar[str] = "video_codec"
    encoder: str
    preset: str
    crf: int | None = None
    bits_per_pixel: float | None = None

    def __post_init__(self) -> None:
        if (self.crf is None) == (self.bits_per_pixel is None):
            raise ValueError(
                "VideoCodec: give either crf or bits_per_pixel,"
                f" got crf={self.crf}, bits_per_pixel={self.bits_per_pixel}."
            )

    def apply(self, frames: Floats) -> Floats:
        height, width = frames.shape[1:3]
        # yuv420p has one colour sample for 2x2 pixels: odd sizes are continued by one line and cut again
        even = np.pad(to_bytes(frames), ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        decoded = decode(self.encode(even))
        if decoded.shape != even.shape:
            raise RuntimeError(f"VideoCodec: {even.shape} went into {self.encoder}, {decoded.shape} came out.")
        return decoded[:, :height, :width].astype(np.float32) / np.float32(255)

    def encode(self, frames: Bytes) -> list[bytes]:
        """The packets, in the order of coding, of frames (T, H, W, 3) of even size."""
        num_frames, height, width, _ = frames.shape
        context = av.CodecContext.create(self.encoder, "w")
        if not isinstance(context, av.VideoCodecContext):
            raise ValueError(f"VideoCodec: {self.encoder} is no video encoder. Name one of FFmpeg's, such as libx264.")
        context.width, context.height, context.pix_fmt = width, height, "yuv420p"
        context.framerate = Fraction(FRAMES_PER_SECOND)
        context.time_base = Fraction(1, FRAMES_PER_SECOND)
        context.thread_count = 1
        options = {"preset": self.preset}
        if self.crf is not None:
            options["crf"] = str(self.crf)
        if self.bits_per_pixel is not None:
            context.bit_rate = max(1000, round(self.bits_per_pixel * width * height * FRAMES_PER_SECOND))
        context.options = options
        packets: list[bytes] = []
        for pts in range(num_frames):
            picture = av.VideoFrame.from_ndarray(yuv_from_rgb(frames[pts]), format="yuv420p")
            picture.pts = pts
            packets += [bytes(packet) for packet in context.encode(picture)]
        return packets + [bytes(packet) for packet in context.encode(None)]


type Step = Blur | Downscale | GaussianNoise | PoissonNoise | Jpeg | VideoCodec

STEPS: dict[str, type[Step]] = {
    kind.name: kind for kind in (Blur, Downscale, GaussianNoise, PoissonNoise, Jpeg, VideoCodec)
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """Steps in the order in which they are applied. Plain data: what `apply` does is all in here."""

    steps: tuple[Step, ...]

    def to_plain(self) -> list[dict[str, Any]]:
        """The steps as JSON knows them: [{"step": "blur", "sigma_major_px": 1.2, ...}, ...]."""
        return [{"step": step.name, **asdict(step)} for step in self.steps]

    def to_json(self) -> str:
        """One line of JSON that `from_json` reads back to an equal recipe."""
        return json.dumps(self.to_plain())

    @staticmethod
    def from_json(text: str) -> Recipe:
        """The recipe that `to_json` wrote.

        Raises ValueError on a step that has no name here.
        """
        steps: list[Step] = []
        for fields in json.loads(text):
            kind = STEPS.get(fields.pop("step", ""))
            if kind is None:
                raise ValueError(f"Recipe.from_json: unknown step in {text[:200]!r}. Known are {', '.join(STEPS)}.")
            steps.append(kind(**fields))
        return Recipe(tuple(steps))


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What recipes are drawn from. Ranges are uniform and include both ends; `_probability` in [0, 1]."""

    blur_sigma_px: Range = (0.2, 2.8)
    """Of high-resolution pixels."""
    blur_anisotropic_probability: float = 0.35
    blur_sigma_walk_px: float = 0.02
    intermediate_size_probability: float = 0.35
    intermediate_scale: Range = (0.2, 0.8)
    """Of the high-resolution size."""
    noise_usual_sigma_255: Range = (1.0, 8.0)
    noise_full_sigma_255: Range = (0.0, 12.0)
    noise_usual_probability: float = 0.85
    """How often the usual range is drawn from; otherwise the full one."""
    noise_poisson_probability: float = 0.3
    noise_grey_probability: float = 0.3
    jpeg_probability: float = 0.25
    jpeg_quality: tuple[int, int] = (55, 95)
    codec_probability: float = 0.95
    codec_bitrate_probability: float = 0.15
    """How often the codec gets a bitrate; otherwise a CRF."""
    codec_crf: tuple[int, int] = (17, 35)
    codec_bits_per_pixel: Range = (0.1, 0.8)
    """Drawn uniformly in the logarithm. The one intra frame of a short clip takes a large share of it: the other frames
    look like those of a long video at a lower rate."""
    codec_presets: tuple[str, ...] = ("ultrafast", "veryfast", "medium")


USUAL = Settings(
    blur_sigma_px=(0.6, 2.0),
    blur_anisotropic_probability=0.2,
    intermediate_size_probability=0.15,
    noise_usual_sigma_255=(2.0, 8.0),
    noise_full_sigma_255=(0.0, 10.0),
    noise_poisson_probability=0.2,
    jpeg_probability=0.1,
    codec_bitrate_probability=0.05,
    codec_crf=(23, 32),
)
"""What most videos have been through: the middle of the full ranges."""


def sample(settings: Settings, generator: np.random.Generator) -> Recipe:
    """A recipe drawn from the settings: blur, downscale, noise, sometimes JPEG, nearly always a video codec."""
    steps: list[Step] = [_sample_blur(settings, generator), _sample_downscale(settings, generator)]
    steps.append(_sample_noise(settings, generator))
    if generator.random() < settings.jpeg_probability:
        steps.append(Jpeg(quality=int(generator.integers(*settings.jpeg_quality, endpoint=True))))
    if generator.random() < settings.codec_probability:
        steps.append(_sample_codec(settings, generator))
    return Recipe(tuple(steps))


def moderate_recipe(seed: int) -> Recipe:
    """The fixed degradation of the evaluation; `seed` is that of its noise."""
    return Recipe(
        (
            Blur(sigma_major_px=1.2, sigma_minor_px=1.2),
            Downscale(kernel="bicubic"),
            GaussianNoise(sigma_255=5.0, grey=False, seed=seed),
            VideoCodec(encoder="libx264", preset="medium", crf=28),
        )
    )


def apply(recipe: Recipe, frames: Bytes) -> Bytes:
    """The degraded clip (T, h, w, 3) of frames (T, 4h, 4w, 3).

    Raises ValueError if the sizes are no multiples of 4 or if there is no frame.
    """
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise ValueError(f"apply: frames must be uint8 (T, 4h, 4w, 3) with T > 0, got {frames.dtype} {frames.shape}.")
    if frames.shape[1] % SCALE or frames.shape[2] % SCALE:
        raise ValueError(f"apply: height and width must be multiples of {SCALE}, got {frames.shape}. Crop them.")
    degraded = frames.astype(np.float32) / np.float32(255)
    for step in recipe.steps:
        degraded = step.apply(degraded)
    return to_bytes(degraded)


def to_bytes(frames: Floats) -> Bytes:
    """Frames in [0, 1], overshoot cut off, rounded to 0..255."""
    return np.asarray(np.rint(np.clip(frames, 0, 1) * np.float32(255)), dtype=np.uint8)


def decode(packets: list[bytes], decoder: str = "h264") -> Bytes:
    """Frames (T, H, W, 3), in the order of display, of a raw stream."""
    context = av.CodecContext.create(decoder, "r")
    if not isinstance(context, av.VideoCodecContext):
        raise ValueError(f"decode: {decoder} is no video decoder.")
    context.thread_count = 1
    pictures = [picture for packet in packets for picture in context.decode(av.Packet(packet))]
    pictures += context.decode(None)
    return np.stack([rgb_from_yuv(picture.to_ndarray(format="yuv420p").astype(np.uint8)) for picture in pictures])


def yuv_from_rgb(frame: Bytes) -> Bytes:
    """The planes of yuv420p, one above the other (3 H / 2, W), of a frame (H, W, 3) of even size.

    BT.601, limited range, a colour sample in the middle of its 2x2 pixels. Not swscale's conversion: that one, with
    PyAV's flags, makes every frame about 1/255 darker, and a network would learn to make all video brighter.
    """
    height, width, _ = frame.shape
    planes = frame.astype(np.float32) @ _YUV_FROM_RGB.T + _YUV_OFFSET
    colour = planes[:, :, 1:].reshape(height // 2, 2, width // 2, 2, 2).mean(axis=(1, 3))
    stacked = np.concatenate([planes[:, :, 0].ravel(), colour[:, :, 0].ravel(), colour[:, :, 1].ravel()])
    return np.asarray(np.rint(np.clip(stacked, 0, 255)), dtype=np.uint8).reshape(height * 3 // 2, width)


def rgb_from_yuv(planes: Bytes) -> Bytes:
    """The frame (H, W, 3) of the planes that `yuv_from_rgb` describes; colour is interpolated linearly."""
    height, width = planes.shape[0] * 2 // 3, planes.shape[1]
    colour = planes[height:].reshape(2, height // 2, width // 2).transpose(1, 2, 0).astype(np.float32)
    colour = np.asarray(cv2.resize(colour, (width, height), interpolation=cv2.INTER_LINEAR), dtype=np.float32)
    yuv = np.concatenate([planes[:height, :, None].astype(np.float32), colour], axis=2) - _YUV_OFFSET
    return np.asarray(np.rint(np.clip(yuv @ _RGB_FROM_YUV.T, 0, 255)), dtype=np.uint8)


def gaussian_line(sigma_px: float) -> Floats:
    """A Gaussian (2 r + 1) that sums to 1, r = 3 sigma rounded up."""
    radius = int(np.ceil(3 * sigma_px))
    line = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma_px) ** 2)
    return np.asarray(line / line.sum(), dtype=np.float32)


def gaussian_kernel(sigma_major_px: float, sigma_minor_px: float, angle_radians: float) -> Floats:
    """A Gaussian (2 r + 1, 2 r + 1) that sums to 1, its major axis turned from x towards y."""
    radius = int(np.ceil(3 * max(sigma_major_px, sigma_minor_px)))
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1].astype(np.float64)
    along = x * np.cos(angle_radians) + y * np.sin(angle_radians)
    across = y * np.cos(angle_radians) - x * np.sin(angle_radians)
    kernel = np.exp(-0.5 * ((along / sigma_major_px) ** 2 + (across / sigma_minor_px) ** 2))
    return np.asarray(kernel / kernel.sum(), dtype=np.float32)


def resize(frames: Floats, height: int, width: int, kernel: Kernel) -> Floats:
    """Frames (T, height, width, 3); antialiased when they shrink, centres aligned: the corners stay where they are."""
    rows = resize_weights(frames.shape[1], height, kernel)
    columns = resize_weights(frames.shape[2], width, kernel)
    out = np.empty((len(frames), height, width, frames.shape[3]), dtype=np.float32)
    for number, frame in enumerate(frames):
        narrow = rows @ frame.reshape(frame.shape[0], -1)  # (height, W * 3)
        turned = narrow.reshape(height, frame.shape[1], -1).transpose(1, 0, 2).reshape(frame.shape[1], -1)
        out[number] = (columns @ turned).reshape(width, height, -1).transpose(1, 0, 2)
    return out


@lru_cache(maxsize=64)
def resize_weights(old: int, new: int, kernel: Kernel) -> Floats:
    """Weights (new, old), rows sum to 1. Output pixel i looks at (i + 0.5) * old / new - 0.5 of the input."""
    ratio = old / new
    if kernel == "area" and ratio >= 1:
        edges = np.arange(new + 1) * ratio
        pixels = np.arange(old)
        covered = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
        weights = np.clip(covered, 0, None)
    else:
        centres = (np.arange(new) + 0.5) * ratio - 0.5
        distance = np.abs(np.arange(old) - centres[:, None]) / max(ratio, 1.0)
        weights = _cubic(distance) if kernel == "bicubic" else np.clip(1 - distance, 0, None)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), dtype=np.float32)


def _cubic(distance: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Keys' cubic convolution, a = -0.5."""
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))


def _sample_blur(settings: Settings, generator: np.random.Generator) -> Blur:
    major_px = minor_px = _uniform(settings.blur_sigma_px, generator)
    angle_radians = 0.0
    if generator.random() < settings.blur_anisotropic_probability:
        minor_px = _uniform(settings.blur_sigma_px, generator)
        angle_radians = _uniform((-np.pi, np.pi), generator)
    return Blur(
        sigma_major_px=major_px,
        sigma_minor_px=minor_px,
        angle_radians=angle_radians,
        sigma_walk_px=settings.blur_sigma_walk_px,
        seed=_seed(generator),
    )


def _sample_downscale(settings: Settings, generator: np.random.Generator) -> Downscale:
    kernels: tuple[Kernel, ...] = ("area", "bilinear", "bicubic")
    kernel = kernels[int(generator.integers(3))]
    if generator.random() >= settings.intermediate_size_probability:
        return Downscale(kernel=kernel)
    return Downscale(
        kernel=kernel,
        intermediate_scale=_uniform(settings.intermediate_scale, generator),
        second_kernel=kernels[int(generator.integers(1, 3))],
    )


def _sample_noise(settings: Settings, generator: np.random.Generator) -> GaussianNoise | PoissonNoise:
    usual = generator.random() < settings.noise_usual_probability
    sigma_255 = _uniform(settings.noise_usual_sigma_255 if usual else settings.noise_full_sigma_255, generator)
    grey = bool(generator.random() < settings.noise_grey_probability)
    if generator.random() < settings.noise_poisson_probability:
        return PoissonNoise(sigma_at_white_255=max(sigma_255, 0.1), grey=grey, seed=_seed(generator))
    return GaussianNoise(sigma_255=sigma_255, grey=grey, seed=_seed(generator))


def _sample_codec(settings: Settings, generator: np.random.Generator) -> VideoCodec:
    preset = settings.codec_presets[int(generator.integers(len(settings.codec_presets)))]
    if generator.random() < settings.codec_bitrate_probability:
        low, high = np.log(settings.codec_bits_per_pixel)
        bits_per_pixel = round(float(np.exp(generator.uniform(low, high))), 4)
        return VideoCodec(encoder="libx264", preset=preset, bits_per_pixel=bits_per_pixel)
    crf = int(generator.integers(*settings.codec_crf, endpoint=True))
    return VideoCodec(encoder="libx264", preset=preset, crf=crf)


def _uniform(bounds: Range, generator: np.random.Generator) -> float:
    return round(float(generator.uniform(*bounds)), 4)


def _seed(generator: np.random.Generator) -> int:
    return int(generator.integers(2**32))
