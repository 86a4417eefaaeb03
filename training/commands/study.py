"""A study of the paper in one command: variants are trained, measured, and set beside the paper's figure.

    python -m training study stochastic --data clips/ --out studies/stochastic

NAME is one of STUDIES. The end is FOLDER/README.md with plots and crops, table.md and table.json. Interrupted, the same
command resumes. Every setting of training can be changed: --iterations 2000 --learning-rate 2e-4.
"""

import contextlib
import dataclasses
import importlib
import platform
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from cyclopts import Parameter

from training import options
from training.data.dataset import ClipDataset, read_index
from training.devices import choose_device
from training.processes import num_workers_of
from training.studies.page import PAGE, TABLE_TEXT, write_report
from training.studies.plan import Study
from training.studies.runs import Trainer
from training.studies.scales import SCALES
from training.studies.workbench import Workbench, split
from vsrealbasicvsr.errors import UserError

BEGINNINGS = {
    "default": "as the default weights, which were trained for hours in the paper's way",
    "flow": "from nothing but a flow network",
}
STUDIES = {
    "length": "length",
    "cleaning": "cleaning",
    "refinement": "refinement",
    "stochastic": "stochastic",
    "batch-length": "batch_length",
    "video-compression": "video_compression",
    "losses": "losses",
}
"""Name of each study, and its module in training.studies, which has STUDY."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arguments:
    """The command line of `python -m training study NAME`, without the settings' own options."""

    data: Annotated[list[Path] | None, Parameter(consume_multiple=True)] = None
    """Folders of python -m training prepare."""
    held_out: Annotated[list[Path] | None, Parameter(consume_multiple=True)] = None
    """Folders of clips to measure on (default: every 5th source of --data, which is then not trained on)."""
    out: Path | None = None
    """The study's folder, made or continued."""
    scale: str = "smoke"
    """smoke: minutes on a CPU, from the default weights. small: hours on a CPU, minutes on a GPU, from a flow network.
    paper: the paper's networks and iterations."""
    runs: Path | None = None
    """Where the trained networks are kept (default: OUT/runs). Studies that name the same folder share networks."""
    pairs: str | None = None
    """Of batch-length: BxL, all with the same product, as 48x10,24x20,16x30."""
    spynet: Path | None = None
    """Flow weights to begin with: needed for the paper's scale, and otherwise those of the default weights."""
    vgg_weights: Path | None = None
    """VGG19's weights, where torchvision cannot download them; only the paper's stage 2 needs them."""
    device: str = "auto"
    """auto (CUDA where there is one), cpu, cuda, cuda:1."""
    workers: int | None = None
    """Processes that compute samples (default: cores - 1)."""
    name: Annotated[str, Parameter(parse=False)] = ""
    words: Annotated[tuple[str, ...], Parameter(parse=False)] = ()
    changes: Annotated[dict[str, Any], Parameter(parse=False)] = field(default_factory=dict)


def parse(words: Sequence[str], *, program: str) -> Arguments:
    """Return the command line, parsed. Raises UserError for what cannot be parsed."""
    named = list(words[:1]) if words and not words[0].startswith("-") else []
    description = f"{__doc__}\nSTUDIES: {', '.join(STUDIES)}"
    own, changes = options.parse(Arguments, words[len(named) :], program=f"{program} NAME", description=description)
    if not named or named[0] not in STUDIES:
        got = f"got {named[0]!r}" if named else "it comes first"
        raise UserError(f"NAME must be one of {', '.join(STUDIES)}, {got}")
    return dataclasses.replace(own, name=named[0], words=tuple(words), changes=changes)


def run(arguments: Arguments) -> int:
    """Carry the study out, print its table, leave its page. Raises UserError for what the user can mend."""
    bench = workbench(arguments)
    study: Study = importlib.import_module(f"training.studies.{STUDIES[arguments.name]}").STUDY
    report = study.make(bench)
    write_report(report, bench.out, page_words(study, bench, arguments))
    print((bench.out / TABLE_TEXT).read_text(encoding="utf-8"))
    for finding in report.findings:
        print(f"{finding.verdict}: {finding.paper}. {finding.ours}")
    print(bench.out / PAGE)
    return 0


def workbench(arguments: Arguments) -> Workbench:
    """Return the workbench that the command line describes. Raises UserError."""
    if arguments.data is None or arguments.out is None:
        raise UserError("a study needs --data CLIPS and --out FOLDER; python -m training prepare makes clips")
    if arguments.scale not in SCALES:
        raise UserError(f"--scale must be one of {', '.join(SCALES)}, got {arguments.scale!r}")
    if arguments.pairs is not None and arguments.name != "batch-length":
        raise UserError(f"--pairs is of the study batch-length, not of {arguments.name}")
    if arguments.spynet is not None and not arguments.spynet.is_file():
        raise UserError(f"--spynet {arguments.spynet} does not exist: name a file, python -m training flow makes one")
    if arguments.spynet is not None and SCALES[arguments.scale].start == "default":
        raise UserError(f"--spynet: at the scale {arguments.scale} networks begin with all of the default weights")
    if arguments.scale == "paper" and arguments.spynet is None:
        raise UserError("the paper's networks begin with SPyNet's weights: give their file with --spynet")
    scale = SCALES[arguments.scale].with_changes(arguments.changes)
    if arguments.pairs is not None:
        scale = dataclasses.replace(scale, pairs=arguments.pairs)
    arguments.out.mkdir(parents=True, exist_ok=True)
    runs = arguments.runs or arguments.out / "runs"
    training, held_out = clips_of(arguments, runs / "pool")
    trainer = Trainer(
        folder=runs,
        clips=training,
        device=choose_device(arguments.device),
        num_workers=num_workers_of(arguments.workers),
        start=scale.start,
        spynet=arguments.spynet,
        vgg_weights=arguments.vgg_weights,
    )
    return Workbench(out=arguments.out, scale=scale, trainer=trainer, held_out=held_out)


def clips_of(arguments: Arguments, pool_folder: Path) -> tuple[ClipDataset, ClipDataset]:
    """Return the clips to train on and those to measure on, of other sources. Raises UserError."""
    assert arguments.data is not None
    clips = [(folder, clip) for folder in arguments.data for clip in read_index(folder).clips]
    if not clips:
        raise UserError(f"no clips in {', '.join(map(str, arguments.data))}. Prepare other footage.")
    if arguments.held_out is not None:
        return ClipDataset(clips, pool_folder), ClipDataset.open(arguments.held_out)
    training, held_out = split(clips)
    return ClipDataset(training, pool_folder), ClipDataset(held_out)


def page_words(study: Study, bench: Workbench, arguments: Arguments) -> dict[str, Any]:
    """Return what the page says beside the study's own report."""
    settings, scale, trainer = bench.scale.stage_1, bench.scale, bench.trainer
    seconds = bench.cpu_seconds
    return {
        "study": study.name,
        "title": study.title,
        "source": study.source,
        "question": study.question,
        "command": f"python -m training study {shlex.join(arguments.words)}",
        "scale": scale.name,
        "training": f"networks that begin {BEGINNINGS[scale.start]}, then {settings.iterations:,} iterations of"
        f" {settings.batch} clip{'s' if settings.batch > 1 else ''} of {settings.data.num_frames} frames"
        f" of {settings.data.crop_px}×{settings.data.crop_px} pixels (paper: 300,000 of 16 of 30 of 64×64)",
        "measured": bench.describe_footage(),
        "cost": f"{seconds / 60:.1f} minutes of CPU time on {machine(trainer.device)}, torch {torch.__version__}",
        "cpu_seconds": seconds,
    }


def machine(device: torch.device) -> str:
    """Return the name of the processor or the GPU that the study ran on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
