"""The frozen network that losses compare with."""

import dataclasses

import pytest
import torch

from tests.networks import TINY, random_network
from training.losses.keep import nearer_cleaned
from training.teacher import Teacher
from vsrealbasicvsr.model import CLEANING_LEVELS_KEY, RealBasicVSR

LR = torch.rand(2, 2, 3, 32, 96, generator=torch.Generator().manual_seed(0))


def test_a_network_that_gets_more_sizes_learns_the_nearer_of_what_its_teacher_cleans_at_few_and_at_many():
    few = random_network(TINY)
    many = RealBasicVSR.from_state_dict({**few.state_dict(), CLEANING_LEVELS_KEY: torch.tensor(3.0)})
    teacher = Teacher(few)
    with torch.no_grad():
        at_one, at_three = few.clean(LR), many.clean(LR)
    truth = torch.cat((at_one[..., :48], at_three[..., 48:]), dim=-1)
    gt = truth.repeat_interleave(4, -1).repeat_interleave(4, -2)
    taken = teacher.nearest_cleaned(LR, gt, None, num_levels=3)
    assert torch.equal(taken, nearer_cleaned(at_one, at_three, gt))
    assert torch.equal(taken[..., :30], at_one[..., :30])
    assert torch.equal(taken[..., 66:], at_three[..., 66:])
    assert torch.equal(teacher.nearest_cleaned(LR, gt, None, num_levels=1), at_one)


@pytest.mark.parametrize("num_levels", [1, 2, 3])
def test_a_teacher_of_as_many_sizes_is_followed_as_it_is(num_levels):
    network = random_network(dataclasses.replace(TINY, num_cleaning_levels=3))
    gt = torch.rand(2, 2, 3, 128, 384)
    with torch.no_grad():
        expected = network.clean(LR)
    assert torch.equal(Teacher(network).nearest_cleaned(LR, gt, None, num_levels=num_levels), expected)
