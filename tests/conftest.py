"""How the tests run, and the fixtures of all: a real core, vspipe and ffmpeg, real files, a network that is fast."""

import gc
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import TIMEOUT_SECONDS
from tests.clips import MakeClip, write_clip
from tests.networks import TINY
from tests.vspipe import Vspipe
from vsrealbasicvsr.model import RealBasicVSR
from vsrealbasicvsr.weights import load_model, write_weights

# What only some tests need (VapourSynth, codecs, pictures) is imported where they ask for it: a GPU machine without
# network may lack the others, and runs tests/backends/cuda/test_cuda.py.

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job: its children would ignore Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)

MAX_WORKERS = 4
"""More would wait for the longest file, and each takes about a GB of memory."""

TESTS = Path(__file__).resolve().parent
LONGEST_FILES = ("training/test_training.py", "filter/test_process.py", "engine/test_upscaler.py",
                 "app/test_doctor.py", "scripts/test_demo.py", "filter/test_filter.py", "filter/test_pipe.py",
                 "scripts/benchmark/test_benchmark_network.py", "scripts/gpu/test_gpu_machine.py",
                 "app/test_cluster.py", "app/test_files.py", "engine/test_limits.py",
                 "scripts/test_encode.py")  # fmt: skip
"""Started first, so that no worker is left alone with a long file at the end."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Decide the number of workers of `-n auto`, which make test passes, and the number of threads of each.

    One worker more than there are cores, for some tests wait for programs (on two cores two workers took 6:15, three
    5:59), with one thread: the networks of the tests are so small that threads waiting for each other would take most
    of the time. A file stays on one worker, because its fixtures are shared. No workers where there is a GPU: the tests
    of device="auto" would compete for it.
    """
    if torch.cuda.is_available() or os.environ.get("RBVSR_REQUIRE_CUDA") == "1":
        return 0
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    config.option.dist, config.option.loadscopereorder = "loadfile", False
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return int(os.environ.get("PYTEST_XDIST_AUTO_NUM_WORKERS", min(num_cores + 1, MAX_WORKERS)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first."""
    places = {TESTS / name: place for place, name in enumerate(LONGEST_FILES)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


def pytest_collection_finish() -> None:
    """Take what is loaded out of the garbage collector's hands: VapourSynth's `clip.frames()` starts a collection at
    its end, and going through all modules and tests each time took a sixth of the suite's time.
    """
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test that needs a GPU is skipped without one, unless RBVSR_REQUIRE_CUDA=1 says that it must not be."""
    if item.get_closest_marker("needs_cuda") is None or torch.cuda.is_available():
        return
    if os.environ.get("RBVSR_REQUIRE_CUDA") == "1":
        pytest.fail("RBVSR_REQUIRE_CUDA=1, but torch finds no CUDA GPU", pytrace=False)
    pytest.skip("needs a CUDA GPU")


@pytest.fixture(autouse=True)
def scheduling() -> Iterator[None]:
    """Give the process its scheduling policy back: as root, SVT-AV1 makes its caller a real-time thread (see
    training/degradations/codecs.py), and a worker beside it would get no core.
    """
    if not hasattr(os, "sched_getscheduler"):
        yield
        return
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    yield
    if os.sched_getscheduler(0) != before[0]:
        os.sched_setscheduler(0, *before)


@pytest.fixture(scope="session")
def core() -> Any:
    import vapoursynth as vs

    assert hasattr(vs.core, "rbvsr"), "the plugin is not installed: pip install -e . --no-deps"
    return vs.core.core


@pytest.fixture(scope="session")
def ffmpeg() -> Path:
    import imageio_ffmpeg

    return Path(shutil.which("ffmpeg") or imageio_ffmpeg.get_ffmpeg_exe())


@pytest.fixture(scope="session")
def vspipe_environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = str(tmp_path_factory.mktemp("home"))
    # One thread: the tests' networks are so small that threads waiting for each other would take most of the time.
    environment = {**os.environ, "XDG_CONFIG_HOME": folder, "XDG_CACHE_HOME": folder, "OMP_NUM_THREADS": "1"}
    # vspipe looks itself up by its real path: a link on the way to the environment's folder is followed.
    python = Path(sys.executable).parent.resolve() / Path(sys.executable).name
    command = [str(python), "-m", "vapoursynth", "config"]
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=TIMEOUT_SECONDS)
    return environment


@pytest.fixture
def vspipe(vspipe_environment: dict[str, str], tmp_path: Path) -> Vspipe:
    import vapoursynth as vs

    return Vspipe(Path(vs.__file__).parent / "vspipe", vspipe_environment, tmp_path)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A safetensors file of a random network: 8 channels, one block of each kind."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = RealBasicVSR(TINY)
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    write_weights(model, path, metadata={"note": "random"}, dtype=torch.float32)
    return path


@pytest.fixture(scope="session")
def two_sets(tiny_model: Path) -> Path:
    """A safetensors file of two sets of weights: the random network, and one with another flow and reconstruction that
    cleans otherwise. Its own mixture is 0.75.
    """
    faithful, sharp = load_model(tiny_model), load_model(tiny_model)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in sharp.named_parameters():
        if "resblocks" not in name:
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    path = tiny_model.with_name("two_sets.safetensors")
    write_weights(faithful, path, metadata={"note": "random"}, sharp=sharp, default_detail=0.75)
    return path


@pytest.fixture(scope="session")
def make_clip() -> MakeClip:
    """`write_clip`, for tests that want a clip of their own."""
    return write_clip


@pytest.fixture(scope="session")
def small_clip_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 frames of 64x48 at 25 per second, H.264 in .mp4, without audio."""
    return write_clip(tmp_path_factory.mktemp("clip") / "small.mp4")


@pytest.fixture(scope="session")
def small_clip_file_with_audio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with two audio tracks, AAC and FLAC."""
    return write_clip(tmp_path_factory.mktemp("clip") / "small_with_audio.mp4", audio_codecs=("aac", "flac"))
