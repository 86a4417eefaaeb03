"""Footage for the tests of the data: pans over a photograph, as arrays, videos and numbered pictures."""

import subprocess
import time
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import numpy.typing as npt

from tests import ROOT, TIMEOUT_SECONDS
from tests.forked import Process, start_module

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


def start_preparing(
    folder: Path, frames: Bytes, *, num_videos: int, words: list[str]
) -> "Process | subprocess.Popen[str]":
    """Start `training prepare folder/in folder/out` on equal videos. Return the process once a clip is there."""
    (folder / "in").mkdir()
    written = write_video(folder / "in" / "0.mp4", frames).read_bytes()
    for number in range(1, num_videos):
        (folder / "in" / f"{number}.mp4").write_bytes(written)
    command = ["prepare", folder / "in", folder / "out", *words]
    process = start_module("training", *command, cwd=ROOT, loads=("training.commands.prepare",))
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not list((folder / "out").glob("*.npy")) and time.monotonic() < deadline:
        time.sleep(0.01)
    return process
