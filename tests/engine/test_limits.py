"""Limits of memory: control groups and resource limits, real ones where they can be set; and children that fork."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from tests import TIMEOUT_SECONDS
from vsrealbasicvsr.engine import limits, memory

resource = pytest.importorskip("resource", reason="Windows has no resource limits")

UNLIMITED_V1 = 9223372036854771712
MIB = 2**20


def system(folder: Path, *, groups: str, mounts: str, files: dict[str, str]) -> Path:
    """A process's folder of /proc, and a tree of control groups: files under `folder`, which `mounts` calls ROOT."""
    process = folder / "proc" / "self"
    process.mkdir(parents=True)
    (process / "cgroup").write_text(groups)
    (process / "mountinfo").write_text(mounts.replace("ROOT", str(folder).replace(" ", r"\040")))
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text + "\n")
    return process


V2 = "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n30 23 0:26 / ROOT/sys rw - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = (
    "31 30 0:30 / ROOT/sys/cpu rw - cgroup cgroup rw,cpu\n"
    "35 30 0:32 / ROOT/sys/memory rw shared:9 master:2 - cgroup cgroup rw,memory\n"
    "41 30 0:38 / ROOT/sys/unified rw - cgroup2 cgroup2 rw\n"
)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"a/memory.max": "max", "a/b/memory.max": "max", "a/b/c/memory.max": "max"}, None),
        ({"a/memory.max": "max", "a/b/memory.max": "max", "a/b/c/memory.max": "500"}, 500),
        ({"a/memory.max": "400", "a/b/memory.max": "max", "a/b/c/memory.max": "500"}, 400),
        ({"a/memory.max": "400", "a/b/memory.max": "300", "a/b/c/memory.max": "500"}, 300),
        ({"a/b/memory.max": "300", "a/b/memory.high": "200", "a/b/c/memory.high": "max"}, 200),
        ({"a/b/c/d/memory.max": "100", "e/memory.max": "100"}, None),
    ],
)
def test_of_nested_groups_the_smallest_limit_counts(files, expected, tmp_path):
    process = system(
        tmp_path, groups="0::/a/b/c\n", mounts=V2, files={f"sys/{name}": text for name, text in files.items()}
    )
    assert limits.cgroup_limit_bytes(process) == expected


def test_the_first_version_of_control_groups_is_read_too(tmp_path):
    process = system(
        tmp_path,
        groups="12:cpu,cpuacct:/x\n4:hugetlb,memory:/docker/1f:2e\n1:name=systemd:/y\n0::/\n",
        mounts=V1,
        files={
            "sys/memory/memory.limit_in_bytes": str(UNLIMITED_V1),
            "sys/memory/docker/memory.limit_in_bytes": "800",
            "sys/memory/docker/1f:2e/memory.limit_in_bytes": str(UNLIMITED_V1),
            "sys/cpu/x/memory.limit_in_bytes": "1",
        },
    )
    assert limits.cgroup_limit_bytes(process) == 800


def test_a_container_that_sees_only_its_part_of_the_tree_finds_its_own_limit(tmp_path):
    mounts = V1.replace("/ ROOT/sys/memory", "/docker/1f ROOT/sys/memory")
    files = {"sys/memory/memory.limit_in_bytes": "800", "sys/memory/inner/memory.limit_in_bytes": "700"}
    for number, (group, expected) in enumerate(
        [("/docker/1f", 800), ("/docker/1f/inner", 700), ("/docker/1ff/inner", 800), ("/../other", 800)]
    ):
        folder = tmp_path / f"a space {number}"
        process = system(folder, groups=f"4:memory:{group}\n", mounts=mounts, files=files)
        assert limits.cgroup_limit_bytes(process) == expected, group


def test_a_system_without_control_groups_has_no_limit_of_theirs(tmp_path):
    assert limits.cgroup_limit_bytes(tmp_path) is None
    process = system(tmp_path, groups="", mounts=V2, files={})
    assert limits.cgroup_limit_bytes(process) is None
    assert limits.memory_bytes(process) == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_a_budget_stays_within_the_limit_of_the_container(tmp_path, monkeypatch):
    process = system(tmp_path, groups="0::/\n", mounts=V2, files={"sys/memory.max": str(2048 * MIB)})
    monkeypatch.setattr(memory, "memory_bytes", lambda: limits.memory_bytes(process))
    assert memory.free_bytes(torch.device("cpu")) == 1024 * MIB - 768 * MIB


def run(program: str, *, limited: int | None = None, group: Path | None = None) -> str:
    """What a Python program prints, under a limit of its address space, or in a control group."""

    def prepare() -> None:
        if limited is not None:
            resource.setrlimit(resource.RLIMIT_AS, (limited, limited))
        if group is not None:
            (group / "cgroup.procs").write_text(str(os.getpid()))

    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(program)],
        env=os.environ | {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"},
        preexec_fn=prepare,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


REPORT = """
import torch
from vsrealbasicvsr.engine import limits, memory
print(limits.cgroup_limit_bytes(), memory.free_bytes(torch.device("cpu")), limits.memory_cure(), sep="|")
"""


@pytest.mark.long
def test_a_budget_stays_within_the_address_space_that_is_left():
    limit = 6 * 2**30
    _, free, cure = run(REPORT, limited=limit).split("|")
    assert 0 < int(free) < limit // 2 - 100 * MIB
    if sys.platform == "linux":
        assert cure == "This process is limited to 6144 MiB of address space: raise that (ulimit -v unlimited)."


@pytest.mark.long
def test_a_budget_stays_within_a_real_control_group():
    for kind, folder, _ in limits._cgroup_folders(Path("/proc/self")):
        group = folder / f"rbvsr-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            try:
                (group / limits.CGROUP_FILES[kind][0]).write_text(str(2048 * MIB))
            except OSError:  # version 2: memory is not delegated to this folder
                continue
            limit, free, cure = run(REPORT, group=group).split("|")
        finally:
            group.rmdir()
        assert int(limit) == 2048 * MIB
        assert int(free) == 256 * MIB
        if resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY:
            assert cure.startswith("The container of this process is limited to 2048 MiB of memory: raise that")
        return
    pytest.skip("no control group can be made here")


@pytest.mark.long
def test_address_space_that_is_too_short_for_torch_is_told_as_that_and_not_as_a_missing_package():
    said = run(
        """
        import vapoursynth as vs
        clip = vs.core.std.BlankClip(width=32, height=24, length=1, format=vs.RGBS)
        try:
            clip.rbvsr.Upscale()
        except vs.Error as error:
            print(error)
        """,
        limited=400 * MIB,
    )
    assert said.startswith("rbvsr.Upscale: cannot import vsrealbasicvsr: ")
    assert said.endswith(
        ". This process is limited to 400 MiB of address space, and torch maps more: raise that (ulimit -v unlimited)."
    )
    assert "pip install" not in said


@pytest.mark.parametrize(
    ("raised", "cure"),
    [
        ("MemoryError()", "Memory is short: "),
        ("OSError(12, 'Cannot allocate memory')", "Memory is short: "),
        (
            "ImportError('libx.so: failed to map segment from shared object: Cannot allocate memory')",
            "Memory is short: ",
        ),
        ("ImportError('libx.so: failed to map segment from shared object')", "Memory is short, or that file system"),
        ("ImportError('libx.so: cannot allocate memory in static TLS block')", "Install it into the Python"),
        ("ModuleNotFoundError('No module named torch')", "Install it into the Python"),
    ],
)
def test_an_import_that_fails_names_its_cure(raised, cure):
    said = run(f"""
        import sys, vapoursynth as vs

        class Blocker:
            def find_spec(self, name, path=None, target=None):
                if name == "vsrealbasicvsr":
                    raise {raised}

        sys.meta_path.insert(0, Blocker())
        try:
            vs.core.std.BlankClip().rbvsr.Upscale()
        except vs.Error as error:
            print(error)
    """)
    _, _, text = said.partition("cannot import vsrealbasicvsr: ")
    _, _, text = text.partition(". ")
    assert text.startswith(cure)


FORKS = """
import hashlib, multiprocessing, os, signal, time
import torch
from vsrealbasicvsr.engine import Grid, SourceFrame, WindowUpscaler, choose_device
from vsrealbasicvsr.weights import load_model

# Copied by NumPy: torch's own operations on the thread that was forked may wait for workers that it does not have.
frames = torch.rand(3, 3, 112, 160, generator=torch.Generator().manual_seed(1)).numpy()
network = load_model({model!r})

def new():
    return WindowUpscaler(network, [choose_device("cpu", "fp32")], Grid(num_frames=3, length=3, overlap=0), theta=5.0)

def digest(upscaler):
    made = hashlib.sha256()
    for n in range(3):
        window = upscaler.cache.acquire(n)
        copies = {{i: torch.from_numpy(frames[i].copy()) for i in upscaler.cache.missing(window)}}
        upscaler.cache.supply(window, {{i: SourceFrame(rgb) for i, rgb in copies.items()}})
        made.update(upscaler.upscale(n)[0].numpy().tobytes())
        upscaler.cache.release(n)
    return made.hexdigest()

def new_digest():
    return digest(new())

used = new()
expected = digest(used)
for make in (lambda: digest(used), new_digest):
    child = os.fork()
    if child == 0:
        signal.alarm(30)  # a child that hangs ends by a signal
        os._exit(0 if make() == expected else 1)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
with multiprocessing.get_context("fork").Pool(2, initializer=signal.alarm, initargs=(60,)) as pool:
    results = pool.starmap_async(new_digest, [()] * 2).get(60)
print([one == expected for one in results], digest(used) == expected)
"""


@pytest.mark.long
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("kernels", ["", "off"])
def test_a_child_that_is_forked_after_frames_were_computed_computes_the_same_bytes(kernels, tiny_model, monkeypatch):
    monkeypatch.setenv("RBVSR_KERNELS", kernels)
    assert run(FORKS.format(model=str(tiny_model))).splitlines() == ["0", "0", "[True, True] True"]
