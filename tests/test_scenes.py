"""The scene detector on photographs that move, flash, fade, and change, in pictures with borders and without."""

import itertools

import pytest
import torch
from skimage import data
from torch import Tensor

from scripts import measure_scenes as measured
from vsrealbasicvsr.engine import is_scene_cut, thumbnail

PICTURES = ["astronaut", "coffee", "chelsea", "rocket", "camera", "coins", "hubble_deep_field", "immunohistochemistry"]
"""All that come with scikit-image and are no texture: of these, eight, a shift by a tenth looks like any other."""


@pytest.fixture(scope="module")
def pictures() -> list[Tensor]:
    return [measured.photograph(getattr(data, name)()) for name in PICTURES]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The pictures are small, and threads that wait for each other would take most of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def as_frame(picture: Tensor) -> Tensor:
    return picture.expand(3, -1, -1)


@pytest.mark.parametrize("name", measured.FRAMINGS)
def test_another_picture_is_a_cut_whatever_borders_it_has(pictures, name):
    framing = measured.FRAMINGS[name]
    views = [measured.view(picture, framing.picture) for picture in pictures]
    missed = {
        look: measured.missed_cuts(views, framing, measured.LOOKS[look], num_pairs=100) for look in measured.LOOKS
    }
    assert all(num == 56 for _, num in missed.values())
    assert all(count <= 1 for count, _ in missed.values()), missed


@pytest.mark.long
@pytest.mark.parametrize("framing", ["16:9", "2.39 in 4:3", "9:16 in 16:9"])
@pytest.mark.parametrize("look", ["plain", "noise, logo, subtitles"])
def test_what_moves_flashes_or_fades_is_no_cut(pictures, framing, look):
    pairs = measured.false_cuts(pictures, measured.FRAMINGS[framing], measured.LOOKS[look])
    seen = [name for name, is_cut in pairs if is_cut]
    # A zoom of 8 % from one frame to the next, and a flash that burns the picture out, may be.
    assert [name for name in seen if name not in ("zoom of 8 %", "flash, 2 x, cut off")] == []
    assert len(seen) <= 2, seen


def test_a_cut_from_one_framing_to_another_is_one_in_both_directions(pictures):
    seen = []
    for picture, name in zip(pictures, ("16:9", "2.39 in 16:9", "4:3 in 16:9"), strict=False):
        framing = measured.FRAMINGS[name]
        seen.append(
            thumbnail(measured.framed(measured.view(picture, framing.picture), framing, measured.LOOKS["plain"]))
        )
    assert all(is_scene_cut(*pair) for pair in itertools.permutations(seen, 2))


def test_each_border_is_found_by_itself_in_its_own_colour(pictures):
    frame = as_frame(measured.view(pictures[0], (240, 320))).clone()
    assert thumbnail(frame).borders == (0, 0, 0, 0)
    frame[:, :25], frame[:, 220:], frame[:, :, :20], frame[:, :, 310:] = 0.0, 1.0, 0.4, 0.7
    above, below, left, right = thumbnail(frame).borders
    assert (above, below, left, right) == pytest.approx((10, 8, 8, 4), abs=1)


def test_a_picture_that_is_dark_everywhere_is_not_all_border(pictures):
    dark = [as_frame(measured.view(picture, (240, 320)) * 0.03) for picture in pictures[:2]]
    lamp = torch.zeros(3, 240, 320)
    lamp[:, 100:130, 150:190] = 0.8
    moved = lamp.roll((6, 10), (1, 2))
    assert is_scene_cut(*(thumbnail(frame * 2) for frame in dark))
    assert not is_scene_cut(thumbnail(lamp), thumbnail(moved))
    assert is_scene_cut(thumbnail(lamp), thumbnail(lamp.roll((80, -100), (1, 2))))


def test_frames_without_a_picture_are_parted_from_a_picture_and_not_from_each_other(pictures):
    """Right for the picture: see is_scene_cut."""
    shape = measured.FRAMINGS["2.39 in 4:3"]
    picture = measured.view(pictures[0], shape.picture)
    shown, dim = (thumbnail(measured.framed(picture * gain, shape, measured.LOOKS["plain"])) for gain in (1.0, 0.15))
    black, white = (thumbnail(torch.full((3, 240, 320), value)) for value in (0.0, 1.0))
    for empty in (black, white):
        assert is_scene_cut(shown, empty)
        assert is_scene_cut(empty, shown)
    assert is_scene_cut(dim, black)  # the last step of a fade
    noise = 0.02 * torch.randn(3, 240, 320, generator=torch.Generator().manual_seed(0))
    assert not is_scene_cut(black, thumbnail(noise))
    assert not is_scene_cut(black, thumbnail(torch.full((3, 240, 320), 0.3)))


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (7, 3), (480, 853)])
def test_any_size_has_a_thumbnail(size):
    seen = thumbnail(torch.rand(3, *size))
    assert seen.luma.shape == (96, 128)
    assert not is_scene_cut(seen, seen)
