"""Real clips for tests: a photograph that moves, written by real codecs."""

from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np

MakeClip = Callable[..., Path]


def moving_photograph(num_frames: int, width: int, height: int) -> Iterator[np.ndarray]:
    from skimage import data, transform

    photograph = data.astronaut()
    for n in range(num_frames):
        view = transform.AffineTransform(scale=(2.0, 2.0), translation=(180 + 2 * n, 40 + n))
        frame = transform.warp(photograph / 255, view, output_shape=(height, width), order=1)
        yield (frame * 255).round().astype(np.uint8)


def write_clip(
    path: Path,
    *,
    num_frames: int = 30,
    width: int = 64,
    height: int = 48,
    rate: Fraction = Fraction(25),
    pts: list[int] | None = None,
    time_base: Fraction | None = None,
    pixel_format: str = "yuv420p",
    codec: str = "libx264",
    audio_codecs: tuple[str, ...] = (),
    colours: dict[str, int] | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """Write a clip of a moving photograph; its container is chosen by the suffix.

    pts: time stamp of each frame in units of time_base; default: one after another at `rate`. audio_codecs: one track
    of a tone for each. colours: attributes of the codec context, such as color_range. options: of the video codec.
    """
    import av

    time_base = time_base or 1 / rate
    pts = list(range(num_frames)) if pts is None else pts
    seconds = float((pts[-1] + 1) * time_base)
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        stream.time_base = stream.codec_context.time_base = time_base
        for name, value in (colours or {}).items():
            setattr(stream.codec_context, name, value)
        tracks = [file.add_stream(audio_codec, rate=48000, layout="stereo") for audio_codec in audio_codecs]
        for rgb, n in zip(moving_photograph(len(pts), width, height), pts, strict=True):
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
            frame.pts, frame.time_base = n, time_base
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
        for number, track in enumerate(tracks):
            samples = np.sin(np.arange(int(48000 * seconds)) * 0.03 * (number + 1), dtype=np.float32) / 4
            resampler = av.AudioResampler(track.codec_context.format, "stereo", 48000)
            sound = av.AudioFrame.from_ndarray(np.stack([samples, samples]), format="fltp", layout="stereo")
            sound.sample_rate, sound.pts = 48000, 0
            fifo = av.AudioFifo()
            for part in resampler.resample(sound):
                fifo.write(part)
            for part in fifo.read_many(track.codec_context.frame_size or 1024, partial=True):
                file.mux(track.encode(part))
            file.mux(track.encode())
    return path
