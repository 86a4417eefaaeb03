"""The grid of windows: integers only, so everything is checked exhaustively on small clips."""

import pytest

from vsrealbasicvsr.engine import Grid


@pytest.mark.parametrize("num_frames", [1, 2, 7, 30, 31])
@pytest.mark.parametrize("length", [1, 3, 30])
@pytest.mark.parametrize("overlap", [0, 2, 8])
def test_every_frame_is_kept_by_exactly_one_window_and_read_with_its_context(num_frames, length, overlap):
    grid = Grid(num_frames=num_frames, length=length, overlap=overlap)
    windows = [grid.window(k) for k in range(grid.num_windows)]

    assert [n for window in windows for n in range(window.first, window.stop)] == list(range(num_frames))
    for window in windows:
        assert all(grid.index_of(n) == window.index for n in range(window.first, window.stop))
        assert window.read_first == max(0, window.first - overlap)
        assert window.read_stop == min(num_frames, window.stop + overlap)


def test_a_window_does_not_depend_on_how_long_the_clip_goes_on_after_it():
    short, long = (Grid(num_frames=n, length=10, overlap=3) for n in (25, 1000))
    assert short.window(0) == long.window(0)


def test_segments_cover_the_kept_frames_and_cross_no_cut():
    window = Grid(num_frames=100, length=10, overlap=5).window(3)  # keeps 30..39, reads 25..44
    segments = window.segments(lambda i: i in {27, 33, 42})

    assert segments == [range(27, 33), range(33, 42)]


def test_cuts_are_asked_for_inside_of_the_window_only():
    asked = []
    window = Grid(num_frames=100, length=10, overlap=5).window(3)
    window.segments(lambda i: asked.append(i) or False)

    assert asked == list(range(26, 45))


def test_a_cut_at_a_windows_border_leaves_the_context_out():
    window = Grid(num_frames=20, length=10, overlap=5).window(1)
    assert window.segments(lambda i: i == 10) == [range(10, 20)]


@pytest.mark.parametrize("sizes", [(0, 1, 0), (1, 0, 0), (1, 1, -1)])
def test_senseless_sizes_are_refused(sizes):
    num_frames, length, overlap = sizes
    with pytest.raises(ValueError, match="Grid"):
        Grid(num_frames=num_frames, length=length, overlap=overlap)


def test_frames_and_windows_outside_of_the_clip_are_refused():
    grid = Grid(num_frames=10, length=4, overlap=1)
    for ask in (lambda: grid.index_of(10), lambda: grid.index_of(-1), lambda: grid.window(3)):
        with pytest.raises(IndexError):
            ask()
