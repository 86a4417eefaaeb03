"""Checkpoints: whole or not there, damaged ones refused, the last few kept; a real full disk."""

import math
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

from training.run_folder import (
    CheckpointError,
    Log,
    checkpoint_path,
    list_checkpoints,
    load_checkpoint,
    newest_checkpoint,
    read_log,
    save_checkpoint,
    whole_file,
)


def state(iteration: int) -> dict:
    weight = torch.full((64, 64), float(iteration))
    return {"iteration": iteration, "model": {"w": weight}, "ema": {"w": weight}, "optimizer": {}}


def test_the_last_few_are_kept_and_the_newest_is_found(tmp_path):
    for iteration in (10, 20, 30, 40):
        save_checkpoint(tmp_path, state(iteration), iteration=iteration, keep=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["000000030.pt", "000000040.pt"]
    found, warnings = newest_checkpoint(tmp_path)
    assert found["iteration"] == 40
    assert torch.equal(found["model"]["w"], state(40)["model"]["w"])
    assert warnings == []


def test_what_was_just_written_is_never_deleted_for_a_later_one_that_is_damaged(tmp_path):
    for iteration in (10, 20):
        save_checkpoint(tmp_path, state(iteration), iteration=iteration, keep=3)
    checkpoint_path(tmp_path, 20).write_bytes(b"PK")
    save_checkpoint(tmp_path, state(11), iteration=11, keep=1)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["000000011.pt"]


@pytest.mark.parametrize("damage", ["half", "bit", "empty", "text"])
def test_a_damaged_checkpoint_is_refused_and_the_one_before_it_is_used(tmp_path, damage):
    for iteration in (1, 2):
        save_checkpoint(tmp_path, state(iteration), iteration=iteration, keep=3)
    newest = checkpoint_path(tmp_path, 2)
    whole = newest.read_bytes()
    flipped = bytearray(whole)
    flipped[whole.index(b"\x00\x00\x00\x40" * 8) + 2] ^= 1  # a value of the tensor of twos
    newest.write_bytes(
        {"half": whole[: len(whole) // 2], "bit": bytes(flipped), "empty": b"", "text": b"hello"}[damage]
    )
    with pytest.raises(CheckpointError, match="000000002"):
        load_checkpoint(newest)
    found, warnings = newest_checkpoint(tmp_path)
    assert found["iteration"] == 1
    assert len(warnings) == 1
    assert "000000002" in warnings[0]


def test_without_a_whole_checkpoint_the_error_says_what_to_do(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint to resume from"):
        newest_checkpoint(tmp_path)
    checkpoint_path(tmp_path, 5).parent.mkdir()
    checkpoint_path(tmp_path, 5).write_bytes(b"PK")
    with pytest.raises(CheckpointError, match="none of its 1 checkpoints is complete"):
        newest_checkpoint(tmp_path)


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.system, ("touch " + str(tmp_path / "trapped"),)

    path = checkpoint_path(tmp_path, 1)
    path.parent.mkdir()
    torch.save(state(1) | {"trap": Trap()}, path)
    with pytest.raises(CheckpointError, match="not a complete checkpoint") as caught:
        load_checkpoint(path)
    assert not (tmp_path / "trapped").exists()
    text = str(caught.value)
    assert "would run code when unpickled, so it was not loaded (it calls posix.system)" in text
    assert not any(advice in text for advice in ("weights_only", "safe_globals", "Re-running", "trust the source of"))


@pytest.mark.parametrize("place", ["model", "ema", "optimizer"])
def test_values_that_are_not_finite_are_not_written_and_not_gone_on_from(tmp_path, place):
    save_checkpoint(tmp_path, state(1), iteration=1, keep=3)
    inside = {"deep": {"w": torch.tensor([1.0, math.nan])}}
    broken = state(2) | {place: inside if place == "optimizer" else inside["deep"]}
    with pytest.raises(CheckpointError, match=rf"\({place}.*\.w\), and no checkpoint .* --from "):
        save_checkpoint(tmp_path, broken, iteration=2, keep=3)
    torch.save(broken, checkpoint_path(tmp_path, 3))  # by an earlier version
    found, (warning,) = newest_checkpoint(tmp_path)
    assert found["iteration"] == 1
    assert "not finite. Trying the one before it." in warning


@pytest.mark.parametrize("seed", range(3))
def test_advice_of_torch_is_never_repeated(tmp_path, seed):
    path = tmp_path / "w.pt"
    torch.save(state(1), path, _use_new_zipfile_serialization=False)
    content = bytearray(path.read_bytes())
    for place in np.random.default_rng(seed).integers(0, 300, 40):
        content[place] ^= 255
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    assert "weights_only" not in str(caught.value)


def test_an_interruption_leaves_the_old_file_and_no_part_of_the_new_one(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def write_and_be_interrupted() -> None:
        with whole_file(path) as file:
            file.write(b"half of the new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_and_be_interrupted()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


FILL = """
    import resource, signal, sys
    from pathlib import Path
    import torch
    from training.run_folder import CheckpointError, save_checkpoint
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    run = Path(sys.argv[1])
    small = {"iteration": 1, "model": {}, "ema": {}, "optimizer": {}}
    save_checkpoint(run, small, iteration=1, keep=1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # the kernel refuses to write more, as on a full disk
    try:
        save_checkpoint(run, small | {"model": {"w": torch.zeros(1_000_000)}}, iteration=2, keep=1)
    except CheckpointError as error:
        print(error)
"""


@pytest.mark.long
@pytest.mark.skipif(sys.platform == "win32", reason="limits of file sizes are Unix's")
def test_a_disk_that_takes_no_more_leaves_the_last_good_checkpoint_and_says_so(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FILL), str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert "could not be written" in done.stdout
    assert "--resume" in done.stdout
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["000000001.pt"]
    assert newest_checkpoint(tmp_path)[0]["iteration"] == 1


def test_the_log_forgets_what_came_after_the_checkpoint_and_a_line_cut_off(tmp_path):
    log = Log(tmp_path, 0)
    for iteration in (10, 20, 30):
        log.append({"iteration": iteration})
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"iterat')
    Log(tmp_path, 20).append({"iteration": 25})
    assert [record["iteration"] for record in read_log(tmp_path)] == [10, 20, 25]


@pytest.mark.parametrize("damage", [b"\xff\xfe\n", b"5\n", b'{"a": 1}\n', b"\0\0\0\0"])
def test_a_damaged_log_is_read_up_to_the_damage(tmp_path, damage):
    Log(tmp_path, 0).append({"iteration": 10})
    with (tmp_path / "log.jsonl").open("ab") as file:
        file.write(damage)
    Log(tmp_path, 20).append({"iteration": 20})
    assert [record["iteration"] for record in read_log(tmp_path)] == [10, 20]
