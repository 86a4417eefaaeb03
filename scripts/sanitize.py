"""Run both C files under gcc's sanitizers: frames through a real VapourSynth core, with eight threads.

`python -m scripts.sanitize [address] [thread]`; without a name, both. The plugin and the kernels are compiled with
-fsanitize=address,undefined, or with -fsanitize=thread, into a folder of their own beside a copy of VapourSynth, and
`scripts/sanitized_frames.py` runs on those. Prints the sanitizer's report; the exit status is 1 if there is one.

VapourSynth, Python and torch are not compiled so. The address sanitizer sees only the arguments of its own functions
that they call (freed memory, strings without an end), which counts as an error here too; leaks count only if the memory
was allocated in one of the two files. The thread sanitizer checks the two files alone.
"""

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import vapoursynth

from scripts.build_hook import ROOT, load_build_hook
from vsrealbasicvsr.backends.cpu import available

PLUGIN = ROOT / "vsrealbasicvsr/plugin/rbvsr.c"
KERNELS = ROOT / "vsrealbasicvsr/backends/cpu/kernels.c"
NUM_THREADS = 8
TIMEOUT_SECONDS = 1200

SANITIZERS = {
    "address": ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"),
    "thread": ("-fsanitize=thread",),
}
LIBRARIES = {"address": "libasan.so", "thread": "libtsan.so"}
OPTIONS = {
    "address": {
        "ASAN_OPTIONS": "detect_leaks=1:exitcode=66:verify_asan_link_order=0",
        "LSAN_OPTIONS": "exitcode=0:max_leaks=0:print_suppressions=0",  # this script reads the leaks itself
        "UBSAN_OPTIONS": "print_stacktrace=1",
    },
    "thread": {"TSAN_OPTIONS": "ignore_noninstrumented_modules=1:exitcode=66:history_size=4:report_signal_unsafe=0"},
}

REPORT = re.compile(r"ERROR: AddressSanitizer|WARNING: ThreadSanitizer|FATAL: ThreadSanitizer|runtime error:")
LEAK = re.compile(r"^(?:Direct|Indirect) leak of .*?(?=^\s*$)", re.MULTILINE | re.DOTALL)


class CannotSanitizeError(Exception):
    """Something is missing. The text says what to install."""


def main(arguments: list[str] | None = None) -> int:
    """Run the sanitizers that were named, or both. Return 1 if one of them reports something."""
    parser = argparse.ArgumentParser(description="both C files under gcc's sanitizers")
    parser.add_argument("sanitizers", nargs="*", metavar="address|thread", help="default: both")
    chosen = parser.parse_args(arguments).sanitizers or list(SANITIZERS)
    if unknown := [name for name in chosen if name not in SANITIZERS]:
        parser.error(f"there is no sanitizer {unknown[0]!r} here: address, thread")
    found = False
    for name in chosen:
        try:
            said = sanitized(name)
        except CannotSanitizeError as error:
            print(f"sanitize: {error}", file=sys.stderr)
            return 2
        print(f"{name}: {said or 'nothing found'}", flush=True)
        found |= bool(said)
    return int(found)


def sanitized(name: str, *, plugin: Path = PLUGIN, kernels: Path = KERNELS) -> str:
    """Return a sanitizer's report about frames through a core with these two files; "" if there is none.

    Args:
        name: "address" or "thread".
        plugin: rbvsr.c.
        kernels: kernels.c.

    Raises:
        CannotSanitizeError: gcc or the sanitizer's library is missing.
    """
    runtime = find_runtime(name)
    with tempfile.TemporaryDirectory(prefix="rbvsr-sanitize-") as folder:
        instruction_sets = build(name, Path(folder), plugin, kernels)
        return "\n".join(filter(None, (run(name, runtime, Path(folder), one) for one in instruction_sets)))


def find_runtime(name: str) -> Path:
    """Return the sanitizer's library, which must be loaded first. Raise CannotSanitizeError if it is missing."""
    gcc = shutil.which("gcc")
    lacking = f"apt install gcc {'libasan8' if name == 'address' else 'libtsan2'} (Debian, Ubuntu), or "
    lacking += f"dnf install gcc {'libasan libubsan' if name == 'address' else 'libtsan'} (Fedora)"
    if sys.platform != "linux" or gcc is None:
        raise CannotSanitizeError(f"needs gcc on Linux: {lacking}")
    library = find_library(LIBRARIES[name])
    if library is None:
        raise CannotSanitizeError(f"gcc has no {LIBRARIES[name]}: {lacking}")
    return library


def find_library(name: str) -> Path | None:
    """Return where gcc has this library of its own; None if it is not installed."""
    found = subprocess.run(["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    path = Path(found.stdout.strip())
    return path.resolve() if path.is_absolute() else None


def build(name: str, folder: Path, plugin: Path, kernels: Path) -> list[str]:
    """Compile both files into a folder for PYTHONPATH, with a copy of VapourSynth. Return the kernels to run with."""
    hook = load_build_hook()
    package = Path(vapoursynth.__file__).parent
    shutil.copytree(package, folder / "vapoursynth", ignore=shutil.ignore_patterns("__pycache__", "plugins"))
    flags = [*SANITIZERS[name], "-g", "-O1", "-fno-omit-frame-pointer"]
    library = folder / "vapoursynth/plugins/rbvsr" / hook.library_name()
    library.parent.mkdir(parents=True)
    library.with_name("manifest.vs").write_text(f"[VapourSynth Manifest V1]\n{library.stem}\n", encoding="ascii")
    compile_with(hook.unix_command(["gcc"], plugin, library), flags)
    (folder / "rbvsr_kernels").mkdir()
    for one in available():
        compile_with(hook.kernel_command(["gcc"], kernels, folder / "rbvsr_kernels" / f"{one}.so", one), flags)
    return list(available()) or ["off"]


def compile_with(command: list[str], flags: list[str]) -> None:
    """Run a compiler's command with more flags, and without those that strip symbols."""
    done = subprocess.run(
        [*(part for part in command if part != "-s"), *flags], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise CannotSanitizeError(f"gcc could not compile:\n{done.stderr}")


def run(name: str, runtime: Path, folder: Path, instruction_set: str) -> str:
    """Return the sanitizer's report about frames through a core with kernels of this instruction set."""
    command = [sys.executable, "-P", str(ROOT / "scripts/sanitized_frames.py"), str(NUM_THREADS), instruction_set]
    if setarch := shutil.which("setarch"):  # the thread sanitizer needs a fixed address layout
        command = [setarch, platform.machine(), "-R", *command]
    environment = {
        **os.environ,
        **OPTIONS[name],
        "LD_PRELOAD": f"{runtime} {find_library('libstdc++.so.6')}",  # the sanitizer must intercept C++ exceptions
        "PYTHONPATH": str(folder),
        "PYTHONMALLOC": "malloc",
        "OMP_NUM_THREADS": str(NUM_THREADS),
        "RBVSR_KERNELS": instruction_set,
    }
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
    )
    leaks = [leak for leak in LEAK.findall(done.stderr + "\n\n") if is_ours(leak)]
    if REPORT.search(done.stderr) is None and not leaks and done.returncode == 0 and "frames are whole" in done.stdout:
        print(f"  {instruction_set}: {done.stdout.strip()}", flush=True)
        return ""
    others = done.stderr.split("ERROR: LeakSanitizer")[0].split("Shadow bytes around")[0]
    said = "\n".join([*leaks, others.strip()])
    return f"with the kernels {instruction_set} (the process ended with {done.returncode}):\n{done.stdout}{said}"


def is_ours(leak: str) -> bool:
    """Return whether the memory was allocated in one of the two files."""
    frames = [line for line in leak.splitlines() if line.lstrip().startswith("#")]
    return any(re.search(r"(rbvsr|kernels)\w*\.c:\d+", frame) for frame in frames[1:3])


if __name__ == "__main__":
    sys.exit(main())
