"""Footage for the tests of the data: pans over a photograph, as arrays, videos and numbered pictures."""

from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]


def write_video(path: Path, frames: Bytes, *, crf: int = 12) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(25))
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        stream.options = {"crf": str(crf), "preset": "veryfast", "g": "12"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode(None))
    return path


def panned(image: Bytes, *, num_frames: int, height: int, width: int, step: int = 2) -> Bytes:
    return np.stack([image[:height, step * t : step * t + width] for t in range(num_frames)])


def write_pictures(folder: Path, frames: Bytes, name: str = "frame_{:03d}.png") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(frames, start=1):
        cv2.imwrite(str(folder / name.format(number)), np.ascontiguousarray(frame[:, :, ::-1]))
