"""What the tests share: a real core, vspipe and ffmpeg, real files, and a network small enough to be fast."""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from vsrealbasicvsr.model import Architecture, RealBasicVSR
from vsrealbasicvsr.weights import load_model, write_weights

# A deadlock is a test that fails, not a test that hangs.
TIMEOUT_SECONDS = 120
ROOT = Path(__file__).resolve().parents[1]

# What only some tests need (VapourSynth, codecs, pictures) is imported where they ask for it: a GPU machine without
# network may lack the others, and runs tests/test_cuda.py.

MakeClip = Callable[..., Path]

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job: its children would ignore Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)

MAX_WORKERS = 4
"""More would wait for the longest file, and each takes about a GB of memory."""

LONGEST_FILES = ("test_training.py", "test_upscaler.py", "test_app_files.py", "test_app_runs.py", "test_filter.py",
                 "test_process.py", "test_demo.py", "test_pipe.py", "test_benchmark_network.py")  # fmt: skip
"""Started first, so that no worker is left alone with a long file at the end."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Decide the number of workers of `-n auto`, which make test passes, and the number of threads of each.

    One worker for each core, with one thread: the networks of the tests are so small that threads waiting for each
    other would take most of the time. A file stays on one worker, because its fixtures are shared. No workers where
    there is a GPU: the tests of device="auto" would compete for it.
    """
    if torch.cuda.is_available() or os.environ.get("RBVSR_REQUIRE_CUDA") == "1":
        return 0
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    config.option.dist, config.option.loadscopereorder = "loadfile", False
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(int(os.environ.get("PYTEST_XDIST_AUTO_NUM_WORKERS", num_cores)), MAX_WORKERS)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first."""
    places = {name: place for place, name in enumerate(LONGEST_FILES)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


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


@dataclass(frozen=True, slots=True)
class Vspipe:
    """vspipe of this Python, configured in a folder of its own: the user's configuration is left alone."""

    executable: Path
    environment: dict[str, str]
    folder: Path

    def command(self, script: str, *arguments: str, output: str = "-") -> list[str]:
        """The command line that runs the text of a .vpy script; for a Popen with `environment`."""
        path = self.folder / "script.vpy"
        path.write_text(textwrap.dedent(script))
        return [str(self.executable), *arguments, str(path), output]

    def __call__(
        self, script: str, *arguments: str, output: str = "-", environment: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """Run the text of a .vpy script to its end; standard output and error are bytes."""
        return subprocess.run(
            self.command(script, *arguments, output=output),
            env=self.environment | (environment or {}),
            capture_output=True,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )


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
    sizes = Architecture(
        cleaning_channels=8,
        num_cleaning_blocks=1,
        mid_channels=8,
        num_backward_blocks=1,
        num_forward_blocks=1,
        fusion_channels=8,
        quarter_channels=8,
        hr_channels=8,
        hr_out_channels=8,
        flow_channels=(8, 8, 8, 8),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = RealBasicVSR(sizes)
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


def load_build_hook() -> ModuleType:
    """The build hook, which is no part of the installed package."""
    spec = importlib.util.spec_from_file_location("rbvsr_build_hook", ROOT / "vsrealbasicvsr/plugin/build_hook.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---- files -----------------------------------------------------------------------------------------------------------


def moving_photograph(num_frames: int, width: int, height: int) -> Iterator[np.ndarray]:
    from skimage import data, transform

    photograph = data.astronaut()
    for n in range(num_frames):
        view = transform.AffineTransform(scale=(2.0, 2.0), translation=(180 + 2 * n, 40 + n))
        frame = transform.warp(photograph / 255, view, output_shape=(height, width), order=1)
        yield (frame * 255).round().astype(np.uint8)


def write_clip(
    path: Path,
    *,
    num_frames: int = 30,
    width: int = 64,
    height: int = 48,
    rate: Fraction = Fraction(25),
    pts: list[int] | None = None,
    time_base: Fraction | None = None,
    pixel_format: str = "yuv420p",
    codec: str = "libx264",
    audio_codecs: tuple[str, ...] = (),
    colours: dict[str, int] | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """Write a clip of a moving photograph; its container is chosen by the suffix.

    pts: time stamp of each frame in units of time_base; default: one after another at `rate`. audio_codecs: one track
    of a tone for each. colours: attributes of the codec context, such as color_range. options: of the video codec.
    """
    import av

    time_base = time_base or 1 / rate
    pts = list(range(num_frames)) if pts is None else pts
    seconds = float((pts[-1] + 1) * time_base)
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        stream.time_base = stream.codec_context.time_base = time_base
        for name, value in (colours or {}).items():
            setattr(stream.codec_context, name, value)
        tracks = [file.add_stream(audio_codec, rate=48000, layout="stereo") for audio_codec in audio_codecs]
        for rgb, n in zip(moving_photograph(len(pts), width, height), pts, strict=True):
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
            frame.pts, frame.time_base = n, time_base
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
        for number, track in enumerate(tracks):
            samples = np.sin(np.arange(int(48000 * seconds)) * 0.03 * (number + 1), dtype=np.float32) / 4
            resampler = av.AudioResampler(track.codec_context.format, "stereo", 48000)
            sound = av.AudioFrame.from_ndarray(np.stack([samples, samples]), format="fltp", layout="stereo")
            sound.sample_rate, sound.pts = 48000, 0
            fifo = av.AudioFifo()
            for part in resampler.resample(sound):
                fifo.write(part)
            for part in fifo.read_many(track.codec_context.frame_size or 1024, partial=True):
                file.mux(track.encode(part))
            file.mux(track.encode())
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
