"""What differs on Windows as far as another system can tell: what Python lacks there, and what the system refuses."""

import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
from collections import deque
from contextlib import suppress
from nturl2path import url2pathname
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import vapoursynth as vs

from scripts.build_hook import load_build_hook
from tests import ROOT, TIMEOUT_SECONDS
from tests.clips import write_clip
from tests.programs import run_program
from vsrealbasicvsr.app import job, training_command, upscaling
from vsrealbasicvsr.app.doctor import cures
from vsrealbasicvsr.app.encoding import SegmentWriter, Tags, choose_encoder
from vsrealbasicvsr.app.interrupting import computed
from vsrealbasicvsr.app.source import open_source
from vsrealbasicvsr.errors import UserError
from vsrealbasicvsr.weights import read_network
from vsrealbasicvsr.whole_file import replace_file, whole_file

_WITHOUT_POSIX = """
import importlib, os, pkgutil, signal, sys


def import_all():
    for package in ("vsrealbasicvsr", "training"):
        found = importlib.import_module(package)
        for module in pkgutil.walk_packages(found.__path__, package + "."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)


import_all()  # and so all libraries, which have their own way with the system
for name in [name for name in sys.modules if name.partition(".")[0] in ("vsrealbasicvsr", "training")]:
    del sys.modules[name]
for name in ("fcntl", "grp", "pwd", "resource", "termios", "tty"):
    sys.modules[name] = None
for name in ("fork", "geteuid", "getloadavg", "getpgid", "getuid", "killpg", "mkfifo", "register_at_fork",
             "sched_getaffinity", "sched_getscheduler", "sched_setaffinity", "sched_setscheduler", "setsid",
             "statvfs", "sysconf"):
    delattr(os, name)
for name in ("SIGALRM", "SIGHUP", "SIGKILL", "SIGUSR1", "pthread_sigmask"):
    delattr(signal, name)
sys.platform = "win32"
import_all()

from vsrealbasicvsr.app.progress import PlainReporter, memory_mib
assert memory_mib() is None
reporter = PlainReporter(as_json=True)
reporter.start(0, 2)
reporter.frame()
"""


@pytest.mark.long
@pytest.mark.skipif(sys.platform == "win32", reason="the whole suite shows it")
def test_every_module_is_imported_without_the_modules_that_windows_lacks():
    assert '"event": "progress"' in run_program(_WITHOUT_POSIX).stdout


@pytest.mark.skipif(sys.platform == "win32", reason="Windows itself refuses")
def test_only_what_is_open_for_writing_is_flushed_to_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    flush, flushed = os.fsync, []

    def fsync(number: int) -> None:
        mode = os.fstat(number).st_mode
        if stat.S_ISREG(mode) and fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        flushed.append(stat.S_IFMT(mode))
        flush(number)

    monkeypatch.setattr(os, "fsync", fsync)
    clip = vs.core.std.BlankClip(width=32, height=32, format=vs.YUV420P8, length=1)
    assert clip.format is not None
    encoder = choose_encoder(clip.format, alpha=False, codec="ffv1", crf=None, preset=None, options={})
    writer = SegmentWriter(tmp_path / "segment.mkv", clip, encoder, Tags(rate=clip.fps))
    writer.write(clip.get_frame(0))
    writer.close()
    with whole_file(tmp_path / "whole") as file:
        file.write(b"content")
    assert flushed == [stat.S_IFREG, stat.S_IFREG, stat.S_IFDIR]


def test_a_file_that_a_virus_scanner_has_open_is_replaced_when_it_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, refusals = Path.replace, [PermissionError(errno.EACCES, "Access is denied")] * 2

    def scanned(source: Path, target: Path) -> Path:
        if refusals:
            raise refusals.pop()
        return replace(source, target)

    (tmp_path / "new").write_text("new")
    monkeypatch.setattr(Path, "replace", scanned)
    monkeypatch.setattr(sys, "platform", "win32")
    replace_file(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old").read_text() == "new"


def test_an_output_that_a_player_has_open_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(errno.EACCES, "Access is denied", str(source), None, str(target))

    monkeypatch.setattr(Path, "replace", refuse)
    (tmp_path / "made").touch()
    with pytest.raises(UserError, match=r"out\.mkv cannot be replaced: close the program that has it open"):
        upscaling._put_in_place(tmp_path / "made", tmp_path / "out.mkv")
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_kept_nothing_leaves_no_folder_where_an_open_lock_cannot_be_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink = Path.unlink
    folder = job.state_folder(tmp_path / "out.mkv")
    held: list[object] = []

    def refuse(path: Path, *arguments: Any, **options: Any) -> None:
        if held:
            raise PermissionError(errno.EACCES, "The process cannot access the file")
        unlink(path, *arguments, **options)

    monkeypatch.setattr(Path, "unlink", refuse)
    release = job.filelock.FileLock.release  # closes the lock
    monkeypatch.setattr(job.filelock.FileLock, "release", lambda lock: (held.clear(), release(lock)))
    monkeypatch.setattr(sys, "platform", "win32")
    with suppress(UserError), job.locked(tmp_path / "out.mkv"):
        held.append(folder)
        (folder / job.JOB_NAME).touch()
        raise UserError("no such codec")
    assert list(tmp_path.iterdir()) == []


def test_a_signal_ends_the_wait_for_a_frame_that_is_still_computed() -> None:
    go_on, waiting = threading.Event(), threading.Event()
    delivered: list[int] = []

    def slow(n: int, f: vs.VideoFrame) -> vs.VideoFrame:
        if n == 1:
            waiting.wait(TIMEOUT_SECONDS)
            # As on Windows, where none wakes the main thread, the signal arrives at another one.
            threading.Timer(0.2, signal.raise_signal, (signal.SIGINT,)).start()
            go_on.wait(10)
        delivered.append(n)
        return f

    clip = vs.core.std.BlankClip(width=16, height=16, length=3)
    clip = clip.std.ModifyFrame(clip, slow)
    try:
        with pytest.raises(KeyboardInterrupt):
            deque(waiting.set() for _ in computed(clip))
        assert 1 not in delivered
    finally:
        go_on.set()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads what Linux tells of this process")
def test_a_file_of_weights_that_was_read_can_be_replaced(tiny_model: Path) -> None:
    stored = read_network(tiny_model)
    assert stored.tensors
    assert str(tiny_model) not in Path("/proc/self/maps").read_text()


@pytest.mark.skipif(sys.platform == "win32", reason="makes paths longer than Windows has")
def test_the_index_of_a_source_does_not_repeat_its_path(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["n" * 200] * 12)  # twice as long is more than any system takes
    deep.mkdir(parents=True)
    source = write_clip(deep / "in.mkv", num_frames=150, width=32, height=32)
    assert open_source(source, deep).clip.num_frames == 150
    assert [path.name for path in deep.iterdir() if path != source] == ["index.0.bsindex"]


@pytest.mark.long
def test_a_name_that_the_consoles_encoding_lacks_is_printed(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vsrealbasicvsr", "models", "convert", "default", "\u65e5.safetensors"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONIOENCODING": "cp1252"},
        capture_output=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"\\u65e5.safetensors: ")


def test_the_doctors_commands_can_be_typed_into_windows_shells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(sys, "executable", r"C:\Program Files\Python\python.exe")
    monkeypatch.setattr(cures, "url2pathname", url2pathname)
    monkeypatch.setattr(cures, "_origin", lambda: {"url": "file:///C:/my%20clone", "dir_info": {"editable": True}})
    wanted = r'"C:\Program Files\Python\python.exe" -m pip install --no-deps --editable "C:\my clone"'
    assert cures.reinstall() == wanted


@pytest.mark.skipif(sys.platform == "win32", reason="signals its parent as POSIX does")
def test_ctrl_c_is_left_to_the_training_where_it_is_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    child = "import os, signal, sys; os.kill(os.getppid(), signal.SIGINT); sys.exit(3)"
    monkeypatch.setattr(training_command, "train_command", lambda arguments: [sys.executable, "-c", child])
    monkeypatch.setattr(training_command, "os", SimpleNamespace(name="nt"))
    assert training_command.run_training(["train"]) == 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (r"C:\mingw64\bin\gcc.exe", [r"C:\mingw64\bin\gcc.exe"]),
        (r"C:\Program Files\mingw64\gcc.exe", [r"C:\Program Files\mingw64\gcc.exe"]),
        (r'"C:\Program Files\mingw64\gcc.exe" -m64', [r"C:\Program Files\mingw64\gcc.exe", "-m64"]),
    ],
)
def test_the_path_of_a_compiler_keeps_its_backslashes(
    text: str, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hook = load_build_hook()
    monkeypatch.setattr(hook.shutil, "which", lambda name: name if name == words[0] else None)
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("CC", text)
    assert hook.find_compiler() == words


def test_without_visual_c_the_compiler_on_the_path_compiles_the_plugin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook = load_build_hook()
    if not any(map(shutil.which, hook.COMPILERS)):
        pytest.skip("there is no compiler")
    there = {name: shutil.which(name) for name in hook.COMPILERS}
    monkeypatch.setattr(hook.shutil, "which", there.get)
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.delenv("CC", raising=False)
    hook.compile_plugin(ROOT / "vsrealbasicvsr/plugin/rbvsr.c", tmp_path / "rbvsr.dll")
    assert (tmp_path / "rbvsr.dll").is_file()
