"""Train, fine-tune or resume a run (paper, section 4.1): one or several processes, on CPUs or GPUs."""

import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from cyclopts import Parameter
from torch import distributed

from training import options
from training.bf16 import warn_of_slow_bf16
from training.data.cost import measure_input
from training.data.dataset import ClipDataset
from training.data.loader import make_loader
from training.locking import alone_in
from training.losses.kinds import Needs
from training.losses.perceptual import PerceptualLoss
from training.networks import Networks
from training.presets import PRESETS
from training.processes import Processes, TrainingError, num_workers_of, start_processes
from training.run_folder import EMA, FOLDER, ORIGIN, SETTINGS, CheckpointError, newest_checkpoint, read_log, write_text
from training.settings import Settings, changed, read_settings
from training.teacher import Teacher, load_teacher, usual_teacher
from training.trainer import save, save_ema, train

CHANGEABLE = frozenset({"iterations", "checkpoint_every", "keep_checkpoints", "log_every", "images_every"})
"""Settings that may be changed when a run is resumed: the others would make it another run."""

LONGEST_DATA_WAIT_SHARE = 0.02
"""Share of a run's time spent waiting for data beyond which the run says how many workers would do."""

_MAY_STAND = {
    "--from": 'a run\'s folder, a file of weights, or "default"',
    "--spynet": "a file of flow weights, which python -m training flow makes",
    "--teacher": 'a run\'s folder, a file of weights, or "default"',
    "--vgg-weights": "torchvision's VGG19 (vgg19-dcbb9e9d.pth) or a published checkpoint",
}


_ORIGIN_NAMES = {"data", "pool_folder", "vgg_weights", "num_processes"}
"""What origin.json must have for a run to be resumed; the rest was added later."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arguments:
    """The command line of `python -m training train`, without the settings' own options."""

    preset: str | None = None
    """Preset to begin with: stage1 (default), stage2, finetune, compact, compact-gan, smoke."""
    data: Annotated[list[Path] | None, Parameter(consume_multiple=True)] = None
    """Folders of python -m training prepare."""
    out: Path | None = None
    """Folder of the new run."""
    start: Annotated[Path | None, Parameter(name="--from")] = None
    """Initial weights: a run's folder, a file (of two sets the faithful one) or "default"."""
    spynet: Path | None = None
    """Initial flow weights: of python -m training flow, or published ones."""
    teacher: Path | None = None
    """Faithful network that the coarse, contrast, chroma and keep losses compare with, and of mixtures: a run's folder,
    a file (of two sets the faithful one) or "default". Default: the teacher of the run that --from names, or else what
    --from names itself; so name it if that is a file of a sharp network."""
    resume: Path | None = None
    """Folder of a run to resume from its newest complete checkpoint."""
    device: str = "auto"
    """auto (CUDA where there is one), cpu, cuda, cuda:1."""
    workers: int | None = None
    """Processes that compute samples (default: cores - 1, shared)."""
    vgg_weights: Path | None = None
    """VGG19's weights (or VGG16's, see --perceptual-network), where torchvision cannot download them."""
    seconds: float | None = None
    """End in time: as many steps as fit, not --iterations."""
    pool_folder: Path | None = None
    """Folder where the pool's clips are cached (default: in the run's folder)."""
    changes: Annotated[dict[str, Any], Parameter(parse=False)] = field(default_factory=dict)


def parse(words: Sequence[str], *, program: str) -> Arguments:
    """Parse the command line. Raise SettingsError if that fails, and TrainingError for an unknown preset."""
    own, changes = options.parse(Arguments, words, program=program, description=__doc__ or "")
    if own.preset not in (None, *PRESETS):
        raise TrainingError(f"--preset must be one of {', '.join(PRESETS)}, got {own.preset!r}")
    return dataclasses.replace(own, changes=changes)


def run(arguments: Arguments) -> int:
    """Train as one of the processes that share the work. Returns the exit status."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run about to train: its folder, settings, origin, clips and networks, and the number of steps done."""

    folder: Path
    settings: Settings
    origin: dict[str, Any]
    clips: ClipDataset
    networks: Networks
    perceptual: PerceptualLoss | None
    teacher: Teacher | None
    num_done: int


def train_in(processes: Processes, arguments: Arguments) -> int:
    """Begin or resume the run that the command line describes. Returns the exit status."""
    folder = arguments.resume or arguments.out
    if folder is None or not processes.is_main_process:
        return _train_alone(processes, arguments)
    with alone_in(folder, command="training train"):
        return _train_alone(processes, arguments)


def _train_alone(processes: Processes, arguments: Arguments) -> int:
    num_workers = num_workers_of(arguments.workers)
    if arguments.seconds is not None and not 0 < arguments.seconds < math.inf:
        raise TrainingError(f"--seconds must be above 0 and finite, got {arguments.seconds:g}")
    run = begin(arguments, processes) if arguments.resume is None else resume(arguments.resume, arguments, processes)
    if run.num_done >= run.settings.iterations:
        if processes.is_main_process:
            print(f"{run.folder} is finished ({run.num_done} steps); --iterations N makes it longer", file=sys.stderr)
        return 0
    if arguments.seconds is not None and processes.num > 1:
        raise TrainingError("--seconds is for one process: each of several would count other steps")
    with make_loader(
        run.clips,
        run.settings.data,
        batch=run.settings.batch,
        first_iteration=run.num_done,
        num_iterations=run.settings.iterations if arguments.seconds is None else None,
        num_processes=processes.num,
        rank=processes.rank,
        num_workers=num_workers,
        device=processes.device,
    ) as loader:
        done = train(
            run.networks,
            loader,
            run.folder,
            processes=processes,
            first=run.num_done,
            perceptual=run.perceptual,
            teacher=run.teacher,
            seconds=arguments.seconds,
        )
    if processes.is_main_process:
        print(closing_words(run.folder, done, run.networks.settings))
        print(words_on_waiting(run, done, processes), end="")
    return 0 if done >= run.networks.settings.iterations else 130


# ---- a new run -------------------------------------------------------------------------------------------------------


def begin(arguments: Arguments, processes: Processes) -> Run:
    """Create the folder and the networks of a new run. Raise UserError if something does not fit."""
    if arguments.data is None or arguments.out is None:
        raise TrainingError("a new run needs --data CLIPS and --out FOLDER (or resume one with --resume RUN)")
    folder, preset = arguments.out, arguments.preset or "stage1"
    settings = changed(PRESETS[preset], arguments.changes)
    check_paths(arguments, folder)
    origin = {
        "data": [str(path.resolve()) for path in arguments.data],
        "from": None if arguments.start is None else str(arguments.start),
        "spynet": None if arguments.spynet is None else str(arguments.spynet),
        "vgg_weights": None if arguments.vgg_weights is None else str(arguments.vgg_weights.resolve()),
        "teacher": _file_or_default(arguments.teacher or usual_teacher(arguments.start, settings)),
        "pool_folder": str((arguments.pool_folder or folder / "pool").resolve()),
        "num_processes": processes.num,
        "preset": preset,
        "torch": torch.__version__,
    }
    if processes.is_main_process:
        warn_of_slow_bf16(settings, processes)
    clips = open_clips(folder, origin)
    networks = Networks(settings, processes.device)
    networks.start_from(arguments.start, arguments.spynet)
    teacher = load_teacher(folder, origin, settings, processes.device)
    perceptual = perceptual_loss(settings, origin, processes.device)  # after what costs no download
    networks.prepare()
    if processes.is_main_process:
        write_text(folder / SETTINGS, settings.to_json())
        write_text(folder / ORIGIN, json.dumps(origin, indent=1) + "\n")
        save(networks, folder, 0)  # so that a run that is killed at once can be resumed as well
    return Run(
        folder=folder,
        settings=settings,
        origin=origin,
        clips=clips,
        networks=networks,
        perceptual=perceptual,
        teacher=teacher,
        num_done=0,
    )


def _file_or_default(path: Path | None) -> str | None:
    return None if path is None else str(path if str(path) == "default" else path.resolve())


def check_paths(arguments: Arguments, folder: Path) -> None:
    """Raise TrainingError if a file is missing, or if the folder already holds a run."""
    for option, path in (
        ("--from", arguments.start),
        ("--spynet", arguments.spynet),
        ("--vgg-weights", arguments.vgg_weights),
        ("--teacher", arguments.teacher),
    ):
        if path is not None and not path.exists() and str(path) != "default":
            raise TrainingError(f"{option} {path} does not exist: name {_MAY_STAND[option]}")
    if (folder / FOLDER).exists() and any((folder / FOLDER).glob("*.pt")):
        raise TrainingError(f"{folder} already holds a run: resume it with --resume, or name another --out")


# ---- a resumed run ---------------------------------------------------------------------------------------------------


def resume(folder: Path, arguments: Arguments, processes: Processes) -> Run:
    """Restore a run from its newest complete checkpoint. Raise UserError for what cannot be changed or read."""
    settings = resumed_settings(folder, arguments)
    origin = resumed_origin(folder, arguments, processes.num)
    clips = open_clips(folder, origin)
    networks = Networks(settings, processes.device)
    networks.prepare()
    state, warnings = newest_checkpoint(folder)
    num_done = networks.restore(state, folder)
    teacher = load_teacher(folder, origin, settings, processes.device)
    perceptual = perceptual_loss(settings, origin, processes.device)
    if processes.is_main_process:
        for warning in warnings:
            print(f"training train: {warning}", file=sys.stderr)
        save_ema(networks, folder, num_done)  # the run may have ended between a checkpoint and its average
        if num_done < settings.iterations:
            print(f"resuming after step {num_done} of {settings.iterations}", file=sys.stderr)
            write_text(folder / SETTINGS, settings.to_json())
    return Run(
        folder=folder,
        settings=settings,
        origin=origin,
        clips=clips,
        networks=networks,
        perceptual=perceptual,
        teacher=teacher,
        num_done=num_done,
    )


def resumed_settings(folder: Path, arguments: Arguments) -> Settings:
    """Return the run's settings with the permitted changes. Raise TrainingError for other changes."""
    settings = read_settings(folder / SETTINGS)
    wanted = changed(settings, arguments.changes)
    differing = [
        name
        for name, value in arguments.changes.items()
        if name not in CHANGEABLE and changed(settings, {name: value}) != settings
    ]
    given = {
        "--from": arguments.start,
        "--spynet": arguments.spynet,
        "--out": arguments.out,
        "--preset": arguments.preset,
    }
    differing += [option for option, value in given.items() if value is not None]
    if differing:
        raise TrainingError(
            f"{differing[0]} cannot be changed when a run is resumed ({', '.join(sorted(CHANGEABLE))} can): begin a new"
            f" run with --from {folder}"
        )
    return wanted


def resumed_origin(folder: Path, arguments: Arguments, num_processes: int) -> dict[str, Any]:
    """Return the run's origin, with the paths that have moved. Raise CheckpointError or TrainingError if that fails."""
    try:
        read: Any = json.loads((folder / ORIGIN).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / ORIGIN} cannot be read ({error}); is this the folder of a run?") from None
    if not isinstance(read, dict) or not read.keys() >= _ORIGIN_NAMES:
        raise CheckpointError(f"{folder / ORIGIN} is damaged: begin a new run with --from {folder}")
    origin: dict[str, Any] = read
    if origin["num_processes"] != num_processes:
        raise TrainingError(
            f"{folder} ran in {origin['num_processes']} processes and {num_processes} would make it another run:"
            f" start as many, or begin a new run with --from {folder}"
        )
    if arguments.pool_folder is not None:
        origin["pool_folder"] = str(arguments.pool_folder.resolve())
    if arguments.data is not None:
        origin["data"] = [str(path.resolve()) for path in arguments.data]  # the clips may have moved
    if arguments.vgg_weights is not None:
        origin["vgg_weights"] = str(arguments.vgg_weights.resolve())
    if arguments.teacher is not None:
        origin["teacher"] = _file_or_default(arguments.teacher)
    return origin


# ---- both ------------------------------------------------------------------------------------------------------------


def open_clips(folder: Path, origin: dict[str, Any]) -> ClipDataset:
    """Open the clips of a run. Raise TrainingError if they are not those that it began with."""
    clips = ClipDataset.open([Path(path) for path in origin["data"]], pool_folder=Path(origin["pool_folder"]))
    footage = clips.footage()  # None if a clip is damaged: another takes its place
    is_other = footage is not None and origin.setdefault("footage", footage) != footage
    if origin.setdefault("clips", clips.identity()) != clips.identity() or is_other:
        raise TrainingError(
            f"the clips in {', '.join(origin['data'])} are not those that {folder} began with: name their folders"
            f" with --data, or begin a new run with --from {folder}"
        )
    return clips


def perceptual_loss(settings: Settings, origin: dict[str, Any], device: torch.device) -> PerceptualLoss | None:
    """Load the perceptual network if its loss counts; its weights may have to be downloaded."""
    if not settings.losses.needs(Needs.VGG):
        return None
    vgg = Path(origin["vgg_weights"]) if origin["vgg_weights"] else None
    return PerceptualLoss.load(vgg, settings.losses.perceptual_network).to(device)


def closing_words(run_folder: Path, done: int, settings: Settings) -> str:
    """Return one or two lines that sum up the run."""
    records = read_log(run_folder)
    lines = [f"{run_folder}: {done} of {settings.iterations} steps"]
    if len(records) > 1:
        changes = [
            f"{name} {records[0][name]:.4f} -> {records[-1][name]:.4f}"
            for name in ("output", "cleaning", "banding", "perceptual")
            if name in records[0] and name in records[-1]
        ]
        lines.append(f"losses, first and last {settings.log_every} steps: {', '.join(changes)}")
    lines.append(f'weights: {run_folder / EMA}, for core.rbvsr.Upscale(clip, model="{(run_folder / EMA).resolve()}")')
    return "\n".join(lines)


def words_on_waiting(run: Run, done: int, processes: Processes) -> str:
    """Return how many workers would suffice, if a whole run without a pool waited too long for data; else ""."""
    settings, records = run.networks.settings, read_log(run.folder)
    is_whole = done >= settings.iterations and done - run.num_done >= settings.log_every
    if not records or not is_whole or settings.data.pool_clips:
        return ""
    wait_share = records[-1]["data_wait_share"]
    if wait_share <= LONGEST_DATA_WAIT_SHARE:
        return ""
    cost = measure_input(run.clips, settings.data).describe(
        batch=settings.batch,
        step_seconds=records[-1]["seconds_per_step"] * (1 - wait_share),
        with_gpu=processes.device.type == "cuda",
    )
    return f"{wait_share:.0%} of the time was waiting for data. {cost}\n"
