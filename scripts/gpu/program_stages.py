"""Stages that run other programs: the benchmark with vspipe, the tests, and training.

Each is called with (setting, results, seconds left). What a program printed lies in the results' folder, whole or not.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from training.run_folder import EMA, LOG, SETTINGS, list_checkpoints

from .parts import copy_in_parts, join_parts
from .results import Results
from .setting import Setting

ROOT = Path(__file__).resolve().parents[2]
SAVE_SECONDS = 20.0
"""Kept free at the end of training: for the last checkpoint and the copies of it."""
MAX_COPIED_FILES = 8
RECIPE = (
    *("--preset", "compact-gan", "--teacher", "default"),
    *("--pool-clips", "3500", "--pool-start-clips", "200", "--pool-growth", "0.055"),
    *("--batch", "24", "--num-frames", "6", "--crop-px", "56", "--cuda-graph"),
)
"""What an H100 with 16 cores was kept busy with for four minutes."""
TINY_RECIPE = (
    *("--preset", "smoke", "--iterations", "2", "--batch", "1", "--num-frames", "2", "--crop-px", "16"),
    *("--pool-clips", "2", "--pool-crop-px", "24", "--pool-num-frames", "3", "--log-every", "1"),
)


def run_program(
    words: list[str],
    log: Path,
    seconds: float,
    *,
    environment: dict[str, str] | None = None,
    grace_seconds: float = 0.0,
) -> str:
    """Run a Python program of the repository; return how it ended: "done", "cut off" or "exit status 1: last words".

    What it prints is written to `log` as it comes. After `seconds` it is asked to end (as by Ctrl-C), and killed
    `grace_seconds` later.
    """
    with log.open("ab") as file:
        program = subprocess.Popen(
            [sys.executable, *words],
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        try:
            code = program.wait(max(seconds, 0.0))
        except subprocess.TimeoutExpired:
            program.send_signal(signal.SIGINT)
            try:
                program.wait(grace_seconds)
            except subprocess.TimeoutExpired:
                program.kill()
                program.wait()
            return "cut off"
        finally:
            if program.poll() is None:
                program.kill()
    return "done" if code == 0 else f"exit status {code}: {_last_line(log)}"


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "no word")


class ProgramError(RuntimeError):
    """A program of a stage failed; the text says which, and its last words."""


def vspipe(setting: Setting, results: Results, seconds: float) -> None:
    """Run the network's benchmark, one size after another, so that a cut-off run keeps the sizes that it has."""
    until = time.monotonic() + seconds
    failed = []
    for width, height in setting.sizes:
        report = setting.out / f"network_{width}x{height}.json"
        words = ["-m", "scripts.benchmark", "network", "--device", setting.device, "--sizes", f"{width}x{height}"]
        words += [
            "--models",
            "default" if setting.tiny else "published,default",
            "--repeats",
            "1",
            "--no-stand-ins",
            "--no-peaks",
        ]
        words += ["--frames", "3"] if setting.tiny else []
        ended = run_program([*words, "--json", str(report)], setting.out / "vspipe.log", until - time.monotonic())
        if ended != "done":
            failed.append(f"{width}x{height}: {ended}")
            continue
        found: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
        for row in found["rows"]:
            title = f"{width}x{height} {row['model']} {row.pop('name')}"
            results.add(title, **row)
        if found["not_measured"]:
            failed.append(f"{width}x{height} not measured: {found['not_measured']}")
    if failed:
        raise ProgramError("; ".join(failed))


def tests(setting: Setting, results: Results, seconds: float) -> None:
    """tests/backends/cuda/test_cuda.py, where no test may be skipped for want of a GPU."""
    (place,) = sorted((ROOT / "tests").rglob("test_cuda.py"))
    required = {"RBVSR_REQUIRE_CUDA": "1"} if setting.device == "cuda" else {}
    log = setting.out / "test_cuda.log"
    words = ["-m", "pytest", str(place), "-q", "-p", "no:cacheprovider", "--tb=short"]
    ended = run_program(words, log, seconds, environment=required, grace_seconds=2.0)
    counts = re.findall(r"(\d+) (passed|failed|skipped|errors?)", log.read_text(encoding="utf-8", errors="replace"))
    results.add("test_cuda.py", ended=ended, **{name.rstrip("s"): int(number) for number, name in counts})
    if ended != "done":
        raise ProgramError(f"tests/backends/cuda/test_cuda.py: {ended}")


def training(setting: Setting, results: Results, seconds: float) -> None:
    """Prepare what was packed, train for what is left of the time, and copy what goes on elsewhere to the results."""
    until = time.monotonic() + seconds
    scratch = Path("/dev/shm") if setting.device == "cuda" and Path("/dev/shm").is_dir() else setting.out
    work, log = scratch / "rbvsr_training", setting.out / "training.log"
    shutil.rmtree(work, ignore_errors=True)
    join_parts(setting.packed)
    clips, run = work / "clips", work / "run"
    num_workers = str(max(1, (os.cpu_count() or 2) - (0 if setting.device == "cuda" else 1)))
    footage = setting.packed / "footage"
    words = ["-m", "training", "prepare", str(footage), str(clips), "--workers", num_workers, "--images", "photographs"]
    words += ["--tile-px", "128", "--min-px", "128", "--min-frames", "2"] if setting.tiny else []
    ended = run_program(words, log, until - time.monotonic())
    results.add("prepare", ended=ended, seconds_left=round(until - time.monotonic(), 1))
    if ended != "done":
        raise ProgramError(f"training prepare: {ended}")
    limit = max(until - time.monotonic() - SAVE_SECONDS, 1.0)
    words = ["-m", "training", "train", "--data", str(clips), "--out", str(run), "--device", setting.device]
    words += ["--workers", "0" if setting.tiny else str(max(1, int(num_workers) - 4)), "--seconds", f"{limit:.0f}"]
    start = setting.packed / "start"
    words += ["--from", str(_start_of(start))] if start.is_dir() and not setting.tiny else []
    words += setting.training_words or (TINY_RECIPE if setting.tiny else RECIPE)
    ended = run_program(words, log, limit + SAVE_SECONDS / 4, grace_seconds=SAVE_SECONDS / 4)
    copied = copy_run(run, setting.out / "training")
    results.add("train", ended=ended, files=[f"{path.name} {path.stat().st_size}" for path in copied])
    if ended != "done":
        raise ProgramError(f"training train: {ended}")


def _start_of(folder: Path) -> Path:
    """Return what to begin from: the one file that was packed, or the folder of a run."""
    files = list(folder.iterdir())
    return files[0] if len(files) == 1 and files[0].is_file() else folder


def copy_run(run: Path, out: Path) -> list[Path]:
    """Copy what goes on elsewhere: settings, log, weights and the last checkpoint, in parts. Returns what was copied.

    At most MAX_COPIED_FILES files, the least needed left out.
    """
    wanted = [run / name for name in (EMA, LOG, SETTINGS, "origin.json") if (run / name).is_file()]
    wanted += list_checkpoints(run)[-1:]
    copied: list[Path] = []
    for path in wanted:
        copied += copy_in_parts(path, out / path.parent.name if path.suffix == ".pt" else out)
    for path in copied[MAX_COPIED_FILES:]:
        path.unlink()
    return copied[:MAX_COPIED_FILES]
