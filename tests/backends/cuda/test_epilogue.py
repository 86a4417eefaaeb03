"""Bias, rectifier, residual sum and shuffle in one pass: the values stay; where it goes wrong torch's way stays."""

import copy
import importlib.util
import subprocess
import sys

import pytest
import torch

from tests import ROOT
from tests.backends.cuda.stepping import steps
from tests.fake_capture import FakeCapture
from tests.networks import smooth_frames
from tests.programs import run_program
from tests.tolerances import REGROUPED
from vsrealbasicvsr import load_model
from vsrealbasicvsr.backends.cuda import epilogue as epilogue_module
from vsrealbasicvsr.backends.cuda.backend import CudaBackend
from vsrealbasicvsr.backends.cuda.epilogue import by_torch, by_triton, fuse, unsupported_reason
from vsrealbasicvsr.backends.torch import TorchBackend

CPU = torch.device("cpu")


@pytest.fixture(params=["tiny", "default"])
def model(request, tiny_model):
    return load_model(tiny_model if request.param == "tiny" else "default")


def test_a_network_with_epilogues_makes_the_pictures_of_the_plain_one(model):
    seen = []

    def epilogue(x, bias, slope, residual=None, *, shuffle=False):
        seen.append((slope, residual is not None, shuffle))
        return by_torch(x, bias, slope, residual, shuffle=shuffle)

    fused = copy.deepcopy(model).to(memory_format=torch.channels_last)
    fuse(fused, epilogue)
    frames = smooth_frames(4, 23, 37)
    with torch.inference_mode():
        for ours, theirs in zip(steps(TorchBackend(fused), frames), steps(TorchBackend(model), frames), strict=True):
            torch.testing.assert_close(ours, theirs, atol=10 * REGROUPED, rtol=0)
    assert set(seen) == {(0.1, False, False), (0.0, False, False), (1.0, True, False), (0.1, False, True)}


def test_a_network_with_epilogues_knows_how_far_its_tiles_reach_and_its_type(model):
    fused = copy.deepcopy(model)
    fuse(fused, by_torch)
    assert fused.cleaning_halo_rows == model.cleaning_halo_rows
    assert fused.basicvsr.backward_resblocks.halo_rows == model.basicvsr.backward_resblocks.halo_rows
    assert fused.half().dtype == torch.float16


@pytest.mark.long
def test_without_an_epilogue_that_works_the_plain_steps_remain_and_the_reason_is_noted(model):
    def raises(x, bias, slope, residual=None, *, shuffle=False):
        raise RuntimeError("no\ncompiler")

    def forgets_the_sum(x, bias, slope, residual=None, *, shuffle=False):
        return by_torch(x, bias, slope, None, shuffle=shuffle)

    def forgets_the_shuffle(x, bias, slope, residual=None, *, shuffle=False):
        return by_torch(x, bias, slope, residual)

    frames = smooth_frames(3, 23, 37)
    with torch.inference_mode():
        plain = steps(TorchBackend(model), frames)
        for epilogue, reason in (
            (raises, "RuntimeError: no compiler"),
            (forgets_the_sum, "its results differed from torch's"),
            (forgets_the_shuffle, "its results differed from torch's"),
        ):
            network = CudaBackend(copy.deepcopy(model), capture=FakeCapture(), epilogue=epilogue)
            assert network.notes == [f"bias, activation and residual sum are not fused ({reason})"]
            for ours, theirs in zip(steps(network, frames), plain, strict=True):
                assert torch.equal(ours, theirs)


@pytest.mark.long
def test_captured_or_not_steps_with_epilogues_give_the_same_bits(model):
    frames = smooth_frames(4, 45, 67)
    with torch.inference_mode():
        made = [
            steps(CudaBackend(copy.deepcopy(model), capture=capture, epilogue=by_torch), frames)
            for capture in (FakeCapture(), FakeCapture(torch.nan))
        ]
    for ours, theirs in zip(*made, strict=True):
        assert torch.equal(ours, theirs)


def test_what_is_below_zero_without_end_is_rectified_as_torch_does_it():
    x = torch.tensor((-torch.inf, torch.inf, -1.0)).view(1, 1, 1, 3)
    assert by_torch(x, torch.zeros(1), 0.0).flatten().tolist() == [0, torch.inf, 0]


def test_whether_steps_are_fused_is_found_out_once():
    tries = []

    def fails_at_first(x, bias, slope, residual=None, *, shuffle=False):
        tries.append(slope)
        if len(tries) == 1:
            raise RuntimeError("the disk is full")
        return by_torch(x, bias, slope, residual, shuffle=shuffle)

    for _ in range(2):
        assert unsupported_reason(fails_at_first, CPU, torch.float32) == "RuntimeError: the disk is full"
    assert len(tries) == 1


def test_memory_that_is_short_decides_nothing():
    def has_no_memory(x, bias, slope, residual=None, *, shuffle=False):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        unsupported_reason(has_no_memory, CPU, torch.float32)

    def has_some_again(x, bias, slope, residual=None, *, shuffle=False):
        return by_torch(x, bias, slope, residual, shuffle=shuffle)

    assert unsupported_reason(has_some_again, CPU, torch.float32) is None


# ---- the kernel ------------------------------------------------------------------------------------------------------

IN_THE_INTERPRETER = """
import itertools, torch
from vsrealbasicvsr.backends.cuda.epilogue import by_torch, by_triton, unsupported_reason
num = 0
for dtype in (torch.float32, torch.float16, torch.bfloat16):
    reason = unsupported_reason(by_triton, torch.device("cpu"), dtype)
    assert reason is None, reason
    for (channels, height, width), with_residual, slope in itertools.product(
        ((64, 3, 5), (4, 1, 1), (12, 1, 700), (256, 4, 3), (16, 33, 2)), (False, True), (0.0, 0.1, 1.0)
    ):
        for shuffle in (False, True):
            if shuffle and with_residual:
                continue
            torch.manual_seed(num)
            x, bias = torch.randn(2, channels, height, width).to(dtype), torch.randn(channels).to(dtype)
            x[0, 0, 0, 0] = (torch.inf, -torch.inf, torch.nan)[num % 3]
            residual = torch.randn_like(x) if with_residual else None
            expected = by_torch(x, bias, slope, residual, shuffle=shuffle)
            made = by_triton(x.clone(), bias, slope, residual, shuffle=shuffle)
            assert made.is_contiguous(memory_format=torch.channels_last)
            assert (made.shape, made.dtype) == (expected.shape, expected.dtype)
            step = torch.finfo(dtype).eps
            torch.testing.assert_close(made, expected, rtol=2 * step, atol=2 * step, equal_nan=True)
            num += 1
print(num)
"""


@pytest.mark.long
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="torch came without Triton")
def test_the_kernel_gives_torchs_values_in_tritons_interpreter():
    done = run_program(IN_THE_INTERPRETER, environment={"TRITON_INTERPRET": "1"})
    assert done.stdout == "135\n"


def test_on_the_cpu_the_kernel_cannot_run_and_that_is_no_error():
    assert unsupported_reason(by_triton, CPU, torch.float32)


def test_without_triton_nothing_of_it_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "vsrealbasicvsr.backends.cuda.epilogue_triton", raising=False)
    monkeypatch.setattr(epilogue_module, "_verdicts", {})
    assert unsupported_reason(by_triton, CPU, torch.float32) == "Triton is not installed"


@pytest.mark.long
def test_the_cpu_loads_no_triton():
    code = (
        "import sys, vsrealbasicvsr.filter.entry; print('vsrealbasicvsr.backends.cuda.epilogue_triton' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
