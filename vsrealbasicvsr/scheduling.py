"""Protection of a thread's scheduling policy, which some libraries change."""

import contextlib
import os
from collections.abc import Iterator


@contextlib.contextmanager
def scheduling_kept() -> Iterator[None]:
    """Restore this thread's scheduling policy when the block ends.

    In a process of root, SVT-AV1 gives the thread that opens an encoder real-time priority and leaves it so: that
    thread would then take its core from everything else on the machine.
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
