"""vspipe | ffmpeg, as two real processes: the bytes that go through, and how the pipe ends when something breaks."""

import hashlib
import re
import signal
import subprocess
import time
from pathlib import Path

import av
import numpy as np
import pytest

from tests import TIMEOUT_SECONDS
from tests.vspipe import Vspipe

pytestmark = pytest.mark.long

NUM_FRAMES = 30
MAX_SECONDS_TO_END = 20
"""What a process may take to end after Ctrl-C: frames under way are finished first, on a machine that may be busy."""

UPSCALE = """
    import vapoursynth as vs
    core = vs.core
    core.num_threads = int(globals().get("threads", 2))
    clip = core.bs.VideoSource(source)
    core.rbvsr.Upscale(clip, theta=5, model=model, length=7, overlap=2).set_output()
"""

# A source that is slow, and can break. It asks for nothing, so that vspipe asks it for many frames at once.
UNSTEADY = """
    import time
    import vapoursynth as vs
    core = vs.core
    blank = core.std.BlankClip(format=vs.YUV420P8, width=32, height=32, length=1000, keep=True)

    def source(n):
        time.sleep(float(seconds))
        if n == int(broken):
            raise ValueError(f"frame {n} cannot be read")
        return blank

    clip = core.std.FrameEval(blank, source)
    core.rbvsr.Upscale(clip, model=model, length=7, overlap=2).set_output()
"""


def arguments(**values: object) -> list[str]:
    return [text for name, value in values.items() for text in ("--arg", f"{name}={value}")]


def y4m_frames(stream: bytes, width: int, height: int) -> tuple[bytes, np.ndarray]:
    """The header of a yuv420p stream, and its frames as (T, bytes of a frame)."""
    header, body = stream.split(b"\n", 1)
    frame_size = width * height * 3 // 2
    frames = np.frombuffer(body, np.uint8).reshape(-1, len(b"FRAME\n") + frame_size)
    assert all(frame.tobytes().startswith(b"FRAME\n") for frame in frames)
    return header, frames[:, len(b"FRAME\n") :]


def test_ffmpeg_receives_every_frame_as_the_filter_made_it(
    vspipe: Vspipe, ffmpeg: Path, tiny_model: Path, small_clip_file: Path, tmp_path: Path
) -> None:
    given = arguments(source=small_clip_file, model=tiny_model)
    stream = vspipe(UPSCALE, "-c", "y4m", *given)
    assert stream.returncode == 0, stream.stderr.decode()
    header, frames = y4m_frames(stream.stdout, 256, 192)
    assert header.startswith(b"YUV4MPEG2 ")
    assert {b"W256", b"H192", b"F25:1"} <= set(header.split())
    assert len(frames) == NUM_FRAMES

    result = tmp_path / "out.mkv"
    producer = subprocess.Popen(
        vspipe.command(UPSCALE, "-c", "y4m", *given), env=vspipe.environment, stdout=subprocess.PIPE
    )
    consumer = subprocess.Popen(
        [str(ffmpeg), "-v", "error", "-i", "-", "-c:v", "ffv1", str(result)], stdin=producer.stdout
    )
    assert producer.stdout is not None
    producer.stdout.close()
    assert (producer.wait(TIMEOUT_SECONDS), consumer.wait(TIMEOUT_SECONDS)) == (0, 0)
    with av.open(str(result)) as file:
        received = [frame.to_ndarray().ravel() for frame in file.decode(video=0)]
    assert np.array_equal(np.stack(received), frames)


def test_threads_and_requests_do_not_change_a_byte(vspipe: Vspipe, tiny_model: Path, small_clip_file: Path) -> None:
    digests = set()
    for threads, requests in ((1, 1), (2, 3), (8, 16), (1, 16)):
        given = arguments(source=small_clip_file, model=tiny_model, threads=threads)
        stream = vspipe(UPSCALE, "-c", "y4m", "--requests", str(requests), *given)
        assert stream.returncode == 0, stream.stderr.decode()
        digests.add(hashlib.md5(stream.stdout, usedforsecurity=False).hexdigest())
    assert len(digests) == 1


def test_an_error_in_the_source_ends_vspipe_and_is_told(vspipe: Vspipe, tiny_model: Path) -> None:
    stream = vspipe(UNSTEADY, "-c", "y4m", *arguments(model=tiny_model, seconds=0.001, broken=25))
    assert stream.returncode != 0
    assert b"frame 25 cannot be read" in stream.stderr
    _, frames = y4m_frames(stream.stdout, 128, 128)
    assert len(frames) <= 21  # the window of frames 21 to 27 needs frame 25, the one before needs frames up to 22


@pytest.mark.parametrize("requests", [1, 16])
def test_ctrl_c_ends_vspipe_within_seconds(vspipe: Vspipe, tiny_model: Path, requests: int) -> None:
    given = arguments(model=tiny_model, seconds=0.02, broken=-1)
    command = vspipe.command(UNSTEADY, "-p", "-c", "y4m", "--requests", str(requests), *given, output="--")
    process = subprocess.Popen(command, env=vspipe.environment, stderr=subprocess.PIPE)
    try:
        wait_for_progress(process)
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=MAX_SECONDS_TO_END)
    finally:
        process.kill()
        process.wait()
    assert process.returncode != 0
    assert time.monotonic() - start < MAX_SECONDS_TO_END


def test_vspipe_ends_when_ffmpeg_wants_no_more(vspipe: Vspipe, ffmpeg: Path, tiny_model: Path, tmp_path: Path) -> None:
    given = arguments(model=tiny_model, seconds=0.001, broken=-1)
    command = vspipe.command(UNSTEADY, "-c", "y4m", *given)
    producer = subprocess.Popen(command, env=vspipe.environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        consumer = subprocess.run(
            [str(ffmpeg), "-v", "error", "-i", "-", "-frames:v", "9", "-c:v", "ffv1", str(tmp_path / "out.mkv")],
            stdin=producer.stdout,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
        assert producer.stdout is not None
        producer.stdout.close()
        assert producer.wait(MAX_SECONDS_TO_END) != 0
    finally:
        producer.kill()
        producer.wait()
    assert consumer.returncode == 0
    with av.open(str(tmp_path / "out.mkv")) as file:
        assert len(list(file.decode(video=0))) == 9


def wait_for_progress(process: subprocess.Popen[bytes]) -> None:
    """Return when vspipe has told of a finished frame."""
    said = b""
    assert process.stderr is not None
    while part := process.stderr.read1():
        said += part
        if re.search(rb"Frame: [1-9]\d*/", said):
            return
    pytest.fail(f"vspipe ended before its first frame: {said.decode()}")
