"""Checks of `rbvsr doctor`: VapourSynth, the plugin, vspipe and BestSource."""

import ctypes
import importlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vsrealbasicvsr.errors import printable, shown_path

from .cures import Check, command_line, imported, pip, reason_of, reinstall, version_of

MIN_VAPOURSYNTH = 81
VSPIPE_TIMEOUT_SECONDS = 120


def check_vapoursynth() -> Iterator[Check]:
    """Check that VapourSynth is there and new enough."""
    vs, reason = imported("vapoursynth")
    if vs is None:
        found = "not installed" if importlib.util.find_spec("vapoursynth") is None else reason
        yield Check("VapourSynth", "fault", found, pip("install", "--force-reinstall", "vapoursynth"))
        return
    number = int(vs.__version__.release_major)
    found = f"R{number} in {shown_path(Path(vs.__file__).parent)}"
    if number < MIN_VAPOURSYNTH:
        yield Check("VapourSynth", "fault", f"{found} is too old", pip("install", "--upgrade", "vapoursynth"))
    else:
        yield Check("VapourSynth", "ok", found)


def check_plugin() -> Iterator[Check]:
    """Check that VapourSynth loads the native plugin, and where from."""
    vs, _ = imported("vapoursynth")
    if vs is None:
        yield Check("plugin core.rbvsr", "fault", "needs VapourSynth", "mend VapourSynth first")
        return
    folder = Path(vs.__file__).parent / "plugins" / "rbvsr"
    name = {"win32": "rbvsr.dll", "darwin": "librbvsr.dylib"}.get(sys.platform, "librbvsr.so")
    library = folder / name
    if hasattr(vs.core, "rbvsr"):
        yield from _plugin_version(vs, library)
    elif not library.is_file():
        yield Check("plugin core.rbvsr", "fault", f"there is no {shown_path(library)}", reinstall())
    elif not (folder / "manifest.vs").is_file():
        yield Check("plugin core.rbvsr", "fault", f"there is no {shown_path(folder / 'manifest.vs')}", reinstall())
    else:
        found = f"{shown_path(library)} {_why_not_loaded(library)}"
        yield Check("plugin core.rbvsr", "fault", found, reinstall())


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
        cure = "mend torch first" if imported("torch")[0] is None else reinstall()
        yield Check("plugin core.rbvsr", "fault", printable(str(error), 400), cure)
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


def check_vspipe() -> Iterator[Check]:
    """Run a script through vspipe, as a user's script would run."""
    spec = importlib.util.find_spec("vapoursynth")
    own = Path(spec.origin).parent if spec and spec.origin else None
    own_vspipe = shutil.which("vspipe", path=str(own)) if own else None
    vspipe = shutil.which("vspipe") or own_vspipe
    if vspipe is None:
        cure = pip("install", "--force-reinstall", "vapoursynth")
        yield Check("vspipe", "fault", "there is none on PATH, nor beside VapourSynth", cure)
        return
    configure = command_line(sys.executable, "-m", "vapoursynth", "config")
    with tempfile.TemporaryDirectory(prefix="rbvsr-") as folder:
        script = Path(folder) / "probe.vpy"
        script.write_text(_PROBE, encoding="utf-8")
        command = [vspipe, "--info", str(script), "-"]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, errors="replace", timeout=VSPIPE_TIMEOUT_SECONDS, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            yield Check("vspipe", "fault", f"{shown_path(vspipe)}: {reason_of(error)}", configure)
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
    return f"{configure}, and run {command_line(own_vspipe)} instead, or put its folder first on PATH"


def check_bestsource() -> Iterator[Check]:
    """Check that VapourSynth loads the source plugin."""
    vs, _ = imported("vapoursynth")
    if vs is None:
        yield Check("BestSource", "fault", "needs VapourSynth", "mend VapourSynth first")
    elif hasattr(vs.core, "bs"):
        yield Check("BestSource", "ok", version_of("vapoursynth-bestsource"))
    else:
        name = "vapoursynth-bestsource"
        libraries = sorted((Path(vs.__file__).parent / "plugins").rglob("*bestsource*"))
        found = "not installed"
        if libraries:
            found = f"{shown_path(libraries[0])} {_why_not_loaded(libraries[0])}"
        elif version_of(name) != "?":
            found = f"{version_of(name)} is installed, but its library is not in VapourSynth's plugin folder"
        yield Check("BestSource", "fault", found, pip("install", "--force-reinstall", "--no-deps", name))
