"""Three frames of each sequence: which they are, and that the network makes them of the whole sequence."""

import re
import weakref

import numpy as np
import pytest
import torch

from tests.training.benchmarking.videolq import HEIGHT, LENGTHS, WIDTH, read_first, view, write_png, write_sequences
from training.__main__ import main
from training.benchmarking import measured
from training.benchmarking.measured import Way, super_resolve_measured
from training.benchmarking.published import SCALE
from training.benchmarking.sequences import find_sequences, measured_frames, pieces, read_clip
from training.evaluation import metrics
from vsrealbasicvsr.model import refine
from vsrealbasicvsr.weights import load_model

ROUNDED = 1.01 / 255
"""A value between two levels may be rounded to either: tiles and pairs of frames are other kernels of the library."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_sequences(tmp_path_factory.mktemp("videolq"))


@pytest.fixture(scope="module")
def clip(folder):
    return read_first(folder)


@pytest.fixture(scope="module")
def model(tiny_model):
    """One in which neighbouring frames count: the random network as it is hardly looks at them."""
    model = load_model(tiny_model)
    for name, parameter in model.named_parameters():
        if "conv_last" in name or "upsample" in name or "fusion" in name:
            parameter.mul_(2)
    return model


# ---- sequences -------------------------------------------------------------------------------------------------------


def test_the_first_the_middle_and_the_last_frame_are_measured():
    assert measured_frames(100) == (0, 50, 99)  # the files that the authors name
    assert measured_frames(7) == (0, 3, 6)
    assert [measured_frames(n) for n in (1, 2)] == [(0,), (0, 1)]


def test_sequences_are_folders_of_numbered_frames_and_videos(folder, tmp_path, make_clip):
    for name in LENGTHS:
        (tmp_path / "inner").mkdir(exist_ok=True)
        (tmp_path / "inner" / name).symlink_to(folder / name)
    make_clip(tmp_path / "film.mp4", num_frames=5)
    found = find_sequences(tmp_path)
    assert sorted(found) == ["film", "inner/000", "inner/001"]
    read = {name: read_clip(name, source, num_frames=5) for name, source in found.items()}
    assert read["film"].frames.shape == (5, 48, 64, 3)
    assert read["film"].stems == tuple(f"{n:08d}" for n in range(5))
    assert np.array_equal(read["inner/000"].frames, view("000", 5))
    assert [read[name].measured for name in sorted(found)] == [(0, 2, 4), (0, 2, 4), (0, 2, 3)]
    assert list(find_sequences(folder, 1)) == ["000"]
    assert list(find_sequences(folder / "000")) == ["000"]


def test_a_sequence_that_is_too_short_is_not_left_out_without_a_word(folder, tmp_path, capsys):
    for n in range(3):
        (tmp_path / "short").mkdir(exist_ok=True)
        write_png(tmp_path / "short" / f"{n:08d}.png", view("000", 1)[0])
    (tmp_path / "000").symlink_to(folder / "000")
    assert list(find_sequences(tmp_path)) == ["000"]
    assert "3 pictures are left out, such as short/00000000.png: not one of 4 or more" in capsys.readouterr().err


def no_sequences(folder):
    (folder / "notes.png").write_bytes(b"no number")


def a_gap(folder):
    for n in (*range(4), *range(5, 9)):
        write_png(folder / "000" / f"{n:08d}.png", view("000", 1)[0])


def another_size(folder):
    for n in range(4):
        write_png(folder / "000" / f"{n:08d}.png", view("000", 1)[0][: HEIGHT - (n == 2)])


def unreadable(folder):
    for n in range(4):
        write_png(folder / "000" / f"{n:08d}.png", view("000", 1)[0])
    (folder / "000" / "00000002.png").write_bytes(b"no picture")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (no_sequences, r"holds no sequences \(notes.png: not one of 4 or more frames"),
        (a_gap, r"two sequences 000: .*0000-.*Number the frames of a sequence without gaps"),
        (another_size, r"frame 2 is 52x25, the first 52x26. Give one size"),
        (unreadable, r"00000002.png holds no readable picture. Repair the sequence"),
    ],
)
def test_a_folder_that_does_not_fit_gets_one_clear_line(damage, message, tmp_path, tiny_model, capsys):
    damage(tmp_path)
    words = [str(tmp_path), "--weights", str(tiny_model), "--out", str(tmp_path / "out")]
    assert main(["benchmark", *words]) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1
    assert re.search(message, error[0])


# ---- networks --------------------------------------------------------------------------------------------------------


def whole(model, frames, clean):
    """What the network makes of frames (T, H, W, 3) at once, every frame of it."""
    lr = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float()[None] / 255
    with torch.inference_mode():
        return metrics.to_bytes(model.super_resolve(clean(lr))[0])


@pytest.mark.parametrize("theta", [0.0, 255.0])
def test_the_measured_frames_are_those_of_the_whole_sequence(model, clip, theta):
    expected = whole(model, clip.frames, lambda lr: refine(model, lr, theta=theta, cleaning=0.5)[0])
    made = super_resolve_measured(model, clip, Way(theta=theta, cleaning=0.5))
    assert made.shape == (3, 3, SCALE * HEIGHT, SCALE * WIDTH)
    assert (made - expected[list(clip.measured)]).abs().max() <= ROUNDED
    assert (made - expected[[1, 2, 5]]).abs().max() > 0.1


def test_tiles_make_the_same_picture(model, clip, monkeypatch):
    made = super_resolve_measured(model, clip, Way())
    monkeypatch.setattr(measured, "MAX_ROWS", 7)
    assert (super_resolve_measured(model, clip, Way()) - made).abs().max() <= ROUNDED


def test_a_sequence_in_pieces_is_its_pieces_by_themselves(model, clip):
    def clean(lr):
        return refine(model, lr)[0]

    assert [list(piece) for piece in pieces(7, 3)] == [[0, 1, 2], [3, 4, 5], [6]]
    parts = torch.cat([whole(model, clip.frames[first : first + 3], clean) for first in (0, 3, 6)])
    made = super_resolve_measured(model, clip, Way(length=3))
    assert (made - parts[list(clip.measured)]).abs().max() <= ROUNDED
    assert (made - super_resolve_measured(model, clip, Way())).abs().max() > 2 * ROUNDED  # it did see the others
    assert torch.equal(super_resolve_measured(model, clip, Way(length=99)), super_resolve_measured(model, clip, Way()))


@pytest.mark.parametrize("num_passes", [0, 1, 5])
def test_a_fixed_number_of_passes_is_that_many(model, clip, num_passes):
    def clean(lr):
        for _ in range(num_passes):
            lr = model.clean(lr)
        return lr

    made = super_resolve_measured(model, clip, Way(theta=0, num_passes=num_passes))
    assert (made - whole(model, clip.frames, clean)[list(clip.measured)]).abs().max() <= ROUNDED
    if num_passes == 1:  # what the authors' program does
        assert torch.equal(made, super_resolve_measured(model, clip, Way(theta=255)))


def test_only_what_is_measured_is_reconstructed_and_only_its_features_are_held(tiny_model, clip, monkeypatch):
    model = load_model(tiny_model)
    states, alive, pictures = [], [], []

    def watched(step):
        def run(*arguments):
            out = step(*arguments)
            states.append(weakref.ref(out))
            alive.append(sum(state() is not None for state in states))
            return out

        return run

    monkeypatch.setattr(model, "propagate_backward", watched(model.propagate_backward))
    monkeypatch.setattr(model, "propagate_forward", watched(model.propagate_forward))
    reconstruct = model.reconstruct
    monkeypatch.setattr(model, "reconstruct", lambda *maps: pictures.append(maps) or reconstruct(*maps))
    super_resolve_measured(model, clip, Way())
    assert (len(states), len(pictures)) == (14, 3)
    assert max(alive) <= 3 + 2
    states.clear()
    super_resolve_measured(model, clip, Way(length=1))
    assert len(states) == 6  # the frames between are pieces that nobody looks at
