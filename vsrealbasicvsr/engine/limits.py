"""Limits of memory that the system sets this process: the machine, its control groups, its resource limits.

Knows no budgets and no tensors. psutil is no help: it reads the machine's memory only, in a container as well.
"""

import contextlib
import ctypes
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

if sys.platform != "win32":
    import resource

CGROUP_FILES = {"cgroup2": ("memory.max", "memory.high"), "cgroup": ("memory.limit_in_bytes",)}
"""Files with a group's limits, for each type of file system: version 2 and version 1 of control groups.

Above memory.high the kernel does not end the group's processes but slows them until they are of no use.
"""


def memory_bytes(process: Path = Path("/proc/self")) -> int | None:
    """Return the memory that the machine and the control groups leave to this process, or None where neither is known.

    Args:
        process: Folder of the process in the proc file system.
    """
    limits = list(_cgroup_limits(process))
    if sys.platform == "win32":
        status = _MemoryStatus(ctypes.sizeof(_MemoryStatus))
        if ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
            limits.append(status.physical_bytes)
    else:
        with contextlib.suppress(OSError, ValueError):
            limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(limits, default=None)


class _MemoryStatus(ctypes.Structure):
    """MEMORYSTATUSEX of Windows."""

    _fields_ = (
        ("num_bytes", ctypes.c_uint32),
        ("load_percent", ctypes.c_uint32),
        ("physical_bytes", ctypes.c_uint64),
        ("others", ctypes.c_uint64 * 6),
    )


def cgroup_limit_bytes(process: Path = Path("/proc/self")) -> int | None:
    """Return the smallest memory limit of the control groups that the process is in, or None without one.

    Groups are nested, and each group up to the root limits what is below it. "max" is no limit; version 1 writes a
    number near 2**63 instead, which is returned as it is.

    Args:
        process: Folder of the process in the proc file system.
    """
    return min(_cgroup_limits(process), default=None)


def address_space_left_bytes(process: Path = Path("/proc/self")) -> int | None:
    """Return how much more this process can map (`ulimit -v`, `ulimit -d`), or None if that is not limited."""
    if sys.platform == "win32":
        return None
    try:
        # proc(5), in pages: size resident shared text lib data dt
        pages = [int(number) for number in (process / "statm").read_text(encoding="ascii").split()]
    except (OSError, ValueError):  # macOS
        pages = [0] * 7
    left = [
        limit - used * resource.getpagesize()
        for limit, used in ((_soft(resource.RLIMIT_AS), pages[0]), (_soft(resource.RLIMIT_DATA), pages[5]))
        if limit is not None
    ]
    return max(min(left), 0) if left else None


def memory_cure() -> str:
    """Return what to do against a want of memory: the sentence names the limit that this process runs under, if any."""
    if sys.platform != "win32":
        for kind, option, what in ((resource.RLIMIT_AS, "v", "address space"), (resource.RLIMIT_DATA, "d", "data")):
            if (limit := _soft(kind)) is not None:
                return (
                    f"This process is limited to {limit >> 20} MiB of {what}: raise that (ulimit -{option} unlimited)."
                )
    group = cgroup_limit_bytes()
    if group is not None and group == memory_bytes():  # no more than the machine has
        return f"The container of this process is limited to {group >> 20} MiB of memory: raise that, or free memory."
    return "Free memory, or raise what the container or ulimit allows."


def _soft(kind: int) -> int | None:
    """Return the soft limit of this kind, None if it is unlimited."""
    if sys.platform == "win32":
        return None
    limit = resource.getrlimit(kind)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def _cgroup_limits(process: Path) -> Iterator[int]:
    """Yield every limit on the way from the process's group to the root, of version 2 and of version 1."""
    for kind, folder, top in _cgroup_folders(process):
        while True:
            for name in CGROUP_FILES[kind]:
                with contextlib.suppress(OSError, ValueError):  # no such file at the root; "max"
                    yield int((folder / name).read_text(encoding="ascii"))
            if folder == top:
                break
            folder = folder.parent


def _cgroup_folders(process: Path) -> Iterator[tuple[str, Path, Path]]:
    """Yield the type of file system, the process's folder in it and the folder of its root, where memory is controlled.

    See cgroups(7) and proc_pid_mountinfo(5). A container often sees only its own part of the tree: the mount's root is
    then no "/", and the groups above it cannot be read. If the group is not below that root, the root stands for it.
    """
    try:
        groups = (process / "cgroup").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        mounts = (process / "mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:  # not Linux
        return
    paths = {}
    for group in groups:
        _, controllers, path = group.split(":", 2)
        if not controllers:
            paths["cgroup2"] = path
        elif "memory" in controllers.split(","):
            paths["cgroup"] = path
    for mount in mounts:
        about, _, system = mount.partition(" - ")
        _, _, _, root, point, *_ = about.split(" ")
        kind, _, options = system.split(" ", 2)
        if kind not in paths or (kind == "cgroup" and "memory" not in options.split(",")):
            continue
        top = Path(_unescaped(point))
        inside = os.path.relpath(paths[kind], _unescaped(root))
        yield kind, top if inside.startswith("..") else top / inside, top


def _unescaped(path: str) -> str:
    """Return a path of mountinfo, where spaces and the like are written in octal, as it is."""
    return re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), path)
