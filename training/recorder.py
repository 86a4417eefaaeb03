"""Progress bar, log.jsonl and TensorBoard of a run. Only the main process has them."""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Callable, Iterator, Mapping
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
        self._board = Board(run_folder / "tensorboard", first=first, say=tqdm.write)
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
        self._board.add_numbers(record, done)
        shown = "output" if "output" in losses else "cleaning"  # the latter where the cleaning module alone is trained
        self._bar.set_postfix_str(f"{shown} {record[shown]:.4f}, waits {record['data_wait_share']:.0%}")

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


class Board:
    """TensorBoard's file of a run. A disk that takes no more ends the file, with one line, but not the run."""

    def __init__(self, folder: Path, *, first: int, say: Callable[[str], object]) -> None:
        self._folder, self._say = folder, say
        self._writer: SummaryWriter | None = None
        self._hook = threading.excepthook
        threading.excepthook = functools.partial(_without_tensorboard, self._hook)  # no traceback of its thread
        with self._until_it_fails():
            self._writer = SummaryWriter(str(folder), purge_step=first + 1)

    def add_numbers(self, record: Mapping[str, float], done: int) -> None:
        """Add numbers by name, after step `done`."""
        with self._until_it_fails():
            for name, value in record.items():
                if self._writer:
                    self._writer.add_scalar(name, value, done)

    def add_image(self, name: str, image: Tensor, done: int) -> None:
        """Add an image (3, H, W) in [0, 1], after step `done`."""
        with self._until_it_fails():
            if self._writer:
                self._writer.add_image(name, image, done)

    def close(self) -> None:
        """Write what is left. Nothing can be added afterwards."""
        with self._until_it_fails():
            if self._writer:
                self._writer.close()
        self._writer = None
        threading.excepthook = self._hook

    @contextlib.contextmanager
    def _until_it_fails(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._writer = None
            self._say(
                f"{self._folder} takes no more: {error.strerror or error}. The training goes on without TensorBoard."
            )


def _without_tensorboard(hook: Callable[[threading.ExceptHookArgs], object], failed: threading.ExceptHookArgs) -> None:
    """Call `hook`, but not for errors of TensorBoard's writers: the next call of the writer raises them again."""
    is_writer = type(failed.thread).__module__.startswith("tensorboard.")
    if not (is_writer and isinstance(failed.exc_value, OSError)):
        hook(failed)


def side_by_side(lr: Tensor, hr: Tensor, gt: Tensor) -> Tensor:
    """Return the middle frame of the first clip, (3, S*H, 3*S*W) in [0, 1]: bicubic | output | ground truth."""
    middle = lr.shape[1] // 2
    scale = gt.shape[-1] // lr.shape[-1]
    bicubic = F.interpolate(lr[0, middle][None], scale_factor=scale, mode="bicubic", align_corners=False)[0]
    return torch.cat((bicubic, hr[0, middle], gt[0, middle]), dim=2).clamp(0, 1)
