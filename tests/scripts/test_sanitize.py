"""`make sanitize`: it finds a fault in either C file, and says what it lacks."""

import os
import shutil
import sys
from pathlib import Path

import pytest

from scripts import sanitize

pytestmark = pytest.mark.skipif(sys.platform != "linux" or not shutil.which("gcc"), reason="needs gcc on Linux")

PLUGIN_FAULTS = {
    "heap-buffer-overflow": (
        "malloc(sizeof(Round) + (size_t)num_requests * sizeof(FrameRequest))",
        "malloc(sizeof(int) + (size_t)(num_requests - 1) * sizeof(FrameRequest))",
    ),
    "Direct leak": ("    free(round);\n    vsapi->callFunction", "    vsapi->callFunction"),
}
KERNEL_FAULTS = {
    # one thread too many finds itself without scratch of its own
    "heap-buffer-overflow": ("calloc((size_t)num_threads, sizeof *p->scratch_size)", "calloc(1, 1)"),
}


def with_fault(source: Path, fault: tuple[str, str], folder: Path) -> Path:
    """A copy of the file with a fault in it."""
    text = source.read_text()
    assert text.count(fault[0]) == 1
    copy = folder / source.name
    copy.write_text(text.replace(*fault))
    return copy


@pytest.mark.slow
@pytest.mark.parametrize("report", PLUGIN_FAULTS)
def test_a_fault_in_the_plugin_is_found(report, tmp_path):
    assert report in sanitize.sanitized("address", plugin=with_fault(sanitize.PLUGIN, PLUGIN_FAULTS[report], tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("report", KERNEL_FAULTS)
def test_a_fault_in_the_kernels_is_found(report, tmp_path):
    kernels = with_fault(sanitize.KERNELS, KERNEL_FAULTS[report], tmp_path)
    assert report in sanitize.sanitized("address", kernels=kernels)


@pytest.mark.slow
def test_threads_that_do_not_wait_for_each_other_are_found(tmp_path):
    # the caller no longer waits for the others, which still count themselves out
    kernels = with_fault(
        sanitize.KERNELS, ("    while (p->busy) pthread_cond_wait(&p->end, &p->lock);\n", ""), tmp_path
    )
    assert "data race" in sanitize.sanitized("thread", kernels=kernels)


@pytest.mark.parametrize(("name", "wanted"), [("address", "libasan"), ("thread", "libtsan")])
def test_a_gcc_without_its_sanitizers_is_told_so_with_what_to_install(name, wanted, tmp_path, monkeypatch, capsys):
    gcc = tmp_path / "gcc"
    gcc.write_text('#!/bin/sh\necho "${1#-print-file-name=}"\n')  # so does one that has no such file
    gcc.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/bin")
    assert sanitize.main([name]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"sanitize: gcc has no {wanted}.so: apt install gcc {wanted}")
    assert said.count("\n") == 1


def test_a_leak_counts_where_one_of_our_files_asked_for_the_memory():
    leak = """Direct leak of 24 byte(s) in 1 object(s) allocated from:
    #0 0x7f in __interceptor_malloc asan_malloc_linux.cpp:69
    #1 0x7f in {place}
"""
    assert sanitize.is_ours(leak.format(place="request_frames vsrealbasicvsr/plugin/rbvsr.c:257"))
    assert sanitize.is_ours(leak.format(place="rbvsr_open vsrealbasicvsr/backends/cpu/kernels.c:611"))
    assert not sanitize.is_ours(leak.format(place="PyObject_Malloc Objects/obmalloc.c:1564"))
