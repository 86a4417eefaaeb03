"""What the checks of `rbvsr doctor` share: a finding, and the commands that mend it. Needs no other package."""

import importlib
import importlib.metadata
import importlib.util
import json
import shlex
import subprocess
import sys
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlparse
from urllib.request import url2pathname

from vsrealbasicvsr.errors import printable

DISTRIBUTION = "vapoursynth-rbvsr"
EARLIER_DISTRIBUTION = "vsrealbasicvsr"
"""Its name before the first release."""

Status = Literal["ok", "warning", "fault"]


@dataclass(frozen=True, slots=True)
class Check:
    """What was found of one part. `cure`: what to type or do; nothing where all is well."""

    name: str
    status: Status
    found: str
    cure: str = ""


def pip(*arguments: str) -> str:
    """Return a command line of this Python's pip."""
    return command_line(sys.executable or "python", "-m", "pip", *arguments)


def command_line(*words: str) -> str:
    """Return the words of a command as they are typed here."""
    return subprocess.list2cmdline(words) if sys.platform == "win32" else shlex.join(words)


def reinstall() -> str:
    """Return the command that installs this package again, in the way in which it was installed."""
    folder = editable_folder()
    if folder is not None:
        return pip("install", "--no-deps", "--editable", folder)
    return pip("install", "--force-reinstall", "--no-deps", _local_path(_origin()) or DISTRIBUTION)


def editable_folder() -> str | None:
    """Return the folder of an editable installation."""
    origin = _origin()
    return _local_path(origin) if origin.get("dir_info", {}).get("editable") else None


def _origin() -> dict[str, Any]:
    """Return what pip wrote down of a folder or file that it installed from (PEP 610); empty for an index."""
    try:
        text = importlib.metadata.distribution(DISTRIBUTION).read_text("direct_url.json")
        found = json.loads(text or "{}")
    except (importlib.metadata.PackageNotFoundError, ValueError, OSError):
        return {}
    return found if isinstance(found, dict) else {}


def _local_path(origin: dict[str, Any]) -> str | None:
    url = urlparse(origin.get("url", ""))
    return url2pathname(url.path) if url.scheme == "file" else None


def reason_of(error: BaseException) -> str:
    """Return an exception in one line."""
    return printable(f"{type(error).__name__}: {error}", 400)


def imported(name: str) -> tuple[Any, str]:
    """Return the module and "", or None and why it cannot be imported."""
    try:
        return importlib.import_module(name), ""
    except Exception as error:  # libraries that cannot be loaded raise many types
        return None, reason_of(error)


def version_of(name: str) -> str:
    """Return the version of an installed distribution; "?" if there is none."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "?"
