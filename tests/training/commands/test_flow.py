"""`python -m training flow`: a flow network for people without one, from photographs that are moved."""

import pytest
import skimage.data
import torch
from PIL import Image

from training.__main__ import main
from training.commands import flow
from vsrealbasicvsr.model import SPyNet


def test_the_loss_is_least_at_the_true_flow_whatever_the_stride():
    target = torch.tensor([4.0, -8.0]).view(1, 2, 1, 1).expand(1, 2, 32, 64)
    for stride in (1, 2, 4):
        true = [target[:, :, ::scale, ::scale] / scale for scale in (4 * stride, 2 * stride, stride)]
        least = flow.flow_loss(true, target).item()
        assert least == pytest.approx(0.01 * (1 + 0.5 + 0.25), rel=1e-3)  # epsilon at each level
        for wrong in range(3):
            moved = [one + (0.1 if level == wrong else 0.0) for level, one in enumerate(true)]
            assert flow.flow_loss(moved, target).item() > least + 0.02


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    for name in ("astronaut", "coffee", "chelsea"):
        Image.fromarray(getattr(skimage.data, name)()).save(folder / f"{name}.png")
    out = tmp_path_factory.mktemp("prepared") / "clips"
    assert main(["prepare", str(folder), str(out), "--images", "photographs", "--workers", "1"]) == 0
    return out


@pytest.mark.parametrize(("levels", "stride"), [(3, 1), (3, 2)])
def test_a_flow_network_of_any_levels_and_stride_begins_with_some_motion_found(clips, tmp_path, capsys, levels, stride):
    out = tmp_path / "spynet.pt"
    words = ["--levels", levels, "--stride", stride, "--channels", 8, 8, 4, 4, "--iterations", 3, "--batch", 2]
    assert main(["flow", "--data", str(clips), "--out", str(out), "--size", "32", *map(str, words)]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    found, still = (float(word) for word in last.replace("(", " ").split() if word.replace(".", "").isdigit())
    assert found < still
    network = SPyNet(levels, (8, 8, 4, 4), stride)
    network.load_state_dict(torch.load(out, weights_only=True))
    with pytest.raises(RuntimeError, match=r"stride"):
        SPyNet(levels, (8, 8, 4, 4), 4).load_state_dict(torch.load(out, weights_only=True))


def test_a_size_that_the_levels_cannot_halve_is_refused(clips, tmp_path, capsys):
    words = ["--levels", "6", "--stride", "2", "--size", "96"]
    assert main(["flow", "--data", str(clips), "--out", str(tmp_path / "x.pt"), *words]) == 2
    assert "--size must be a multiple of --stride times 2 for each" in capsys.readouterr().err
