"""Measurement of the CPU time of a sample, and of how many workers a training therefore needs."""

from __future__ import annotations

import time
from dataclasses import dataclass

from training.data.dataset import ClipDataset
from training.data.sampler import degrade, draw, one_thread
from training.data.settings import DataSettings
from training.degradations import Jpeg, VideoCodec, codecs


@dataclass(frozen=True, slots=True)
class InputCost:
    """CPU seconds for one clip on one thread.

    Attributes:
        load_seconds: Reading and drawing.
        codec_seconds: Codecs, including JPEG.
        other_seconds: All other degradations.
    """

    load_seconds: float
    codec_seconds: float
    other_seconds: float

    @property
    def seconds(self) -> float:
        """Sum of all three."""
        return self.load_seconds + self.codec_seconds + self.other_seconds

    @property
    def clips_per_second_per_core(self) -> float:
        """Clips that one worker computes in a second."""
        return 1 / self.seconds

    def num_workers(self, *, batch: int, step_seconds: float, with_gpu: bool = False) -> int:
        """Return the number of workers that compute a batch in the time of a training step.

        Args:
            batch: Clips of a step.
            step_seconds: Time of a step.
            with_gpu: A GPU computes everything but reading and codecs.
        """
        seconds = self.load_seconds + self.codec_seconds if with_gpu else self.seconds
        return max(1, -int(-seconds * batch // step_seconds))

    def shares_of(self, num_workers: int) -> tuple[int, int]:
        """Return how many workers should draw and how many run codecs beside a GPU, in proportion to their cost."""
        drawing_share = self.load_seconds / max(self.load_seconds + self.codec_seconds, 1e-9)
        num_drawing = min(max(round(num_workers * drawing_share), 1), max(num_workers - 1, 1))
        return num_drawing, max(num_workers - num_drawing, 1)

    def describe(self, *, batch: int, step_seconds: float | None = None, with_gpu: bool = False) -> str:
        """Return one line for the user."""
        text = (
            f"input: {self.seconds:.2f} CPU seconds a clip (reading {self.load_seconds:.3f}, codecs"
            f" {self.codec_seconds:.2f}, other degradations {self.other_seconds:.2f}{', on the GPU' * with_gpu}),"
            f" {self.clips_per_second_per_core:.2f} clips per second per core"
        )
        if step_seconds is None:
            return text
        needed = self.num_workers(batch=batch, step_seconds=step_seconds, with_gpu=with_gpu)
        return f"{text}; {needed} workers feed {batch} clips every {step_seconds:.2f} s"


def measure_input(dataset: ClipDataset, options: DataSettings, *, num_samples: int = 8) -> InputCost:
    """Measure the cost of a sample on this machine, as the mean over the first ones.

    A pool's clips are measured as if none was computed yet.

    Args:
        dataset: The clips.
        options: Settings of the samples.
        num_samples: Number of samples.

    Raises:
        UserError: No sample can be computed, see `make_sample`.
    """
    options = options.of_pool_clips() if options.pool_clips else options
    load_seconds, codec_seconds, all_seconds = 0.0, 0.0, 0.0

    def run_codec(step: VideoCodec | Jpeg, planes: codecs.Planes) -> codecs.Planes:
        nonlocal codec_seconds
        started = time.process_time()
        coded = codecs.run(step, planes)
        codec_seconds += time.process_time() - started
        return coded

    with one_thread():
        degrade(draw(dataset, options, 0), options)  # warms up; not counted
        for index in range(num_samples):
            started = time.process_time()
            drawn = draw(dataset, options, index)
            load_seconds += time.process_time() - started
            degrade(drawn, options, run_codec=run_codec)
            all_seconds += time.process_time() - started
    other_seconds = all_seconds - load_seconds - codec_seconds
    return InputCost(load_seconds / num_samples, codec_seconds / num_samples, other_seconds / num_samples)
