"""One process at a time in a folder."""

import pytest

from training.locking import alone_in
from vsrealbasicvsr.errors import UserError


def test_a_second_one_is_refused_and_a_third_may_enter_when_the_first_has_left(tmp_path):
    folder = tmp_path / "runs" / "a"
    with alone_in(folder, command="training train"):
        with pytest.raises(UserError, match=r"another training train is at work in .*: wait for it, or stop it first"):
            alone_in(folder, command="training train").__enter__()
        assert [path.name for path in folder.iterdir()] == ["lock"]
        (folder / "log.jsonl").touch()
    with alone_in(folder, command="training train"):
        pass
    assert [path.name for path in folder.iterdir()] == ["log.jsonl"]


def test_folders_in_which_nothing_was_written_are_gone_afterwards(tmp_path):
    with pytest.raises(ZeroDivisionError), alone_in(tmp_path / "runs" / "a", command="training train"):
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "clip.mp4").touch()
    with pytest.raises(UserError, match=r"clip\.mp4 is a file: name a folder"):
        alone_in(tmp_path / "clip.mp4", command="training prepare").__enter__()
