"""The scene detector on photographs that move, flash, fade, and change."""

import itertools

import numpy as np
import pytest
import skimage.data
import torch
from torch import Tensor

from vsrealbasicvsr.engine import is_scene_cut, thumbnail

PHOTOGRAPHS = ["astronaut", "coffee", "chelsea", "rocket"]


def photograph(name: str) -> Tensor:
    image = getattr(skimage.data, name)()
    return torch.from_numpy(np.ascontiguousarray(image[:300, :400])).permute(2, 0, 1).float() / 255


def view(image: Tensor, x: int, y: int = 0, height: int = 216, width: int = 288) -> Tensor:
    return thumbnail(image[:, y : y + height, x : x + width])


@pytest.mark.parametrize("pair", list(itertools.permutations(PHOTOGRAPHS, 2)), ids="-".join)
def test_another_photograph_is_a_cut(pair):
    assert is_scene_cut(*(view(photograph(name), 0) for name in pair))


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_a_fast_pan_is_no_cut(name):
    image = photograph(name)
    for x in (1, 5, 20):  # up to 7 % of the width from one frame to the next
        assert not is_scene_cut(view(image, 0), view(image, x))
        assert not is_scene_cut(view(image, x), view(image, 0))


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_a_flash_a_fade_and_noise_are_no_cuts(name):
    image = photograph(name)
    before = thumbnail(image)
    assert not is_scene_cut(before, thumbnail(image * 0.6 + 0.4))
    assert not is_scene_cut(before, thumbnail(image * 0.5))
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    assert not is_scene_cut(before, thumbnail(image + 0.1 * noise))


def test_the_same_pair_gives_the_same_answer_in_both_directions_of_a_real_cut():
    a, b = (view(photograph(name), 0) for name in ("astronaut", "coffee"))
    assert is_scene_cut(a, b)
    assert is_scene_cut(b, a)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (7, 3)])
def test_any_size_has_a_thumbnail(size):
    assert thumbnail(torch.rand(3, *size)).shape == (24, 32)


def test_black_to_picture_is_a_cut_and_flat_to_flat_is_none():
    black = thumbnail(torch.zeros(3, 90, 120))
    assert is_scene_cut(black, view(photograph("astronaut"), 0))
    assert not is_scene_cut(black, thumbnail(torch.full((3, 90, 120), 0.3)))
