"""The training loop: batches in; steps, records, images and checkpoints out."""

import contextlib
import dataclasses
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from training.data.loader import Batch
from training.data.sampler import mirror
from training.degradations import sharpened
from training.ending import Pace, stop_on_signal
from training.losses.perceptual import PerceptualLoss
from training.networks import Networks
from training.processes import Processes, TrainingError
from training.recorder import Recorder
from training.run_folder import EMA, SETTINGS, save_checkpoint, write_network, write_text
from training.settings import Settings
from training.steps import LossError, Steps, StepTensors
from training.teacher import Teacher


def train(
    networks: Networks,
    loader: Iterable[Batch],
    run_folder: Path,
    *,
    processes: Processes,
    first: int,
    perceptual: PerceptualLoss | None,
    teacher: Teacher | None = None,
    seconds: float | None = None,
) -> int:
    """Take the steps from `first` on. Return the number of steps done, including those before.

    The run ends before settings.iterations only if the user asks or its time is over, with a checkpoint all the same.

    Args:
        networks: What is trained, and its settings.
        loader: Yields the batches of these steps, in order.
        run_folder: Where checkpoints, weights, log and TensorBoard go.
        processes: The processes that share the work; the main one writes.
        first: Number of steps done before.
        perceptual: The perceptual network, if its loss counts.
        teacher: The faithful network, if a loss needs one.
        seconds: Time limit from now on. After some steps settings.iterations becomes the number that fits into it.

    Raises:
        TrainingError: Too many steps in a row were skipped, or a loss is not finite.
        CheckpointError: A file cannot be written.
    """
    settings, done, num_skipped = networks.settings, first, 0
    steps = Steps(networks, processes, perceptual, teacher)
    pace = Pace(seconds, first) if seconds is not None else None
    with contextlib.ExitStack() as stack:
        asked_to_end = stack.enter_context(stop_on_signal())
        recorder = None
        if processes.is_main_process:
            recorder = stack.enter_context(Recorder(run_folder, first=first, num_iterations=settings.iterations))
        for batch in loader:
            iteration, done = done, done + 1
            tensors = to_floats(batch, settings, processes.device)
            taken = steps.take(tensors, iteration)
            num_skipped = 0 if taken.stepped else num_skipped + 1
            check_skipped(num_skipped, done, settings.max_skipped_steps, recorder)
            if recorder is not None:
                if taken.stepped:
                    networks.update_ema(iteration)
                recorder.advance(batch.wait_seconds)
                if done % settings.log_every == 0 or done == settings.iterations:
                    record(recorder, networks, steps, done)
                if done % settings.images_every == 0 and taken.hr is not None:
                    recorder.show(done, tensors.lr, taken.hr, tensors.gt)
            if pace is not None and (fitted := pace.fitted(done, settings.iterations)) != settings.iterations:
                settings = networks.settings = dataclasses.replace(networks.settings, iterations=fitted)
                tell_iterations(settings, run_folder, done, pace, recorder)
            ends = processes.any(asked_to_end()) or done >= settings.iterations or (pace is not None and pace.is_over())
            if recorder is not None and (done % settings.checkpoint_every == 0 or ends):
                save(networks, run_folder, done)
            if ends:
                break
    return done


def check_skipped(num_skipped: int, done: int, most: int, recorder: Recorder | None) -> None:
    """Report a skipped step, if there was one. Raise TrainingError if `most` in a row were skipped."""
    if num_skipped and recorder is not None:
        recorder.say(f"step {done}: a gradient is not finite, the step is skipped ({num_skipped} in a row)")
    if num_skipped >= most:
        raise TrainingError(
            f"{num_skipped} steps in a row up to step {done} had gradients that are not finite. Begin a new run with"
            " --from this one and a lower --learning-rate, or with --precision fp32."
        )


def record(recorder: Recorder, networks: Networks, steps: Steps, done: int) -> None:
    """Record the mean losses since the last record, if a step was taken. Raise TrainingError if one is not finite."""
    if means := read_losses(steps):
        recorder.record(done, means, learning_rate=float(networks.optimizer.param_groups[0]["lr"]))


def tell_iterations(settings: Settings, run_folder: Path, done: int, pace: Pace, recorder: Recorder | None) -> None:
    """Report the run's new number of steps, and write it to its settings."""
    if recorder is not None:
        recorder.set_total(settings.iterations)
        recorder.say(f"step {done}: {settings.iterations} steps fit into {pace.seconds:g} seconds")
        write_text(run_folder / SETTINGS, settings.to_json())


def read_losses(steps: Steps) -> dict[str, float]:
    """Return the means of the losses since the last reading. Raise TrainingError if they are not finite."""
    try:
        return steps.read_losses()
    except LossError as error:
        raise TrainingError(
            f"{error}. Begin a new run with --from this one and a lower --learning-rate, or with --no-cuda-graph."
        ) from None


def save(networks: Networks, run_folder: Path, iteration: int) -> None:
    """Write a checkpoint, delete old ones, then write the moving average as weights for use.

    Raises:
        CheckpointError: A file cannot be written, or the networks' values are not finite.
    """
    settings = networks.settings
    save_checkpoint(run_folder, networks.state(iteration), iteration=iteration, keep=settings.keep_checkpoints)
    save_ema(networks, run_folder, iteration)


def save_ema(networks: Networks, run_folder: Path, iteration: int) -> None:
    """Write the moving average as weights for use. Raise CheckpointError if that fails."""
    settings = networks.settings
    metadata = {"training_iteration": str(iteration), "training_settings": settings.to_json()}
    write_network(networks.ema_model(), run_folder / EMA, metadata=metadata, dtype=torch.float32)


def to_floats(batch: Batch, settings: Settings, device: torch.device) -> StepTensors:
    """Convert a batch to float32 in [0, 1] on the device, with T = num_frames frames in each clip.

    The real frames are the ground truth, unless there is a U-Net discriminator, which sees frames before sharpening: a
    copy would take memory for nothing, and the patch discriminator's features are compared with those of the ground
    truth.
    """

    def floats(clip: Tensor) -> Tensor:
        return clip.to(device, non_blocking=True).float() / 255

    def whole(clip: Tensor) -> Tensor:
        return mirror(floats(clip), settings.data.num_frames) if batch.mirrored else floats(clip)

    gt = whole(batch.gt if batch.gt_unsharp is None else batch.gt_unsharp)
    if settings.losses.target_sharpening:
        gt = sharpened(gt, settings.losses.target_sharpening)
    is_unet = settings.losses.adversarial_weight > 0 and settings.losses.discriminator == "unet"
    sees_another = is_unet and (batch.gt_unsharp is not None or settings.losses.target_sharpening > 0)
    return StepTensors(floats(batch.lr), gt, whole(batch.gt) if sees_another else gt)
