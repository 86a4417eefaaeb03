"""The weights that the package carries, on photographs that they have not seen, degraded as training.evaluate does."""

import json

import numpy as np
import pytest
import skimage.data
import torch
import torch.nn.functional as F

from training.degradations import apply, moderate_recipe
from training.evaluate import luma, psnr_db, super_resolve, to_bytes
from vsrealbasicvsr import load_model, refine
from vsrealbasicvsr.weights import DEFAULT_WEIGHTS
from vsrealbasicvsr.weights.reading import read_network

PHOTOGRAPHS = ["astronaut", "coffee", "chelsea", "rocket"]


@pytest.fixture(scope="module")
def model():
    return load_model("default")


def degraded(name: str, num_frames: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """(lr, truth) of a photograph that drifts by 2 pixels a frame: (T, 3, 64, 64) and (T, 3, 256, 256)."""
    image = getattr(skimage.data, name)()
    frames = np.stack([image[20:276, 100 + 2 * i : 356 + 2 * i] for i in range(num_frames)])
    lr = apply(moderate_recipe(1), frames)
    return tuple(torch.from_numpy(clip).permute(0, 3, 1, 2).float() / 255 for clip in (lr, frames))


def bicubic(lr: torch.Tensor) -> torch.Tensor:
    return F.interpolate(lr, scale_factor=4, mode="bicubic", align_corners=False)


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_every_photograph_comes_out_better_than_bicubic_in_the_same_colour(model, name):
    lr, truth = degraded(name)
    ours = super_resolve(model, lr, 5.0)

    assert psnr_db(luma(to_bytes(ours)), luma(truth)) > psnr_db(luma(to_bytes(bicubic(lr))), luma(truth))
    assert (ours.mean((0, 2, 3)) - bicubic(lr).mean((0, 2, 3))).abs().max() < 1 / 255


def test_cleaning_comes_to_rest_on_stripes(model):
    """Stripes of high contrast: cleaned twice more, they must not be sharpened into something else."""
    y, x = torch.meshgrid(torch.arange(256.0), torch.arange(256.0), indexing="ij")
    truth = (0.5 + 0.4 * torch.sin((x + 0.4 * y) / 2.6).sign())[None, None].expand(1, 3, 256, 256)
    lr = F.avg_pool2d(truth, 4)[None]
    with torch.inference_mode():
        once, thrice = (refine(model, lr, theta=theta)[0] for theta in (255.0, 0.0))
    assert (thrice - lr).abs().mean() < 2 * (once - lr).abs().mean()


def test_the_file_says_what_it_is():
    metadata = read_network(DEFAULT_WEIGHTS).metadata
    assert DEFAULT_WEIGHTS.stat().st_size < 16_000_000
    assert json.loads(metadata["architecture"])["mid_channels"] == 32
    assert metadata["license"] == "Apache-2.0"
    assert "Urban100" in metadata["trained_on"]
