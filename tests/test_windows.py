"""What differs on Windows as far as another system can tell: modules and functions that Python lacks there."""

import subprocess
import sys

import pytest

from tests import ROOT, TIMEOUT_SECONDS

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
