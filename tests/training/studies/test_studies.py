"""The paper's studies, each from prepared clips to its page, at a scale of two steps."""

import contextlib
import dataclasses
import importlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage
import torch
from PIL import Image

from tests import ROOT
from training.__main__ import main
from training.commands.study import STUDIES
from training.data.dataset import read_index
from training.run_folder import list_checkpoints
from training.settings import changed
from training.studies import scales
from training.studies.batch_length import parse_pairs
from training.studies.report import compared, equal
from training.studies.runs import DONE
from training.studies.variants import KINDS, OneStage, RecurrentCleaning, Variant, VariantNetworks
from training.studies.workbench import Workbench, split
from vsrealbasicvsr import load_model
from vsrealbasicvsr.errors import UserError
from vsrealbasicvsr.model import CLEANING_LEVELS_KEY, RealBasicVSR

pytestmark = pytest.mark.long
TIMEOUT_SECONDS = 240
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
NUM_STEPS = 3


def tiny_scale() -> scales.Scale:
    """Three steps of a network of 8 channels, two clips of 64x64 to measure."""
    smoke = scales.SCALES["smoke"]
    training = {"batch": 1, "num_frames": 2, "crop_px": 16, "iterations": NUM_STEPS, "checkpoint_every": 2}
    small = {f"architecture.{name}_channels": 8 for name in ("cleaning", "mid", "fusion", "quarter")}
    stages = [changed(settings, {**training, **small}) for settings in (smoke.stage_1, smoke.stage_2)]
    sizes = {"start": "flow", "num_clips": 2, "num_frames": 3, "long_num_frames": 4, "crop_px": 16, "pairs": "2x1,1x2"}
    timed = {"num_timed": 1, "timed_num_frames": 2, "timed_crop_px": 16}
    return dataclasses.replace(smoke, stage_1=stages[0], stage_2=stages[1], **sizes, **timed)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setattr(scales, "SCALES", {"smoke": tiny_scale()})
    monkeypatch.setattr("training.commands.study.SCALES", {"smoke": tiny_scale()})


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """Six photographs of scikit-image, prepared: two of them are held out."""
    folder = tmp_path_factory.mktemp("footage")
    for name in ("astronaut", "brick", "coffee", "chelsea", "grass", "rocket"):
        picture = np.asarray(getattr(skimage.data, name)())
        Image.fromarray(picture[:300, :300]).save(folder / f"{name}.png")
    out = tmp_path_factory.mktemp("prepared") / "clips"
    run("prepare", folder, out, "--images", "photographs", "--workers", "1")
    return out


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Networks that the studies share."""
    return tmp_path_factory.mktemp("runs")


def run(*words: object, status: int = 0) -> subprocess.CompletedProcess[str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        ended = main([str(word) for word in words])
    assert ended == status, out.getvalue() + err.getvalue()
    return subprocess.CompletedProcess(words, ended, out.getvalue(), err.getvalue())


def words_of(name: str, clips: Path, out: Path, runs: Path) -> list[str]:
    options = ["--data", clips, "--out", out, "--runs", runs, "--workers", 0, "--device", "cpu"]
    return ["study", name, *map(str, options)]


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_ends_in_a_table_a_plot_crops_and_the_paper_beside_it(name, clips, runs, tmp_path):
    done = run(*words_of(name, clips, tmp_path, runs))
    table = json.loads((tmp_path / "table.json").read_text())
    assert table["study"] == name
    assert len(table["rows"]) >= 3
    assert table["findings"]
    assert all(finding["verdict"] in ("agrees", "disagrees", "cannot be told") for finding in table["findings"])
    page = (tmp_path / "README.md").read_text()
    assert (tmp_path / "table.md").read_text().strip() in page
    assert table["limits"] in page
    assert f"python -m training {' '.join(words_of(name, clips, tmp_path, runs)[:2])}" in page
    for finding in table["findings"]:
        assert finding["paper"] in page
        assert finding["ours"] in done.stdout
    pictures = [path for path in tmp_path.iterdir() if path.suffix in (".png", ".jpg")]
    assert {path.suffix for path in pictures} == {".png", ".jpg"}
    for path in pictures:
        assert f"({path.name})" in page
        assert cv2.imread(str(path)).std() > 5


def test_a_study_killed_and_resumed_ends_in_the_same_table(clips, runs, tmp_path):
    """SIGKILL while its second network learns; then a measurement that was cut off, and a lost picture."""
    whole, killed, own_runs = tmp_path / "whole", tmp_path / "killed", tmp_path / "runs"
    run(*words_of("losses", clips, whole, runs))
    words = words_of("losses", clips, killed, own_runs)
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from tests.training.studies import test_studies\nfrom training.commands import study\n"
        "from training.__main__ import main\n"
        f"study.SCALES = {{'smoke': test_studies.tiny_scale()}}\nsys.exit(main({words!r}))"
    )
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, env=ENVIRONMENT)
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not (begun := [path for path in own_runs.glob("stage-2-*") if list_checkpoints(path)]):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait(TIMEOUT_SECONDS)
    assert not (begun[0] / DONE).exists()
    finished = next(own_runs.glob("paper-*")) / "ema.safetensors"
    untouched = finished.stat().st_mtime_ns

    run(*words)
    assert rows(killed) == rows(whole)
    assert finished.stat().st_mtime_ns == untouched

    measured = sorted((killed / "kept").glob("*.json"))
    measured[0].write_text(measured[0].read_text()[:50])
    next((killed / "kept").glob("*/*.png")).unlink()
    (killed / "README.md").unlink()
    assert run(*words).stdout.count("measured ") in (1, 2)
    assert rows(killed) == rows(whole)
    assert "measured " not in run(*words).stdout


def rows(out: Path) -> object:
    return json.loads((out / "table.json").read_text())["rows"]


def test_settings_that_are_changed_make_other_networks_beside_those_that_are_there(clips, runs, tmp_path):
    words = words_of("video-compression", clips, tmp_path, runs)
    run(*words)
    before, num_runs = rows(tmp_path), len(list(runs.iterdir()))
    run(*words, "--learning-rate", "1e-2")
    assert rows(tmp_path) != before
    assert len(list(runs.iterdir())) == num_runs + 2


def test_networks_and_measurements_of_other_footage_of_the_same_names_are_not_taken(clips, runs, tmp_path):
    other = shutil.copytree(clips, tmp_path / "other")
    for path in other.glob("*.npy"):
        whole = np.load(path)
        path.write_bytes(path.read_bytes()[: -whole.nbytes] + (255 - whole).tobytes())
    run(*words_of("video-compression", clips, tmp_path / "out", runs))
    refused = run(*words_of("video-compression", other, tmp_path / "out", runs), status=2)
    assert "was trained on other footage of the same names" in refused.stderr.splitlines()[-1]
    words = words_of("video-compression", clips, tmp_path / "out", runs)
    done = run(*words, "--held-out", clips)
    assert "measured" in done.stdout
    assert "measured" in run(*words, "--held-out", other).stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["studied"], "NAME must be one of length"),
        ([], "it comes first"),
        (["length"], "needs --data CLIPS and --out FOLDER"),
        (["length", "--data", "x", "--out", "y", "--scale", "huge"], "--scale must be one of"),
        (["length", "--data", "x", "--out", "y", "--pairs", "1x2,2x1"], "--pairs is of the study batch-length"),
        (["length", "--data", "x", "--out", "y", "--spynet", "z"], "--spynet z does not exist"),
        (["length", "--nothing", "1"], "--nothing"),
    ],
)
def test_a_study_that_cannot_be_is_refused_in_one_line(words, said):
    assert said in run("study", *words, status=2).stderr.splitlines()[-1]


def test_the_papers_scale_needs_the_papers_flow_network(monkeypatch):
    monkeypatch.undo()
    refused = run("study", "length", "--data", "x", "--out", "y", "--scale", "paper", status=2)
    assert "give their file with --spynet" in refused.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("4x2,3x3", "the same number of frames a step"),
        ("4", "must look like 48x10"),
        ("0x2", "numbers from 1 on"),
        ("2x2", "two or more"),
    ],
)
def test_pairs_that_cannot_be_compared_are_refused(text, said):
    with pytest.raises(UserError, match=said):
        parse_pairs(text)


def test_what_is_measured_is_of_other_sources_than_what_is_trained_on(clips):
    training, held_out = split([(clips, clip) for clip in read_index(clips).clips])
    assert len(held_out) == 2
    assert {clip.source for _, clip in training} & {clip.source for _, clip in held_out} == set()
    with pytest.raises(UserError, match="all of one source"):
        split(training[:1])


def test_a_mean_whose_interval_holds_zero_tells_nothing():
    words = {"paper": "p", "what": "w", "unit": "dB"}
    assert compared([0.3, 0.29, 0.32], **words).verdict == "agrees"
    assert compared([-0.3, -0.29, -0.32], **words).verdict == "disagrees"
    assert compared([0.3, -0.2, 0.1], **words).verdict == "cannot be told"
    assert compared([0.003, 0.003, 0.0031], **words).verdict == "cannot be told"
    assert compared([0.3], **words).verdict == "cannot be told"
    assert compared([], **words).verdict == "cannot be told"
    assert equal([0.05, -0.05], tolerance=0.1, **words).verdict == "agrees"
    assert equal([0.5, 0.51], tolerance=0.1, **words).verdict == "disagrees"


def test_the_recurrent_module_sees_the_frames_before_and_no_others():
    torch.manual_seed(0)
    model = RecurrentCleaning(tiny_scale().stage_1.architecture).eval()
    clip = torch.rand(1, 4, 3, 16, 16)
    other = clip.clone()
    other[:, 2] = torch.rand(1, 3, 16, 16)
    with torch.inference_mode():
        left, right = model.clean(clip), model.clean(other)
        alone = clip[:, 0] + model.cleaning_residue(clip[:, 0])
    assert torch.equal(left[:, :2], right[:, :2])
    assert not torch.equal(left[:, 3], right[:, 3])
    assert torch.allclose(left[:, 0], alone)


def test_at_smoke_scale_every_kind_of_network_begins_as_the_default_weights(monkeypatch):
    monkeypatch.undo()
    settings, clip = scales.SCALES["smoke"].stage_1, torch.rand(1, 2, 3, 16, 16)
    default = RealBasicVSR(settings.architecture)  # with one start pass
    tensors = load_model("default", device="cpu", detail=0).state_dict()
    default.load_state_dict({name: tensor for name, tensor in tensors.items() if name != CLEANING_LEVELS_KEY})
    cleaned = {}
    for cleaning in KINDS:
        networks = VariantNetworks(Variant(name="x", settings=settings, cleaning=cleaning), torch.device("cpu"))
        networks.take_default_weights()
        with torch.inference_mode():
            cleaned[cleaning] = networks.model.clean(clip)
            hr = networks.model.super_resolve(clip)
            assert torch.allclose(hr, default.super_resolve(clip), atol=1e-5)
    with torch.inference_mode():
        assert torch.allclose(cleaned["image"], default.clean(clip), atol=1e-5)
    assert torch.allclose(cleaned["recurrent"], cleaned["image"], atol=1e-5)
    assert torch.equal(cleaned["none"], clip)


def test_the_one_stage_network_propagates_frames_as_they_come():
    model = OneStage(tiny_scale().stage_1.architecture).eval()
    clip = torch.rand(1, 3, 3, 16, 16)
    assert model.clean(clip) is clip
    assert not list(model.image_cleaning.parameters())
    with torch.inference_mode():
        assert model(clip).shape == (1, 3, 3, 64, 64)


@pytest.mark.parametrize("kind", [OneStage, RecurrentCleaning])
def test_networks_of_studies_clean_at_one_size(kind):
    sizes = dataclasses.replace(tiny_scale().stage_1.architecture, num_cleaning_levels=2)
    with pytest.raises(UserError, match=r"got num_cleaning_levels 2: give --architecture.num-cleaning-levels 1"):
        kind(sizes)


def test_every_study_is_named_as_its_module_says():
    for name, module in STUDIES.items():
        assert importlib.import_module(f"training.studies.{module}").STUDY.name == name


def test_a_measurement_that_was_written_over_in_part_is_made_again(tmp_path):
    """Its pictures are another's once the next has begun, even if that is killed."""
    bench = Workbench(out=tmp_path, scale=tiny_scale(), trainer=None, held_out=None)
    picture = np.zeros((4, 4, 3), np.uint8)

    def first(store):
        store("picture", picture)
        return "first"

    def killed(store):
        store("picture", picture + 200)
        raise KeyboardInterrupt

    bench.kept("unit", {"weights": "first"}, first)
    with pytest.raises(KeyboardInterrupt):
        bench.kept("unit", {"weights": "second"}, killed)
    _, pictures = bench.kept("unit", {"weights": "first"}, first)
    assert pictures["picture"].max() == 0
