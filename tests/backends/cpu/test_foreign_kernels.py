"""The kernels of other processors and systems, cross-compiled: what they need, and that they compute what torch does.

apt install gcc-mingw-w64-x86-64 wine64 gcc-aarch64-linux-gnu qemu-user-static brings all that is looked for.
"""

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from scripts.build_hook import load_build_hook
from tests import ROOT
from tests.backends.cpu.foreign_kernels import ForeignKernels
from tests.backends.cpu.test_kernels import sizes, steps
from tests.networks import random_network, smooth_frames
from tests.tolerances import WINOGRAD
from vsrealbasicvsr.backends.cpu import CpuBackend, available
from vsrealbasicvsr.backends.torch import TorchBackend

KERNELS = ROOT / "vsrealbasicvsr/backends/cpu/kernels.c"
PROGRAM = Path(__file__).with_name("kernel_program.c")
MINGW, AARCH64 = "x86_64-w64-mingw32-gcc", "aarch64-linux-gnu-gcc"
WARNINGS = ["-Wall", "-Wextra", "-Werror"]
SYSTEM_DLLS = {"kernel32.dll", "msvcrt.dll", "ucrtbase.dll"}


def needed(*programs: str) -> None:
    for program in programs:
        if not shutil.which(program):
            pytest.skip(f"{program} is not installed")


def wine() -> str:
    """Debian puts wine64 beside the PATH."""
    found = next(filter(None, (shutil.which(name) for name in ("wine64", "wine", "/usr/lib/wine/wine64"))), None)
    return found or pytest.skip("wine is not installed")


def compiled(compiler: str, instruction_set: str, program: Path) -> None:
    """The program with the kernels in it, by the flags that the build hook takes for the library."""
    command = load_build_hook().kernel_command([compiler], PROGRAM, program, instruction_set)
    subprocess.run([part for part in command if part not in ("-shared", "-fPIC")], check=True)


@pytest.mark.long
@pytest.mark.parametrize("instruction_set", ["avx2", "avx512"])
def test_the_kernels_for_windows_need_nothing_but_system_dlls(instruction_set, tmp_path):
    needed(MINGW, "x86_64-w64-mingw32-objdump")
    made = tmp_path / f"{instruction_set}.dll"
    command = load_build_hook().kernel_command([MINGW, *WARNINGS], KERNELS, made, instruction_set)
    subprocess.run(command, check=True)
    listing = subprocess.run(
        ["x86_64-w64-mingw32-objdump", "-p", str(made)], capture_output=True, text=True, check=True
    ).stdout
    assert {name.lower() for name in re.findall(r"DLL Name: (\S+)", listing)} <= SYSTEM_DLLS
    exported = re.findall(r"\[ *\d+\] (?:\+base\[ *\d+\] +[0-9a-f]+ )?(rbvsr_\w+)$", listing, re.MULTILINE)
    assert set(exported) == {"rbvsr_lanes", "rbvsr_open", "rbvsr_operation_bytes", "rbvsr_run"}


@pytest.mark.long
def test_the_kernels_for_an_arm_processor_compile_without_a_warning(tmp_path):
    needed(AARCH64)
    command = load_build_hook().kernel_command([AARCH64, *WARNINGS], KERNELS, tmp_path / "neon.so", "neon")
    subprocess.run(command, check=True)


@pytest.fixture(scope="module", params=["neon", "avx2", "avx512"])
def foreign(request, tmp_path_factory):
    """NEON by qemu; the other two as Windows programs by wine, on a processor that has them."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "neon":
        needed(AARCH64, "qemu-aarch64-static")
        compiled(AARCH64, "neon", folder / "neon")
        command, environment = ["qemu-aarch64-static", "-L", "/usr/aarch64-linux-gnu", str(folder / "neon")], {}
    else:
        needed(MINGW)
        if platform.machine() != "x86_64" or request.param not in available():
            pytest.skip(f"this processor has no {request.param}")
        program = folder / f"{request.param}.exe"
        command = [wine(), str(program)]
        compiled(MINGW, request.param, program)
        environment = {"WINEPREFIX": str(folder / "wine"), "WINEDEBUG": "-all", "HOME": str(folder)}
    kernels = ForeignKernels(command, {"PATH": os.environ["PATH"], **environment}, num_threads=3)
    yield kernels
    assert kernels.close() == 0


@pytest.mark.slow
@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 4), (33, 2), (24, 33), (45, 19)])
def test_any_network_on_any_frame_gives_what_torch_gives(foreign, height, width):
    model, frames = random_network(sizes(seed=height)), smooth_frames(2, height, width)
    expected = steps(TorchBackend(model), frames)
    for name, ours in steps(CpuBackend(model, foreign), frames).items():
        largest = max(expected[name].abs().max().item(), 1.0)
        assert (ours - expected[name]).abs().max() <= WINOGRAD * largest, name


@pytest.mark.slow
def test_tiles_and_halves_give_what_torch_gives(foreign, monkeypatch):
    monkeypatch.setattr("vsrealbasicvsr.backends.cpu.backend.is_large", lambda height, width: True)
    model, frames = random_network(sizes(seed=4)), smooth_frames(2, 37, 20)
    expected = steps(TorchBackend(model), frames)
    for name, ours in steps(CpuBackend(model, foreign, max_tile_rows=16), frames).items():
        assert torch.isfinite(ours).all()
        largest = max(expected[name].abs().max().item(), 1.0)
        assert (ours - expected[name]).abs().max() <= 2e-3 * largest, name  # states of 16 bits
