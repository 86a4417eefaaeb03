"""Two short sequences as VideoLQ has them: folders of numbered PNG frames, of parts of photographs that move."""

import cv2
import numpy as np
import skimage.data

from training.benchmarking.published import SCALE
from training.benchmarking.sequences import find_sequences, read_clip

WIDTH, HEIGHT = 52, 26  # enlarged and shaved it holds two patches of NIQE's
LENGTHS = {"000": 7, "001": 4}

PROGRAMS = 0.01
"""NIQE by pyiqa and ours, of the same luma: 5e-5 apart on two photographs, 0.6 % on the small pictures here. (The
astronaut, part of which is flat black, is 1.7 % apart.)"""


def view(name, length):
    """The first frames of a sequence, each (HEIGHT, WIDTH, 3)."""
    picture = {"000": skimage.data.coffee, "001": skimage.data.astronaut}[name]()
    return [picture[90 + t : 90 + t + HEIGHT, 120 + 2 * t : 120 + 2 * t + WIDTH] for t in range(length)]


def write_png(path, rgb):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.ascontiguousarray(rgb[:, :, ::-1]))


def write_sequences(folder):
    for name, length in LENGTHS.items():
        for t, frame in enumerate(view(name, length)):
            write_png(folder / name / f"{t:08d}.png", frame)
    return folder


def read_first(folder):
    """Sequence 000 of that folder as a clip."""
    return read_clip("000", find_sequences(folder)["000"])


def nearest(frame):
    """What a program that repeats pixels would make of a frame."""
    return frame.repeat(SCALE, axis=0).repeat(SCALE, axis=1)
