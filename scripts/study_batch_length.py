"""Batch against length at the same number of frames a step (paper, section 4.2), at any scale.

    python scripts/study_batch_length.py --data clips/ --held-out held/ --out study/ --pairs 48x10,24x20,16x30
    python scripts/study_batch_length.py ... --pairs 12x2,6x4,3x8 --preset smoke -- --pool-num-frames 8

Each pair BxL is one run of `python -m training train` (what stands after `--` goes to it) with the same seed, number of
steps and frames a step, then one of `python -m training evaluate`. A study that was interrupted goes on where it was.
Prints a table and leaves OUT/study.json.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Pair:
    """`batch` clips of `num_frames` frames in each step."""

    batch: int
    num_frames: int

    def __str__(self) -> str:
        return f"{self.batch}x{self.num_frames}"


def parse_pairs(text: str) -> list[Pair]:
    """The pairs of "48x10,24x20". Raises ValueError unless all have the same product."""
    try:
        pairs = [Pair(*(int(number) for number in part.split("x"))) for part in text.split(",")]
    except (ValueError, TypeError):
        raise ValueError(f"--pairs must look like 48x10,24x20,16x30, got {text!r}") from None
    if len({pair.batch * pair.num_frames for pair in pairs}) != 1:
        raise ValueError(f"--pairs must all have the same number of frames a step, got {text}")
    return pairs


def run_pair(pair: Pair, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train and evaluate one pair; its row of the table. Raises CalledProcessError if either fails."""
    run: Path = arguments.out / str(pair)
    training = [sys.executable, "-m", "training", "train"]
    if any((run / "checkpoints").glob("*.pt")):
        subprocess.run([*training, "--resume", str(run)], check=True)
    else:
        sizes = ["--batch", str(pair.batch), "--num-frames", str(pair.num_frames)]
        begin = ["--preset", arguments.preset, "--data", *map(str, arguments.data), "--out", str(run)]
        subprocess.run([*training, *begin, *sizes, *arguments.settings], check=True)
    evaluation = run / "evaluation"
    if not (evaluation / "results.json").exists():
        command = [sys.executable, "-m", "training", "evaluate", str(run), "--data", *map(str, arguments.held_out)]
        subprocess.run([*command, "--out", str(evaluation)], check=True)
    log = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    results = json.loads((evaluation / "results.json").read_text(encoding="utf-8"))
    return {"pair": str(pair), "seconds_per_step": log[-1]["seconds_per_step"], "means": results["means"]}


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status of the command line."""
    words = list(sys.argv[1:] if argv is None else argv)
    split = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders of prepared clips to train from")
    parser.add_argument(
        "--held-out", type=Path, nargs="+", required=True, help="folders of prepared clips to measure on"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pairs", default="48x10,24x20,16x30", help="BxL, all with the same product (default: paper)")
    parser.add_argument("--preset", default="stage1")
    arguments = parser.parse_args(words[:split])
    arguments.settings = words[split + 1 :]
    try:
        rows = [run_pair(pair, arguments) for pair in parse_pairs(arguments.pairs)]
    except ValueError as error:
        print(f"study_batch_length: {error}", file=sys.stderr)
        return 2
    except subprocess.CalledProcessError as error:
        print(f"study_batch_length: {' '.join(map(str, error.cmd))} failed; see above", file=sys.stderr)
        return 1
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "study.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    for row in rows:
        values = ", ".join(f"{name} {value:.4g}" for name, value in row["means"].items() if value is not None)
        print(f"{row['pair']:>8}  {row['seconds_per_step']:.2f} s/step  {values}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
