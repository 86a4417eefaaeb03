"""Contact sheets: the methods side by side, as PNG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from torch import Tensor

from training.evaluation.metrics import to_bytes
from training.evaluation.scoring import TRUTH
from training.run_folder import whole_file

type Bytes = npt.NDArray[np.uint8]

ENLARGED = 3
"""The crop is a third of the frame's sides, shown three times as large: as large as the frame."""
LABEL_HEIGHT_PX, GAP_PX = 20, 4
SLICE_HEIGHT_PX = 96
"""Minimum number of rows of a sheet that show one row over time."""


def write_sheet(path: Path, truth: Tensor, enlarged: Mapping[str, Tensor]) -> None:
    """Write a contact sheet: one column for each method, then the ground truth.

    A column has, from the top: its name, the middle frame, the part of it where the ground truth has most detail, three
    times enlarged, and the middle row of this part over time. Time runs downwards, each frame's row a few pixels high:
    flicker makes it ragged.

    Args:
        path: The PNG file.
        truth: The ground truth, (T, 3, H, W).
        enlarged: Clips of the same shape by method.
    """
    frames = {name: _pixels(clip) for name, clip in {**enlarged, TRUTH: truth}.items()}
    middle = len(truth) // 2
    top, left, height, width = most_detailed(frames[TRUTH][middle])
    rows_px = max(2, math.ceil(SLICE_HEIGHT_PX / len(truth)))
    columns = []
    for name, clip in frames.items():
        crop = clip[:, top : top + height, left : left + width]
        over_time = crop[:, height // 2].repeat(rows_px, axis=0).repeat(ENLARGED, axis=1)
        enlarged_crop = crop[middle].repeat(ENLARGED, axis=0).repeat(ENLARGED, axis=1)
        columns.append(_stacked([_label(name, clip.shape[2]), clip[middle], enlarged_crop, over_time]))
    _write_png(path, _side_by_side(columns))


def write_frames(folder: Path, clip: Tensor, stems: Sequence[str] | None = None) -> None:
    """Write every frame of a clip (T, 3, H, W) as PNG.

    Args:
        folder: For 00000000.png, 00000001.png and so on.
        clip: The frames.
        stems: Other names, without suffix.
    """
    for number, frame in enumerate(_pixels(clip)):
        _write_png(folder / f"{stems[number] if stems else f'{number:08d}'}.png", frame)


def most_detailed(frame: Bytes) -> tuple[int, int, int, int]:
    """Return top, left, height and width of the window of the highest gradient energy, a third of the frame's sides."""
    height, width = (max(1, side // ENLARGED) for side in frame.shape[:2])
    grey = cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY).astype(np.float64)
    energy = np.zeros_like(grey)
    energy[:-1] += np.square(np.diff(grey, axis=0))
    energy[:, :-1] += np.square(np.diff(grey, axis=1))
    sums = np.pad(energy.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    windows = sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]
    top, left = np.unravel_index(int(windows.argmax()), windows.shape)
    return int(top), int(left), height, width


def _label(text: str, width: int) -> Bytes:
    strip = np.full((LABEL_HEIGHT_PX, width, 3), 255, dtype=np.uint8)
    cv2.putText(strip, text, (2, LABEL_HEIGHT_PX - 6), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    return strip


def _stacked(pictures: Sequence[Bytes]) -> Bytes:
    """Return the images one above the other, white between them and beside narrower ones."""
    width = max(picture.shape[1] for picture in pictures)
    wide = [np.pad(p, ((0, GAP_PX), (0, width - p.shape[1]), (0, 0)), constant_values=255) for p in pictures]
    return np.concatenate(wide)


def _side_by_side(columns: Sequence[Bytes]) -> Bytes:
    gap = np.full((columns[0].shape[0], GAP_PX, 3), 255, dtype=np.uint8)
    return np.concatenate([part for column in columns for part in (gap, column)][1:], axis=1)


def _pixels(clip: Tensor) -> Bytes:
    """Return (T, H, W, 3) of (T, 3, H, W)."""
    return np.asarray((to_bytes(clip) * 255).round().byte().permute(0, 2, 3, 1).numpy(), dtype=np.uint8)


def _write_png(path: Path, rgb: Bytes) -> None:
    fine, encoded = cv2.imencode(".png", np.ascontiguousarray(rgb[:, :, ::-1]))
    if not fine:
        raise RuntimeError(f"write_sheet: OpenCV failed to encode {rgb.shape} as PNG.")
    with whole_file(path) as file:
        file.write(encoded.tobytes())
