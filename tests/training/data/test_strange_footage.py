"""Footage of strange names, colours and fields, and a killed preparation: none of it stops or spoils the rest."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path, PurePath

import av
import numpy as np
import pytest
import skimage.data

from tests import TIMEOUT_SECONDS
from tests.training.data.footage import Bytes, panned, start_preparing, write_pictures, write_video
from training.__main__ import main
from training.data.dataset import read_index
from training.data.preparing import fingerprint
from training.data.sources import find_sources

SMALL = ["--min-px", "40", "--min-frames", "5", "--workers", "1"]
MATRIX_YCGCO, TRANSFER_PQ = 8, 16


@pytest.fixture(scope="module")
def pan() -> Bytes:
    return panned(np.asarray(skimage.data.coffee(), dtype=np.uint8), num_frames=8, height=64, width=80)


def write_stream(path: Path, frames: Bytes, codec: str, set_up: Callable[[av.VideoStream], None]) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        set_up(stream)
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode(None))
    return path


def write_colours(path: Path, frames: Bytes, **colours: int) -> Path:
    def set_up(stream: av.VideoStream) -> None:
        for name, value in colours.items():
            setattr(stream.codec_context, name, value)

    return write_stream(path, frames, "libx264", set_up)


def write_mpeg2(path: Path, frames: Bytes, *, interlaced: bool) -> Path:
    def set_up(stream: av.VideoStream) -> None:
        stream.options = {"flags": "+ildct+ilme"} if interlaced else {}

    return write_stream(path, frames, "mpeg2video", set_up)


def troubles(out: Path) -> dict[str, str | None]:
    return {name: record.trouble for name, record in read_index(out).sources.items()}


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes there")
def test_names_that_are_no_utf_8_or_look_like_a_protocol_are_read(
    pan: Bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_video(tmp_path / "source.mkv", pan).read_bytes()
    names = [b"caf\xe9.mkv", b"Show: Part 1.mkv", b"concat:a|b.mkv", b"%03d [1] {2}.mkv"]
    (tmp_path / "in").mkdir()
    for name in names:
        (tmp_path / "in" / os.fsdecode(name)).write_bytes(source)
    monkeypatch.chdir(tmp_path / "in")
    assert main(["prepare", ".", str(tmp_path / "out"), *SMALL]) == 0
    assert troubles(tmp_path / "out") == dict.fromkeys(map(os.fsdecode, names))


def test_colours_that_cannot_be_converted_cost_their_video_alone(pan: Bytes, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write_colours(tmp_path / "in" / "a.mkv", pan, colorspace=MATRIX_YCGCO)
    write_video(tmp_path / "in" / "b.mkv", pan)
    assert main(["prepare", str(tmp_path / "in"), str(tmp_path / "out"), *SMALL]) == 0
    found = troubles(tmp_path / "out")
    assert found["b.mkv"] is None
    assert "(matrix 8 of H.273, yuv420p) cannot be converted" in str(found["a.mkv"])


def test_pq_is_not_taken_for_sdr(pan: Bytes, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write_colours(tmp_path / "in" / "hdr.mkv", pan, color_trc=TRANSFER_PQ)
    write_video(tmp_path / "in" / "sdr.mkv", pan)
    assert main(["prepare", str(tmp_path / "in"), str(tmp_path / "out"), *SMALL]) == 0
    assert troubles(tmp_path / "out") == {"hdr.mkv": "is HDR (PQ). Convert it to SDR first.", "sdr.mkv": None}


def test_interlaced_frames_after_progressive_ones_are_left_out(pan: Bytes, tmp_path: Path) -> None:
    parts = [
        write_mpeg2(tmp_path / f"{name}.ts", pan, interlaced=is_interlaced).read_bytes()
        for name, is_interlaced in (("progressive", False), ("interlaced", True))
    ]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "mixed.ts").write_bytes(b"".join(parts))
    assert main(["prepare", str(tmp_path / "in"), str(tmp_path / "out"), *SMALL]) == 0
    index = read_index(tmp_path / "out")
    assert index.sources["mixed.ts"].trouble == "is interlaced from frame 8 on: deinterlace it first"
    assert sum(clip.num_frames for clip in index.clips) == len(pan)


def test_the_time_to_find_the_frames_of_a_film_grows_with_their_number_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """20,000 frames took half a minute, ten times as many a hundred times as long."""
    write_pictures(tmp_path, np.zeros((200, 8, 8, 3), dtype=np.uint8))
    num_hashes, plain = 0, PurePath.__hash__

    def counted(path: PurePath) -> int:
        nonlocal num_hashes
        num_hashes += 1
        return plain(path)

    monkeypatch.setattr(PurePath, "__hash__", counted)
    (source,) = find_sources(tmp_path).sources
    assert len(source.paths) == 200
    assert num_hashes < 10 * 200


def test_a_source_has_the_same_fingerprint_in_every_process(
    pan: Bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order of a set of paths depends on the process, and numbered frames were cut again every other time."""
    write_pictures(tmp_path / "walk", pan)
    found = set()
    for seed in range(16):  # as PYTHONHASHSEED would
        monkeypatch.setattr(PurePath, "__hash__", lambda path, seed=seed: hash((seed, str(path))))
        (source,) = find_sources(tmp_path).sources
        found.add(fingerprint(source))
    assert len(found) == 1


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workers_end_with_a_main_process_that_is_killed(pan: Bytes, tmp_path: Path) -> None:
    process = start_preparing(tmp_path, np.concatenate([pan] * 12), num_videos=8, words=[*SMALL[:-1], "2"])
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="ascii").split()
    assert children
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=TIMEOUT_SECONDS)
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while any(is_running(child) for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [child for child in children if is_running(child)]


def is_running(number: str) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{number}/status").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return False
