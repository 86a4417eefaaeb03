"""Batch against length at the same number of frames a step (paper, section 4.2), at any scale.

    python scripts/study_batch_length.py --data clips/ --held-out held/ --out study/ --pairs 48x10,24x20,16x30 \
        -- --spynet spynet.pt
    python scripts/study_batch_length.py ... --pairs 12x2,6x4,3x8 --preset smoke -- --pool-num-frames 8

Each pair BxL is one run of `python -m training train` (what stands after `--` goes to it) with the same seed, number of
steps and frames a step, then one of `python -m training evaluate`. A study that was interrupted goes on where it was.
Prints a table and leaves OUT/study.json; OUT/asked.json holds what was asked for, and other words need another --out.
"""

import argparse
import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.evaluation.scoring import BICUBIC, OURS
from training.presets import PRESETS
from training.run_folder import list_checkpoints, read_log, write_text
from vsrealbasicvsr.errors import UserError

SHOWN = (("psnr_db", "PSNR dB", 2), ("ssim", "SSIM", 3), ("lpips", "LPIPS", 3), ("flicker_255", "flicker", 2))
"""Field of the evaluation's means, heading, decimals."""
CHAIN = "evaluation"
"""How `evaluate` degrades the clips."""
ONLY_NEW_RUNS = ("--from", "--spynet")
"""Options of `train`, each with one word behind it, that a run which goes on does not take."""
OF_THE_STUDY = ("--batch", "--num-frames", "--data.num-frames", "--length", "--data", "--out", "--preset", "--resume")


@dataclass(frozen=True, slots=True)
class Pair:
    """`batch` clips of `num_frames` frames in each step."""

    batch: int
    num_frames: int

    def __str__(self) -> str:
        return f"{self.batch}x{self.num_frames}"


def parse_pairs(text: str) -> list[Pair]:
    """Parse the pairs of "48x10,24x20". Raise UserError unless all have the same product."""
    try:
        pairs = [Pair(*(int(number) for number in part.split("x"))) for part in text.split(",")]
    except (ValueError, TypeError):
        raise UserError(f"--pairs must look like 48x10,24x20,16x30, got {text!r}") from None
    if min(min(pair.batch, pair.num_frames) for pair in pairs) < 1:
        raise UserError(f"--pairs must be numbers from 1 on, got {text}")
    if len({pair.batch * pair.num_frames for pair in pairs}) != 1:
        raise UserError(f"--pairs must all have the same number of frames a step, got {text}")
    return pairs


def check_settings(settings: Sequence[str]) -> None:
    """Raise UserError for options that the study itself sets."""
    for word in settings:
        if word.split("=")[0] in OF_THE_STUDY:
            raise UserError(f"{word} cannot stand after --: the study's own options decide it")


def check_is_same_study(out: Path, asked: Mapping[str, Any]) -> None:
    """Write down what is asked for, or raise UserError if `out` holds runs of a study of something else."""
    path = out / "asked.json"
    if not any(list_checkpoints(folder) for folder in out.glob("*x*")):  # nothing has been trained yet
        write_text(path, json.dumps(asked, indent=1) + "\n")
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{out} holds runs, but {path} cannot be read ({error}): name another --out") from None
    if not isinstance(before, dict):
        raise UserError(f"{path} does not say what the runs beside it are of: name another --out")
    differing = [name for name in asked if before.get(name) != asked[name]]
    if differing:
        name = differing[0]
        raise UserError(
            f"{out} holds a study with {name} {before.get(name)}, now it is {asked[name]}: name another --out"
        )


def run_pair(pair: Pair, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train and evaluate one pair; its row of the table. Raises CalledProcessError if either fails."""
    run: Path = arguments.out / str(pair)
    training = [sys.executable, "-m", "training", "train"]
    evaluation = run / "study"  # not where `evaluate` writes by itself: whoever looks at an unfinished run does no harm
    if not (evaluation / "results.json").exists():
        if list_checkpoints(run):
            carry_out([*training, "--resume", str(run), *for_a_run_that_goes_on(arguments.settings)])
        else:
            sizes = ["--batch", str(pair.batch), "--num-frames", str(pair.num_frames)]
            begin = ["--preset", arguments.preset, "--data", *map(str, arguments.data), "--out", str(run)]
            carry_out([*training, *begin, *sizes, *arguments.settings])
        command = [sys.executable, "-m", "training", "evaluate", str(run), "--data", *map(str, arguments.held_out)]
        carry_out([*command, "--chains", CHAIN, "--no-jod", "--out", str(evaluation)])
    results = json.loads((evaluation / "results.json").read_text(encoding="utf-8"))["chains"][CHAIN]
    log = read_log(run)
    if not log:
        raise UserError(f"{run} has no log of its steps: remove the folder to train it again")
    seconds = log[-1]["seconds_per_step"]  # since the run was last started
    return {"pair": str(pair), "seconds_per_step": seconds, "gain_db": results["mean_gain_db"], **results["means"]}


def carry_out(command: Sequence[str]) -> None:
    """Run it to its end. Raises CalledProcessError for another exit status than 0.

    Ctrl-C reaches it too, and it ends by itself: `train` writes a checkpoint first. subprocess.run would kill it.
    """
    process = subprocess.Popen(command)
    while process.returncode is None:
        with contextlib.suppress(KeyboardInterrupt):
            process.wait()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)


def for_a_run_that_goes_on(settings: Sequence[str]) -> list[str]:
    """Return the options for `train` without those that only a new run takes."""
    left = list(settings)
    for option in ONLY_NEW_RUNS:
        while option in left:
            place = left.index(option)
            del left[place : place + 2]
        left = [word for word in left if not word.startswith(f"{option}=")]
    return left


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the study as a Markdown table: each pair's gain over bicubic and scores, and bicubic's."""
    headings = ["B x L", "s a step", "gain dB", *(heading for _, heading, _ in SHOWN)]
    lines = ["| " + " | ".join(headings) + " |", "|---" * len(headings) + "|"]
    methods = [(row["pair"], f"{row['seconds_per_step']:.2f}", f"{row['gain_db']:+.2f}", row[OURS]) for row in rows]
    for *words, scores in (*methods, (BICUBIC, "", "", rows[0][BICUBIC])):
        values = ["-" if scores[name] is None else f"{scores[name]:.{decimals}f}" for name, _, decimals in SHOWN]
        lines.append("| " + " | ".join([*words, *values]) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study. Return the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    split = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders of prepared clips to train from")
    parser.add_argument(
        "--held-out", type=Path, nargs="+", required=True, help="folders of prepared clips to measure on"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pairs", default="48x10,24x20,16x30", help="BxL, all with the same product (default: paper)")
    parser.add_argument("--preset", default="stage1", choices=sorted(PRESETS))
    arguments = parser.parse_args(words[:split])
    arguments.settings = words[split + 1 :]
    try:
        pairs = parse_pairs(arguments.pairs)
        check_settings(arguments.settings)
        asked = {
            "--data": [str(folder.resolve()) for folder in arguments.data],
            "--held-out": [str(folder.resolve()) for folder in arguments.held_out],
            "--preset": arguments.preset,
            "settings": arguments.settings,
        }
        check_is_same_study(arguments.out, asked)
        rows = [run_pair(pair, arguments) for pair in pairs]
        write_text(arguments.out / "study.json", json.dumps(rows, indent=1) + "\n")
    except UserError as error:
        print(f"study_batch_length: {error}", file=sys.stderr)
        return 2
    except subprocess.CalledProcessError as error:
        if error.returncode not in (130, -signal.SIGINT):
            print(f"study_batch_length: {' '.join(map(str, error.cmd))} failed; see above", file=sys.stderr)
            return 1
        return interrupted()
    except KeyboardInterrupt:
        return interrupted()
    print(table(rows))
    print(arguments.out / "study.json")
    return 0


def interrupted() -> int:
    """Print what to do after Ctrl-C. Return the exit status."""
    print("study_batch_length: interrupted; the same command goes on where it was", file=sys.stderr)
    return 130


if __name__ == "__main__":
    sys.exit(main())
