"""What `rbvsr upscale` adds to vspipe piped into ffmpeg: time, memory, and how soon it says something.

Both upscale the same file with rbvsr.Upscale's defaults and encode with libx264 at the same CRF and preset, in turns.
The clip is a smooth image that drifts, with noise, encoded by libx264. Peak memory is also measured with a third of the
frames: memory that grows with the clip would show. The first message is that of `--json`, which is flushed at once.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import torch

from scripts.encoding.programs import find_ffmpeg
from vsrealbasicvsr.app.encoding import DEFAULT_CRF, DEFAULT_PRESET
from vsrealbasicvsr.errors import UserError

from . import process
from .report import Spread, aligned, machine, print_machine, write_json
from .subjects import moving_clip, size_of
from .vspipe import Vspipe

CODEC = "libx264"
FRAMES_PER_SECOND = 25
SHORTER = 3
"""The clip whose memory is measured as well has this part of the frames."""
_SCRIPT = """
import vapoursynth as vs
vs.core.rbvsr.Upscale(vs.core.bs.VideoSource({source!r}, cachemode=0)).set_output()
"""


@dataclass(frozen=True, slots=True)
class _Ran:
    seconds: float
    cpu_seconds: float | None
    peak_bytes: int | None


def run_command(arguments: argparse.Namespace) -> None:
    """Measure, print, write the JSON. Raise UserError or OSError for an error that the user can mend."""
    width, height = size_of(arguments.size)
    for name, value in (("frames", arguments.frames // SHORTER), ("repeats", arguments.repeats)):
        if value <= 0:
            raise UserError(f"--{name} is too small, got {getattr(arguments, name)}")
    about = machine()
    print_machine(about)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = _write_clip(folder / "in.mkv", arguments.frames, width, height)
        shorter = _write_clip(folder / "shorter.mkv", arguments.frames // SHORTER, width, height)
        vspipe = Vspipe.configured_in(folder)
        short_run = _by_command(shorter, folder)
        first_message, first_frame = _first_messages(shorter, folder)
        runs: dict[str, list[_Ran]] = {"vspipe | ffmpeg": [], "rbvsr upscale": []}
        for _ in range(arguments.repeats):
            runs["vspipe | ffmpeg"].append(_by_pipe(source, vspipe, folder))
            runs["rbvsr upscale"].append(_by_command(source, folder))
    overheads = [ours.seconds / theirs.seconds - 1 for theirs, ours in zip(*runs.values(), strict=True)]
    print(f"{width}x{height}, {arguments.frames} frames, {CODEC}, {arguments.repeats} turns")
    print("\n".join(aligned(_rows(runs))))
    print("overhead of each turn: " + ", ".join(f"{100 * value:+.1f} %" for value in overheads))
    print(f"peak with {arguments.frames // SHORTER} frames: {(short_run.peak_bytes or 0) / 2**30:.2f} GiB")
    print(f"first message after {first_message:.1f} s, first frame after {first_frame:.1f} s")
    report = {
        "part": "command",
        "machine": about,
        "width": width,
        "height": height,
        "num_frames": arguments.frames,
        "runs": {way: [asdict(ran) for ran in measured] for way, measured in runs.items()},
        "overheads": overheads,
        "shorter_peak_bytes": short_run.peak_bytes,
        "first_message_seconds": first_message,
        "first_frame_seconds": first_frame,
    }
    write_json(arguments.json, report)


def _rows(runs: Mapping[str, Sequence[_Ran]]) -> list[list[str]]:
    """Return the table of all ways, with its head."""
    rows = [["", "seconds", "lowest", "highest", "CPU seconds", "peak GiB of one process"]]
    for way, measured in runs.items():
        spread = Spread.of([ran.seconds for ran in measured])
        cpu = Spread.of([ran.cpu_seconds or 0 for ran in measured])
        peak = max(ran.peak_bytes or 0 for ran in measured)
        numbers = [f"{value:.1f}" for value in (spread.median, spread.low, spread.high, cpu.median)]
        rows.append([way, *numbers, f"{peak / 2**30:.2f}"])
    return rows


def _write_clip(path: Path, num_frames: int, width: int, height: int) -> Path:
    """Encode the clip. It moves forth and back, so that a long one needs no large image."""
    there = moving_clip(min(num_frames, 60), width, height)
    frames = torch.cat([there, there.flip(0)]).mul(255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream(CODEC, rate=FRAMES_PER_SECOND, options={"crf": "23"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.time_base = Fraction(1, FRAMES_PER_SECOND)
        for n in range(num_frames):
            frame = av.VideoFrame.from_ndarray(frames[n % len(frames)], format="rgb24")
            frame.pts, frame.time_base = n, Fraction(1, FRAMES_PER_SECOND)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def _by_pipe(source: Path, vspipe: Vspipe, folder: Path) -> _Ran:
    script, output = folder / "pipe.vpy", folder / "pipe.mkv"
    script.write_text(_SCRIPT.format(source=str(source)), encoding="utf-8")
    encoder = ["-c:v", CODEC, "-crf", str(DEFAULT_CRF[CODEC]), "-preset", DEFAULT_PRESET[CODEC], str(output)]
    left = shlex.join([str(vspipe.executable), "-c", "y4m", str(script), "-"])
    right = shlex.join([str(find_ffmpeg()), "-nostdin", "-v", "error", "-y", "-i", "-", *encoder])
    return _timed(["bash", "-c", f"set -o pipefail; {left} | {right}"], environment=dict(vspipe.environment))


def _command(source: Path, output: Path) -> list[str]:
    return [sys.executable, "-m", "vsrealbasicvsr", "upscale", str(source), str(output), "--overwrite"]


def _by_command(source: Path, folder: Path) -> _Ran:
    return _timed(_command(source, folder / "command.mkv"))


def _timed(command: list[str], environment: dict[str, str] | None = None) -> _Ran:
    begun = time.perf_counter()
    done = process.run(command, environment=environment)
    seconds = time.perf_counter() - begun
    if done.returncode:
        raise UserError(f"{Path(command[0]).name} failed: {done.last_words()}")
    return _Ran(seconds, done.cpu_seconds, done.peak_bytes)


def _first_messages(source: Path, folder: Path) -> tuple[float, float]:
    """Return when the command says something, and when it has a frame, in seconds after its start."""
    begun = time.perf_counter()
    with subprocess.Popen(
        [*_command(source, folder / "told.mkv"), "--json"], stdout=subprocess.PIPE, text=True
    ) as running:
        times = {event: time.perf_counter() - begun for event in _first_of_each(running)}
    if running.returncode or "progress" not in times:
        raise UserError("rbvsr upscale failed; its message stands above")
    return min(times.values()), times["progress"]


def _first_of_each(running: subprocess.Popen[str]) -> Iterator[str]:
    assert running.stdout is not None
    seen: set[str] = set()
    for line in running.stdout:
        event = json.loads(line)["event"]
        if event not in seen:
            seen.add(event)
            yield event
