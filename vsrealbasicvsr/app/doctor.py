"""`rbvsr doctor`: what is installed, what is not, and what to type. Works where any other part is missing.

Nothing but Python's own library is imported at the top: what a check needs, it imports itself.
"""

import ctypes
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlparse

from vsrealbasicvsr.errors import printable, shown_path

DISTRIBUTION = "vsrealbasicvsr"
MIN_PYTHON = (3, 12)
MIN_VAPOURSYNTH = 81
MIN_TORCH = (2, 6)
MIN_FREE_BYTES = 2 * 2**30
"""Below it, a warning: a segment of a large video takes as much."""
VSPIPE_TIMEOUT_SECONDS = 120
WANTED_ENCODERS = ("libx264", "libx265", "libsvtav1", "libvpx-vp9", "ffv1")
DEFAULT_ENCODERS = ("libx264", "libx265")
GPU_HELP = "https://pytorch.org/get-started/locally"

Status = Literal["ok", "warning", "fault"]


@dataclass(frozen=True, slots=True)
class Check:
    """What was found of one part. `cure`: what to type or do; nothing where all is well."""

    name: str
    status: Status
    found: str
    cure: str = ""


def examine() -> Iterator[Check]:
    """Yield a check for each part, one after another. Never raises: what a check raises is a fault."""
    checks: tuple[tuple[str, Callable[[], Iterator[Check]]], ...] = (
        ("Python", _python),
        ("rbvsr", _package),
        ("VapourSynth", _vapoursynth),
        ("plugin core.rbvsr", _plugin),
        ("vspipe", _vspipe),
        ("BestSource", _bestsource),
        ("torch", _torch),
        ("GPU", _gpu),
        ("kernels", _kernels),
        ("default weights", _weights),
        ("encoders", _encoders),
        ("folders", _folders),
        ("disk", _disk),
    )
    for name, check in checks:
        try:
            yield from check()
        except Exception as error:
            yield Check(name, "fault", _reason(error), _reinstall())


def run_doctor(*, as_json: bool) -> tuple[int, int]:
    """Print a line for each part, or a JSON list of them. Return the numbers of faults and warnings."""
    checks = []
    if as_json:
        checks = list(examine())
        print(json.dumps([asdict(check) for check in checks], indent=1))
    else:
        checks = list(_printed(examine()))
    return sum(check.status == "fault" for check in checks), sum(check.status == "warning" for check in checks)


def _printed(checks: Iterator[Check]) -> Iterator[Check]:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    styles = {"ok": "green", "warning": "yellow", "fault": "bold red"}
    for check in checks:
        line = Text(f"{check.status:<8}", style=styles[check.status])
        line.append(f"{check.name}: {check.found}", style="default")
        console.print(line)
        if check.cure:
            console.print(Text(f"        -> {check.cure}", style="bold"))
        yield check


# ---- what to type ----------------------------------------------------------------------------------------------------


def _pip(*arguments: str) -> str:
    return shlex.join([sys.executable or "python", "-m", "pip", *arguments])


def _reinstall() -> str:
    """Return the command that installs this package again, in the way in which it was installed."""
    folder = _editable_folder()
    if folder is not None:
        return _pip("install", "--no-deps", "--editable", folder)
    return _pip("install", "--force-reinstall", "--no-deps", DISTRIBUTION)


def _editable_folder() -> str | None:
    """Return the folder of an editable installation."""
    try:
        text = importlib.metadata.distribution(DISTRIBUTION).read_text("direct_url.json")
        found = json.loads(text or "{}")
    except (importlib.metadata.PackageNotFoundError, ValueError, OSError):
        return None
    if not found.get("dir_info", {}).get("editable"):
        return None
    return unquote(urlparse(found["url"]).path)


def _reason(error: BaseException) -> str:
    return printable(f"{type(error).__name__}: {error}", 400)


def _import(name: str) -> tuple[Any, str]:
    """Return the module and "", or None and why it cannot be imported."""
    try:
        return importlib.import_module(name), ""
    except Exception as error:  # libraries that cannot be loaded raise many types
        return None, _reason(error)


# ---- the parts -------------------------------------------------------------------------------------------------------


def _python() -> Iterator[Check]:
    found = f"{platform.python_version()} ({sys.executable})"
    if sys.version_info[:2] < MIN_PYTHON or sys.maxsize < 2**32:
        wanted = f"Python {MIN_PYTHON[0]}.{MIN_PYTHON[1]} or newer, of 64 bits"
        yield Check("Python", "fault", found, f"install {wanted}, and rbvsr into it")
    else:
        yield Check("Python", "ok", found)


def _package() -> Iterator[Check]:
    from vsrealbasicvsr import __file__ as place
    from vsrealbasicvsr import __version__

    found = f"{__version__} in {shown_path(Path(place).parent)}"
    try:
        installed = importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        yield Check("rbvsr", "warning", f"{found}, which is not installed", _pip("install", DISTRIBUTION))
        return
    if installed != __version__:
        yield Check("rbvsr", "warning", f"{found}, but {installed} is installed", _reinstall())
    else:
        yield Check("rbvsr", "ok", found)


def _vapoursynth() -> Iterator[Check]:
    vs, reason = _import("vapoursynth")
    if vs is None:
        found = "not installed" if importlib.util.find_spec("vapoursynth") is None else reason
        yield Check("VapourSynth", "fault", found, _pip("install", "--force-reinstall", "vapoursynth"))
        return
    number = int(vs.__version__.release_major)
    found = f"R{number} in {shown_path(Path(vs.__file__).parent)}"
    if number < MIN_VAPOURSYNTH:
        yield Check("VapourSynth", "fault", f"{found} is too old", _pip("install", "--upgrade", "vapoursynth"))
    else:
        yield Check("VapourSynth", "ok", found)


def _plugin() -> Iterator[Check]:
    vs, _ = _import("vapoursynth")
    if vs is None:
        yield Check("plugin core.rbvsr", "fault", "needs VapourSynth", "mend VapourSynth first")
        return
    folder = Path(vs.__file__).parent / "plugins" / "rbvsr"
    name = {"win32": "rbvsr.dll", "darwin": "librbvsr.dylib"}.get(sys.platform, "librbvsr.so")
    library = folder / name
    if hasattr(vs.core, "rbvsr"):
        yield from _plugin_version(vs, library)
    elif not library.is_file():
        yield Check("plugin core.rbvsr", "fault", f"there is no {shown_path(library)}", _reinstall())
    elif not (folder / "manifest.vs").is_file():
        yield Check("plugin core.rbvsr", "fault", f"there is no {shown_path(folder / 'manifest.vs')}", _reinstall())
    else:
        found = f"{shown_path(library)} {_why_not_loaded(library)}"
        yield Check("plugin core.rbvsr", "fault", found, _reinstall())


def _why_not_loaded(library: Path) -> str:
    """Return the reason that VapourSynth, which passes over such a plugin, does not tell."""
    try:
        ctypes.CDLL(str(library))
    except OSError as error:
        return f"cannot be loaded ({printable(str(error), 300)})"
    return "can be opened, but VapourSynth does not take it"


def _plugin_version(vs: Any, library: Path) -> Iterator[Check]:
    path = Path(getattr(vs.core.rbvsr, "plugin_path", "") or library)
    try:
        versions = dict(vs.core.rbvsr.Version())
    except vs.Error as error:
        yield Check("plugin core.rbvsr", "fault", printable(str(error), 400), _reinstall())
        return
    version = versions.get("rbvsr", "?")
    found = f"{version.decode() if isinstance(version, bytes) else version} in {shown_path(path)}"
    if path.parent != library.parent and library.is_file():
        cure = f"delete {shown_path(path)}"
        yield Check("plugin core.rbvsr", "warning", f"{found}, before the one that belongs to this Python", cure)
    else:
        yield Check("plugin core.rbvsr", "ok", found)


_PROBE = """\
import json, sys
import vapoursynth as vs
said = {"prefix": sys.prefix, "rbvsr": hasattr(vs.core, "rbvsr")}
print("RBVSR " + json.dumps(said), file=sys.stderr, flush=True)
vs.core.std.BlankClip(length=1).set_output()
"""


def _vspipe() -> Iterator[Check]:
    """A script through vspipe, as a user's script would run."""
    spec = importlib.util.find_spec("vapoursynth")
    own = Path(spec.origin).parent if spec and spec.origin else None
    own_vspipe = shutil.which("vspipe", path=str(own)) if own else None
    vspipe = shutil.which("vspipe") or own_vspipe
    if vspipe is None:
        cure = _pip("install", "--force-reinstall", "vapoursynth")
        yield Check("vspipe", "fault", "there is none on PATH, nor beside VapourSynth", cure)
        return
    configure = shlex.join([sys.executable, "-m", "vapoursynth", "config"])
    with tempfile.TemporaryDirectory(prefix="rbvsr-") as folder:
        script = Path(folder) / "probe.vpy"
        script.write_text(_PROBE, encoding="utf-8")
        command = [vspipe, "--info", str(script), "-"]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, errors="replace", timeout=VSPIPE_TIMEOUT_SECONDS, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            yield Check("vspipe", "fault", f"{shown_path(vspipe)}: {_reason(error)}", configure)
            return
    said = next((line[6:] for line in done.stderr.splitlines() if line.startswith("RBVSR ")), None)
    if said is None:
        reason = printable(" ".join(done.stderr.split()[-40:]), 300) or f"it ended with {done.returncode}"
        found = f"{shown_path(vspipe)} does not run a script ({reason})"
        if "couldn't be determined" in reason:
            found = f"{shown_path(vspipe)} is not configured: it does not know which Python to run"
        elif (configured := _configured_python(own)) and not _is_this_python(configured):
            found = f"{shown_path(vspipe)} is configured for another Python, {shown_path(configured)} ({reason})"
        yield Check("vspipe", "fault", found, configure)
        return
    answer = json.loads(said)
    other = Path(answer["prefix"]).resolve() != Path(sys.prefix).resolve()
    if other:
        found = f"{shown_path(vspipe)} runs another Python, in {shown_path(answer['prefix'])}"
        cure = configure if own_vspipe and Path(vspipe).samefile(own_vspipe) else _use_instead(own_vspipe, configure)
        yield Check("vspipe", "warning" if answer["rbvsr"] else "fault", found, cure)
    elif not answer["rbvsr"]:
        yield Check("vspipe", "fault", f"{shown_path(vspipe)} does not load core.rbvsr", "mend the plugin first")
    else:
        yield Check("vspipe", "ok", f"{shown_path(vspipe)} runs this Python")


def _configured_python(vapoursynth_folder: Path | None) -> str | None:
    """Return the Python that `vapoursynth config` wrote down for this installation of VapourSynth."""
    config = os.environ.get("APPDATA") if sys.platform == "win32" else os.environ.get("XDG_CONFIG_HOME")
    folder = Path(config) if config else Path.home() / ".config"
    try:
        content = tomllib.loads((folder / "vapoursynth" / "vapoursynth.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if vapoursynth_folder is None:
        return None
    for library, entry in content.items():
        if Path(library).parent.resolve() == vapoursynth_folder.resolve() and isinstance(entry, list) and entry:
            return str(entry[0])
    return None


def _is_this_python(executable: str) -> bool:
    # Not resolved: the Pythons of two environments may be links to one.
    return Path(executable).parent.resolve() == Path(sys.executable).parent.resolve()


def _use_instead(own_vspipe: str | None, configure: str) -> str:
    if own_vspipe is None:
        return configure
    return f"{configure}, and run {shlex.quote(own_vspipe)} instead, or put its folder first on PATH"


def _bestsource() -> Iterator[Check]:
    vs, _ = _import("vapoursynth")
    if vs is None:
        yield Check("BestSource", "fault", "needs VapourSynth", "mend VapourSynth first")
    elif hasattr(vs.core, "bs"):
        yield Check("BestSource", "ok", _version_of("vapoursynth-bestsource"))
    else:
        name = "vapoursynth-bestsource"
        libraries = sorted((Path(vs.__file__).parent / "plugins").rglob("*bestsource*"))
        found = "not installed"
        if libraries:
            found = f"{shown_path(libraries[0])} {_why_not_loaded(libraries[0])}"
        elif _version_of(name) != "?":
            found = f"{_version_of(name)} is installed, but its library is not in VapourSynth's plugin folder"
        yield Check("BestSource", "fault", found, _pip("install", "--force-reinstall", "--no-deps", name))


def _version_of(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "?"


def _torch() -> Iterator[Check]:
    torch, reason = _import("torch")
    if torch is None:
        found = "not installed" if importlib.util.find_spec("torch") is None else reason
        yield Check("torch", "fault", found, _pip("install", "--force-reinstall", "torch"))
        return
    version = str(torch.__version__)
    number = tuple(int(part) for part in version.split("+")[0].split(".")[:2] if part.isdigit())
    if number < MIN_TORCH:
        yield Check("torch", "fault", f"{version} is too old", _pip("install", "--upgrade", "torch"))
    else:
        yield Check("torch", "ok", version)


def _gpu() -> Iterator[Check]:
    """What torch computes on, and whether it leaves a GPU aside."""
    torch, _ = _import("torch")
    if torch is None:
        yield Check("GPU", "fault", "needs torch", "mend torch first")
        return
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
        triton, reason = _import("triton")
        if triton is None and sys.platform == "linux":
            yield Check("GPU", "warning", f"{names}, without triton ({reason})", _pip("install", "triton"))
        else:
            yield Check("GPU", "ok", f"{names}, {'triton ' + _version_of('triton') if triton else 'no triton'}")
        return
    there = _nvidia_gpu()
    if there is None:
        yield Check("GPU", "ok", "no NVIDIA GPU here: the CPU computes")
    elif torch.version.cuda is None:
        cure = f"{_pip('uninstall', 'torch')}, then the command for CUDA that {GPU_HELP} gives"
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


def _kernels() -> Iterator[Check]:
    """The convolutions in C; without them torch computes, more slowly."""
    _, missing = _import("torch")
    if missing:
        yield Check("kernels", "fault", "need torch", "mend torch first")
        return
    from vsrealbasicvsr.backends import KERNELS_VARIABLE, available_kernels
    from vsrealbasicvsr.engine.device import cpu_kernels

    used = cpu_kernels()
    given = os.environ.get(KERNELS_VARIABLE)
    if used.startswith("none"):
        cure = f"unset {KERNELS_VARIABLE}" if given else _reinstall()
        yield Check("kernels", "fault", printable(used, 300), cure)
    elif used == "torch" and given == "off":
        yield Check(
            "kernels", "warning", f"{KERNELS_VARIABLE}=off: torch computes, more slowly", f"unset {KERNELS_VARIABLE}"
        )
    elif used == "torch":
        found = "there are none for this processor: torch computes on the CPU, more slowly"
        cure = f"install a C compiler (gcc), then {_reinstall()}" if platform.system() == "Linux" else ""
        yield Check("kernels", "warning" if cure else "ok", found, cure)
    else:
        yield Check("kernels", "ok", f"{used}, of {', '.join(available_kernels())}")


def _weights() -> Iterator[Check]:
    """The default weights, read and compared with the SHA-256 that was written into them."""
    _, missing = _import("torch")
    if missing:
        yield Check("default weights", "fault", "need torch", "mend torch first")
        return
    from vsrealbasicvsr.errors import UserError
    from vsrealbasicvsr.weights import DEFAULT_WEIGHTS, load_model

    try:
        load_model()
    except UserError as error:
        cure = _reinstall()
        if (folder := _editable_folder()) is not None:
            cure = shlex.join(["git", "-C", folder, "checkout", "--", "vsrealbasicvsr/weights/default.safetensors"])
        yield Check("default weights", "fault", printable(str(error), 400), cure)
        return
    yield Check("default weights", "ok", f"{shown_path(DEFAULT_WEIGHTS)}, as they were written")


def _encoders() -> Iterator[Check]:
    av, reason = _import("av")
    if av is None:
        yield Check("encoders", "fault", f"PyAV: {reason}", _pip("install", "--force-reinstall", "av"))
        return

    def has(name: str) -> bool:
        try:
            return bool(av.Codec(name, "w"))
        except Exception:  # its own type, another one in each version
            return False

    there = [name for name in WANTED_ENCODERS if has(name)]
    missing = [name for name in WANTED_ENCODERS if name not in there]
    found = f"PyAV {av.__version__} with {', '.join(there) or 'none'}"
    found += f", without {', '.join(missing)}" if missing else ""
    status: Status = "ok" if not missing else "fault" if set(missing) & set(DEFAULT_ENCODERS) else "warning"
    yield Check("encoders", status, found, _pip("install", "--force-reinstall", "av") if missing else "")


def _folders() -> Iterator[Check]:
    """The folders of this user that rbvsr, BestSource and Triton write into."""
    platformdirs, reason = _import("platformdirs")
    if platformdirs is None:
        yield Check("folders", "fault", reason, _pip("install", "platformdirs"))
        return
    folders = {
        "models": Path(platformdirs.user_data_path("rbvsr", appauthor=False)) / "models",
        "cache": Path(platformdirs.user_cache_path()),
        "temporary files": Path(tempfile.gettempdir()),
    }
    for name, folder in folders.items():
        existing = next((path for path in (folder, *folder.parents) if path.exists()), folder)
        if not _is_writable(existing):
            cure = f"make {shown_path(existing)} yours: {shlex.join(['chown', '-R', str(_user()), str(existing)])}"
            yield Check(name, "fault", f"nothing can be written in {shown_path(folder)}", cure)
        else:
            yield Check(name, "ok", shown_path(folder))


def _is_writable(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _user() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "USER"


def _disk() -> Iterator[Check]:
    here = Path.cwd()
    free = shutil.disk_usage(here).free
    found = f"{free / 2**30:.1f} GiB are free in {shown_path(here)}"
    if free < MIN_FREE_BYTES:
        yield Check("disk", "warning", found, "make room, or write to another disk")
    else:
        yield Check("disk", "ok", found)
