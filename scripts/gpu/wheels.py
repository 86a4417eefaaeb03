"""Packages for a machine without network: wheels, fetched or built here, unpacked together into one archive.

An archive by xz is a third smaller than the wheels are.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

from vsrealbasicvsr.errors import UserError

PYTHON = "3.12"
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
PACKAGES = ("vapoursynth", "vsutil", "av")
"""What the machine lacks. It has torch, and most of what training needs."""
IN_THE_TREE = ("vsrealbasicvsr", "training")
"""Packages of our own wheel, of which only the compiled libraries are needed."""


def fetch_wheels(root: Path, folder: Path) -> list[Path]:
    """Return the wheels of PACKAGES, of the versions installed here, and that of the repository `root`.

    Raises UserError.
    """
    from importlib.metadata import PackageNotFoundError, version

    wanted = []
    for name in PACKAGES:
        try:
            wanted.append(f"{name}=={version(name)}")
        except PackageNotFoundError:
            wanted.append(name)
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    fixed = ["--no-deps", "--only-binary=:all:", "--python-version", PYTHON, "--implementation", "cp", *platforms]
    _pip(["download", "-q", *fixed, "-d", str(folder), *wanted])
    _pip(["wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder), str(root)])
    return sorted(folder.glob("*.whl"))


def _pip(words: list[str]) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        raise UserError(f"pip {words[0]} failed ({last}). Name a folder of wheels with --wheels.")


def archive(wheels: Iterable[Path], path: Path) -> None:
    """Write an archive of what is in the wheels, to be unpacked into a folder of PYTHONPATH.

    IN_THE_TREE is left out: the working tree travels, and stands on the path too.
    """
    with tempfile.TemporaryDirectory() as folder:
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as file:
                file.extractall(folder)
        with tarfile.open(path, "w:xz") as tar:
            for entry in sorted(path for path in Path(folder).iterdir() if path.name not in IN_THE_TREE):
                tar.add(entry, arcname=entry.name)
