"""`rbvsr upscale --cluster` on a real Ray: workers and the driver are killed, and the frames are those of one run."""

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import TIMEOUT_SECONDS
from tests.app.running import command, frames_of, run
from vsrealbasicvsr.app.dispatch import MAX_LOSSES, Dispatcher
from vsrealbasicvsr.app.plan import Segment
from vsrealbasicvsr.errors import UserError

pytest.importorskip("ray", reason="Ray is not installed: pip install 'vapoursynth-rbvsr[cluster]'")

pytestmark = pytest.mark.long

NUM_FRAMES = 120
CLUSTER = ["--cluster", "auto", "--workers", "2"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "RAY_DISABLE_DOCKER_CPU_WARNING": "1"}


@pytest.fixture(scope="module")
def source(ffmpeg: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cluster") / "in.mkv"
    made = ["-f", "lavfi", "-i", f"testsrc2=size=48x48:rate=25:duration={NUM_FRAMES / 25}", "-c:v", "libx264"]
    subprocess.run([str(ffmpeg), "-v", "error", *made, str(path)], check=True)
    return path


@pytest.fixture(scope="module")
def options(tiny_model: Path) -> list[str]:
    windows = ["--length", "5", "--overlap", "2", "--segment-frames", "10"]
    return [*windows, "--device", "cpu", "--model", str(tiny_model)]


@pytest.fixture(scope="module")
def undisturbed(source: Path, options: list[str], tmp_path_factory: pytest.TempPathFactory) -> str:
    output = tmp_path_factory.mktemp("alone") / "out.mkv"
    assert run("upscale", source, output, *options).returncode == 0
    return frames_of(output)


def parents() -> Iterator[tuple[int, int, str]]:
    """The number, parent and name of every process."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            name = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            status = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        yield int(folder.name), int(status[1]), name


def workers_of(driver: int) -> list[int]:
    """The processes of the driver's Ray that hold a worker."""
    found = {number: (parent, name) for number, parent, name in parents()}

    def is_below(number: int) -> bool:
        while number in found:
            number = found[number][0]
            if number == driver:
                return True
        return False

    return [number for number, (_, name) in found.items() if name.startswith("ray::Worker") and is_below(number)]


def wait_until(what: object, process: subprocess.Popen[Any]) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not what():  # type: ignore[operator]
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.skipif(sys.platform != "linux", reason="looks for Ray's workers in /proc")
def test_killed_workers_and_a_killed_driver_change_no_frame(
    source: Path, options: list[str], undisturbed: str, tmp_path: Path
) -> None:
    output = tmp_path / "out.mkv"
    state = tmp_path / "out.mkv.rbvsr"
    line = command("upscale", source, output, *options, *CLUSTER)

    def num_segments() -> int:
        return len(list(state.glob("*-*.mkv")))

    with subprocess.Popen(line, env=ENVIRONMENT, start_new_session=True, stderr=subprocess.DEVNULL) as driver:
        for kill in range(2):
            wait_until(lambda kill=kill: num_segments() > kill and workers_of(driver.pid), driver)
            os.kill(workers_of(driver.pid)[0], signal.SIGKILL)
        wait_until(lambda: num_segments() > 3, driver)
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    assert not output.exists()
    kept = num_segments()
    assert kept >= 4

    done = run("upscale", source, output, *options, *CLUSTER, "--json")
    assert done.returncode == 0, done.stderr
    assert f'"done": {10 * kept}' in next(line for line in done.stdout.splitlines() if '"start"' in line)
    assert frames_of(output) == undisturbed
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="kills a node's processes")
def test_a_killed_node_of_two_changes_no_frame(
    source: Path, options: list[str], undisturbed: str, tmp_path: Path
) -> None:
    from ray.cluster_utils import Cluster

    output = tmp_path / "out.mkv"
    state = tmp_path / "out.mkv.rbvsr"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        node = cluster.add_node(num_cpus=1)
        line = command("upscale", source, output, *options, "--cluster", cluster.address, "--workers", "2")
        with subprocess.Popen(line, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as driver:
            wait_until(lambda: len(list(state.glob("*-*.mkv"))) > 1, driver)
            cluster.remove_node(node, allow_graceful=False)
            said = driver.communicate(timeout=TIMEOUT_SECONDS)[1]
        assert driver.returncode == 0, said
    finally:
        cluster.shutdown()
    assert frames_of(output) == undisturbed
    assert list(tmp_path.iterdir()) == [output]


def test_a_cluster_that_does_not_answer_is_one_line(source: Path, options: list[str], tmp_path: Path) -> None:
    done = run("upscale", source, tmp_path / "out.mkv", *options, "--cluster", "127.0.0.1:1")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("rbvsr: no Ray cluster answers at 127.0.0.1:1")


def test_lost_segments_come_first_and_a_segment_that_kills_its_workers_is_given_up() -> None:
    segments = [Segment(first, first + 10) for first in range(0, 40, 10)]
    dispatcher = Dispatcher(segments)
    assert [dispatcher.next_for(worker) for worker in "ab"] == segments[:2]
    dispatcher.lost("a")
    assert dispatcher.next_for("c") == segments[0]
    assert dispatcher.done("b") == segments[1]
    for loss in itertools.count(2):
        if loss == MAX_LOSSES:
            with pytest.raises(UserError, match="5 workers died while they rendered frames 0 to 9"):
                dispatcher.lost("c")
            break
        dispatcher.lost("c")
        assert dispatcher.next_for("c") == segments[0]


def test_every_segment_is_handed_out_once_whatever_dies() -> None:
    segments = [Segment(first, first + 1) for first in range(50)]
    dispatcher, rendered = Dispatcher(segments), []
    for step in itertools.count():
        for worker in range(4):
            dispatcher.next_for((step, worker))
        for worker in range(4):
            if (step + worker) % 5 == 0:
                dispatcher.lost((step, worker))
            elif (step, worker) in dispatcher._with:
                rendered.append(dispatcher.done((step, worker)))
        if dispatcher.finished:
            break
    assert sorted(rendered) == segments
