"""Files of two sets of weights: which network `detail` gives, what is refused, and how such files are made."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import vapoursynth as vs
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from scripts import convert_weights
from tests.reference_network import formula_network, reference_sizes
from training.__main__ import main as training
from training.run_folder import save_checkpoint
from vsrealbasicvsr.model import RealBasicVSR
from vsrealbasicvsr.weights import DEFAULT_WEIGHTS, WeightsError, load_model, read_network, write_weights

SIZES = replace(reference_sizes(4, 1), quarter_channels=4, hr_channels=4, hr_out_channels=4, flow_channels=(4, 4, 4, 4))
BIAS = "basicvsr.conv_hr.bias"


def networks() -> tuple[RealBasicVSR, RealBasicVSR]:
    """A faithful network and a sharp one, of one cleaning module."""
    faithful, sharp = formula_network(SIZES, "faithful"), formula_network(SIZES, "sharp")
    sharp.image_cleaning.load_state_dict(faithful.image_cleaning.state_dict())
    return faithful, sharp


def write_two(path: Path, *, dtype: torch.dtype = torch.float16, default_detail: float = 0.5) -> Path:
    faithful, sharp = networks()
    write_weights(faithful, path, metadata={"note": "x"}, dtype=dtype, sharp=sharp, default_detail=default_detail)
    return path


def rewrite(path: Path, change: Callable[[dict[str, Tensor], dict[str, str]], object]) -> Path:
    """The same file, its tensors and its metadata changed."""
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata())
    del metadata["tensors_sha256"]  # it would tell of the change
    change(tensors, metadata)
    save_file(tensors, path, metadata=metadata)
    return path


def refusal(path: Path, detail: float | None = None) -> str:
    with pytest.raises(WeightsError) as caught:
        load_model(path, detail=detail)
    text = str(caught.value)
    assert text.startswith(f"{path} ")
    assert text.isprintable()
    assert text.endswith(".")
    assert text.count(". ") >= 1  # what was found; what to do
    return text.removeprefix(str(path))


def stored(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The two sets of a file, whole, by the rule alone."""
    tensors = load_file(path)
    faithful = {key: tensor for key, tensor in tensors.items() if not key.startswith("sharp.")}
    return faithful, {key: tensors.get(f"sharp.{key}", tensor) for key, tensor in faithful.items()}


# ---- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16])
@pytest.mark.long
def test_detail_mixes_the_two_sets_in_float32_and_ends_at_what_is_stored(tmp_path, dtype):
    path = write_two(tmp_path / "two.safetensors", dtype=dtype, default_detail=0.3)
    faithful, sharp = stored(path)
    for detail in (0, 0.3, 0.5, 0.999, 1, None):
        found = load_model(path, detail=detail).state_dict()
        assert found.keys() == faithful.keys()
        for key, tensor in found.items():
            begin, end = faithful[key].float(), sharp[key].float()
            exact = {0: begin, 1: end}
            weight = 0.3 if detail is None else detail
            assert tensor.dtype == torch.float32
            assert torch.equal(tensor, exact.get(weight, begin + weight * (end - begin))), (detail, key)


def test_an_end_is_exact_where_the_formula_would_round(tmp_path):
    def far_apart(tensors, _):
        tensors[BIAS], tensors["sharp." + BIAS] = torch.full((4,), 1e8), torch.full((4,), 0.1)

    path = rewrite(write_two(tmp_path / "two.safetensors", dtype=torch.float32), far_apart)
    assert load_model(path, detail=1).state_dict()[BIAS].tolist() == torch.full((4,), 0.1).tolist()


def test_what_a_file_says_of_itself_and_its_sets_can_be_read(tmp_path):
    network = read_network(write_two(tmp_path / "two.safetensors"))
    assert network.metadata["default_detail"] == "0.5"
    assert network.metadata["note"] == "x"
    assert network.tensors.keys() == networks()[0].state_dict().keys()
    assert network.sharp.keys() < network.tensors.keys()


def change_of(key: str, make: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor], dict[str, str]], None]:
    def change(tensors: dict[str, Tensor], _: dict[str, str]) -> None:
        tensors[key] = make(tensors.get(key, torch.zeros(4)))

    return change


def with_value(value: float) -> Callable[[Tensor], Tensor]:
    return lambda tensor: torch.cat((tensor.flatten()[1:], torch.tensor([value], dtype=tensor.dtype))).view_as(tensor)


@pytest.mark.parametrize("detail", [None, 0, 0.5, 1])
@pytest.mark.parametrize(
    ("change", "found"),
    [
        (change_of("sharp.basicvsr.more", torch.clone), "1 without a partner (sharp.basicvsr.more)"),
        (lambda tensors, _: tensors.pop(BIAS), f"1 without a partner (sharp.{BIAS})"),
        (change_of(f"sharp.{BIAS}", lambda _: torch.zeros(5)), f"1 misshapen (sharp.{BIAS} (5,) instead of (4,))"),
        (change_of(f"sharp.{BIAS}", lambda t: t.long()), f"1 not of a floating type (sharp.{BIAS})"),
        (change_of(f"sharp.{BIAS}", with_value(torch.nan)), f"1 with NaN or infinite values (sharp.{BIAS})"),
        (change_of(f"sharp.{BIAS}", with_value(-torch.inf)), f"1 with NaN or infinite values (sharp.{BIAS})"),
        (change_of(BIAS, with_value(torch.nan)), f"keys 1 with NaN or infinite values ({BIAS})"),
        (lambda tensors, _: tensors.pop("image_cleaning.1.bias"), "1 missing (image_cleaning.1.bias)"),
        (change_of("basicvsr.more", torch.clone), "1 extra (basicvsr.more)"),
        (lambda tensors, _: tensors.update({"sharp.\x1b[31m\n" + "x" * 9999: torch.zeros(1)}), "(sharp.?[31m xxx"),
        (
            lambda tensors, _: tensors.update(
                {"basicvsr.spynet.stride": torch.tensor(2.0), "sharp.basicvsr.spynet.stride": torch.tensor(8.0)}
            ),
            "not of one architecture (flow_stride is 2 and 8)",
        ),
    ],
)
def test_sets_that_do_not_go_together_are_refused_whatever_the_detail(tmp_path, change, found, detail):
    path = rewrite(write_two(tmp_path / "two.safetensors"), change)
    assert found in refusal(path, detail)


def test_numbers_whose_mixture_is_none_are_refused(tmp_path):
    def far_apart(tensors, _):
        tensors[BIAS], tensors["sharp." + BIAS] = torch.full((4,), -3e38), torch.full((4,), 3e38)

    path = rewrite(write_two(tmp_path / "two.safetensors", dtype=torch.float32), far_apart)
    assert "1 with NaN or infinite values" in refusal(path, 0.5)
    assert load_model(path, detail=1)


@pytest.mark.parametrize("text", ["", "half", "nan", "inf", "-0.1", "1.01", None])
@pytest.mark.long
def test_two_sets_without_a_mixture_of_their_own_want_a_detail(tmp_path, text):
    def name(_, metadata):
        del metadata["default_detail"]
        if text is not None:
            metadata["default_detail"] = text

    path = rewrite(write_two(tmp_path / "two.safetensors"), name)
    assert "default_detail" in (found := refusal(path))
    assert found.endswith("Give detail, from 0 to 1.")
    assert load_model(path, detail=0.5)


@pytest.mark.parametrize("detail", [0, 0.5, 1])
def test_a_detail_for_one_set_of_weights_is_an_error_that_names_the_cure(tmp_path, detail):
    path = tmp_path / "one.safetensors"
    write_weights(networks()[0], path, metadata={})
    found = refusal(path, detail)
    assert f"holds one set of weights, so detail has nothing to choose between (got {detail:g})" in found
    assert "Leave detail out" in found


@pytest.mark.parametrize("detail", [-0.1, 1.1, float("nan"), float("inf")])
def test_a_detail_outside_of_0_to_1_is_refused(tmp_path, detail):
    with pytest.raises(ValueError, match=f"detail must be between 0 and 1, got {detail}"):
        load_model(write_two(tmp_path / "two.safetensors"), detail=detail)


def test_a_value_that_is_no_tensor_in_the_sharp_set_is_refused(tmp_path):
    path = tmp_path / "w.pth"
    tensors = dict(networks()[0].state_dict())
    torch.save({**tensors, "sharp." + BIAS: [1.0]}, path)
    assert f"holds a list instead of a tensor at 'sharp.{BIAS}'" in refusal(path)
    torch.save({**tensors, "sharp." + BIAS: torch.zeros(4)}, path)  # a checkpoint has no metadata
    assert "Give detail" in refusal(path)
    assert not load_model(path, detail=1).state_dict()[BIAS].any()


# ---- writing ---------------------------------------------------------------------------------------------------------


def test_only_what_differs_is_written_twice(tmp_path):
    faithful, sharp = networks()
    keys = set(load_file(write_two(tmp_path / "two.safetensors")))
    assert {key for key in keys if not key.startswith("sharp.")} == set(faithful.state_dict())
    partners = {key.removeprefix("sharp.") for key in keys if key.startswith("sharp.")}
    a, b = faithful.state_dict(), sharp.state_dict()
    assert partners == {key for key in a if not torch.equal(a[key].half(), b[key].half())}
    assert partners
    assert not any(key.startswith("image_cleaning.") for key in partners)


def test_one_set_is_written_as_ever(tmp_path):
    path = tmp_path / "one.safetensors"
    write_weights(networks()[0], path, metadata={"default_detail": "0.5"})  # of the file it comes from, maybe
    assert "default_detail" not in read_network(path).metadata
    assert not read_network(path).sharp


def test_networks_that_cannot_stand_in_one_file_are_refused(tmp_path):
    faithful, sharp = networks()
    wide = formula_network(replace(SIZES, mid_channels=5, num_forward_blocks=2))
    broken = networks()[1]
    broken.basicvsr.conv_hr.bias.fill_(1e6)
    for other, detail, found in (
        (wide, 0.5, r"not of one architecture \(mid_channels is 4 and 5, num_forward_blocks is 1 and 2\)"),
        (faithful, 0.5, r"the two sets are the same in torch\.float16"),
        (broken, 0.5, r"'basicvsr\.conv_hr\.bias' has values that are not finite"),
        (sharp, 1.5, r"default_detail must be between 0 and 1, got 1\.5"),
        (sharp, float("nan"), r"default_detail must be between 0 and 1, got nan"),
        (sharp, None, "sharp and default_detail go together"),
        (None, 0.5, "sharp and default_detail go together"),
    ):
        with pytest.raises(ValueError, match=f"^write_weights: .*{found}"):
            write_weights(faithful, tmp_path / "w.safetensors", metadata={}, sharp=other, default_detail=detail)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_a_converted_file_keeps_both_sets_and_its_mixture(tmp_path, capsys):
    source, target = write_two(tmp_path / "in.safetensors", default_detail=0.125), tmp_path / "out.safetensors"
    assert convert_weights.main([str(source), str(target)]) == 0
    for detail in (0, 0.5, 1, None):
        a, b = (load_model(path, detail=detail).state_dict() for path in (source, target))
        assert all(torch.equal(a[key], b[key]) for key in a)
    assert "two sets of weights" in capsys.readouterr().out


# ---- python -m training export ---------------------------------------------------------------------------------------


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    """The folders of two runs, as far as `export` looks at them."""
    folders = tmp_path / "faithful run", tmp_path / "sharp run"
    for folder, network, iteration in zip(folders, networks(), (30, 12), strict=True):
        state = {"iteration": iteration, "ema": network.state_dict(), "model": {}, "optimizer": {}}
        save_checkpoint(folder, state, iteration=iteration, keep=1)
        (folder / "settings.json").write_text(json.dumps({"preset": folder.name}))
        origin = {
            "data": ["/home/ann/clips", "D:\\films\\clips2"],
            "from": "default",
            "teacher": None,
            "num_processes": 1,
        }
        (folder / "origin.json").write_text(json.dumps(origin))
    return folders


def export(*words: object) -> int:
    return training(["export", *(str(word) for word in words)])


@pytest.mark.long
def test_export_makes_a_file_of_two_sets_from_two_runs_or_files(tmp_path, runs, capsys):
    out = tmp_path / "two.safetensors"
    assert export(runs[0], out, "--sharp", runs[1], "--default-detail", 0.5, "--license", "CC0-1.0") == 0
    said = capsys.readouterr().out
    assert "after 30 steps" in said
    assert "after 12 steps" in said
    for detail, network in zip((0, 1), networks(), strict=True):
        expected = {k: t if k.endswith((".mean", ".std")) else t.half() for k, t in network.state_dict().items()}
        found = load_model(out, detail=detail).state_dict()
        assert all(torch.equal(found[key], tensor.float()) for key, tensor in expected.items())
    metadata = read_network(out).metadata
    assert (metadata["training_iteration"], metadata["sharp_training_iteration"]) == ("30", "12")
    assert json.loads(metadata["sharp_training_settings"]) == {"preset": "sharp run"}
    without_folders = {"data": ["clips", "clips2"], "from": "default", "teacher": None, "num_processes": 1}
    for key in ("training_origin", "sharp_training_origin"):
        assert json.loads(metadata[key]) == without_folders
    assert (metadata["default_detail"], metadata["license"]) == ("0.5", "CC0-1.0")

    ones = [tmp_path / f"{number}.safetensors" for number in range(2)]
    for one, folder in zip(ones, runs, strict=True):
        assert export(folder, one, "--license", "CC0-1.0") == 0
    again = tmp_path / "again.safetensors"
    assert export(ones[0], again, "--sharp", ones[1], "--default-detail", 0.5) == 0
    assert read_network(again).metadata == metadata
    other = tmp_path / "other.safetensors"  # the two sets of a file, with another mixture
    assert export(out, other, "--sharp", out, "--default-detail", 0.25) == 0
    sha256 = read_network(other).metadata["tensors_sha256"]
    assert sha256 != metadata["tensors_sha256"]  # of the mixture too
    assert read_network(other).metadata == metadata | {"default_detail": "0.25", "tensors_sha256": sha256}
    one = tmp_path / "one.safetensors"
    assert export(out, one) == 0
    assert read_network(one).metadata == read_network(ones[0]).metadata
    assert load_file(one).keys() == networks()[0].state_dict().keys()
    a, b, c = (load_file(path) for path in (out, again, other))
    assert a.keys() == b.keys() == c.keys()
    assert all(torch.equal(a[key], b[key]) and torch.equal(a[key], c[key]) for key in a)


@pytest.mark.long
def test_export_sets_the_number_of_start_passes_of_both_sets(tmp_path, runs):
    files = [tmp_path / f"{num_passes}.safetensors" for num_passes in (5, 0)]
    sets = ("--sharp", runs[1], "--default-detail", 0.5)
    for out, num_passes in zip(files, (5, 0), strict=True):
        assert export(runs[0], out, *sets, "--start-passes", num_passes) == 0
        assert [load_model(out, detail=detail).sizes.start_passes for detail in (0, 1)] == [num_passes] * 2
    five, none = (load_model(out, detail=1).state_dict() for out in files)
    assert set(five) - set(none) == {"basicvsr.start_passes"}
    assert all(torch.equal(five[key], none[key]) for key in none)


def test_export_says_in_one_line_what_is_wrong(tmp_path, runs, capsys):
    wide = tmp_path / "wide.safetensors"
    write_weights(formula_network(replace(SIZES, mid_channels=5)), wide, metadata={})
    out = tmp_path / "out.safetensors"
    for words, found in (
        (("--sharp", runs[1]), "--sharp and --default-detail go together"),
        (("--default-detail", 0.5), "--sharp and --default-detail go together"),
        (("--sharp", runs[1], "--default-detail", 2), "default_detail must be between 0 and 1, got 2"),
        (("--sharp", runs[0], "--default-detail", 0.5), "the two sets are the same"),
        (("--sharp", wide, "--default-detail", 0.5), "not of one architecture (mid_channels is 4 and 5)"),
        (("--sharp", tmp_path / "none", "--default-detail", 0.5), "none. Name a run's folder"),
        (("--sharp", tmp_path, "--default-detail", 0.5), "no checkpoint to resume from"),
    ):
        assert export(runs[0], out, *words) == 2
        printed = capsys.readouterr()
        assert printed.err.startswith("training export: ")
        assert printed.err.count("\n") == 1
        assert found in printed.err
        assert not out.exists()


# ---- core.rbvsr.Upscale ----------------------------------------------------------------------------------------------


def pixels(clip: vs.VideoNode) -> bytes:
    return b"".join(np.asarray(plane).tobytes() for frame in clip.frames(close=True) for plane in frame)


def noisy(core: vs.Core) -> vs.VideoNode:
    blank = core.std.BlankClip(format=vs.RGB24, width=32, height=24, length=3)

    def fill(n: int, f: vs.VideoFrame) -> vs.VideoFrame:
        frame = f.copy()
        for plane in range(3):
            np.copyto(np.asarray(frame[plane]), np.random.default_rng(n).integers(0, 256, (24, 32), np.uint8))
        return frame

    return core.std.ModifyFrame(blank, blank, fill)


@pytest.mark.long
@pytest.mark.parametrize("kernels", ["", "off"])
def test_detail_gives_the_pixels_of_the_weights_by_themselves(core, two_sets, tmp_path, monkeypatch, kernels):
    monkeypatch.setenv("RBVSR_KERNELS", kernels)
    clip = noisy(core)
    faithful, sharp = stored(two_sets)
    found = {}
    for detail in (0, 0.5, 0.75, 1):
        alone = tmp_path / f"{detail}.safetensors"
        exact = {0: faithful, 1: sharp}.get(detail)
        mixed = {key: begin.float() + detail * (sharp[key].float() - begin.float()) for key, begin in faithful.items()}
        save_file(exact or mixed, alone)
        found[detail] = pixels(clip.rbvsr.Upscale(model=two_sets, detail=detail))
        assert found[detail] == pixels(clip.rbvsr.Upscale(model=alone)), detail
    assert len(set(found.values())) == 4
    assert pixels(clip.rbvsr.Upscale(model=two_sets)) == found[0.75]  # the file's own mixture


def test_a_detail_for_weights_in_one_set_reaches_the_user_in_one_line(core, tiny_model):
    for model in (tiny_model, None if read_network(DEFAULT_WEIGHTS).sharp else "default"):
        if model is not None:
            with pytest.raises(vs.Error) as caught:
                noisy(core).rbvsr.Upscale(model=model, detail=0.5)
            text = str(caught.value)
            assert text.startswith("rbvsr.Upscale: ")
            assert "holds one set of weights" in text
            assert "Leave detail out" in text
            assert "\n" not in text
