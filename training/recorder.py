"""Progress bar, log.jsonl and TensorBoard of a run. Only the main process has them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from training.run_folder import Log


class Recorder:
    """Progress bar, log and TensorBoard of a run that continues after step `first`. A context manager."""

    def __init__(self, run_folder: Path, *, first: int, num_iterations: int) -> None:
        self._first = first
        self._log = Log(run_folder, first)
        self._board = SummaryWriter(str(run_folder / "tensorboard"), purge_step=first + 1)
        self._bar = tqdm(total=num_iterations, initial=first, unit="step", dynamic_ncols=True)
        self._started, self._seconds_waited = time.monotonic(), 0.0

    def advance(self, wait_seconds: float) -> None:
        """Count a step.

        Args:
            wait_seconds: How long the loop waited for its batch.
        """
        self._seconds_waited += wait_seconds
        self._bar.update()

    def record(self, done: int, losses: Mapping[str, float], *, learning_rate: float) -> None:
        """Write the mean losses since the last record, after step `done`. Raises CheckpointError if that fails."""
        passed_seconds = time.monotonic() - self._started
        record: dict[str, Any] = {
            "iteration": done,
            **losses,
            "learning_rate": learning_rate,
            "seconds_per_step": passed_seconds / (done - self._first),
            "data_wait_share": self._seconds_waited / passed_seconds,
        }
        self._log.append(record)
        for name, value in record.items():
            self._board.add_scalar(name, value, done)
        self._bar.set_postfix_str(f"output {record['output']:.4f}, waits {record['data_wait_share']:.0%}")

    def show(self, done: int, lr: Tensor, hr: Tensor, gt: Tensor) -> None:
        """Add an image to TensorBoard: bicubic, output and ground truth side by side."""
        self._board.add_image("bicubic, ours, truth", side_by_side(lr, hr, gt), done)

    def set_total(self, num_iterations: int) -> None:
        """Change the number of steps that the bar runs to."""
        self._bar.total = num_iterations

    def say(self, text: str) -> None:
        """Print a line without breaking the bar."""
        self._bar.write(text)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, place: TracebackType | None
    ) -> None:
        self._bar.close()
        self._board.close()


def side_by_side(lr: Tensor, hr: Tensor, gt: Tensor) -> Tensor:
    """Return the middle frame of the first clip, (3, S*H, 3*S*W) in [0, 1]: bicubic | output | ground truth."""
    middle = lr.shape[1] // 2
    scale = gt.shape[-1] // lr.shape[-1]
    bicubic = F.interpolate(lr[0, middle][None], scale_factor=scale, mode="bicubic", align_corners=False)[0]
    return torch.cat((bicubic, hr[0, middle], gt[0, middle]), dim=2).clamp(0, 1)
