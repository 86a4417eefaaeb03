"""Train, fine-tune or go on with a run (paper, section 4.1): one or many processes, a CPU or GPUs."""

import argparse
import contextlib
import dataclasses
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, distributed
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
from training.degradations import sharpened
from training.export import write_network
from training.networks import Networks, Processes, TrainingError, autocast_dtype_of
from training.perceptual import PerceptualLoss
from training.settings import PRESETS, Settings, add_options, changed, read_settings
from training.steps import LossError, Steps
from vsrealbasicvsr.devices import DeviceError, find_device
from vsrealbasicvsr.model import SCALE

CHANGEABLE = frozenset({"iterations", "checkpoint_every", "keep_checkpoints", "log_every", "images_every"})
"""Settings that may be changed when a run goes on: the others would make it another run."""

LONGEST_DATA_WAIT_SHARE = 0.02
"""Of a run's time; beyond it the run says how many workers would do."""

_MAY_STAND = {
    "--from": 'a run\'s folder, a file of weights, or "default"',
    "--spynet": "a file of flow weights, which python -m training flow makes",
    "--vgg-weights": "torchvision's VGG19 (vgg19-dcbb9e9d.pth) or a published checkpoint",
}

LARGEST_SLOWNESS_OF_BF16 = 1.5
"""Times as long as float32; beyond it the run says that float32 is the better choice."""


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

    seconds: after some steps settings.iterations becomes the number that fits into so much time from now on. Fewer than
    settings.iterations are done only if the run was asked to end; a checkpoint is written then as well.
    Raises TrainingError when too many steps in a row had to be skipped, CheckpointError when something cannot be
    written.
    """
    settings = networks.settings
    steps = Steps(networks, processes, perceptual)
    chief = processes.rank == 0
    log = Log(run_folder, first) if chief else None
    board = SummaryWriter(str(run_folder / "tensorboard"), purge_step=first + 1) if chief else None
    num_skipped, seconds_waited = 0, 0.0
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

            taken = steps.take(lr, truth, real, iteration)
            stepped = taken.stepped

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
                bar.update()
                means = read_losses(steps) if done % settings.log_every == 0 or done == settings.iterations else {}
                if means:
                    passed_seconds = time.monotonic() - started
                    record = {
                        "iteration": done,
                        **means,
                        "learning_rate": float(networks.optimizer.param_groups[0]["lr"]),
                        "seconds_per_step": passed_seconds / (done - first),
                        "data_wait_share": seconds_waited / passed_seconds,
                    }
                    log.append(record)
                    for name, value in record.items():
                        board.add_scalar(name, value, done)
                    bar.set_postfix_str(f"output {record['output']:.4f}, waits {record['data_wait_share']:.0%}")
                if done % settings.images_every == 0 and taken.hr is not None:
                    board.add_image("bicubic, ours, truth", side_by_side(lr, taken.hr, truth), done)
            if pace is not None and (fitted := pace.fitted(done, settings.iterations)) != settings.iterations:
                settings = networks.settings = dataclasses.replace(networks.settings, iterations=fitted)
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


def read_losses(steps: Steps) -> dict[str, float]:
    """The means of the losses since the last reading. Raises TrainingError if they are not finite."""
    try:
        return steps.read_losses()
    except LossError as error:
        raise TrainingError(
            f"{error}. Begin a new run with --from this one and a lower --learning-rate, or with --no-cuda-graph."
        ) from None


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


def to_floats(batch: Batch, settings: Settings, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """(input, ground truth of the losses, real frames of the discriminator), float32 in [0, 1], T = num_frames each.

    Without a discriminator the last is the one before it: nobody looks at it, and it would be large. The patch
    discriminator sees the ground truth of the losses, with which its features are compared.
    """

    def floats(clip: Tensor) -> Tensor:
        return clip.to(device, non_blocking=True).float() / 255

    def whole(clip: Tensor) -> Tensor:
        return mirror(floats(clip), settings.num_frames) if batch.mirrored else floats(clip)

    truth = whole(batch.gt if batch.gt_unsharp is None else batch.gt_unsharp)
    if settings.target_sharpening:
        truth = sharpened(truth, settings.target_sharpening)
    is_unet = settings.adversarial_weight > 0 and settings.discriminator == "unet"
    sees_another = is_unet and (batch.gt_unsharp is not None or settings.target_sharpening > 0)
    return floats(batch.lr), truth, whole(batch.gt) if sees_another else truth


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
    parser.add_argument(
        "--from",
        dest="start",
        type=Path,
        help="weights to begin from: a run's folder, a file (of two sets the faithful one) or default",
    )
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
    networks = Networks(settings, processes.device)
    first = 0
    if arguments.resume is None:
        networks.start_from(arguments.start, arguments.spynet)
        perceptual = perceptual_loss(settings, origin, processes.device)  # after what costs no download
        networks.prepare()
        if chief:
            write_text(run_folder / SETTINGS, settings.to_json())
            write_text(run_folder / ORIGIN, json.dumps(origin, indent=1) + "\n")
            save(networks, run_folder, 0)  # so that a run that is killed at once can be gone on with as well
    else:
        networks.prepare()
        state, warnings = newest_checkpoint(run_folder)
        first = networks.restore(state, run_folder)
        perceptual = perceptual_loss(settings, origin, processes.device)
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


def perceptual_loss(settings: Settings, origin: dict[str, Any], device: torch.device) -> PerceptualLoss | None:
    """The perceptual loss where it counts; its weights may have to be downloaded."""
    if settings.perceptual_weight == 0:
        return None
    vgg = Path(origin["vgg_weights"]) if origin["vgg_weights"] else None
    return PerceptualLoss.load(vgg).to(device)


def begin(arguments: argparse.Namespace, num_processes: int) -> tuple[Path, Settings, dict[str, Any]]:
    """(folder, settings, origin) of a new run. Raises TrainingError or SettingsError."""
    if arguments.data is None or arguments.out is None:
        raise TrainingError("a new run needs --data CLIPS and --out FOLDER (or --resume RUN goes on with one)")
    settings = changed(PRESETS[arguments.preset or "stage1"], vars(arguments))
    for option, path in (
        ("--from", arguments.start),
        ("--spynet", arguments.spynet),
        ("--vgg-weights", arguments.vgg_weights),
    ):
        if path is not None and not path.exists() and str(path) != "default":
            raise TrainingError(f"{option} {path} does not exist: name {_MAY_STAND[option]}")
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
    if name == "cuda" or (num > 1 and name.startswith("cuda:")):  # each process has a GPU of its own
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    try:
        device = find_device(name)
    except DeviceError as error:
        raise TrainingError(f"--device {error}: use auto, cpu, cuda or cuda:1") from None
    if device.type == "cuda":
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
