"""What differs on Windows as far as another system can tell: what Python lacks there, and what the system refuses."""

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT, TIMEOUT_SECONDS
from vsrealbasicvsr.whole_file import whole_file

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
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_POSIX], cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_SECONDS
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert '"event": "progress"' in done.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="Windows itself refuses")
def test_only_what_is_open_for_writing_is_flushed_to_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    import vapoursynth as vs

    from vsrealbasicvsr.app.encoding import SegmentWriter, Tags, choose_encoder

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
