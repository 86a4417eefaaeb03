"""The programs vspipe and ffmpeg, and the environment that vspipe runs in."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

from .errors import EncodeError


def find_vspipe() -> Path:
    """Find vspipe itself, not the launcher in bin/, which does not pass signals on.

    Raises EncodeError if it is missing.
    """
    spec = importlib.util.find_spec("vapoursynth")
    folder = Path(spec.origin).parent if spec and spec.origin else Path()
    found = shutil.which("vspipe", path=str(folder))
    if not found:
        raise EncodeError(f"there is no vspipe in {folder}. Reinstall it: pip install --force-reinstall vapoursynth")
    return Path(found)


def find_ffmpeg() -> Path:
    """Find the ffmpeg on PATH if it encodes H.264, else that of imageio-ffmpeg. Raise EncodeError if there is none."""
    on_path = shutil.which("ffmpeg")
    if on_path:
        encoders = subprocess.run([on_path, "-v", "quiet", "-encoders"], capture_output=True, text=True, check=False)
        if "libx264" in encoders.stdout:
            return Path(on_path)
    try:
        import imageio_ffmpeg
    except ImportError:
        if on_path:
            return Path(on_path)
        raise EncodeError("there is no ffmpeg on PATH. Install it, or: pip install imageio-ffmpeg") from None
    return Path(imageio_ffmpeg.get_ffmpeg_exe())


def configured_environment(folder: Path) -> dict[str, str]:
    """Configure vspipe for this Python in a folder. Return the environment variables with which it is used."""
    environment = {**os.environ, "XDG_CONFIG_HOME": str(folder)}
    python = Path(sys.executable)
    python = python.parent.resolve() / python.name  # vspipe looks itself up by its real path
    subprocess.run([str(python), "-m", "vapoursynth", "config"], env=environment, capture_output=True, check=False)
    return environment


def vspipe_environment(folder: Path) -> dict[str, str]:
    """Return the environment for vspipe: the user's own if it is configured there, else one configured in `folder`."""
    works = subprocess.run([str(find_vspipe()), "--version"], capture_output=True, check=False).returncode == 0
    return dict(os.environ) if works else configured_environment(folder)
