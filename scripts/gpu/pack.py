"""Packs what must travel to a GPU machine without network into one folder that git leaves alone."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
from pathlib import Path

from vsrealbasicvsr.errors import UserError

from .footage import copy_photographs, copy_videos, draw_graphics
from .parts import copy_in_parts
from .wheels import archive, fetch_wheels

ROOT = Path(__file__).resolve().parents[2]
MAX_COMMAND_LENGTH = 2000
RUN_FILES = ("settings.json", "origin.json", "ema.safetensors")
MIB = 2**20


def pack_all(arguments: argparse.Namespace) -> None:
    """Carry out `pack`: fill the folder and print what travels, and the call. Raises UserError."""
    into: Path = arguments.into.resolve()
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir(parents=True)
    exclude_from_git(into)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wheels = sorted(arguments.wheels.glob("*.whl")) if arguments.wheels else fetch_wheels(ROOT, folder)
        if not wheels:
            raise UserError(f"there is no wheel in {arguments.wheels}. Leave --wheels out to fetch them.")
        archive(wheels, into / "site.tar.xz")
        print(f"{into / 'site.tar.xz'}: {', '.join('-'.join(wheel.name.split('-')[:2]) for wheel in wheels)}")
    if arguments.start is not None:
        pack_start(arguments.start, into / "start")
    num_videos = copy_videos(arguments.videos, into / "footage" / "videos")
    num_drawn = draw_graphics(arguments.graphics, into / "footage" / "graphics")
    limit = int(arguments.limit_mib * MIB)
    left = limit - repository_bytes(ROOT) - size_of(into)
    if left < 0:
        raise UserError(f"{-left / MIB:.1f} MiB too much travels without any photograph: take fewer --videos")
    taken, found = copy_photographs(
        arguments.photographs, into / "footage" / "photographs", max_bytes=left, quality=arguments.quality
    )
    travels = repository_bytes(ROOT) + size_of(into)
    print(f"{taken} of {found} photographs, {num_videos} videos, {num_drawn} drawn pictures")
    print(f"{travels / MIB:.1f} of {arguments.limit_mib:g} MiB travel: {size_of(into) / MIB:.1f} in {into.name}/")
    print(f"\nThere, in the root of the repository, with {into.name}/ beside it and a folder for results in OUT:\n")
    print(call(into.name, arguments.seconds))


def call(packed: str, seconds: int) -> str:
    """Return the command line for the other machine. Raises ValueError if it is too long for it."""
    site = "/tmp/site"
    text = (
        f'mkdir -p {site} "$OUT" && tar -xJf {packed}/site.tar.xz -C {site} && PYTHONUNBUFFERED=1'
        f" CUDA_MODULE_LOADING=LAZY PYTHONPATH={site}:$PWD python3 -m scripts.gpu measure --packed {packed}"
        f' --seconds {seconds} --out "$OUT"'
    )
    if len(text) > MAX_COMMAND_LENGTH:
        raise ValueError(f"the call has {len(text)} characters, {MAX_COMMAND_LENGTH} are allowed")
    return text


def pack_start(start: Path, into: Path) -> None:
    """Copy what training begins from: a file of weights, or of a run its settings, weights and newest checkpoint.

    Raises UserError if it is neither.
    """
    if start.is_file():
        copy_in_parts(start, into)
        return
    checkpoints = sorted((start / "checkpoints").glob("*.pt"))
    if not checkpoints:
        raise UserError(f"--start {start} is neither a file of weights nor a run with a checkpoint")
    for name in RUN_FILES:
        if (start / name).is_file():
            copy_in_parts(start / name, into)
    copy_in_parts(checkpoints[-1], into / "checkpoints")


def exclude_from_git(folder: Path) -> None:
    """Have git leave the folder alone, if it lies in a repository: in this clone only."""
    command = ["git", "-C", str(folder.parent), "rev-parse", "--show-toplevel", "--git-path", "info/exclude"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return
    top, exclude = done.stdout.splitlines()
    path = folder.parent / exclude
    line = f"/{folder.relative_to(Path(top).resolve()).as_posix()}/"
    known = path.read_text(encoding="utf-8") if path.exists() else ""
    if line not in known.splitlines():
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{known.rstrip()}\n{line}\n".lstrip(), encoding="utf-8")


def repository_bytes(root: Path) -> int:
    """Bytes of the working tree: what git tracks and what it does not ignore."""
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{root} is no clone of the repository, whose files are what travels: {done.stderr.strip()}")
    paths = {root / name for name in done.stdout.split("\0") if name}
    return sum(path.stat().st_size for path in paths if path.is_file())


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
