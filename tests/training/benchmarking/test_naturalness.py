"""NIQE, BRISQUE, NRQM and PI as VideoLQ is measured: the channel, the border, and what is absent."""

import importlib.util
import sys

import numpy as np
import pytest
import skimage.color
import skimage.data
import torch

from tests.training.benchmarking.videolq import PROGRAMS
from training.benchmarking import naturalness
from training.benchmarking.kept import FrameScores, means
from training.benchmarking.naturalness import Measure, Measures, matlab_luma, niqe_of
from training.benchmarking.published import PUBLISHED
from training.evaluation import metrics
from training.evaluation.metrics import Absent


@pytest.fixture(scope="module")
def picture():
    return torch.from_numpy(skimage.data.coffee()[:200, :300]).permute(2, 0, 1).float() / 255


def test_luma_is_that_of_matlab(picture):
    expected = skimage.color.rgb2ycbcr(picture.permute(1, 2, 0).numpy().astype(np.float64))[:, :, 0].round()
    assert np.array_equal((matlab_luma(picture) * 255).round().numpy(), expected)


def test_niqe_is_of_the_luma_without_four_pixels_of_border(picture):
    grey = (matlab_luma(picture)[4:-4, 4:-4]).expand(1, 3, -1, -1)
    assert niqe_of(picture) == metrics.niqe(grey)
    framed = picture.clone()
    framed[:, :4], framed[:, -4:], framed[:, :, :4], framed[:, :, -4:] = 0, 1, 0, 1
    assert niqe_of(framed) == niqe_of(picture)
    assert np.isnan(niqe_of(picture[:, :100]))


def test_pi_follows_from_niqe_and_nrqm_and_is_absent_without():
    nrqm = Measure("a test", lambda picture: 6.0477)
    there = Measures(niqe=Measure("a test", lambda picture: 3.7662), brisque=Absent("so", "cure"), nrqm=nrqm)
    assert there.of(torch.zeros(3, 8, 8)) == {"niqe": 3.7662, "brisque": None, "nrqm": 6.0477, "pi": 3.85925}
    assert set(there.absent) == {"brisque"}
    for values in PUBLISHED.values():  # the paper's own numbers keep the rule
        assert values["pi"] == pytest.approx((values["niqe"] + 10 - values["nrqm"]) / 2, abs=6e-5)


@pytest.mark.long
def test_without_pyiqa_niqe_is_ours_and_nrqm_is_absent_with_its_cure(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyiqa", None)  # as Python marks what cannot be imported
    found = naturalness.load_measures(torch.device("cpu"))
    assert found.by["niqe"] == naturalness.OURS
    assert {"nrqm", "pi"} <= set(found.absent)
    assert "pip install --no-deps pyiqa" in str(found.absent["nrqm"])


@pytest.mark.skipif(importlib.util.find_spec("pyiqa") is None, reason="pyiqa is not installed")
def test_pyiqa_measures_the_same_channel_and_border(picture):
    found = naturalness.load_pyiqa("niqe", torch.device("cpu"))
    if isinstance(found, Absent):
        pytest.skip(str(found))
    assert found.of(picture) == pytest.approx(niqe_of(picture), rel=PROGRAMS)


def test_every_frame_counts_the_same_and_those_without_a_value_do_not():
    frames = [FrameScores(frame=str(n), niqe=n, brisque=None, nrqm=n or None, pi=None) for n in (0, 1, 5)]
    assert means(frames) == {"niqe": 2, "brisque": None, "nrqm": 3, "pi": None}
