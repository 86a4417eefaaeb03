"""Train, fine-tune or go on with a run (paper, section 4.1): one or many processes, a CPU or GPUs."""

import argparse
import contextlib
import dataclasses
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from training.checkpoints import (
    EMA,
    FOLDER,
    ORIGIN,
    SETTINGS,
    CheckpointError,
    Log,
    newest_checkpoint,
    read_log,
    save_checkpoint,
    write_text,
)
from training.data import Batch, ClipStore, SampleOptions, make_loader, measure_input, mirror
from training.discriminator import UNetDiscriminator
from training.export import write_network
from training.generator_step import discriminator_step, generator_step, motion_of, sees_neighbours
from training.losses import LossWeights
from training.patch_discriminator import PatchDiscriminator
from training.perceptual import PerceptualLoss
from training.settings import PRESETS, Settings, add_options, changed, read_settings
from vsrealbasicvsr.model import SCALE, START_PASSES_KEY, RealBasicVSR
from vsrealbasicvsr.weights import WeightsError, load_model, read_discriminator, read_tensors

CHANGEABLE = frozenset({"iterations", "checkpoint_every", "keep_checkpoints", "log_every", "images_every"})
"""Settings that may be changed when a run goes on: the others would make it another run."""

LONGEST_DATA_WAIT_SHARE = 0.02
"""Of a run's time; beyond it the run says how many workers would do."""

LARGEST_SLOWNESS_OF_BF16 = 1.5
"""Times as long as float32; beyond it the run says that float32 is the better choice."""


class TrainingError(ValueError):
    """A run cannot begin or go on; the text says what is wrong and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Processes:
    """The processes that share a run's work, as torchrun starts them, and this one's place among them."""

    num: int
    rank: int
    device: torch.device

    def average(self, parameters: list[nn.Parameter]) -> None:
        """Replace the gradients by their mean over the processes."""
        if self.num == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(flat)
        flat /= self.num
        for gradient, mean in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    def any(self, flag: bool) -> bool:
        """Whether the flag is up in any process."""
        if self.num == 1:
            return flag
        raised = torch.tensor([float(flag)], device=self.device)
        distributed.all_reduce(raised, distributed.ReduceOp.MAX)
        return bool(raised.item())


class Networks:
    """What is trained: the generator, its moving average, the discriminator where there is one, their optimisers."""

    def __init__(self, settings: Settings, device: torch.device) -> None:
        torch.manual_seed(settings.seed)
        self.settings = settings
        self.device = device
        self.model = RealBasicVSR(settings.architecture)
        with torch.no_grad():  # begin as bilinear enlargement and as no cleaning at all
            self.model.basicvsr.conv_last.weight.mul_(0.1)
            self.model.image_cleaning[1].weight.mul_(0.1)  # type: ignore[operator]
        self.discriminator = make_discriminator(settings)
        self.ema: dict[str, Tensor] = {}

    def start_from(self, start: Path | None, spynet: Path | None) -> None:
        """Take weights to begin from: a run's folder (its networks, not the moving average, as published) or a file.

        Raises TrainingError, CheckpointError or WeightsError if they do not fit.
        """
        if start is not None and start.is_dir():
            state, warnings = newest_checkpoint(start)
            for warning in warnings:
                print(f"training train: {warning}", file=sys.stderr)
            self._load(self.model, state["model"], start)
            if self.discriminator is not None and state.get("discriminator") is not None:
                self._load(self.discriminator, state["discriminator"], start)
        elif start is not None:
            tensors = load_model(start if str(start) != "default" else "default").state_dict()
            if self.settings.architecture.start_passes:  # the weights may be those of a network without
                tensors[START_PASSES_KEY] = torch.tensor(float(self.settings.architecture.start_passes))
            self._load(self.model, tensors, start)
            if self.discriminator is not None:
                try:
                    if isinstance(self.discriminator, UNetDiscriminator):
                        self._load(self.discriminator, read_discriminator(start), start)
                except WeightsError as error:
                    print(f"training train: the discriminator begins anew: {error}", file=sys.stderr)
        if spynet is not None:
            self._load(self.model.basicvsr.spynet, read_tensors(spynet), spynet)
        if start is None and spynet is None and self.settings.flow_learning_rate > 0 and self.settings.flow_from_share:
            print(
                "training train: the flow network begins with random weights; python -m training flow, then --spynet,"
                " gives a better start",
                file=sys.stderr,
            )
        if start is None and self.settings.freeze_cleaning:
            raise TrainingError(
                "there is no cleaning module to keep as it is: begin --from weights, or without --freeze-cleaning"
            )
        if start is None and spynet is None and self.settings.flow_learning_rate == 0:
            raise TrainingError(
                "there is no flow network to begin with, and it is frozen: give one with --spynet FILE (python -m"
                " training flow makes one), begin --from weights, or let it learn with --flow-learning-rate 2.5e-5"
            )

    def prepare(self) -> None:
        """Bring everything to the device and make the optimisers; to be called when the weights are in place."""
        settings = self.settings
        self.model.to(self.device).to(memory_format=torch.channels_last).train()
        self.model.image_cleaning.requires_grad_(not settings.freeze_cleaning)
        self.ema = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
        flow = list(self.model.basicvsr.spynet.parameters())
        own = {id(parameter) for parameter in flow}
        rest = [parameter for parameter in self.model.parameters() if id(parameter) not in own]
        self.parameters = rest + flow
        self.flow_parameters = flow
        self.optimizer = torch.optim.Adam(
            [{"params": rest}, {"params": flow}], lr=settings.learning_rate, betas=settings.adam_betas
        )
        self.discriminator_optimizer = None
        if self.discriminator is not None:
            self.discriminator.to(self.device).train()
            self.discriminator_optimizer = torch.optim.Adam(
                self.discriminator.parameters(), lr=settings.discriminator_learning_rate, betas=settings.adam_betas
            )

    def set_learning_rates(self, iteration: int) -> None:
        """The rates of this step, and whether the flow network learns in it."""
        settings = self.settings
        share = iteration / settings.iterations
        rest, flow = self.optimizer.param_groups
        rest["lr"] = learning_rate(iteration, settings)
        flow_learns = settings.flow_learning_rate > 0 and share >= settings.flow_from_share
        flow["lr"] = learning_rate(iteration, settings, peak=settings.flow_learning_rate) if flow_learns else 0.0
        for parameter in self.flow_parameters:
            parameter.requires_grad_(flow_learns)

    def update_ema(self, iteration: int) -> None:
        """Move the average; in the first steps it follows faster, so that it does not keep the random start."""
        decay = min(self.settings.ema_decay, (iteration + 1) / (iteration + 10))
        with torch.no_grad():
            for name, tensor in self.model.state_dict().items():
                self.ema[name].lerp_(tensor, 1 - decay)

    def ema_model(self) -> RealBasicVSR:
        """The moving average as a network of its own, on the CPU."""
        return RealBasicVSR.from_state_dict({name: tensor.cpu() for name, tensor in self.ema.items()}).eval()

    def state(self, iteration: int) -> dict[str, Any]:
        """Everything that going on after `iteration` steps needs. The position in the data is the step itself."""
        return {
            "iteration": iteration,
            "model": self.model.state_dict(),
            "ema": self.ema,
            "optimizer": self.optimizer.state_dict(),
            "discriminator": None if self.discriminator is None else self.discriminator.state_dict(),
            "discriminator_optimizer": (
                None if self.discriminator_optimizer is None else self.discriminator_optimizer.state_dict()
            ),
            "random_state": torch.get_rng_state(),
        }

    def restore(self, state: Mapping[str, Any], where: Path) -> int:
        """Take up a checkpoint's state; returns the number of steps done. Raises CheckpointError if it does not fit."""
        self._load(self.model, state["model"], where)
        for name, tensor in state["ema"].items():
            self.ema[name].copy_(tensor)
        self.optimizer.load_state_dict(state["optimizer"])
        if self.discriminator is not None and self.discriminator_optimizer is not None:
            if state.get("discriminator") is None:
                raise CheckpointError(f"{where} has no discriminator, but the run's settings ask for one.")
            self._load(self.discriminator, state["discriminator"], where)
            self.discriminator_optimizer.load_state_dict(state["discriminator_optimizer"])
        torch.set_rng_state(state["random_state"])
        return int(state["iteration"])

    @staticmethod
    def _load(network: nn.Module, tensors: Mapping[str, Tensor], where: Path) -> None:
        own = network.state_dict()
        wrong = [
            f"{name} {tuple(tensors[name].shape)} instead of {tuple(own[name].shape)}"
            if name in own and name in tensors
            else f"{name} {'missing' if name in own else 'not known'}"
            for name in sorted(own.keys() | tensors.keys())
            if name not in own or name not in tensors or own[name].shape != tensors[name].shape
        ]
        if wrong:
            raise TrainingError(
                f"{where} holds a {type(network).__name__} of other sizes than the settings ask for"
                f" ({len(wrong)} tensors differ, first {wrong[0]}). Use the preset and --architecture.* options that"
                " it was trained with."
            )
        try:
            network.load_state_dict(tensors)
        except RuntimeError as error:
            raise TrainingError(f"{where} does not fit the settings: {' '.join(str(error).split())}.") from None


def make_discriminator(settings: Settings) -> UNetDiscriminator | PatchDiscriminator | None:
    """The discriminator that the settings ask for; None without an adversarial loss."""
    if settings.adversarial_weight == 0:
        return None
    if settings.discriminator == "unet":
        return UNetDiscriminator()
    return PatchDiscriminator(settings.discriminator_num_frames, settings.discriminator_width)


def learning_rate(iteration: int, settings: Settings, *, peak: float | None = None) -> float:
    """The generator's rate: linear warm-up, then a cosine from learning_rate to final_learning_rate.

    peak: the same course with another height, for the flow network.
    """
    warm_up = settings.warm_up_iterations
    final = settings.final_learning_rate
    if peak is not None:
        final *= peak / settings.learning_rate if settings.learning_rate > 0 else 0.0
    peak = settings.learning_rate if peak is None else peak
    if iteration < warm_up:
        return peak * (iteration + 1) / warm_up
    share = min((iteration - warm_up) / max(settings.iterations - warm_up, 1), 1)
    return final + (peak - final) * (1 + math.cos(math.pi * share)) / 2


class Pace:
    """How many steps fit into a time: measured over the second half of the first steps, then fixed.

    The learning rate follows the number of steps, so that a run with a time limit ends as one without.
    """

    STEPS = 60
    RESERVE = 0.04
    """Share of the time that is left free, for steps that take longer later on."""

    def __init__(self, seconds: float, first: int) -> None:
        self._seconds, self._first, self._begun = seconds, first, time.monotonic()
        self._half: float | None = None

    def fitted(self, done: int, iterations: int) -> int:
        """The number of steps of the run, from what is known after `done` of them."""
        now = time.monotonic()
        if done == self._first + self.STEPS // 2:
            self._half = now
        if done != self._first + self.STEPS or self._half is None:
            return iterations
        left_seconds = self._seconds * (1 - self.RESERVE) - (now - self._begun)
        return done + max(1, int(left_seconds * (self.STEPS // 2) / (now - self._half)))

    def is_over(self) -> bool:
        """Whether the time is up."""
        return time.monotonic() - self._begun >= self._seconds


@contextlib.contextmanager
def stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Tells whether the run was asked to end (Ctrl-C, SIGTERM); a second time ends the process at once."""
    asked = False

    def ask(number: int, _frame: Any) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        print(f"\n{signal.Signals(number).name}: ending after this step; once more ends at once", file=sys.stderr)

    previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def train(
    networks: Networks,
    loader: Iterable[Batch],
    run_folder: Path,
    *,
    processes: Processes,
    first: int,
    perceptual: PerceptualLoss | None,
    seconds: float | None = None,
) -> int:
    """Do the steps from `first` on; `loader` yields their batches, in order. Returns the number of steps done.

    seconds: after some steps settings.iterations becomes the number that fits into so much time from now on. Fewer than settings.iterations are done only if the run was asked to end; a checkpoint is written then as well.
    Raises TrainingError when too many steps in a row had to be skipped, CheckpointError when something cannot be
    written.
    """
    settings, model, discriminator = networks.settings, networks.model, networks.discriminator
    weights = loss_weights(settings)
    autocast_dtype = autocast_dtype_of(settings, processes.device)
    chief = processes.rank == 0
    log = Log(run_folder, first) if chief else None
    board = SummaryWriter(str(run_folder / "tensorboard"), purge_step=first + 1) if chief else None
    sums, num_summed, num_skipped, seconds_waited = dict[str, float](), 0, 0, 0.0
    started = time.monotonic()
    pace = Pace(seconds, first) if seconds is not None else None
    done = first
    with (
        stop_on_signal() as asked_to_end,
        tqdm(total=settings.iterations, initial=first, unit="step", disable=not chief, dynamic_ncols=True) as bar,
    ):
        for batch in loader:
            iteration, done = done, done + 1
            seconds_waited += batch.wait_seconds
            lr, truth, real = to_floats(batch, settings, processes.device)

            networks.set_learning_rates(iteration)
            networks.optimizer.zero_grad(set_to_none=True)
            needs_motion = settings.num_frames > 1 and (settings.flicker_weight or sees_neighbours(discriminator))
            flows_px = motion_of(model, truth) if needs_motion else None
            losses, hr = generator_step(
                model,
                lr,
                truth,
                weights=weights_at(weights, iteration, settings),
                flows_px=flows_px,
                distance=settings.distance,
                perceptual=perceptual,
                discriminator=discriminator,
                cleaning_gets_perceptual=settings.cleaning_gets_perceptual,
                rest_frame=iteration % settings.num_frames,
                autocast_dtype=autocast_dtype,
                checkpointing=settings.gradient_checkpointing,
            )
            processes.average(networks.parameters)
            stepped = step_if_finite(networks.optimizer, networks.parameters, settings.max_gradient_norm)

            if stepped and discriminator is not None and networks.discriminator_optimizer is not None:
                networks.discriminator_optimizer.zero_grad(set_to_none=True)
                losses |= discriminator_step(
                    discriminator, hr, real, lr=lr, flows_px=flows_px, autocast_dtype=autocast_dtype
                )
                its_parameters = list(discriminator.parameters())
                processes.average(its_parameters)
                stepped = step_if_finite(networks.discriminator_optimizer, its_parameters, 0.0)

            num_skipped = 0 if stepped else num_skipped + 1
            if not stepped and chief:
                bar.write(f"step {done}: a gradient is not finite, the step is skipped ({num_skipped} in a row)")
            if num_skipped >= settings.max_skipped_steps:
                raise TrainingError(
                    f"{num_skipped} steps in a row up to step {done} had gradients that are not finite. Begin a new"
                    " run with --from this one and a lower --learning-rate, or with --precision fp32."
                )

            if chief and log is not None and board is not None:
                if stepped:
                    networks.update_ema(iteration)
                    num_summed += 1
                    sums = {name: sums.get(name, 0.0) + value for name, value in losses.items()}
                bar.update()
                if (done % settings.log_every == 0 or done == settings.iterations) and num_summed:
                    seconds = time.monotonic() - started
                    record = {
                        "iteration": done,
                        **{name: value / num_summed for name, value in sums.items()},
                        "learning_rate": networks.optimizer.param_groups[0]["lr"],
                        "seconds_per_step": seconds / (done - first),
                        "data_wait_share": seconds_waited / seconds,
                    }
                    log.append(record)
                    for name, value in record.items():
                        board.add_scalar(name, value, done)
                    bar.set_postfix_str(f"output {record['output']:.4f}, waits {record['data_wait_share']:.0%}")
                    sums, num_summed = {}, 0
                if done % settings.images_every == 0:
                    board.add_image("bicubic, ours, truth", side_by_side(lr, hr, truth), done)
            if pace is not None and (fitted := pace.fitted(done, settings.iterations)) != settings.iterations:
                settings = networks.settings = dataclasses.replace(settings, iterations=fitted)
                bar.total = fitted
                bar.write(f"step {done}: {fitted} steps fit into {seconds:g} seconds")
                if chief:
                    write_text(run_folder / SETTINGS, settings.to_json())
            ends = processes.any(asked_to_end()) or done >= settings.iterations or (pace is not None and pace.is_over())
            if chief and (done % settings.checkpoint_every == 0 or done == settings.iterations or ends):
                save(networks, run_folder, done)
            if ends:
                break
    if board is not None:
        board.close()
    return done


def save(networks: Networks, run_folder: Path, iteration: int) -> None:
    """Write a checkpoint, then the moving average as weights for use. Raises CheckpointError."""
    settings = networks.settings
    save_checkpoint(run_folder, networks.state(iteration), iteration=iteration, keep=settings.keep_checkpoints)
    save_ema(networks, run_folder, iteration)


def save_ema(networks: Networks, run_folder: Path, iteration: int) -> None:
    """Write the moving average as weights for use. Raises CheckpointError."""
    settings = networks.settings
    metadata = {"training_iteration": str(iteration), "training_settings": settings.to_json()}
    write_network(networks.ema_model(), run_folder / EMA, metadata=metadata, dtype=torch.float32)


def step_if_finite(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], max_norm: float) -> bool:
    """Let the optimiser take its step unless a gradient is NaN or infinite; a max_norm above 0 clips them first."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    if not math.isfinite(norm.item()):
        return False
    if max_norm > 0:
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    optimizer.step()
    return True


def to_floats(batch: Batch, settings: Settings, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """(input, ground truth of the losses, real frames of the discriminator), float32 in [0, 1], T = num_frames each.

    Without a discriminator the last is the one before it: nobody looks at it, and it would be large.
    """

    def floats(clip: Tensor) -> Tensor:
        return clip.to(device, non_blocking=True).float() / 255

    def whole(clip: Tensor) -> Tensor:
        return mirror(floats(clip), settings.num_frames) if batch.mirrored else floats(clip)

    truth = whole(batch.gt if batch.gt_unsharp is None else batch.gt_unsharp)
    sees_another = settings.adversarial_weight > 0 and batch.gt_unsharp is not None
    return floats(batch.lr), truth, whole(batch.gt) if sees_another else truth


def loss_weights(settings: Settings) -> LossWeights:
    """The settings' weights, as the generator's step takes them."""
    return LossWeights(
        output=settings.output_weight,
        cleaning=settings.cleaning_weight,
        perceptual=settings.perceptual_weight,
        adversarial=settings.adversarial_weight,
        squared_error=settings.squared_error_weight,
        psnr=settings.psnr_weight,
        colour=settings.colour_weight,
        flicker=settings.flicker_weight,
        rest=settings.rest_weight,
        feature_matching=settings.feature_matching_weight,
    )


def weights_at(weights: LossWeights, iteration: int, settings: Settings) -> LossWeights:
    """The weights of this step: those of the discriminator's losses rise while it is new."""
    share = min((iteration + 1) / max(settings.adversarial_warm_up_iterations, 1), 1.0)
    if share == 1:
        return weights
    return dataclasses.replace(
        weights, adversarial=share * weights.adversarial, feature_matching=share * weights.feature_matching
    )


def autocast_dtype_of(settings: Settings, device: torch.device) -> torch.dtype | None:
    """The one place that decides precision. bfloat16 has float32's range: no loss scaling; gradients stay float32.

    On a CPU it is slower than float32 unless the CPU multiplies it (AVX512-BF16, AMX), so that "auto" leaves it.
    """
    wanted = settings.precision == "bf16" or (settings.precision == "auto" and device.type == "cuda")
    return torch.bfloat16 if wanted else None


def slowness_of_bf16() -> float:
    """How many times as long as in float32 a convolution and its backward pass take in bfloat16 on this CPU."""
    x, weight = torch.rand(1, 64, 48, 48), torch.rand(64, 64, 3, 3)

    def seconds(dtype: torch.dtype) -> float:
        inputs = [tensor.to(dtype).requires_grad_() for tensor in (x, weight)]
        started = time.perf_counter()
        made = F.conv2d(inputs[0], inputs[1], padding=1)
        torch.autograd.grad(made, inputs, torch.ones_like(made))
        return time.perf_counter() - started

    shortest = {dtype: min(seconds(dtype) for _ in range(3)) for dtype in (torch.float32, torch.bfloat16)}
    return shortest[torch.bfloat16] / shortest[torch.float32]


def side_by_side(lr: Tensor, hr: Tensor, truth: Tensor) -> Tensor:
    """The middle frame of the first clip, (3, S*H, 3*S*W) in [0, 1]: bicubic | ours | truth."""
    middle = lr.shape[1] // 2
    bicubic = F.interpolate(lr[0, middle][None], scale_factor=SCALE, mode="bicubic", align_corners=False)[0]
    return torch.cat((bicubic, hr[0, middle], truth[0, middle]), dim=2).clamp(0, 1)


# ---- the command -----------------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of `python -m training train`."""
    parser.add_argument("--preset", choices=sorted(PRESETS), help="settings to begin with (default stage1)")
    parser.add_argument("--data", type=Path, nargs="+", metavar="CLIPS", help="folders of python -m training prepare")
    parser.add_argument("--out", type=Path, help="the run's folder, to be made")
    parser.add_argument("--from", dest="start", type=Path, help="weights to begin from: a run's folder or a file")
    parser.add_argument("--spynet", type=Path, help="flow weights to begin from: of training flow, or published ones")
    parser.add_argument("--resume", type=Path, metavar="RUN", help="go on with a run from its newest whole checkpoint")
    parser.add_argument("--device", default="auto", help="auto (CUDA where there is one), cpu, cuda, cuda:1")
    parser.add_argument("--workers", type=int, help="processes that make samples (default: cores - 1, shared)")
    parser.add_argument("--vgg-weights", type=Path, help="VGG19's weights, where torchvision cannot download them")
    parser.add_argument(
        "--seconds", type=float, metavar="S", help="end in time: as many steps as fit, not --iterations"
    )
    parser.add_argument("--pool-folder", type=Path, help="where the pool's clips are kept (default: the run's folder)")
    add_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """The exit status of `python -m training train`."""
    processes = start_processes(arguments.device)
    try:
        status = train_in(processes, arguments)
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"out of memory on {processes.device} ({str(error).splitlines()[0]}): use --gradient-checkpointing, a"
            " smaller --batch or a smaller --crop-px"
        ) from None
    except RuntimeError as error:
        if processes.num == 1:
            raise
        raise TrainingError(
            f"process {processes.rank} of {processes.num} lost the others ({str(error).splitlines()[0]}): see what the"
            " first one that failed says"
        ) from None
    if processes.num > 1:  # only after a good end: it waits for processes that may be gone
        distributed.destroy_process_group()
    return status


def train_in(processes: Processes, arguments: argparse.Namespace) -> int:
    """Begin or go on with the run that the command line describes, as one of these processes."""
    chief = processes.rank == 0
    if arguments.resume is not None:
        run_folder, settings, origin = take_up(arguments, processes.num)
    else:
        run_folder, settings, origin = begin(arguments, processes.num)
        if chief and processes.device.type == "cpu" and autocast_dtype_of(settings, processes.device) is not None:
            slowness = slowness_of_bf16()
            if slowness > LARGEST_SLOWNESS_OF_BF16:
                print(
                    f"training train: bf16 takes {slowness:.3g} times as long as fp32 on this CPU:"
                    " --precision fp32 is faster",
                    file=sys.stderr,
                )
    store = ClipStore.open([Path(folder) for folder in origin["data"]])
    if origin.setdefault("clips", store.identity()) != store.identity():
        raise TrainingError(
            f"the clips in {', '.join(origin['data'])} are not those that {run_folder} began with: name their folders"
            f" with --data, or begin a new run with --from {run_folder}"
        )
    perceptual = None
    if settings.perceptual_weight > 0:
        vgg = Path(origin["vgg_weights"]) if origin["vgg_weights"] else None
        perceptual = PerceptualLoss.load(vgg).to(processes.device)
    networks = Networks(settings, processes.device)
    first = 0
    if arguments.resume is None:
        networks.start_from(arguments.start, arguments.spynet)
        networks.prepare()
        if chief:
            write_text(run_folder / SETTINGS, settings.to_json())
            write_text(run_folder / ORIGIN, json.dumps(origin, indent=1) + "\n")
            save(networks, run_folder, 0)  # so that a run that is killed at once can be gone on with as well
    else:
        networks.prepare()
        state, warnings = newest_checkpoint(run_folder)
        first = networks.restore(state, run_folder)
        if chief:
            for warning in warnings:
                print(f"training train: {warning}", file=sys.stderr)
            save_ema(networks, run_folder, first)  # the end may have come between a checkpoint and its average
        if first >= settings.iterations:
            if chief:
                print(f"{run_folder} is finished ({first} steps); --iterations N makes it longer", file=sys.stderr)
            return 0
        if chief:
            print(f"going on after step {first} of {settings.iterations}", file=sys.stderr)
            write_text(run_folder / SETTINGS, settings.to_json())
    options = sample_options(settings, Path(origin["pool_folder"]))
    if arguments.seconds is not None and processes.num > 1:
        raise TrainingError("--seconds is for one process: each of several would count other steps")
    with make_loader(
        store,
        options,
        batch=settings.batch,
        first_iteration=first,
        num_iterations=settings.iterations if arguments.seconds is None else None,
        num_processes=processes.num,
        rank=processes.rank,
        num_workers=usual_num_workers() if arguments.workers is None else arguments.workers,
        device=processes.device,
    ) as loader:
        done = train(
            networks,
            loader,
            run_folder,
            processes=processes,
            first=first,
            perceptual=perceptual,
            seconds=arguments.seconds,
        )
    settings = networks.settings
    if chief:
        print(closing_words(run_folder, done, settings))
        records = read_log(run_folder)
        waits = bool(records) and records[-1]["data_wait_share"] > LONGEST_DATA_WAIT_SHARE
        if waits and done >= settings.iterations and done - first >= settings.log_every and not settings.pool_clips:
            cost = measure_input(store, options)
            busy_seconds = records[-1]["seconds_per_step"] * (1 - records[-1]["data_wait_share"])
            print(f"{records[-1]['data_wait_share']:.0%} of the time was waiting for data.", end=" ")
            print(
                cost.describe(batch=settings.batch, step_seconds=busy_seconds, with_gpu=processes.device.type == "cuda")
            )
    return 0 if done >= settings.iterations else 130


def begin(arguments: argparse.Namespace, num_processes: int) -> tuple[Path, Settings, dict[str, Any]]:
    """(folder, settings, origin) of a new run. Raises TrainingError or SettingsError."""
    if arguments.data is None or arguments.out is None:
        raise TrainingError("a new run needs --data CLIPS and --out FOLDER (or --resume RUN goes on with one)")
    settings = changed(PRESETS[arguments.preset or "stage1"], vars(arguments))
    if (arguments.out / FOLDER).exists() and any((arguments.out / FOLDER).glob("*.pt")):
        raise TrainingError(f"{arguments.out} holds a run already: go on with --resume, or name another --out")
    origin = {
        "data": [str(folder.resolve()) for folder in arguments.data],
        "from": None if arguments.start is None else str(arguments.start),
        "spynet": None if arguments.spynet is None else str(arguments.spynet),
        "vgg_weights": None if arguments.vgg_weights is None else str(arguments.vgg_weights.resolve()),
        "pool_folder": str((arguments.pool_folder or arguments.out / "pool").resolve()),
        "num_processes": num_processes,
        "preset": arguments.preset or "stage1",
        "torch": torch.__version__,
    }
    return arguments.out, settings, origin


def take_up(arguments: argparse.Namespace, num_processes: int) -> tuple[Path, Settings, dict[str, Any]]:
    """(folder, settings, origin) of the run to go on with. Raises TrainingError, SettingsError or CheckpointError."""
    run_folder: Path = arguments.resume
    settings = read_settings(run_folder / SETTINGS)
    wanted = changed(settings, vars(arguments))
    differing = [
        entry.name
        for entry in dataclasses.fields(Settings)
        if entry.name not in CHANGEABLE and getattr(wanted, entry.name) != getattr(settings, entry.name)
    ]
    given = {
        "--from": arguments.start,
        "--spynet": arguments.spynet,
        "--out": arguments.out,
        "--preset": arguments.preset,
    }
    differing += [option for option, value in given.items() if value is not None]
    if differing:
        what = differing[0]
        raise TrainingError(
            f"{what} cannot be changed when a run goes on ({', '.join(sorted(CHANGEABLE))} can): begin a new run with"
            f" --from {run_folder}"
        )
    try:
        origin = json.loads((run_folder / ORIGIN).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{run_folder / ORIGIN} cannot be read ({error}); is this the folder of a run?") from None
    if origin["num_processes"] != num_processes:
        raise TrainingError(
            f"{run_folder} ran in {origin['num_processes']} processes and {num_processes} would make it another run:"
            f" start as many, or begin a new run with --from {run_folder}"
        )
    if arguments.pool_folder is not None:
        origin["pool_folder"] = str(arguments.pool_folder.resolve())
    if arguments.data is not None:
        origin["data"] = [str(folder.resolve()) for folder in arguments.data]  # the clips may have moved
    if arguments.vgg_weights is not None:
        origin["vgg_weights"] = str(arguments.vgg_weights.resolve())
    return run_folder, wanted, origin


def start_processes(device_name: str) -> Processes:
    """This process's place among those that torchrun started, or alone. Raises TrainingError for a missing device."""
    num = int(os.environ.get("WORLD_SIZE", "1"))
    name = ("cuda" if torch.cuda.is_available() else "cpu") if device_name == "auto" else device_name
    try:
        device = torch.device(name)
    except RuntimeError:
        raise TrainingError(f"--device {name} is no device: use auto, cpu, cuda or cuda:1") from None
    if device.type == "cuda":
        if num > 1:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        elif name == "cuda":
            device = torch.device("cuda", 0)
        if not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count():
            raise TrainingError(f"--device {name}: torch finds {torch.cuda.device_count()} CUDA devices; use cpu")
        torch.cuda.set_device(device)
    if num > 1:
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return Processes(num=num, rank=distributed.get_rank() if num > 1 else 0, device=device)


def usual_num_workers() -> int:
    """This process's share of the cores but one."""
    return max(1, ((os.cpu_count() or 2) - 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def sample_options(settings: Settings, pool_folder: Path) -> SampleOptions:
    """The settings that decide what a sample is."""
    return SampleOptions(
        crop_px=settings.crop_px,
        num_frames=settings.num_frames,
        stochastic=settings.stochastic,
        unsharp=settings.unsharp,
        degradations=settings.degradations,
        degradation_mix=settings.degradation_mix,
        hold_probability=settings.hold_probability,
        still_probability=settings.still_probability,
        seed=settings.seed,
        pool_clips=settings.pool_clips,
        pool_crop_px=settings.pool_crop_px,
        pool_num_frames=settings.pool_num_frames,
        pool_folder=pool_folder,
        pool_start_clips=settings.pool_start_clips,
        pool_growth=settings.pool_growth,
    )


def closing_words(run_folder: Path, done: int, settings: Settings) -> str:
    """What came of the run, in a line or two."""
    records = read_log(run_folder)
    lines = [f"{run_folder}: {done} of {settings.iterations} steps"]
    if len(records) > 1:
        changes = [
            f"{name} {records[0][name]:.4f} -> {records[-1][name]:.4f}"
            for name in ("output", "cleaning", "perceptual")
            if name in records[0] and name in records[-1]
        ]
        lines.append(f"losses, first and last {settings.log_every} steps: {', '.join(changes)}")
    lines.append(f'weights: {run_folder / EMA}, for core.rbvsr.Upscale(clip, model="{(run_folder / EMA).resolve()}")')
    return "\n".join(lines)
