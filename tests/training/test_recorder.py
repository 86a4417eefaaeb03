"""TensorBoard's file of a run on a disk that takes no more."""

import json
import subprocess
import sys
import textwrap

import pytest

FILL = """
    import resource, signal, sys, threading
    from pathlib import Path
    import torch
    from training.recorder import Recorder
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # the kernel refuses to write more, as on a full disk
    run = Path(sys.argv[1])
    picture = torch.rand(1, 1, 3, 256, 256)
    before = threading.excepthook
    with Recorder(run, first=0, num_iterations=3) as recorder:
        for step in (1, 2, 3):
            recorder.advance(0.0)
            recorder.show(step, picture, picture, picture)
            recorder.record(step, {"output": 0.5}, learning_rate=1e-4)
    assert threading.excepthook is before
    print("done")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits of file sizes are Unix's")
def test_a_disk_too_full_for_tensorboard_costs_one_line_and_not_the_run(tmp_path):
    words = [sys.executable, "-c", textwrap.dedent(FILL), str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    said = [line for line in done.stdout.splitlines() if "TensorBoard" in line]
    assert said == [
        f"{tmp_path / 'tensorboard'} takes no more: File too large. The training goes on without TensorBoard."
    ]
    assert done.stdout.endswith("done\n")
    assert "Traceback" not in done.stdout + done.stderr
    log = [json.loads(line)["iteration"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert log == [1, 2, 3]
