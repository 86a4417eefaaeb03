"""Runs the stages one after another, each in a process of its own, and ends in time.

A stage that fails, hangs or breaks the device's context does not stop the others. Knows the order and the time limit.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext

from . import device_stages, kernel_stages, program_stages
from .results import Results
from .setting import Setting

END_SECONDS = 3.0
"""Kept free at the end of the run."""

type Run = Callable[[Setting, Results, float], None]


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of the run. most_seconds: that it may take; reserved_seconds: that earlier stages leave for it."""

    name: str
    run: Run
    most_seconds: float
    reserved_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class _Measures:
    """A stage that knows no time."""

    measure: Callable[[Setting, Results], None]

    def __call__(self, setting: Setting, results: Results, seconds: float) -> None:
        self.measure(setting, results)


STAGES = (
    Stage("about", _Measures(device_stages.about), 30),
    Stage("parity", _Measures(device_stages.parity), 120),
    Stage("graphs", _Measures(device_stages.graphs), 60),
    Stage("convolutions", _Measures(device_stages.convolutions), 40),
    Stage("fused", _Measures(kernel_stages.fused), 90),
    Stage("peaks", _Measures(device_stages.peaks), 20),
    Stage("steps", _Measures(device_stages.steps), 60),
    Stage("engine", _Measures(device_stages.engine), 90),
    Stage("vspipe", program_stages.vspipe, 120),
    Stage("tests", program_stages.tests, 150),
    Stage("training", program_stages.training, 3600, reserved_seconds=240),
)
"""In the order of what must be known first."""


def run_stages(stages: Sequence[Stage], setting: Setting, results: Results, seconds: float) -> dict[str, str]:
    """How each stage ended: "done", "failed: ...", "cut off" or "no time left". All of it within `seconds`."""
    deadline = time.monotonic() + seconds - END_SECONDS
    start_server()
    reserves = min(sum(stage.reserved_seconds for stage in stages), seconds / 2)
    ended: dict[str, str] = {}
    for stage in stages:
        started = time.monotonic()
        reserved = 0.0 if stage.reserved_seconds else reserves
        limit = min(stage.most_seconds, deadline - started - reserved)
        ended[stage.name] = _run_stage(stage, setting, results.of(stage.name), limit) if limit > 1 else "no time left"
        results.of(stage.name).add("end", ended=ended[stage.name], stage_seconds=round(time.monotonic() - started, 2))
    return ended


def _run_stage(stage: Stage, setting: Setting, results: Results, seconds: float) -> str:
    """Run a stage in a process, and end it and what it started when the time is over."""
    context = _context()
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_in_process, args=(stage, setting, results, seconds, sender))
    before = time.monotonic()
    process.start()
    sender.close()
    process.join(max(seconds - (time.monotonic() - before), 0.0))
    if process.is_alive():
        _kill_group_of(process.pid)
        process.kill()  # if it was not yet the first of its group
        process.join()
        return "cut off"
    try:
        error: str = receiver.recv()
    except EOFError:
        error = f"the process ended with status {process.exitcode}"
    return f"failed: {error}" if error else "done"


def _context() -> ForkServerContext | SpawnContext:
    """How processes are started: by a fork server, which imports torch once and never touches the device."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def start_server() -> None:
    """Start the fork server, which imports what all stages need: no stage's time is spent on it."""
    process = _context().Process(target=_do_nothing)
    process.start()
    process.join()


def _do_nothing() -> None:
    pass


def _in_process(stage: Stage, setting: Setting, results: Results, seconds: float, sender: Connection) -> None:
    """Run a stage in its own process, and send "" or why the stage failed."""
    if hasattr(os, "setsid"):
        os.setsid()  # so that its children end with it
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    error = ""
    try:
        stage.run(setting, results, seconds - END_SECONDS)
    except Exception as raised:  # whatever it is, the next stage may still tell something
        error = " ".join(f"{type(raised).__name__}: {raised}".split())[:500]
        results.add("error", error=error, where=traceback.format_exc().splitlines()[-8:])
    sender.send(error)


def _kill_group_of(pid: int | None) -> None:
    if pid is not None and hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
