"""Whole runs of `python -m training`, as a user starts them: processes, signals, files. Small networks, real data.

What is interrupted, compared to the bit with what was, or changes its process, runs in a process of its own, `started`;
all else in this one, `run`. Samples are made in that process too, unless they say "--workers 1".
"""

import contextlib
import dataclasses
import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
import vapoursynth as vs
from PIL import Image

from tests import ROOT
from tests.forked import TRAINING, Process, run_module, start_module
from tests.reference_training import vgg_tensors
from training import bf16
from training.__main__ import main
from training.commands import export as training_export
from training.commands import train
from training.discriminators.unet import UNetDiscriminator
from training.networks import Networks, autocast_dtype_of
from training.presets import PRESETS
from training.processes import Processes, TrainingError
from training.run_folder import checkpoint_path, list_checkpoints, load_checkpoint, read_log
from training.settings import Settings, changed
from training.steps import Steps, StepTensors
from training.teacher import Teacher
from vsrealbasicvsr import load_model
from vsrealbasicvsr.model import Architecture, RealBasicVSR, SPyNet
from vsrealbasicvsr.weights import write_weights

pytestmark = pytest.mark.long
WITHOUT_GPU = {"CUDA_VISIBLE_DEVICES": ""}
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", **WITHOUT_GPU}
TIMEOUT_SECONDS = 240

TINY_SETTINGS = [
    "--device", "cpu", "--workers", "0",
    "--architecture.cleaning-channels", "4", "--architecture.mid-channels", "4", "--architecture.fusion-channels", "4",
    "--architecture.quarter-channels", "4", "--architecture.hr-channels", "4", "--architecture.hr-out-channels", "4",
    "--architecture.num-cleaning-blocks", "1", "--architecture.num-backward-blocks", "1",
    "--architecture.num-forward-blocks", "1", "--architecture.num-flow-levels", "2",
    "--architecture.flow-channels", "4,4,4,4",
    "--crop-px", "16", "--pool-clips", "4", "--pool-crop-px", "16",
    "--flow-from-share", "0", "--rest-weight", "0.5", "--log-every", "2",
]  # fmt: skip
TINY = ["--preset", "smoke", *TINY_SETTINGS, "--num-frames", "2", "--pool-num-frames", "2"]


def run(*words: object, status: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(ROOT), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            ended = main([str(word) for word in words])
        except SystemExit as error:  # argparse's
            ended = error.code
    done = subprocess.CompletedProcess(words, ended, out.getvalue(), err.getvalue())
    assert done.returncode == status, done.stdout + done.stderr
    return done


def started(*words: object, status: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    done = run_module("training", *words, loads=TRAINING, cwd=ROOT, environment=WITHOUT_GPU, timeout=TIMEOUT_SECONDS)
    assert done.returncode == status, done.stdout + done.stderr
    return done


def start(*words: object) -> Process:
    """Start the command in a process, and a session, of its own."""
    return start_module(
        "training", *words, loads=TRAINING, cwd=ROOT, environment=WITHOUT_GPU, start_new_session=True
    )  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As the processes have: sums, and so bits, may depend on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """Three photographs, prepared."""
    folder = tmp_path_factory.mktemp("footage")
    for name in ("astronaut", "coffee", "chelsea"):
        Image.fromarray(getattr(skimage.data, name)()).save(folder / f"{name}.png")
    out = tmp_path_factory.mktemp("prepared") / "clips"
    run("prepare", folder, out, "--images", "photographs", "--workers", "1")
    return out


@pytest.fixture(scope="module")
def whole_run(clips, tmp_path_factory) -> Path:
    """Twelve steps without interruption, a checkpoint every four."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    words = ["--data", clips, "--out", out, "--iterations", 12, "--batch", 2, "--checkpoint-every", 4]
    started("train", *TINY, *words, "--workers", 1)
    return out


def assert_same(left: Path, right: Path, iteration: int) -> None:
    """The two runs' checkpoints after `iteration` steps hold the same bits."""
    a, b = (load_checkpoint(checkpoint_path(run_folder, iteration)) for run_folder in (left, right))
    for part in ("model", "ema"):
        assert a[part].keys() == b[part].keys()
        assert [name for name in a[part] if not torch.equal(a[part][name], b[part][name])] == []
    states = a["optimizer"]["state"], b["optimizer"]["state"]
    assert states[0].keys() == states[1].keys()
    for number in states[0]:
        for moment in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(states[0][number][moment], states[1][number][moment])


def test_a_run_leaves_what_it_should(whole_run):
    assert [path.name for path in list_checkpoints(whole_run)] == ["000000004.pt", "000000008.pt", "000000012.pt"]
    assert json.loads((whole_run / "settings.json").read_text())["architecture"]["mid_channels"] == 4
    records = read_log(whole_run)
    assert [record["iteration"] for record in records] == [2, 4, 6, 8, 10, 12]
    assert {"output", "cleaning", "colour", "rest", "data_wait_share", "seconds_per_step"} <= records[0].keys()
    assert any((whole_run / "tensorboard").iterdir())
    model = load_model(whole_run / "ema.safetensors")
    ema = load_checkpoint(checkpoint_path(whole_run, 12))["ema"]
    assert all(torch.equal(tensor, ema[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("moment", ["at once", "first checkpoint", "anywhere"])
def test_killed_and_resumed_it_ends_at_the_same_bits(clips, whole_run, tmp_path, moment):
    out = tmp_path / "killed"
    words = ["--data", clips, "--out", out, "--iterations", 12, "--batch", 2, "--checkpoint-every", 4]
    process = start("train", *TINY, *words)
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while len(list_checkpoints(out)) < (1 if moment == "at once" else 2) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    time.sleep(np.random.default_rng().uniform(0, 0.4) if moment == "anywhere" else 0)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    run("train", "--resume", out)
    assert_same(whole_run, out, 12)
    assert [record["iteration"] for record in read_log(out)] == [2, 4, 6, 8, 10, 12]


def test_a_run_takes_several_folders_and_goes_on_with_the_same_clips_only(clips, whole_run, tmp_path):
    out = tmp_path / "two"
    run("train", *TINY, "--data", clips, clips, "--out", out, "--iterations", 1, "--batch", 1)
    origin = json.loads((out / "origin.json").read_text())
    assert origin["data"] == [str(clips.resolve())] * 2
    one = json.loads((whole_run / "origin.json").read_text())
    assert origin["clips"] != one["clips"]
    done = run("train", "--resume", out, "--data", clips, status=2)
    assert "are not those" in done.stderr


def test_other_footage_of_the_same_names_and_sizes_is_not_taken_for_the_run_s_or_the_pool_s(clips, tmp_path):
    """As DSC0001.jpg of two cameras: a shared pool trained from the pictures of the run before."""
    (tmp_path / "other").mkdir()
    for name in ("astronaut", "coffee", "chelsea"):
        Image.fromarray(255 - getattr(skimage.data, name)()).save(tmp_path / "other" / f"{name}.png")
    other = tmp_path / "other_clips"
    run("prepare", tmp_path / "other", other, "--images", "photographs", "--workers", "1")
    words = ["train", *TINY, "--iterations", "2", "--pool-folder", tmp_path / "pool"]
    run(*words, "--data", clips, "--out", tmp_path / "a")
    done = run(*words, "--data", other, "--out", tmp_path / "b", status=2)
    assert "was made from other footage" in done.stderr
    run(*words, "--data", clips, "--out", tmp_path / "c")
    done = run("train", "--resume", tmp_path / "a", "--data", other, "--iterations", "4", status=2)
    assert "are not those" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_checkpoint_cut_in_half_is_named_and_the_one_before_it_used(clips, whole_run, tmp_path):
    out = tmp_path / "cut"
    words = ["--data", clips, "--out", out, "--batch", 2, "--checkpoint-every", 4, "--iterations", 8]
    # The learning rate knows the end of the run: what is begun as eight steps and made longer is another run.
    run("train", *TINY, *words)
    newest = checkpoint_path(out, 8)
    good = load_checkpoint(newest)
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    done = run("train", "--resume", out)
    assert "000000008.pt" in done.stderr
    assert "one before it" in done.stderr
    again = load_checkpoint(newest)
    assert all(torch.equal(good["model"][name], again["model"][name]) for name in good["model"])


def test_ctrl_c_ends_after_the_step_with_a_checkpoint_to_go_on_from(clips, tmp_path):
    out = tmp_path / "interrupted"
    words = ["--data", clips, "--out", out, "--iterations", 100000, "--batch", 1, "--checkpoint-every", 100000]
    process = start("train", *TINY, *words, "--workers", 1)
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while len(read_log(out)) < 2:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    assert "another training train is at work" in run("train", "--resume", out, status=2).stderr
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the workers get it too
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    iteration = load_checkpoint(list_checkpoints(out)[-1])["iteration"]
    assert iteration > 0
    done = run("train", "--resume", out, "--iterations", iteration + 2)
    assert f"resuming after step {iteration}" in done.stderr


def torchrun(*words: object) -> None:
    """Two processes on this machine; gradients meet through gloo."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "training"]
    done = subprocess.run(
        [*start, *map(str, words)],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_two_processes_with_one_clip_each_are_one_with_two(clips, tmp_path):
    """After one step Adam's first moment is (1 - 0.9) times the gradient: that is compared, then EMA and resuming."""
    words = [*TINY, "--data", clips, "--checkpoint-every", 1, "--max-gradient-norm", 0]
    one, two = tmp_path / "one", tmp_path / "two"
    run("train", *words, "--out", one, "--batch", 2, "--iterations", 3)
    torchrun("train", *words, "--out", two, "--batch", 1, "--iterations", 2)
    torchrun("train", "--resume", two, "--iterations", 3)
    a, b = (load_checkpoint(checkpoint_path(folder, 1)) for folder in (one, two))
    gradients = [
        [state["optimizer"]["state"][number]["exp_avg"] * 10 for number in sorted(state["optimizer"]["state"])]
        for state in (a, b)
    ]
    assert len(gradients[0]) == len(gradients[1]) > 40
    assert max(gradient.abs().max() for gradient in gradients[0]) > 1e-2
    assert max((left - right).abs().max().item() for left, right in zip(*gradients, strict=True)) < 1e-5
    a, b = (load_checkpoint(checkpoint_path(folder, 3)) for folder in (one, two))
    assert max((a["ema"][name] - b["ema"][name]).abs().max().item() for name in a["ema"]) < 1e-3


@pytest.fixture
def teacher(whole_run, tmp_path) -> Path:
    """The network of a run, which adds three times as much to the bilinear enlargement."""
    network = load_model(whole_run / "ema.safetensors")
    network.basicvsr.conv_last.weight.mul_(3)
    path = tmp_path / "teacher.safetensors"
    write_weights(network, path, metadata={}, dtype=torch.float32)
    return path


COARSE = ["--preset", "compact-gan", *TINY_SETTINGS, "--rest-weight", "0", "--num-frames", "2",
          "--pool-num-frames", "2", "--architecture.start-passes", "0", "--architecture.flow-stride", "1",
          "--architecture.num-cleaning-levels", "1", "--precision", "fp32", "--batch", "2",
          "--discriminator-width", "4", "--colour-block-px", "16"]  # fmt: skip
ALONE = ["--output-weight", "0", "--colour-weight", "0", "--flicker-weight", "0", "--texture-weight", "0",
         "--weave-weight", "0", "--hatching-weight", "0", "--phase-weight", "0", "--adversarial-weight", "0",
         "--feature-matching-weight", "0", "--coarse-contrast", "0", "--chroma-weight", "0"]  # fmt: skip


def test_a_network_keeps_the_coarse_picture_of_a_teacher(clips, whole_run, teacher, tmp_path):
    out = tmp_path / "run"
    words = ["--data", clips, "--from", whole_run, "--teacher", teacher, "--learning-rate", "3e-3"]
    run("train", *COARSE, *ALONE, *words, "--out", out, "--iterations", 40, "--checkpoint-every", 40)
    records = read_log(out)
    assert records[-1]["coarse"] < 0.7 * records[0]["coarse"]
    after = load_model(out / "ema.safetensors")
    started_as = load_checkpoint(checkpoint_path(whole_run, 12))["model"]
    for name, tensor in after.state_dict().items():
        kept = name.startswith(("image_cleaning.", "basicvsr.spynet."))
        assert torch.allclose(tensor, started_as[name], atol=1e-6) == kept, name
    assert json.loads((out / "origin.json").read_text())["teacher"] == str(teacher)
    run("train", "--resume", out, "--device", "cpu", "--workers", "0", "--iterations", 42)
    assert (read_log(out)[-1]["iteration"], "coarse" in read_log(out)[-1]) == (42, True)
    teacher = teacher.rename(tmp_path / "moved.safetensors")
    resumed = ["train", "--resume", out, "--device", "cpu", "--workers", "0", "--iterations", 44]
    assert "If it has moved, name it with --teacher." in run(*resumed, status=2).stderr
    said = run(*resumed, "--teacher", out, status=2).stderr
    assert f"is not the network that {out} began with" in said
    run(*resumed, "--teacher", teacher)
    assert read_log(out)[-1]["iteration"] == 44


def test_a_network_is_trained_with_the_features_of_vgg16(clips, whole_run, tmp_path):
    out, vgg = tmp_path / "run", tmp_path / "vgg16.pth"
    torch.save(vgg_tensors("vgg16"), vgg)
    preset = [word.replace("compact-gan", "compact-style") for word in COARSE]
    words = ["--data", clips, "--from", whole_run, "--vgg-weights", vgg, "--out", out, "--iterations", 1]
    run("train", *preset, *words, "--perceptual-every", 2, "--mixture-probability", 0)
    assert {"perceptual", "style", "texture", "adversarial"} <= read_log(out)[0].keys()
    run("train", "--resume", out, "--device", "cpu", "--workers", "0", "--iterations", 2)
    records = read_log(out)
    assert [(record["iteration"], "style" in record) for record in records] == [(1, True), (2, True)]


def test_a_network_learns_the_output_of_a_teacher_with_more_contrast(clips, whole_run, teacher, tmp_path):
    out = tmp_path / "run"
    preset = [word.replace("compact-gan", "compact-contrast") for word in COARSE]
    words = ["--data", clips, "--from", whole_run, "--teacher", teacher, "--learning-rate", "3e-3", "--out", out]
    run("train", *preset, *words, "--pool-clips", 1, "--iterations", 40, "--checkpoint-every", 40)
    records = read_log(out)
    assert records[-1]["contrast"] < 0.7 * records[0]["contrast"]
    assert records[0].keys() & {"coarse", "adversarial"} == set()


def test_without_another_teacher_the_weights_that_a_run_begins_with_are_it(clips, whole_run, tmp_path):
    out = tmp_path / "run"
    mixtures = ["--mixture-probability", 1]
    run("train", *COARSE, *mixtures, "--data", clips, "--from", whole_run, "--out", out, "--iterations", 2)
    assert json.loads((out / "origin.json").read_text())["teacher"] == str(whole_run)
    assert {"coarse", "chroma", "weave", "adversarial"} <= read_log(out)[0].keys()
    names = set().union(*(record.keys() for record in read_log(out)))
    assert {name for name in names if "mixture" in name} == {
        f"mixture_{name}" for name in ("colour", "chroma", "weave", "hatching", "phase")
    }
    run("train", *COARSE, "--data", clips, "--from", out, "--out", tmp_path / "next", "--iterations", 1)
    assert json.loads((tmp_path / "next" / "origin.json").read_text())["teacher"] == str(whole_run)  # it stays faithful


def test_a_teacher_that_cannot_teach_is_refused(clips, whole_run, teacher, tmp_path):
    words = ["--data", clips, "--from", whole_run, "--out", tmp_path / "run"]
    assert "--teacher nope does not exist" in run("train", *COARSE, *words, "--teacher", "nope", status=2).stderr
    no_use = ["--teacher", teacher, "--coarse-weight", 0, "--chroma-weight", 0, "--mixture-probability", 0]
    assert (
        "--teacher needs a --coarse-weight, --contrast-weight, --chroma-weight, --keep-weight or --mixture-probability"
        " above 0" in run("train", *COARSE, *words, *no_use, status=2).stderr
    )
    assert "holds no ema.safetensors" in run("train", *COARSE, *words, "--teacher", clips, status=2).stderr
    no_start = ["--data", clips, "--out", tmp_path / "run", "--no-freeze-cleaning", "--flow-learning-rate", "1e-4"]
    assert (
        "losses and mixtures need a teacher: --teacher or --from" in run("train", *COARSE, *no_start, status=2).stderr
    )


def test_another_run_begins_from_a_run_and_from_its_exported_weights(clips, whole_run, tmp_path):
    exported = tmp_path / "mine.safetensors"
    done = run("export", whole_run, exported, "--license", "CC0-1.0")
    assert "after 12 steps" in done.stdout
    assert "exists" in run("export", whole_run, exported, status=2).stderr
    for number, start in enumerate((whole_run, exported)):
        words = ["--data", clips, "--from", start, "--iterations", 1, "--batch", 1, "--learning-rate", 0]
        run("train", *TINY, *words, "--out", tmp_path / f"next{number}", "--flow-learning-rate", 0)
    begun = load_checkpoint(checkpoint_path(tmp_path / "next0", 1))
    before = load_checkpoint(checkpoint_path(whole_run, 12))["model"]
    assert all(torch.equal(begun["model"][name], before[name]) for name in before)


def test_the_weights_of_a_run_upscale_a_clip(core, whole_run):
    clip = core.std.BlankClip(format=vs.YUV420P8, width=32, height=24, length=3)
    frames = list(core.rbvsr.Upscale(clip, model=str(whole_run / "ema.safetensors"), device="cpu").frames())
    assert [(frame.width, frame.height) for frame in frames] == [(128, 96)] * 3


GAN = [*TINY, "--adversarial-weight", 0.05, "--checkpoint-every", 1, "--batch", 1]


def test_a_run_with_a_discriminator_is_resumed_at_the_same_bits(clips, whole_run, tmp_path):
    """As stage 2 begins: from another run; VGG19 is not to be had offline and left out."""
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    run("train", *GAN, "--data", clips, "--from", whole_run, "--out", whole, "--iterations", 2)
    shutil.copytree(whole, parted)  # as it was left after its first step
    checkpoint_path(parted, 2).unlink()
    run("train", "--resume", parted)
    assert_same(whole, parted, 2)
    before, a, b = (
        load_checkpoint(checkpoint_path(*place))["discriminator"] for place in ((whole, 1), (whole, 2), (parted, 2))
    )
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["conv_0.weight"], before["conv_0.weight"])
    assert {"adversarial", "discriminator_real", "discriminator_fake"} <= read_log(parted)[0].keys()


def test_a_published_checkpoint_begins_a_fine_tuning_with_its_moving_average_and_its_discriminator(tmp_path):
    sizes = Architecture(cleaning_channels=4, num_cleaning_blocks=1, mid_channels=4, num_backward_blocks=1,
                         num_forward_blocks=1)  # fmt: skip
    settings = dataclasses.replace(PRESETS["finetune"], architecture=sizes)
    torch.manual_seed(3)
    generator, average, discriminator = RealBasicVSR(sizes), RealBasicVSR(sizes), UNetDiscriminator()
    tensors = {
        **{f"generator.{name}": tensor for name, tensor in generator.state_dict().items()},
        **{f"generator_ema.{name}": tensor for name, tensor in average.state_dict().items()},
        **{f"discriminator.{name}": tensor for name, tensor in discriminator.state_dict().items()},
        "step_counter": torch.zeros(1),
    }
    path = tmp_path / "RealBasicVSR_x4.pth"
    torch.save({"state_dict": tensors, "meta": {}}, path, _use_new_zipfile_serialization=False)
    networks = Networks(settings, torch.device("cpu"))
    networks.start_from(path, None)
    for own, published in ((networks.model, average), (networks.discriminator, discriminator)):
        assert own is not None
        assert all(torch.equal(own.state_dict()[name], tensor) for name, tensor in published.state_dict().items())
    other = Networks(dataclasses.replace(settings, architecture=Architecture()), torch.device("cpu"))
    with pytest.raises(TrainingError, match="of other sizes than the settings ask for"):
        other.start_from(path, None)


def test_a_flow_network_of_another_stride_is_no_start(tmp_path):
    settings = PRESETS["compact"]
    path = tmp_path / "spynet.pt"
    for stride in (2, 4):
        flow = SPyNet(settings.architecture.num_flow_levels, settings.architecture.flow_channels, stride)
        torch.save(flow.state_dict(), path)
        networks = Networks(settings, torch.device("cpu"))
        if stride == settings.architecture.flow_stride:
            networks.start_from(None, path)
            assert torch.equal(
                networks.model.basicvsr.spynet.basic_module[0].basic_module[0].conv.weight,
                flow.basic_module[0].basic_module[0].conv.weight,
            )
        else:
            with pytest.raises(TrainingError, match=r"does not fit the settings: .*stride is 4, .* network's is 2"):
                networks.start_from(None, path)


@pytest.mark.parametrize(
    ("option", "frozen", "may_stay"),
    [
        ("--freeze-cleaning", "image_cleaning.", ("image_cleaning.", "basicvsr.spynet.")),
        ("--freeze-basicvsr", "basicvsr.", ("basicvsr.",)),
    ],
)
def test_a_frozen_part_stays_and_the_rest_learns_also_when_resumed(
    clips, whole_run, tmp_path, option, frozen, may_stay
):
    out = tmp_path / "frozen"
    words = [option, "--flicker-weight", 1, "--batch", 1, "--checkpoint-every", 2]
    run("train", *TINY, *words, "--data", clips, "--out", out, "--from", whole_run, "--iterations", 2)
    run("train", "--resume", out, "--iterations", 4, "--device", "cpu", "--workers", 1)
    start = load_checkpoint(list_checkpoints(whole_run)[-1])["model"]
    end = load_checkpoint(checkpoint_path(out, 4))["model"]
    kept = {name for name in start if torch.equal(start[name], end[name])}
    assert {name for name in start if name.startswith(frozen)} <= kept
    assert kept <= {name for name in start if name.startswith(may_stay)}
    assert "flicker" in read_log(out)[-1]


@pytest.mark.parametrize("num_levels", [1, 3])
def test_the_cleaning_module_is_taught_alone_and_no_output_is_computed(
    clips, whole_run, tmp_path, monkeypatch, num_levels
):
    out = tmp_path / "alone"
    words = [*TINY_SETTINGS, "--rest-weight", 0, "--num-frames", 2, "--pool-num-frames", 2, "--batch", 1]
    sizes = ["--architecture.start-passes", 0, "--architecture.flow-stride", 1]
    sizes += ["--architecture.num-cleaning-levels", num_levels]
    monkeypatch.setattr(RealBasicVSR, "super_resolve", None)  # calling it would fail
    monkeypatch.setattr(Teacher, "output", None)
    start = ["--preset", "compact-cleaning", *words, *sizes, "--data", clips, "--out", out, "--from", whole_run]
    told = run("train", *start, "--iterations", 4, "--images-every", 2).stdout
    assert "banding" in told
    before = load_checkpoint(list_checkpoints(whole_run)[-1])["model"]
    after = load_checkpoint(checkpoint_path(out, 4))["model"]
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.startswith("image_cleaning.")}
    assert load_model(out / "ema.safetensors").sizes.num_cleaning_levels == num_levels  # whole_run's has one
    assert {"cleaning", "banding", "keep"} <= read_log(out)[-1].keys()
    assert "output" not in read_log(out)[-1]
    assert json.loads((out / "origin.json").read_text())["teacher"] == str(whole_run)


def test_the_slowness_of_bf16_is_measured():
    assert 0 < bf16.slowness_of_bf16() < 1000


@pytest.mark.parametrize(("slowness", "is_said"), [(26.0, True), (0.6, False)])
def test_who_asks_for_bf16_on_a_cpu_that_is_slow_at_it_is_told(clips, tmp_path, monkeypatch, capfd, slowness, is_said):
    monkeypatch.setattr(bf16, "slowness_of_bf16", lambda: slowness)
    words = ["--data", str(clips), "--out", str(tmp_path / "run"), "--iterations", "1", "--batch", "1"]
    assert main(["train", *TINY, *words, "--precision", "bf16"]) == 0
    assert ("bf16 takes 26 times as long as fp32 on this CPU" in capfd.readouterr().err) == is_said


def test_a_frozen_cleaning_module_cleans_at_as_many_sizes_as_before(clips, whole_run, tmp_path):
    words = ["--freeze-cleaning", "--architecture.num-cleaning-levels", 3, "--data", clips, "--from", whole_run]
    done = run("train", *TINY, *words, "--out", tmp_path / "run", status=2)
    assert "(1, not 3): add --architecture.num-cleaning-levels 1" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(("option", "part"), [("cleaning", "cleaning module"), ("basicvsr", "BasicVSR")])
def test_a_part_that_never_learned_is_not_frozen(clips, tmp_path, option, part):
    done = run("train", *TINY, f"--freeze-{option}", "--data", clips, "--out", tmp_path / "run", status=2)
    assert f"there is no {part} to keep as it is" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("flicker", [0, 1])
def test_gradients_that_are_not_finite_are_skipped_said_and_end_the_run(clips, tmp_path, flicker):
    words = ["--data", clips, "--out", tmp_path / "run", "--iterations", 50, "--batch", 1, "--learning-rate", 1e30]
    words += ["--flicker-weight", flicker, "--flow-learning-rate", 1e30]
    done = run("train", *TINY, *words, "--max-skipped-steps", 3, "--warm-up-iterations", 0, status=2)
    assert "the step is skipped" in done.stdout + done.stderr
    assert "3 steps in a row" in done.stderr.splitlines()[-1]


@pytest.mark.skipif(sys.platform == "win32", reason="limits of file sizes are Unix's")
def test_a_full_disk_ends_with_one_line_and_leaves_the_last_good_checkpoint(clips, whole_run, tmp_path):
    out = tmp_path / "full"
    words = ["--data", clips, "--out", out, "--batch", 2, "--checkpoint-every", 1, "--iterations", 2]
    run("train", *TINY, *words)
    largest = checkpoint_path(out, 2).stat().st_size
    limit = f"import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);\
 resource.setrlimit(resource.RLIMIT_FSIZE, ({largest // 2},) * 2);\
 from training.__main__ import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", limit, "train", "--resume", str(out), "--iterations", "4"],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert "could not be written" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert [path.name for path in (out / "checkpoints").iterdir() if path.suffix != ".pt"] == []
    assert load_checkpoint(list_checkpoints(out)[-1])["iteration"] == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--preset", "stage7"], "--preset must be one of stage1, stage2,"),
        (["--bach", "2"], "Unknown option: --bach"),
        (["--iterat", "2"], "Unknown option: --iterat. Did you mean --iterations?"),
        (["--batch", "none"], "--batch: must be of type int"),
        (["--data", "nowhere"], "nowhere holds no prepared clips"),
        (["--device", "cuda:7"], '--device "cuda:7" cannot be used ('),
        (["--device", "abacus"], '--device "abacus" cannot be used ('),
        (["--device", "mps"], '--device "mps" cannot be used'),
        (["--device", "meta"], '--device "meta" cannot be used'),
        (["--architecture.cleaning-channels", "-3"], "architecture.cleaning_channels must be from 1 to"),
        (["--learning-rate", "inf"], "learning_rate must be a finite number"),
        (["--architecture.mid-channels", "8"], "of other sizes than the settings ask for"),
        (["--from", "missing.pth"], "--from missing.pth does not exist: name a run's folder"),
        (["--from", "none", "--spynet", "missing.pt"], "missing.pt"),
        (["--preset", "stage1", "--from", "none"], "there is no flow network to begin with"),
        (["--preset", "stage2"], "VGG19"),
        (["--crop-px", "200", "--pool-clips", "0"], "800"),
        (["--resume", "nowhere"], "settings.json cannot be read"),
        (["--workers", "-1"], "--workers must be at least 0, got -1"),
        (["--seconds", "0"], "--seconds must be above 0 and finite, got 0"),
        (["--seconds", "nan"], "--seconds must be above 0 and finite, got nan"),
    ],
)
def test_what_cannot_be_done_gets_one_clear_line(clips, whole_run, tmp_path, words, said):
    given = {"--data": str(clips), "--out": str(tmp_path / "out"), "--from": str(whole_run), "--iterations": "1"}
    given |= dict(zip(words[::2], words[1::2], strict=True))
    if given["--from"] == "none":
        del given["--from"]
    if given.get("--preset") == "stage2":  # the sizes of the run it begins from, so that VGG is what is missing
        given["--vgg-weights"] = "missing-VGG19.pth"
    tiny = [] if "--preset" in given else TINY
    if given.get("--preset") == "stage2":
        tiny = TINY[2:]
    tell = started if words[-1] in ("stage7", "cuda:7") else run  # once for argparse, once for an error of ours
    done = tell("train", *tiny, *(word for pair in given.items() for word in pair), status=2)
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert said in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("settings.json", b"\xff\xfe", "settings.json is damaged: it is no text"),
        ("origin.json", b"[]", "origin.json is damaged"),
        ("origin.json", b"{}", "origin.json is damaged"),
        ("origin.json", b"\xff\xfe", "origin.json cannot be read"),
    ],
)
def test_a_damaged_file_of_a_run_is_named_in_one_line(whole_run, tmp_path, name, content, said):
    shutil.copytree(whole_run, tmp_path / "run")
    (tmp_path / "run" / name).write_bytes(content)
    done = run("train", "--resume", tmp_path / "run", "--iterations", 20, "--workers", 0, status=2)
    assert said in done.stderr.splitlines()[-1]
    run("export", tmp_path / "run", tmp_path / "out.safetensors")


def test_degrade_takes_the_frames_of_the_first_size_and_a_recipe_of_as_many(tmp_path, make_clip):
    parts = [make_clip(tmp_path / f"{side}.ts", num_frames=6, width=side, height=side) for side in (64, 48)]
    clip = tmp_path / "both.ts"
    clip.write_bytes(b"".join(part.read_bytes() for part in parts))
    run("degrade", clip, "--out", tmp_path)
    assert Image.open(tmp_path / "degraded.png").width == 4 * (64 + 4)
    done = run("degrade", clip, "--frames", 2, "--recipe", tmp_path / "recipe.json", "--out", tmp_path, status=2)
    assert "frames, the clip has 2. Give --frames" in done.stderr.splitlines()[-1]
    done = run("degrade", clip, "--seed", -1, "--out", tmp_path, status=2)
    assert "--seed must be at least 0, got -1" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("start", ["missing.pth", "page.pth"])
def test_nothing_is_downloaded_before_the_weights_to_begin_from_are_read(clips, tmp_path, monkeypatch, capsys, start):
    def never(*_):
        raise AssertionError("VGG19 was asked for")

    monkeypatch.setattr(train.PerceptualLoss, "load", never)
    (tmp_path / "page.pth").write_text("<html>")
    words = ["--preset", "stage2", "--data", clips, "--out", tmp_path / "run", "--from", tmp_path / start]
    assert main(["train", *map(str, words), "--device", "cpu"]) == 2
    assert start in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_weights_that_become_not_finite_end_the_run_with_the_last_good_checkpoint(clips, tmp_path, monkeypatch, capsys):
    take = Steps.take

    def overflowing(self, tensors, iteration):
        taken = take(self, tensors, iteration)
        if iteration == 1:
            next(self._networks.model.parameters()).data.fill_(math.inf)
        return taken

    out = tmp_path / "run"
    words = [*TINY, "--data", clips, "--batch", 1, "--checkpoint-every", 1]
    with monkeypatch.context() as patch:
        patch.setattr(Steps, "take", overflowing)
        assert main(["train", *map(str, words), "--iterations", "3", "--out", str(out)]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "step 2 ended with values that are not finite (model." in line
    assert f"--from {out}" in line
    assert [path.name for path in list_checkpoints(out)] == ["000000000.pt", "000000001.pt"]
    assert main(["train", "--resume", str(out)]) == 0
    assert load_checkpoint(checkpoint_path(out, 3))["iteration"] == 3


@pytest.mark.parametrize("broken", ["generator", "discriminator"])
def test_of_a_step_with_a_gradient_that_is_not_finite_neither_network_learns(broken):
    sizes = {"num_frames": 2, "crop_px": 16, "batch": 1, "pool_clips": 0}
    settings = changed(PRESETS["smoke"], {"adversarial_weight": 0.1, "discriminator": "patch", **sizes})
    networks = Networks(settings, torch.device("cpu"))
    networks.prepare()
    steps = Steps(networks, Processes(num=1, rank=0, device=torch.device("cpu")), None)
    trained = {"generator": networks.model, "discriminator": networks.discriminator}
    next(trained[broken].parameters()).register_hook(lambda gradient: gradient * math.inf)
    before = {name: [p.detach().clone() for p in network.parameters()] for name, network in trained.items()}
    lr, truth = torch.rand(1, 2, 3, 16, 16), torch.rand(1, 2, 3, 64, 64)
    assert not steps.take(StepTensors(lr, truth, truth), 0).stepped
    for name, network in trained.items():
        assert all(torch.equal(p, old) for p, old in zip(network.parameters(), before[name], strict=True)), name
    assert not networks.optimizer.state
    assert not networks.discriminator_optimizer.state


def test_a_bug_keeps_its_traceback_and_what_the_user_can_mend_is_one_line(tmp_path, monkeypatch, capsys):
    def of(error):
        def fail(*_, **__):
            raise error

        monkeypatch.setattr(training_export, "export", fail)
        return main(["export", "run", str(tmp_path / "out")])

    for bug in (ValueError("too many values to unpack"), KeyError("x"), RuntimeError("shapes")):
        with pytest.raises(type(bug)):
            of(bug)
    assert of(TrainingError("no\x1b[31m good\nat all")) == 2
    assert capsys.readouterr().err == "training export: no?[31m good at all\n"
    assert of(PermissionError(13, "Permission denied", "out")) == 2
    assert "out: Permission denied. Check" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["export", "missing", "out.safetensors"], "there is no missing. Name a run's folder"),
        (["export", ".", "out.safetensors"], "Name a run's folder"),
        (["degrade", "missing.mp4"], "there is no file missing.mp4. Name a video file."),
        (["degrade", "README.md"], "Name another video file"),
        (["degrade", "README.md", "--recipe", "missing.json"], "Name another video file"),
    ],
)
def test_a_wrong_path_names_the_cure_of_its_command(words, said, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert main(words) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert said in line
    assert "Leave it out" not in line


def test_the_workers_end_with_a_run_that_is_killed(clips, tmp_path):
    """Only the first process is killed, as the kernel does when memory runs out."""
    words = ["--data", clips, "--out", tmp_path / "run", "--iterations", 100000, "--batch", 1, "--workers", 1]
    process = start("train", *TINY, *words)

    def living() -> list[str]:
        listed = subprocess.run(
            ["ps", "-o", "stat=", "-s", str(process.pid)], capture_output=True, text=True, check=False
        )
        return [state for state in listed.stdout.split() if not state.startswith("Z")]

    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not read_log(tmp_path / "run"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert len(living()) > 1
    process.kill()
    process.wait()
    while living():
        assert time.monotonic() < deadline, living()
        time.sleep(0.2)


def test_a_setting_cannot_change_when_a_run_goes_on(whole_run):
    done = run("train", "--resume", whole_run, "--learning-rate", "1", status=2)
    assert "learning_rate cannot be changed when a run is resumed" in done.stderr
    assert "is finished" in run("train", "--resume", whole_run).stderr


def test_a_new_run_does_not_write_over_an_old_one(clips, whole_run):
    done = run("train", *TINY, "--data", clips, "--out", whole_run, status=2)
    assert "already holds a run" in done.stderr


@pytest.mark.parametrize(("capability", "dtype"), [((7, 5), None), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)])
def test_auto_precision_is_bf16_only_where_a_gpu_multiplies_it(monkeypatch, capability, dtype):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert autocast_dtype_of(Settings(), torch.device("cuda")) is dtype
    assert autocast_dtype_of(dataclasses.replace(Settings(), precision="bf16"), torch.device("cuda")) is torch.bfloat16


def test_a_loss_that_only_some_steps_have_is_told_all_the_same():
    """Plain steps and captured ones between two readings have different losses."""
    settings = dataclasses.replace(PRESETS["smoke"], iterations=4)
    steps = Steps(Networks(settings, torch.device("cpu")), Processes(num=1, rank=0, device=torch.device("cpu")), None)
    steps._sums, steps._num_of = {"output": 1.0, "rest": 4.0}, {"output": 1, "rest": 1}
    steps._graph_sums, steps._num_graphed = (["output"], torch.tensor([5.0])), 2
    assert steps.read_losses() == {"output": 2.0, "rest": 4.0}
