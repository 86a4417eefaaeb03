"""Where vspipe and ffmpeg are, and the environment that vspipe runs in."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

from .errors import EncodeError


def find_vspipe() -> Path:
    """The program itself, not the launcher in bin/, which would not pass a signal on. Raises EncodeError."""
    spec = importlib.util.find_spec("vapoursynth")
    folder = Path(spec.origin).parent if spec and spec.origin else Path()
    found = shutil.which("vspipe", path=str(folder))
    if not found:
        raise EncodeError(f"there is no vspipe in {folder}. Reinstall it: pip install --force-reinstall vapoursynth")
    return Path(found)


def find_ffmpeg() -> Path:
    """The ffmpeg on PATH if it can encode H.264, else the one that imageio-ffmpeg carries. Raises EncodeError."""
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
    """Variables under which vspipe finds this Python, for which it is configured in `folder`."""
    environment = {**os.environ, "XDG_CONFIG_HOME": str(folder)}
    python = Path(sys.executable)
    python = python.parent.resolve() / python.name  # vspipe looks itself up by its real path
    subprocess.run([str(python), "-m", "vapoursynth", "config"], env=environment, capture_output=True, check=False)
    return environment


def vspipe_environment(folder: Path) -> dict[str, str]:
    """The user's own variables if he has configured vspipe, else those of a configuration in `folder`."""
    works = subprocess.run([str(find_vspipe()), "--version"], capture_output=True, check=False).returncode == 0
    return dict(os.environ) if works else configured_environment(folder)
