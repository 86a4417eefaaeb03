"""Simulates a cluster that upscales a long film: how busy its workers are, and where that ends.

    python scripts/simulate_cluster.py                            # a million frames, 1000 workers
    python scripts/simulate_cluster.py --measure in.mkv           # with the times of a segment on this machine

The segments and their order are those of rbvsr (`plan_segments`, `Dispatcher`). Simulated are the workers and the
driver, which takes the finished segments one after another.
"""

import argparse
import heapq
import logging
import random
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from vsrealbasicvsr.app.dispatch import Dispatcher
from vsrealbasicvsr.app.plan import Segment, plan_segments

LENGTH = 30
"""Frames that a window keeps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Seconds that the parts of a run take.

    `keep` and `join_frame` were measured on a busy machine with 2 cores of an AMD EPYC (Zen 5), 2026-11-27. `frame` and
    `start` are assumed: what a worker with one such core may take for a clip of 160x96. --measure replaces them all.
    """

    frame: float = 0.06
    """Of a worker, to upscale and encode a frame."""
    start: float = 4.0
    """Of a worker, to start and open the source."""
    keep: float = 0.028
    """Of the driver, to bring a segment of a MiB to the disk; 0.0014 of it are its CPU's."""
    join_frame: float = 60e-6
    """Of the driver, to join a frame at the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """What is simulated."""

    name: str
    num_workers: int = 1000
    segment_frames: int = 240
    slow_share: float = 0.0
    """Of the workers, that are stragglers."""
    slowness: float = 4.0
    """Times that a straggler takes longer."""
    hours_to_death: float | None = None
    """Mean life of a worker."""
    times: Times = Times()


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came out. `utilisation`: the share of all workers' time in which frames of the output were computed."""

    num_segments: int
    num_windows: int
    hours: float
    utilisation: float
    tail_seconds: float
    """From when no segment waits any more to when the last has arrived."""
    frames_again: int
    driver_busy: float
    join_seconds: float


def simulate(cluster: Cluster, num_frames: int, seed: int = 0) -> Outcome:
    """Run the segments of a film through a cluster.

    Raises:
        UserError: A segment was lost too often.
    """
    choose, times = random.Random(seed), cluster.times
    segments = plan_segments(num_frames, window_length=LENGTH, segment_frames=cluster.segment_frames)
    dispatcher, windows = Dispatcher(segments), 0
    slow = {worker for worker in range(cluster.num_workers) if choose.random() < cluster.slow_share}
    dies_at = {worker: _life(cluster, choose) for worker in range(cluster.num_workers)}
    # (seconds, worker, the segment that it has done, or None if it asks for its first one)
    events: list[tuple[float, int, Segment | None]] = []
    for worker in range(cluster.num_workers):
        heapq.heappush(events, (times.start, worker, None))
    driver_free, driver_seconds, none_waits_at, again = 0.0, 0.0, 0.0, 0
    idle: list[int] = []
    while events and not dispatcher.finished:
        now, worker, segment = heapq.heappop(events)
        if now >= dies_at[worker]:  # it died on the way; another one takes its place
            now = dies_at[worker]
            if segment is not None:
                again += segment.num_frames
                dispatcher.lost(worker)
            dies_at[worker] = now + times.start + _life(cluster, choose)
            heapq.heappush(events, (now + times.start, worker, None))
        else:
            if segment is not None:
                now = driver_free = max(now, driver_free) + times.keep
                driver_seconds += times.keep
                dispatcher.done(worker)
                windows += -(-segment.num_frames // LENGTH)
            idle.append(worker)
        while idle and (given := dispatcher.next_for(idle[-1])) is not None:
            taker = idle.pop()
            seconds = given.num_frames * times.frame * (cluster.slowness if taker in slow else 1)
            heapq.heappush(events, (now + seconds, taker, given))
            none_waits_at = now
    end = max(driver_free, times.start)
    join_seconds = times.join_frame * num_frames
    return Outcome(
        num_segments=len(segments),
        num_windows=windows,
        hours=(end + join_seconds) / 3600,
        utilisation=num_frames * times.frame / (cluster.num_workers * (end + join_seconds)),
        tail_seconds=end - none_waits_at,
        frames_again=again,
        driver_busy=driver_seconds / end,
        join_seconds=join_seconds,
    )


def _life(cluster: Cluster, choose: random.Random) -> float:
    return choose.expovariate(1 / (3600 * cluster.hours_to_death)) if cluster.hours_to_death else float("inf")


def measured(source: Path) -> Times:
    """Return the times of this machine, from two segments of a video. Raises UserError."""
    from vsrealbasicvsr.app.job import Choices
    from vsrealbasicvsr.app.joining import join
    from vsrealbasicvsr.app.opening import open_job
    from vsrealbasicvsr.app.rendering import render
    from vsrealbasicvsr.whole_file import whole_file

    with tempfile.TemporaryDirectory() as folder:
        begun = time.monotonic()
        job, opened, frames, pipeline = open_job(source, Path(folder) / "out.mkv", Choices(segment_frames=LENGTH))
        job.folder.mkdir(exist_ok=True)
        start = time.monotonic() - begun
        ends = [time.monotonic() for _ in render(job, pipeline, list(job.segments[:3]))]
        begun = time.monotonic()
        with whole_file(Path(folder) / "kept") as file:
            file.write(job.path_of(job.segments[0]).read_bytes())
        keep = time.monotonic() - begun
        paths = [job.path_of(segment) for segment in job.segments[: len(ends)]]
        timeline = opened.timeline.cut(frames[0], frames[0] + job.segments[len(ends) - 1].stop)
        begun = time.monotonic()
        join(paths, source, timeline, Path(folder) / "joined.mkv", suffix=".mkv", whole=False)
        join_frame = (time.monotonic() - begun) / len(timeline.pts)
    frame = (ends[-1] - ends[0]) / (len(timeline.pts) - job.segments[0].num_frames) if len(ends) > 1 else start
    return Times(frame=frame, start=start, keep=keep, join_frame=join_frame)


def scenarios(num_workers: int, times: Times) -> Iterator[Cluster]:
    """Yield what is worth a look: the segments' length, stragglers, deaths, the driver."""
    usual = Cluster(name="segments of 240 frames", num_workers=num_workers, times=times)
    yield usual
    yield replace(usual, name="of 60", segment_frames=60)
    yield replace(usual, name="of 30", segment_frames=30)
    short = replace(usual, segment_frames=60)
    yield replace(short, name="of 60, 5 % of workers 4x slower", slow_share=0.05)
    yield replace(short, name="of 60, a death an hour each", hours_to_death=1.0)
    yield replace(usual, name="of 240, a death an hour each", hours_to_death=1.0)
    yield replace(short, name="of 60, a tenth of the workers", num_workers=max(1, num_workers // 10))
    yield replace(short, name="of 60, ten times the workers", num_workers=10 * num_workers)
    fast = replace(times, frame=0.01)
    yield replace(short, name="of 60, 100 frames a second each", times=fast)
    yield replace(short, name="of 240, 100 frames a second each", segment_frames=240, times=fast)
    yield replace(short, name="of 60, disk that costs 1.4 ms", times=replace(times, keep=0.0014))
    large = replace(times, frame=1.0)
    yield replace(short, name="of 60, 1 s a frame (large frames)", times=large)
    yield replace(usual, name="of 240, 1 s a frame", times=large)
    yield replace(short, name="of 60, 1 s, a death an hour each", times=large, hours_to_death=1.0)
    yield replace(short, name="of 60, 1 s, 5 % 4x slower", times=large, slow_share=0.05)


def main() -> None:
    """Print a table of the scenarios."""
    logging.getLogger("vapoursynth").setLevel(logging.ERROR)  # BestSource's values that nobody announced
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--measure", type=Path, metavar="VIDEO", help="take the times of this machine and video")
    arguments = parser.parse_args()
    times = Times() if arguments.measure is None else measured(arguments.measure)
    print(
        f"seconds: {times.frame:.4f} a frame, {times.start:.1f} to start, {times.keep:.4f} to keep a segment,", end=" "
    )
    print(f"{times.join_frame * 1e6:.0f} us to join a frame")
    print(f"{'':<34} {'segments':>8} {'hours':>7} {'busy':>6} {'tail s':>7} {'again':>8} {'driver':>7} {'join s':>7}")
    for cluster in scenarios(arguments.workers, times):
        one = simulate(cluster, arguments.frames)
        print(
            f"{cluster.name:<34} {one.num_segments:>8} {one.hours:>7.3f} {one.utilisation:>6.1%}"
            f" {one.tail_seconds:>7.1f} {one.frames_again:>8} {one.driver_busy:>7.1%} {one.join_seconds:>7.1f}"
        )


if __name__ == "__main__":
    main()
