"""Compilation of the C files while a wheel is built, editable or not.

rbvsr.c goes to vapoursynth/plugins/rbvsr/, where VapourSynth looks for plugins; kernels.c, once for each instruction
set, to rbvsr_kernels/.
"""

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

import vapoursynth
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PLUGIN_FOLDER = "vapoursynth/plugins/rbvsr"
COMPILERS = ("cc", "gcc", "clang")

# VapourSynth's headers are included with -isystem, which hides their warnings. The tests compile with these flags too.
PLUGIN_FLAGS = ("-std=c99", "-O2")

KERNELS_FOLDER = "rbvsr_kernels"
KERNEL_FLAGS = ("-std=gnu11", "-O3", "-ffp-contract=fast")
INSTRUCTION_SETS = {
    "avx512": ("-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq", "-mfma"),
    "avx2": ("-mavx2", "-mfma", "-mf16c"),
    "neon": (),
}

NO_COMPILER = (
    "vsrealbasicvsr: no C compiler found, and the VapourSynth plugin core.rbvsr (C) has to be compiled. "
    "Install one and try again: `apt install gcc` (Debian, Ubuntu), `dnf install gcc` (Fedora), "
    "`xcode-select --install` (macOS), mingw-w64 or Visual Studio Build Tools with the C++ workload (Windows). "
    "The environment variable CC may name another compiler."
)


class NoCompilerError(RuntimeError):
    """There is no C compiler; the text says what to install."""


def library_name(platform: str = sys.platform) -> str:
    """Return the plugin's file name: VapourSynth appends .so, .dylib or .dll to the name in the manifest."""
    return {"win32": "rbvsr.dll", "darwin": "librbvsr.dylib"}.get(platform, "librbvsr.so")


def version_macros(source: Path = Path(__file__).parents[1] / "__init__.py") -> dict[str, str]:
    """Return the macros that tell rbvsr.c the package's `__version__`.

    The version is read, not imported: the package needs torch, which is absent while it is built.
    """
    found = re.search(r'^__version__ = "(\d+)\.(\d+)', source.read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None
    return {"RBVSR_VERSION_MAJOR": found[1], "RBVSR_VERSION_MINOR": found[2]}


def compiler_target(compiler: list[str]) -> str:
    """Return what gcc or clang compiles for, such as "x86_64-w64-mingw32"; this platform if it does not say."""
    try:
        done = subprocess.run([*compiler, "-dumpmachine"], capture_output=True, text=True, check=False)
    except OSError:
        return sysconfig.get_platform()
    return done.stdout.strip() if done.returncode == 0 else sysconfig.get_platform()


def library_flags(target: str) -> list[str]:
    """Return the flags for a library on `target` that needs nothing that the system does not bring.

    Windows: mingw's gcc links its own DLLs unless told not to. It also takes the stack to be aligned to 32 bytes, which
    Windows aligns to 16 (GCC bug 54412), so moves that need it may crash: the assembler writes the others.
    """
    if "mingw" in target:  # gcc: clang's triples end in windows-gnu or windows-msvc
        return ["-shared", "-static", "-s", "-Wa,-muse-unaligned-vector-move"]
    if "win" in target and "darwin" not in target:
        return ["-shared", "-static"] if "gnu" in target else ["-shared"]
    apple = "darwin" in target or "mac" in target
    return ["-shared", "-fPIC", "-fvisibility=hidden", "-Wl,-x" if apple else "-s"]


def unix_command(compiler: list[str], source: Path, library: Path) -> list[str]:
    """Return the command that compiles `source` into `library` with gcc or clang, for the compiler's own target."""
    versions = [f"-D{name}={number}" for name, number in version_macros().items()]
    flags = [*PLUGIN_FLAGS, *library_flags(compiler_target(compiler)), *versions]
    return [*compiler, *flags, "-isystem", vapoursynth.get_include(), "-o", str(library), str(source)]


def compile_plugin(source: Path, library: Path) -> None:
    """Compile the plugin with CC, or the first compiler found; on Windows Visual C++ comes before it if CC is not set.

    Args:
        source: rbvsr.c.
        library: The library to create.

    Raises:
        RuntimeError: There is no compiler (the text says what to install), or it failed (the text is its output).
    """
    if sys.platform == "win32" and not os.environ.get("CC"):
        try:
            compile_with_visual_c(source, library)
            return
        except NoCompilerError:
            pass
    compiler = find_compiler()
    result = subprocess.run(unix_command(compiler, source, library), capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise RuntimeError(f"vsrealbasicvsr: {compiler[0]} could not compile {source.name}:\n{result.stderr}")


def find_compiler() -> list[str]:
    """Return the command of CC, or of the first compiler of COMPILERS on PATH.

    Raises:
        NoCompilerError: There is none; the text says what to install.
    """
    compiler = split_command(os.environ.get("CC", "")) or [name for name in COMPILERS if shutil.which(name)][:1]
    if not compiler or not shutil.which(compiler[0]):
        raise NoCompilerError(NO_COMPILER)
    return compiler


def split_command(text: str) -> list[str]:
    r"""Return the words of a command; the backslashes of C:\mingw64\bin\gcc.exe are kept on Windows.

    There, a path with spaces needs no quotes if it is all that there is.
    """
    on_windows = sys.platform == "win32"
    if on_windows and shutil.which(text):
        return [text]
    return [word.strip('"') if on_windows else word for word in shlex.split(text, posix=not on_windows)]


def compile_with_visual_c(source: Path, library: Path) -> None:
    """Compile with Visual C++, which setuptools finds and whose environment it sets up. Raises RuntimeError."""
    from setuptools._distutils.ccompiler import new_compiler
    from setuptools._distutils.errors import CCompilerError, DistutilsPlatformError

    errors = CCompilerError, DistutilsPlatformError  # which says that there is none depends on setuptools
    try:
        compiler = new_compiler(compiler="msvc")
        compiler.initialize()
    except errors as error:
        raise NoCompilerError(NO_COMPILER) from error
    try:
        objects = compiler.compile(
            [str(source)],
            output_dir=str(library.parent),
            include_dirs=[vapoursynth.get_include()],
            macros=list(version_macros().items()),
            extra_preargs=["/std:c11", "/O2"],
        )
        compiler.link_shared_object(objects, str(library))
    except errors as error:
        raise RuntimeError(f"vsrealbasicvsr: Visual C++ could not compile {source.name}: {error}") from error


def instruction_sets(machine: str = platform.machine()) -> list[str]:
    """Return the instruction sets that a processor of this kind may have; Windows writes AMD64 and ARM64."""
    x86, arm = ["avx512", "avx2"], ["neon"]
    return {"x86_64": x86, "amd64": x86, "aarch64": arm, "arm64": arm}.get(machine.lower(), [])


def kernels_name(instruction_set: str, platform: str = sys.platform) -> str:
    """Return the file name of the kernels for an instruction set; cpu/library.py looks for the same."""
    return f"{instruction_set}.dll" if platform == "win32" else f"{instruction_set}.so"


def kernel_command(compiler: list[str], source: Path, library: Path, instruction_set: str) -> list[str]:
    """Return the command that compiles kernels.c for an instruction set with gcc or clang."""
    flags = [*KERNEL_FLAGS, *INSTRUCTION_SETS[instruction_set], *library_flags(compiler_target(compiler))]
    if "-fPIC" in flags:  # not Windows, whose threads need no library
        flags.append("-pthread")
    return [*compiler, *flags, "-o", str(library), str(source)]


def compile_kernels(source: Path, folder: Path) -> tuple[list[Path], list[str]]:
    """Compile kernels.c for every instruction set of this processor.

    Returns:
        The libraries created in `folder`, and why others are lacking, with the compiler's output: torch, which is
        slower, is then used instead.
    """
    try:
        compiler = find_compiler()
    except NoCompilerError:  # Windows: Visual C++ has compiled the plugin
        compiler = []
    if not compiler or Path(compiler[0]).stem.lower() in ("cl", "clang-cl"):
        return [], [f"{source.name} is written for gcc and clang, which are not there: install one (mingw-w64, LLVM)"]
    if sys.platform == "win32" and not instruction_sets(compiler_target(compiler).split("-")[0]):
        return [], [f"{compiler[0]} compiles {source.name} for 32 bits: install a compiler for 64 bits (mingw-w64)"]
    made, failures = [], []
    for name in instruction_sets():
        library = folder / kernels_name(name)
        command = kernel_command(compiler, source, library, name)
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode == 0:
            made.append(library)
        else:
            failures.append(f"{compiler[0]} could not compile {source.name} for {name}:\n{result.stderr}")
    return made, failures


def link_packages(root: Path, packages: list[str], folders: list[str]) -> None:
    """Link the packages in `folders`, which an editable installation puts on the import path instead of `root`.

    `root` also holds `tests` and `scripts`, names that other projects use too.

    Raises:
        RuntimeError: The system cannot create links.
    """
    for folder in folders:
        (root / folder).mkdir(exist_ok=True)
        for package in packages:
            link = root / folder / package
            if link.is_symlink() or link.exists():
                continue
            try:
                link.symlink_to(Path("..") / package, target_is_directory=True)
            except OSError as error:
                raise RuntimeError(
                    f"vsrealbasicvsr: an editable installation needs symbolic links, and {link} cannot be made"
                    f" ({error.strerror}). On Windows turn on developer mode, or install with `pip install .`"
                ) from None


class PluginBuildHook(BuildHookInterface[Any]):
    """Adds the plugin, its manifest and the kernels to a wheel, and tags it with the platform."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and add the files to the wheel.

        Args:
            version: "standard" or "editable"; both get the files.
            build_data: What hatchling builds the wheel from; changed in place.
        """
        self.build_folder = tempfile.TemporaryDirectory(prefix="rbvsr-")
        library = Path(self.build_folder.name) / library_name()
        compile_plugin(Path(self.root) / "vsrealbasicvsr" / "plugin" / "rbvsr.c", library)
        # A folder with a manifest is not searched for libraries: only those named here (without suffix) are loaded.
        manifest = library.with_name("manifest.vs")
        manifest.write_text(f"[VapourSynth Manifest V1]\n{library.stem}\n", encoding="ascii", newline="\n")

        files = {str(file): f"{PLUGIN_FOLDER}/{file.name}" for file in (library, manifest)}
        kernels = Path(self.root) / "vsrealbasicvsr" / "backends" / "cpu" / "kernels.c"
        made, failures = compile_kernels(kernels, Path(self.build_folder.name))
        files |= {str(file): f"{KERNELS_FOLDER}/{file.name}" for file in made}
        for failure in failures:
            self.app.display_warning(f"vsrealbasicvsr: {failure}\ntorch, which is slower, is used on such a processor.")
        build_data["force_include"].update(files)
        if version == "editable":
            link_packages(Path(self.root), self.build_config.packages, self.build_config.dev_mode_dirs)
        # Present only for an editable wheel, where it replaces force_include.
        if "force_include_editable" in build_data:
            build_data["force_include_editable"].update(files)
        # Not pure: VapourSynth is installed in platlib, so the plugin folder must be. Any Python 3: none is linked.
        build_data["pure_python"] = False
        build_data["tag"] = "py3-none-" + sysconfig.get_platform().replace("-", "_").replace(".", "_")

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the build folder after the wheel is written."""
        self.build_folder.cleanup()
