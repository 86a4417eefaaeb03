"""A job that is killed at 30 random moments ends in the frames of an undisturbed run."""

import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tests import TIMEOUT_SECONDS
from tests.app.running import command, frames_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="kills by POSIX signals"),
]

NUM_FRAMES, SEGMENT_FRAMES, NUM_KILLS = 450, 60, 30
SEED = 0


def test_thirty_kills_change_no_frame_and_cost_a_segment_each_at_most(
    ffmpeg: Path, tiny_model: Path, tmp_path: Path
) -> None:
    source, output = tmp_path / "in.mkv", tmp_path / "out.mkv"
    made = ["-f", "lavfi", "-i", f"testsrc2=size=32x32:rate=25:duration={NUM_FRAMES / 25}", "-c:v", "libx264"]
    subprocess.run([str(ffmpeg), "-v", "error", *made, str(source)], check=True)
    options = ["--length", "15", "--overlap", "2", "--segment-frames", str(SEGMENT_FRAMES), "--device", "cpu"]
    options += ["--model", str(tiny_model), "--json"]

    begun = time.monotonic()
    events = run(command("upscale", source, tmp_path / "undisturbed.mkv", *options), None)
    seconds = time.monotonic() - begun
    assert events[-1]["event"] == "result"
    wanted = frames_of(tmp_path / "undisturbed.mkv")

    choose = random.Random(SEED)
    finished, kills, rendered_again, phases = 0, 0, 0, []
    while kills < NUM_KILLS:
        before = num_segments(output)
        # Anywhere in what is left of the job, its start and its end included.
        left = seconds * (0.3 + 0.7 * (1 - before * SEGMENT_FRAMES / NUM_FRAMES))
        events = run(command("upscale", source, output, *options), choose.uniform(0, left))
        if events and events[-1]["event"] == "result":
            assert frames_of(output) == wanted
            output.unlink()
            finished += 1
            continue
        kills += 1
        assert not output.exists()
        rendered = sum(event["event"] == "progress" for event in events)
        lost = rendered - (num_segments(output) - before) * SEGMENT_FRAMES
        assert lost <= SEGMENT_FRAMES
        rendered_again += max(0, lost)
        phases.append(next((event["phase"] for event in reversed(events) if event["event"] == "phase"), "starting"))
    events = run(command("upscale", source, output, *options), None)
    assert events[-1]["event"] == "result"
    assert frames_of(output) == wanted
    assert sorted(tmp_path.iterdir()) == [source, output, tmp_path / "undisturbed.mkv"]
    counts = {phase: phases.count(phase) for phase in sorted(set(phases))}
    print(f"{kills} kills in {counts}, {finished + 1} jobs finished, {rendered_again} frames rendered again")


def num_segments(output: Path) -> int:
    return len(list(output.with_name(output.name + ".rbvsr").glob("*-*.mkv")))


def run(line: list[str], kill_after_seconds: float | None) -> list[dict[str, object]]:
    """Run the command, killed after a while; return what it reported."""
    with tempfile.TemporaryFile("w+") as said, subprocess.Popen(line, stdout=said) as process:
        try:
            process.wait(TIMEOUT_SECONDS if kill_after_seconds is None else kill_after_seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            assert kill_after_seconds is not None
        process.wait()
        said.seek(0)
        lines = said.read().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]
