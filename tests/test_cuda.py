"""On a GPU: the same picture as on the CPU, repeatable to the bit. Skipped without one, see conftest."""

import hashlib

import numpy as np
import pytest
import torch
import vapoursynth as vs

from vsrealbasicvsr import load_model, refine
from vsrealbasicvsr.engine import choose_compute

pytestmark = pytest.mark.needs_cuda


def moving(core, num_frames=8):
    blank = core.std.BlankClip(format=vs.RGBS, width=96, height=64, length=num_frames)
    y, x = np.mgrid[0:64, 0:96].astype(np.float32)

    def fill(n, f):
        frame = f.copy()
        for plane in range(3):
            np.copyto(np.asarray(frame[plane]), 0.5 + 0.4 * np.sin((x + 2 * n) / (3 + plane)) * np.cos(y / 5))
        return frame

    return core.std.ModifyFrame(blank, blank, fill)


def pixels(clip) -> np.ndarray:
    return np.stack([[np.asarray(frame[plane]) for plane in range(3)] for frame in clip.frames(close=True)])


@pytest.mark.parametrize(("precision", "least_db"), [("fp32", 80), ("fp16", 50), ("bf16", 35)])
def test_the_gpu_gives_the_picture_of_the_cpu(core, precision, least_db):
    clip = moving(core)
    cpu = pixels(clip.rbvsr.Upscale(device="cpu", precision="fp32"))
    gpu = pixels(clip.rbvsr.Upscale(device="cuda", precision=precision))
    assert -10 * np.log10(np.square(cpu - gpu).mean()) >= least_db


def test_a_gpu_is_chosen_by_itself_and_computes_in_half_precision(core):
    compute = choose_compute("auto", "auto")
    assert (compute.device.type, compute.dtype) == ("cuda", torch.float16)
    assert any(name.startswith("cuda:0") for name in np.atleast_1d(core.rbvsr.Version()["devices"]))


def test_the_gpu_gives_the_same_bytes_every_time_and_in_any_order(core):
    clip = moving(core, num_frames=12)

    def run(order):
        out = clip.rbvsr.Upscale(device="cuda", length=4, overlap=2)
        return {n: hashlib.md5(np.asarray(out.get_frame(n)[0]).tobytes()).hexdigest() for n in order}

    assert run(range(12)) == run(reversed(range(12))) == run([7, 3, 11, 0, 1, 2, 4, 5, 6, 8, 9, 10])


def test_the_model_refines_and_resolves_on_the_gpu():
    model, lr = load_model(device="cuda"), torch.rand(2, 3, 3, 33, 31, device="cuda")
    with torch.inference_mode():
        cleaned, num_passes = refine(model, lr, theta=1.5)
        assert model.super_resolve(cleaned).shape == (2, 3, 3, 132, 124)
    assert num_passes.shape == (2, 3)
