"""The scheduling policy of threads, which a library may change behind its caller's back."""

import contextlib
import os
from collections.abc import Iterator


@contextlib.contextmanager
def scheduling_kept() -> Iterator[None]:
    """Give this thread back the scheduling policy that it came with.

    In a process of root, SVT-AV1 makes the thread that opens an encoder a real-time one of the highest priority and
    leaves it so: from then on that thread takes its core from everything else on the machine.
    """
    if not hasattr(os, "sched_getscheduler"):
        yield
        return
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        if os.sched_getscheduler(0) != before[0]:
            os.sched_setscheduler(0, *before)
