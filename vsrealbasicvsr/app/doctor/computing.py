"""Checks of `rbvsr doctor`: torch, the GPU, the kernels and the default weights."""

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from vsrealbasicvsr.errors import printable, shown_path

from .cures import Check, command_line, editable_folder, imported, pip, reinstall, version_of

MIN_TORCH = (2, 6)
GPU_HELP = "https://pytorch.org/get-started/locally"
WINDOWS_RUNTIME = "https://aka.ms/vs/17/release/vc_redist.x64.exe"


def check_torch() -> Iterator[Check]:
    """Check that torch is there and new enough."""
    torch, reason = imported("torch")
    if torch is None:
        found = "not installed" if importlib.util.find_spec("torch") is None else reason
        cure = pip("install", "--force-reinstall", "torch")
        if "WinError 126" in reason or "DLL load failed" in reason:
            cure = f"install the Visual C++ Redistributable from Microsoft ({WINDOWS_RUNTIME}), or {cure}"
        yield Check("torch", "fault", found, cure)
        return
    version = str(torch.__version__)
    number = tuple(int(part) for part in version.split("+")[0].split(".")[:2] if part.isdigit())
    if number < MIN_TORCH:
        yield Check("torch", "fault", f"{version} is too old", pip("install", "--upgrade", "torch"))
    else:
        yield Check("torch", "ok", version)


def check_gpu() -> Iterator[Check]:
    """Check what torch computes on, and whether it leaves a GPU aside."""
    torch, _ = imported("torch")
    if torch is None:
        yield Check("GPU", "fault", "needs torch", "mend torch first")
        return
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
        triton, reason = imported("triton")
        if triton is None and sys.platform == "linux":
            yield Check("GPU", "warning", f"{names}, without triton ({reason})", pip("install", "triton"))
        else:
            yield Check("GPU", "ok", f"{names}, {'triton ' + version_of('triton') if triton else 'no triton'}")
        return
    there = _nvidia_gpu()
    if there is None:
        yield Check("GPU", "ok", "no NVIDIA GPU here: the CPU computes")
    elif torch.version.cuda is None:
        cure = f"{pip('uninstall', 'torch')}, then the command for CUDA that {GPU_HELP} gives"
        yield Check("GPU", "warning", f"{there}, but this torch is without CUDA: the CPU computes", cure)
    elif "CUDA_VISIBLE_DEVICES" in os.environ:
        hidden = printable(os.environ["CUDA_VISIBLE_DEVICES"], 50)
        found = f"{there}, but CUDA_VISIBLE_DEVICES={hidden!r} hides it from torch"
        yield Check("GPU", "warning", found, "unset CUDA_VISIBLE_DEVICES")
    else:
        cure = f"update the NVIDIA driver until nvidia-smi shows CUDA {torch.version.cuda}, or take an older torch"
        found = f"{there}, but torch for CUDA {torch.version.cuda} cannot use it: the CPU computes"
        yield Check("GPU", "warning", found, cure)


def _nvidia_gpu() -> str | None:
    """Return the name of a GPU of NVIDIA that the system knows of."""
    program = shutil.which("nvidia-smi")
    if program is not None:
        command = [program, "--query-gpu=name,driver_version", "--format=csv,noheader"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return "an NVIDIA driver that does not answer"
        if done.returncode == 0 and done.stdout.strip():
            name, _, driver = done.stdout.strip().splitlines()[0].partition(",")
            return printable(f"{name.strip()} with driver {driver.strip()}", 100)
    if Path("/proc/driver/nvidia/version").exists():
        return "an NVIDIA GPU"
    return None


def check_kernels() -> Iterator[Check]:
    """Check the convolutions in C; without them torch computes, more slowly."""
    _, missing = imported("torch")
    if missing:
        yield Check("kernels", "fault", "need torch", "mend torch first")
        return
    from vsrealbasicvsr.backends import KERNELS_VARIABLE, available_kernels
    from vsrealbasicvsr.engine.device import cpu_kernels

    used = cpu_kernels()
    given = os.environ.get(KERNELS_VARIABLE)
    if used.startswith("none"):
        cure = f"unset {KERNELS_VARIABLE}" if given else reinstall()
        yield Check("kernels", "fault", printable(used, 300), cure)
    elif used == "torch" and given == "off":
        yield Check(
            "kernels", "warning", f"{KERNELS_VARIABLE}=off: torch computes, more slowly", f"unset {KERNELS_VARIABLE}"
        )
    elif used == "torch":
        found = "there are none for this processor: torch computes on the CPU, more slowly"
        cure = f"install a C compiler (gcc), then {reinstall()}" if platform.system() == "Linux" else ""
        yield Check("kernels", "warning" if cure else "ok", found, cure)
    else:
        yield Check("kernels", "ok", f"{used}, of {', '.join(available_kernels())}")


def check_weights() -> Iterator[Check]:
    """Read the default weights and compare them with the SHA-256 that was written into them."""
    _, missing = imported("torch")
    if missing:
        yield Check("default weights", "fault", "need torch", "mend torch first")
        return
    from vsrealbasicvsr.errors import UserError
    from vsrealbasicvsr.weights import DEFAULT_WEIGHTS, load_model

    try:
        load_model()
    except UserError as error:
        cure = reinstall()
        if (folder := editable_folder()) is not None:
            cure = command_line("git", "-C", folder, "checkout", "--", "vsrealbasicvsr/weights/default.safetensors")
        yield Check("default weights", "fault", printable(str(error), 400), cure)
        return
    yield Check("default weights", "ok", f"{shown_path(DEFAULT_WEIGHTS)}, as they were written")
