"""Our programs in processes of their own that start at once.

It takes a core two seconds to load torch. One process loads the packages, and a fork of it runs each command: a process
like any other, with its own memory, signals and exit status, that has its modules already. What is about the loading
itself is started as users start it.
"""

import importlib
import json
import os
import runpy
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

from tests import ROOT, TIMEOUT_SECONDS

RBVSR = (
    "cyclopts",
    "rich.table",
    "vsrealbasicvsr.app.preview",
    "vsrealbasicvsr.app.upscaling",
    "vsrealbasicvsr.filter.entry",
)
TRAINING = ("training.commands.train", "training.commands.evaluate", "training.trainer")
"""What `rbvsr` and `python -m training` load."""


class Process:
    """A program that runs in a fork; a Popen as far as the tests need one."""

    def __init__(self, module: str, *words: object, loads: tuple[str, ...], cwd: Path | None,
                 environment: dict[str, str] | None, start_new_session: bool) -> None:  # fmt: skip
        self.args = [module, *map(str, words)]
        self.returncode: int | None = None
        self._folder = tempfile.TemporaryDirectory()
        asked = {
            "module": module,
            "words": self.args[1:],
            "loads": loads,
            "cwd": str(cwd or Path.cwd()),
            "environment": os.environ | {"OMP_NUM_THREADS": "1"} | (environment or {}),
            "folder": self._folder.name,
            "starts_session": start_new_session,
        }
        server = _server()
        assert server.stdin is not None
        assert server.stdout is not None
        print(json.dumps(asked), file=server.stdin, flush=True)
        self.pid = int(server.stdout.readline())

    def _path(self, name: str) -> Path:
        return Path(self._folder.name) / name

    def poll(self) -> int | None:
        if self.returncode is None and self._path("status").exists():
            self.returncode = int(self._path("status").read_text())
        return self.returncode

    def wait(self, timeout: float = TIMEOUT_SECONDS) -> int:
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                self.kill()
                raise subprocess.TimeoutExpired(self.args, timeout, *self._said())
            time.sleep(0.005)
        assert self.returncode is not None
        return self.returncode

    def communicate(self, timeout: float = TIMEOUT_SECONDS) -> tuple[str, str]:
        self.wait(timeout)
        return self._said()

    def _said(self) -> tuple[str, str]:
        return self._path("stdout").read_text(), self._path("stderr").read_text()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start_module(
    module: str,
    *words: object,
    loads: tuple[str, ...],
    cwd: Path | None = None,
    environment: dict[str, str] | None = None,
    start_new_session: bool = False,
) -> "Process | subprocess.Popen[str]":
    """Start `python -m module words` with one thread for torch. loads: the modules that it may find loaded."""
    if hasattr(os, "pidfd_open"):
        return Process(
            module, *words, loads=loads, cwd=cwd, environment=environment, start_new_session=start_new_session
        )  # fmt: skip
    return subprocess.Popen(  # Windows, which does not fork, and macOS
        [sys.executable, "-m", module, *map(str, words)],
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | (environment or {}),
        start_new_session=start_new_session,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_module(
    module: str,
    *words: object,
    loads: tuple[str, ...],
    cwd: Path | None = None,
    environment: dict[str, str] | None = None,
    timeout: float = TIMEOUT_SECONDS,
) -> subprocess.CompletedProcess[str]:
    """The same to its end."""
    process = start_module(module, *words, loads=loads, cwd=cwd, environment=environment)
    out, err = process.communicate(timeout=timeout)
    assert process.returncode is not None
    return subprocess.CompletedProcess([module, *map(str, words)], process.returncode, out, err)


@cache
def _server() -> subprocess.Popen[str]:
    """The process that is forked; it ends with this one, which holds its standard input."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.forked"],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _serve() -> None:
    """Fork a child for each line of standard input and answer with its number; its exit status gets into a file."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what modules say while they are loaded is no answer
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with selectors.DefaultSelector() as selector:
        selector.register(sys.stdin, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is not sys.stdin:
                    child, folder = key.data
                    selector.unregister(key.fileobj)
                    os.close(key.fd)
                    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                    (Path(folder) / "status.part").write_text(str(status))
                    (Path(folder) / "status.part").rename(Path(folder) / "status")
                    continue
                line = sys.stdin.readline()  # one at a time: each is answered before the next is written
                if not line:
                    return
                asked = json.loads(line)
                for name in asked["loads"]:
                    importlib.import_module(name)
                child = os.fork()
                if child == 0:
                    answers.close()
                    _become(**asked)
                    return
                selector.register(os.pidfd_open(child), selectors.EVENT_READ, (child, asked["folder"]))
                print(child, file=answers, flush=True)


def _become(module: str, words: list[str], loads: list[str], cwd: str, environment: dict[str, str], folder: str,
            starts_session: bool) -> None:  # fmt: skip
    """Run the module as a program in this process, which ends when it does."""
    if starts_session:
        os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.stdin = open(os.devnull)  # noqa: PTH123, SIM115
    os.dup2(sys.stdin.fileno(), 0)
    for number, name in enumerate(("stdout", "stderr"), start=1):
        os.dup2(os.open(Path(folder) / name, os.O_WRONLY | os.O_CREAT, 0o600), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv[1:] = words
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _serve()
