"""Codecs on one thread: video through PyAV, planes of yuv420p in and out; JPEG through OpenCV, RGB frames in and out.

Planes are (T, 3 H / 2, W) uint8, H and W even: the luma above the two colour planes, as FFmpeg lays out yuv420p.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import av
import av.codec
import cv2
import numpy as np
import numpy.typing as npt
from torch.backends.cpu import get_cpu_capability

from training.degradations.recipe import CODECS, PRESETS, Codec, Jpeg, VideoCodec
from vsrealbasicvsr.errors import UserError
from vsrealbasicvsr.scheduling import scheduling_kept

type Planes = npt.NDArray[np.uint8]
type RunCodec = Callable[[VideoCodec | Jpeg, Planes], Planes]
"""`run`, or a function that calls it elsewhere."""

FRAMES_PER_SECOND_OF_BITRATE = 1
"""Frame rate for bitrates, which are thus numbers of bits per frame, as in the published pipeline."""

FRAMES_PER_SECOND_OF_CRF = 25
"""Frame rate for CRF. Encoders spend more bits on frames that are shown for longer: x264 at CRF 28 spends 4.5 times as
many bytes at one frame a second as at 25."""

os.environ.setdefault("SVT_LOG", "1")  # SVT-AV1 logs to standard error; only this variable limits it to errors


@dataclass(frozen=True, slots=True, kw_only=True)
class Implementation:
    """Encoder and decoder of a codec, and its minimum frame size; smaller frames are padded by their edge."""

    encoder: str
    decoder: str
    min_size_px: int = 2


IMPLEMENTATIONS: dict[Codec, Implementation] = {
    "h264": Implementation(encoder="libx264", decoder="h264"),
    "mpeg4": Implementation(encoder="mpeg4", decoder="mpeg4"),
    "mpeg2": Implementation(encoder="mpeg2video", decoder="mpeg2video", min_size_px=16),
    # Below 64 pixels x265 writes beyond its buffers and sometimes aborts the process; at 64 its streams differ from run
    # to run; at 128 neither was observed.
    "h265": Implementation(encoder="libx265", decoder="hevc", min_size_px=128),
    "vp9": Implementation(encoder="libvpx-vp9", decoder="vp9", min_size_px=8),
    "av1": Implementation(encoder="libsvtav1", decoder="libdav1d", min_size_px=64),
}

# Measured, x264 of PyAV 19 at 44 x 38: with AVX-512 its macroblock tree reads uninitialised memory, and six runs give
# up to four different streams; with AVX2, without the tree or without assembler they give one. On processors without
# AVX-512, x264 chooses AVX2 or less itself.
_X264_SAME_BITS = {"x264-params": "asm=AVX2"} if get_cpu_capability() == "AVX512" else {}

# Speeds of the other encoders for the presets of x264 and x265.
# VP9: speeds 7 and 8 repeat a flat frame instead of coding its change.
_VP9_SPEEDS = dict(zip(PRESETS, ("6", "5", "4"), strict=True))
_AV1_SPEEDS = dict(zip(PRESETS, ("12", "10", "8"), strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """An encoded clip.

    Attributes:
        encoder: Name of the encoder.
        packets: In coding order, as the encoder returned them. They are not bytes because a decoder reads a little
            beyond the end and needs zeros there: packets made of bytes have none (observed: broken MPEG-4 frames,
            different ones at every run).
    """

    encoder: str
    packets: tuple[av.Packet[av.VideoStream], ...]

    @property
    def num_bits(self) -> int:
        """Size of all packets, headers included."""
        return 8 * sum(packet.size for packet in self.packets)

    def __bytes__(self) -> bytes:
        return b"".join(bytes(packet) for packet in self.packets)


def run(step: VideoCodec | Jpeg, planes: Planes) -> Planes:
    """Encode and decode planes.

    Args:
        step: The codec. For Jpeg, with a quality for each frame.
        planes: (T, 3 H / 2, W) uint8; for Jpeg RGB frames, (T, 3, H, W).

    Returns:
        The same number, size and order of frames.

    Raises:
        ValueError: The planes have another layout.
        RuntimeError: The encoder is missing or fails.
    """
    if isinstance(step, Jpeg):
        return run_jpeg(step, planes)
    return decode(step, encode(step, planes), shape=planes.shape)


def run_jpeg(step: Jpeg, frames: Planes) -> Planes:
    """Return RGB frames (T, 3, H, W) after OpenCV's libjpeg, 4:2:0, which is twice as fast as torchvision's.

    It is used for every device: torchvision's encoder for GPUs is shared by all threads and writes 4:4:4.
    """
    out = np.empty_like(frames)
    for frame, target, quality in zip(frames, out, step.quality, strict=True):
        red, green, blue = frame
        words = (cv2.IMWRITE_JPEG_QUALITY, round(quality))
        fine, encoded = cv2.imencode(".jpg", cv2.merge((blue, green, red)), words)
        decoded = cv2.imdecode(encoded, cv2.IMREAD_COLOR) if fine else None
        if decoded is None:
            raise RuntimeError(f"codecs.run: OpenCV cannot write a JPEG of {frame.shape[2]}x{frame.shape[1]}.")
        for channel, plane in zip((2, 1, 0), target, strict=True):
            cv2.extractChannel(decoded, channel, plane)
    return out


def require(codec: Codec) -> None:
    """Raise UserError if `codec` is unknown or this build of PyAV cannot encode and decode it."""
    if codec not in IMPLEMENTATIONS:
        raise UserError(f"unknown video codec {codec!r}. Known are {', '.join(CODECS)}.")
    implementation = IMPLEMENTATIONS[codec]
    for name, mode in ((implementation.encoder, "w"), (implementation.decoder, "r")):
        try:
            av.codec.Codec(name, mode)  # type: ignore[arg-type]
        except av.codec.codec.UnknownCodecError as error:
            raise UserError(
                f"video codec {codec} needs FFmpeg's {name}, which this PyAV ({av.__version__}) was built without."
                " Choose other codecs or install another build of PyAV."
            ) from error


def encode(step: VideoCodec, planes: Planes) -> Encoded:
    """Encode a clip; frames smaller than the encoder's minimum are padded."""
    _check_planes(planes)
    implementation = IMPLEMENTATIONS[step.codec]
    planes = _enlarged(planes, implementation.min_size_px)
    context = av.CodecContext.create(implementation.encoder, "w")
    if not isinstance(context, av.VideoCodecContext):
        raise RuntimeError(f"codecs.encode: {implementation.encoder} is no video encoder.")
    context.width, context.height, context.pix_fmt = planes.shape[2], planes.shape[1] * 2 // 3, "yuv420p"
    # MPEG-2 has no rate of one frame a second
    is_bitrate = step.bits_per_frame is not None and step.codec != "mpeg2"
    frames_per_second = FRAMES_PER_SECOND_OF_BITRATE if is_bitrate else FRAMES_PER_SECOND_OF_CRF
    context.framerate = Fraction(frames_per_second)
    context.time_base = Fraction(1, frames_per_second)
    context.thread_count = 1
    if step.bits_per_frame is not None:
        context.bit_rate = step.bits_per_frame * frames_per_second
        # for mpeg4: with FFmpeg's default a short clip ends before its rate control takes effect
        context.bit_rate_tolerance = context.bit_rate
    context.options = encoder_options(step)
    packets: list[av.Packet[av.VideoStream]] = []
    try:
        with scheduling_kept():
            for number, frame in enumerate(planes):
                picture = av.VideoFrame.from_ndarray(frame, format="yuv420p")
                picture.pts = number
                packets += context.encode(picture)
            packets += context.encode(None)
    except av.FFmpegError as error:
        raise RuntimeError(f"codecs.encode: {implementation.encoder} failed at {step}: {error}.") from error
    return Encoded(encoder=implementation.encoder, packets=tuple(packets))


def decode(step: VideoCodec, encoded: Encoded, *, shape: tuple[int, ...]) -> Planes:
    """Decode a clip.

    Args:
        step: The codec.
        encoded: The packets.
        shape: (T, 3 H / 2, W) to crop to.

    Returns:
        The planes in display order.

    Raises:
        RuntimeError: There are more or fewer than T frames.
    """
    num_frames, height, width = shape[0], shape[1] * 2 // 3, shape[2]
    context = av.CodecContext.create(IMPLEMENTATIONS[step.codec].decoder, "r")
    if not isinstance(context, av.VideoCodecContext):
        raise RuntimeError(f"codecs.decode: {IMPLEMENTATIONS[step.codec].decoder} is no video decoder.")
    context.thread_count = 1
    pictures = [picture for packet in encoded.packets for picture in context.decode(packet)]
    pictures += context.decode(None)
    if len(pictures) != num_frames:
        raise RuntimeError(
            f"codecs.decode: {num_frames} frames went into {encoded.encoder}, {len(pictures)} came out of {step}."
        )
    out = np.empty(shape, dtype=np.uint8)
    for frame, picture in zip(out, pictures, strict=True):
        colour = frame[height:].reshape(2, height // 2, width // 2)
        for plane, target in zip(picture.planes, (frame[:height], *colour), strict=True):
            lines = np.frombuffer(plane, dtype=np.uint8).reshape(-1, plane.line_size)
            target[:] = lines[: target.shape[0], : target.shape[1]]
    return out


def encoder_options(step: VideoCodec) -> dict[str, str]:
    """Return FFmpeg's options of the encoder, apart from the bitrate."""
    rate = step.bits_per_frame
    constant_quality = {} if step.crf is None else {"crf": str(step.crf)}
    match step.codec:
        case "h264":
            options = {"preset": str(step.preset), **constant_quality, **_X264_SAME_BITS}
            if rate is not None:  # without these, x264 spends up to 3 times the bits in 30 frames of noise
                options |= {"maxrate": str(rate), "bufsize": str(4 * rate)}
            return options
        case "h265":
            own = "pools=none:frame-threads=1:log-level=none"
            if rate is not None:  # without these, x265 spends up to 3.8 times the bits
                kilobits = max(1, round(rate / 1000))
                own += f":vbv-maxrate={kilobits}:vbv-bufsize={4 * kilobits}:strict-cbr=1"
            return {"preset": str(step.preset), "x265-params": own, **constant_quality}
        case "vp9":
            speed = {"deadline": "realtime", "cpu-used": _VP9_SPEEDS[str(step.preset)]}
            if rate is None:
                return {**speed, "b": "0", **constant_quality}
            # without these, libvpx spends 1.9 times 10,000 bits a frame
            return {**speed, "minrate": str(rate), "maxrate": str(rate), "bufsize": str(8 * rate)}
        case "av1":
            return {"preset": _AV1_SPEEDS[str(step.preset)], "svtav1-params": "lp=1", **constant_quality}
        case "mpeg2" | "mpeg4":
            return {}


def _check_planes(planes: Planes) -> None:
    good = planes.ndim == 3 and planes.dtype == np.uint8 and planes.size > 0
    if not good or planes.shape[1] % 3 or planes.shape[2] % 2:
        raise ValueError(
            "codecs: planes must be uint8 (T, 3 H / 2, W) of even height and width with T > 0,"
            f" got {planes.dtype} {planes.shape}."
        )


def _enlarged(planes: Planes, min_size_px: int) -> Planes:
    """Return the planes, padded by their last row and column to the minimum size of an encoder."""
    num_frames, height, width = planes.shape[0], planes.shape[1] * 2 // 3, planes.shape[2]
    below, right = max(0, min_size_px - height), max(0, min_size_px - width)
    if not below and not right:
        return planes
    colour = planes[:, height:].reshape(num_frames, 2, height // 2, width // 2)
    luma = np.pad(planes[:, :height], ((0, 0), (0, below), (0, right)), mode="edge")
    colour = np.pad(colour, ((0, 0), (0, 0), (0, below // 2), (0, right // 2)), mode="edge")
    return np.concatenate([luma, colour.reshape(num_frames, -1, width + right)], axis=1)
