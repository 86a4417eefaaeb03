"""Checks of `rbvsr doctor`: Python, this package, encoders, folders and the disk."""

import importlib
import importlib.metadata
import importlib.util
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from vsrealbasicvsr.errors import shown_path

from .cures import DISTRIBUTION, EARLIER_DISTRIBUTION, Check, Status, command_line, imported, pip, reinstall, version_of

MIN_PYTHON = (3, 12)
MIN_FREE_BYTES = 2 * 2**30
"""Below it, a warning: a segment of a large video takes as much."""
WANTED_ENCODERS = ("libx264", "libx265", "libsvtav1", "libvpx-vp9", "ffv1")
DEFAULT_ENCODERS = ("libx264", "libx265")


def check_python() -> Iterator[Check]:
    """Check the version of Python."""
    found = f"{platform.python_version()} ({sys.executable})"
    if sys.version_info[:2] < MIN_PYTHON or sys.maxsize < 2**32:
        wanted = f"Python {MIN_PYTHON[0]}.{MIN_PYTHON[1]} or newer, of 64 bits"
        yield Check("Python", "fault", found, f"install {wanted}, and rbvsr into it")
    else:
        yield Check("Python", "ok", found)


def check_package() -> Iterator[Check]:
    """Check that what runs is what is installed."""
    from vsrealbasicvsr import __file__ as place
    from vsrealbasicvsr import __version__

    found = f"{__version__} in {shown_path(Path(place).parent)}"
    try:
        installed = importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        clone = Path(place).resolve().parents[1]
        target = str(clone) if (clone / "pyproject.toml").is_file() else DISTRIBUTION
        yield Check("rbvsr", "warning", f"{found}, which is not installed", pip("install", target))
        return
    if version_of(EARLIER_DISTRIBUTION) != "?":
        # Both have the same files: uninstalling the earlier one takes them from the other.
        cure = f"{pip('uninstall', '--yes', EARLIER_DISTRIBUTION)}, then {reinstall()}"
        yield Check("rbvsr", "warning", f"{found}, and under its earlier name {EARLIER_DISTRIBUTION} too", cure)
    elif installed != __version__:
        yield Check("rbvsr", "warning", f"{found}, but {installed} is installed", reinstall())
    else:
        yield Check("rbvsr", "ok", found)


def check_encoders() -> Iterator[Check]:
    """Check the encoders that PyAV carries."""
    av, reason = imported("av")
    if av is None:
        yield Check("encoders", "fault", f"PyAV: {reason}", pip("install", "--force-reinstall", "av"))
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
    yield Check("encoders", status, found, pip("install", "--force-reinstall", "av") if missing else "")


def check_folders() -> Iterator[Check]:
    """Check the folders of this user that rbvsr, BestSource and Triton write into."""
    platformdirs, reason = imported("platformdirs")
    if platformdirs is None:
        yield Check("folders", "fault", reason, pip("install", "platformdirs"))
        return
    folders = {
        "models": Path(platformdirs.user_data_path("rbvsr", appauthor=False)) / "models",
        "cache": Path(platformdirs.user_cache_path()),
        "temporary files": Path(tempfile.gettempdir()),
    }
    for name, folder in folders.items():
        existing = next((path for path in (folder, *folder.parents) if path.exists()), folder)
        if not _is_writable(existing):
            words = ("icacls", str(existing), "/grant", f"{_user()}:(OI)(CI)M")  # to modify what is in it
            if sys.platform != "win32":
                words = ("chown", "-R", _user(), str(existing))
            cure = f"make {shown_path(existing)} yours: {command_line(*words)}"
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


def check_disk() -> Iterator[Check]:
    """Check the space on the disk of the current folder."""
    here = Path.cwd()
    free = shutil.disk_usage(here).free
    found = f"{free / 2**30:.1f} GiB are free in {shown_path(here)}"
    if free < MIN_FREE_BYTES:
        yield Check("disk", "warning", found, "make room, or write to another disk")
    else:
        yield Check("disk", "ok", found)
