"""The simulation of a cluster hands out every window once, and shows what waiting and deaths cost."""

from dataclasses import replace

import pytest

from scripts.simulate_cluster import LENGTH, Cluster, Times, simulate

TIMES = Times(frame=0.1, start=4.0, keep=0.0, join_frame=0.0)
SMALL = Cluster(name="small", num_workers=4, segment_frames=60, times=TIMES)


def test_a_small_cluster_takes_as_long_as_its_segments_do() -> None:
    one = simulate(SMALL, 480)  # 8 segments of 6 seconds, two for each worker
    assert (one.num_segments, one.num_windows, one.frames_again) == (8, 480 // LENGTH, 0)
    assert one.hours * 3600 == pytest.approx(4 + 12)
    assert one.utilisation == pytest.approx(12 / 16)
    assert one.tail_seconds == pytest.approx(6)


def test_no_window_is_computed_twice_unless_a_worker_dies() -> None:
    for num_frames in (1, 31, 1000, 12_345):
        assert simulate(SMALL, num_frames).num_windows == -(-num_frames // LENGTH)
    dying = simulate(replace(SMALL, hours_to_death=0.02), 12_345)
    assert dying.num_windows == -(-12_345 // LENGTH)
    assert dying.frames_again > 0
    assert dying.hours > simulate(SMALL, 12_345).hours


def test_stragglers_long_segments_and_a_busy_driver_show() -> None:
    usual = simulate(SMALL, 12_000)
    assert simulate(replace(SMALL, slow_share=0.5, slowness=10), 12_000).utilisation < usual.utilisation / 1.5
    assert simulate(replace(SMALL, segment_frames=6000), 12_000).utilisation < usual.utilisation / 1.5
    driver = simulate(replace(SMALL, times=replace(TIMES, keep=3.0)), 12_000)
    assert driver.driver_busy > 0.95
    assert driver.utilisation < usual.utilisation / 1.5


def test_a_film_on_a_thousand_workers_is_simulated_whole() -> None:
    one = simulate(Cluster(name="large", times=TIMES), 1_000_000)
    assert one.num_windows == -(-1_000_000 // LENGTH)
    assert 0.5 < one.utilisation <= 1
