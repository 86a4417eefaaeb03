"""Files that are there whole or not at all: the one way in which all of ours are written."""

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from tests import ROOT
from training import run_folder as checkpoints
from training.data import dataset as store
from training.presets import SMOKE_ARCHITECTURE
from vsrealbasicvsr.model import RealBasicVSR
from vsrealbasicvsr.weights import write_weights
from vsrealbasicvsr.whole_file import whole_file


def write_plainly(path: Path) -> None:
    with whole_file(path) as file:
        file.write(b"content")


def write_clip(path: Path) -> None:
    store.write_clip_file(path, np.zeros((1, 2, 3, 3), np.uint8))


def write_network(path: Path) -> None:
    write_weights(RealBasicVSR(SMOKE_ARCHITECTURE), path, metadata={})


def write_text(path: Path) -> None:
    checkpoints.write_text(path, "text")


WRITERS = [write_plainly, write_clip, write_network, write_text]


def test_of_two_writers_of_one_file_each_is_whole_and_the_last_wins(tmp_path):
    path = tmp_path / "file"
    with whole_file(path) as first:
        first.write(b"first" * 1000)
        first.flush()
        with whole_file(path) as second:
            second.write(b"second")
        assert path.read_bytes() == b"second"
    assert path.read_bytes() == b"first" * 1000
    assert list(tmp_path.iterdir()) == [path]


def test_many_writers_at_once_leave_one_whole_file(tmp_path):
    path = tmp_path / "file"
    failed = []

    def write(number: int) -> None:
        try:
            for _ in range(20):
                with whole_file(path) as file:
                    for _ in range(10):
                        file.write(bytes([number]) * 1000)
                assert len(set(path.read_bytes())) == 1
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert len(path.read_bytes()) == 10_000
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("write", WRITERS)
def test_a_long_name_a_link_and_the_usual_permissions_are_kept(tmp_path, write):
    path = tmp_path / ("x" * 250)
    write(path)
    content = path.read_bytes()
    link = tmp_path / "link"
    link.symlink_to(path)
    path.write_bytes(b"old")
    write(link)
    assert link.is_symlink()
    assert len(path.read_bytes()) == len(content)
    plain = tmp_path / "plain"
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, RuntimeError])
def test_what_was_there_stays_when_writing_ends_early(tmp_path, error):
    path = tmp_path / "file"
    path.write_text("old")

    def write_half() -> None:
        with whole_file(path) as file:
            file.write(b"half")
            raise error

    with pytest.raises(error):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


KILLED = """
import os, sys
from pathlib import Path
from vsrealbasicvsr.whole_file import whole_file
with whole_file(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    os._exit(0)
"""


@pytest.mark.long
def test_a_process_that_is_killed_while_it_writes_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    subprocess.run([sys.executable, "-c", KILLED, str(path)], cwd=ROOT, check=True)
    assert path.read_text() == "old"
    (left,) = set(tmp_path.iterdir()) - {path}
    assert left.suffix == ".partial"


def test_a_checkpoint_of_torch_is_written_through_it(tmp_path):
    state = {"iteration": 1, "model": {"w": torch.ones(3)}, "ema": {"w": torch.ones(3)}, "optimizer": {}}
    checkpoints.save_checkpoint(tmp_path, state, iteration=1, keep=1)
    (path,) = (tmp_path / "checkpoints").iterdir()
    assert torch.equal(checkpoints.load_checkpoint(path)["model"]["w"], torch.ones(3))
