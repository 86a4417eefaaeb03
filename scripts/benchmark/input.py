"""The CPU time of one training clip of the published recipe, ours against a plain pipeline.

Plain: every degradation frame by frame with OpenCV and NumPy, in the published order, codecs through PyAV with their
own threads. Ours: what training does without a GPU. Both apply the same recipes to the same frames.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import itertools
import math
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np
import torch

from training import degradations
from training.data import dataset as store
from training.data import pool
from training.data import sampler as samples
from training.data.camera import moved_photograph
from training.data.sampler import Drawn
from training.data.settings import DataSettings
from training.data.sources import read_video
from training.degradations import (
    SCALE,
    Blur,
    ChromaNoise,
    GaussianNoise,
    Jpeg,
    PoissonNoise,
    Resize,
    SincBlur,
    Step,
    VideoCodec,
    codecs,
)
from training.degradations.colour import as_bytes
from vsrealbasicvsr.errors import UserError

from .cpu_clock import Watch
from .plain_pipeline import LEVELS, Bytes, plain_bytes, plain_floats, plain_step, plain_unsharp
from .report import Spread, aligned, machine, print_machine, write_json

READ, SHARPEN, OTHER = "reading", "unsharp mask", "8 bits, mirroring"
STEPS: dict[type[Step], str] = {
    Blur: "blur",
    SincBlur: "sinc blur",
    Resize: "resize",
    GaussianNoise: "Gaussian noise",
    PoissonNoise: "Poisson noise",
    ChromaNoise: "chroma noise",
    Jpeg: "JPEG",
    VideoCodec: "video codec",
}
PARTS = (READ, SHARPEN, *STEPS.values(), OTHER)
ENCODER, AS_ONE = "  of it, encoder and decoder", "make_sample"
LEFT_TO_CPU = (READ, STEPS[Jpeg], ENCODER)
"""Parts that training with a GPU leaves to the CPU."""
_DETAILS = {"Poisson noise": (LEVELS,), "video codec": (ENCODER,)}
ROWS = (READ, SHARPEN, *(row for name in STEPS.values() for row in (name, *_DETAILS.get(name, ()))), OTHER)
"""Rows of the table; a detail is a part of the row above it."""
PREPARED, PNG, VIDEO = "prepared clips, as training does", "PNG frames", "H.264 video"
MOST_READING, MOST_INPUT = 0.55, 1 / 3
"""Targets: relative to reading every frame, and relative to the plain pipeline."""
SIDE_PX = 480
"""Side of the frames in the files, where the clips are large enough: the published one."""


@dataclass(frozen=True, slots=True)
class Files:
    """The frames of one clip as other programs store them: PNG files, and a video."""

    pngs: tuple[Path, ...]
    video: Path

    @staticmethod
    def write(folder: Path, frames: Bytes) -> Files:
        """Write the files of a clip (T, H, W, 3) of even size."""
        folder.mkdir()
        pngs = tuple(folder / f"{number:04d}.png" for number in range(len(frames)))
        for path, frame in zip(pngs, frames, strict=True):
            cv2.imwrite(str(path), frame[:, :, ::-1])
        with av.open(str(folder / "clip.mp4"), "w") as file:
            stream = file.add_stream("libx264", rate=25, options={"crf": "18"})
            stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
            for frame in frames:
                file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            file.mux(stream.encode())
        return Files(pngs, folder / "clip.mp4")

    def read_pngs(self, num_frames: int) -> list[Bytes]:
        """Read the first frames, decoded one by one, as in the published pipeline."""
        return [np.asarray(cv2.imread(str(path)), dtype=np.uint8)[:, :, ::-1] for path in self.pngs[:num_frames]]

    def read_video(self, num_frames: int) -> list[object]:
        """Read the first frames of the video."""
        return list(itertools.islice(read_video(self.video), num_frames))


def plain_clip(files: Files, drawn: Drawn, num_frames: int, watch: Watch) -> Bytes:
    """Degrade a clip in the published order: read half, mirror in time, sharpen, degrade each frame.

    The files are read only for the time that it takes; the frames are those of `our_clip`, so that both do the same
    work.

    Args:
        files: Of the clip.
        drawn: Frames and recipe.
        num_frames: Of the clip.
        watch: Receives the CPU time.

    Returns:
        (T, h, w, 3).
    """
    with watch.on(READ):
        files.read_pngs(len(drawn.gt))
    with watch.on(OTHER):
        half = [plain_floats(frame) for frame in drawn.gt.permute(0, 2, 3, 1).contiguous().numpy()]
        frames = (half + half[::-1])[:num_frames] if num_frames > len(half) else half
        output_size = (frames[0].shape[0] // SCALE, frames[0].shape[1] // SCALE)
    with watch.on(SHARPEN):
        frames = [plain_unsharp(frame) for frame in frames]
    for step in drawn.recipe.steps:
        with watch.on(STEPS[type(step)]):
            frames = plain_step(step, frames, output_size, watch)
    with watch.on(OTHER):
        return np.stack([plain_bytes(frame) for frame in frames])


def our_clip(clips: store.ClipDataset, options: DataSettings, index: int, watch: Watch) -> Bytes:
    """Degrade a clip as training.data.pool.make_sample does, part by part."""

    def run_codec(step: VideoCodec | Jpeg, planes: codecs.Planes) -> codecs.Planes:
        if isinstance(step, Jpeg):  # JPEG is a row of its own
            return codecs.run(step, planes)
        with watch.on(ENCODER):
            return codecs.run(step, planes)

    with samples.one_thread():
        with watch.on(READ):
            drawn = samples.draw(clips, options, index)
        with watch.on(SHARPEN):
            sharpened = degradations.unsharp(drawn.gt)
        with watch.on(OTHER):
            seen = samples.mirror(sharpened, options.num_frames, axis=0) if options.stochastic else sharpened
        pieces, after = [seen], degradations.apply_steps(drawn.recipe, seen, run_codec=run_codec)
        for step in drawn.recipe.steps:
            with watch.on(STEPS[type(step)]):
                _, pieces = next(after)
        with watch.on(OTHER):
            lr = torch.cat([as_bytes(piece) for piece in pieces])
    return np.asarray(lr.permute(0, 2, 3, 1).numpy(), dtype=np.uint8)


@dataclass(frozen=True, slots=True, kw_only=True)
class InputReport:
    """CPU seconds per clip. Ratios are to the plain pipeline, medians over repeats.

    Attributes:
        num_clips: Number of clips.
        num_repeats: Number of repeats.
        num_frames: L, frames of a clip.
        num_read: U, frames that are read for it.
        crop_px: Side of the low-resolution crop.
        parts: By row: how often it occurs in a clip, plain, ours.
        plain: All parts of the plain pipeline.
        ours: All parts of ours.
        ratio: Ours to plain.
        left_to_cpu: Part of ours that is left where a GPU does all but reading, JPEG, encoding and decoding.
        left_to_cpu_ratio: The same, to plain.
        as_one: `make_sample` as one call.
        reading: By kind of file: L frames, U frames, the ratio of the two.
    """

    num_clips: int
    num_repeats: int
    num_frames: int
    num_read: int
    crop_px: int
    parts: dict[str, tuple[float, Spread, Spread]]
    plain: Spread
    ours: Spread
    ratio: float
    left_to_cpu: Spread
    left_to_cpu_ratio: float
    as_one: Spread
    reading: dict[str, tuple[Spread, Spread, float]]

    def describe(self, *, batch: int, step_seconds: float) -> str:
        """Return the tables."""
        rows = [["", "times a clip", "plain, ms", "ours, ms", "ours / plain"]]
        for name, (times, plain, ours) in self.parts.items():
            share = f"{ours.median / plain.median:.2f}" if plain.median else "-"
            rows.append([name, f"{times:.1f}", str(plain), str(ours), share])
        rows.append(["whole input, CPU alone", "", str(self.plain), str(self.ours), f"{self.ratio:.2f}"])
        rows.append(["what a GPU leaves to it", "", "", str(self.left_to_cpu), f"{self.left_to_cpu_ratio:.2f}"])
        reading = [["", f"{self.num_frames} frames, ms", f"{self.num_read} frames, ms", "share"]]
        reading += [
            [name, str(every), str(half), f"{share:.2f}"] for name, (every, half, share) in self.reading.items()
        ]
        lines = [
            f"CPU time of one clip: {self.num_frames} frames, {self.crop_px} px from {SCALE * self.crop_px} px;"
            f" {self.num_clips} clips, median of {self.num_repeats} repeats (lowest-highest)",
            *aligned(rows),
            f"aim: at most {MOST_INPUT:.2f}; training.data.pool.make_sample as one call: {self.as_one} ms",
            "",
            "reading and decoding, all frames against the stochastic scheme's half",
            *aligned(reading),
            f"aim: at most {MOST_READING:.2f}",
            "",
        ]
        for cost, text in ((self.ours, "CPU alone"), (self.left_to_cpu, "with a GPU that degrades")):
            workers = max(1, math.ceil(cost.median * batch / step_seconds))
            lines.append(
                f"{text}: {1 / cost.median:.2f} clips per second per core;"
                f" {workers} workers feed {batch} clips every {step_seconds:g} s"
            )
        return "\n".join(lines)


def measure_input(
    clips: store.ClipDataset, options: DataSettings, folder: Path, *, num_clips: int, num_repeats: int
) -> InputReport:
    """Measure plain and ours, clip by clip in turns.

    Args:
        clips: Prepared clips.
        options: Settings of the samples.
        folder: For files to read.
        num_clips: Number of clips.
        num_repeats: Number of repeats.

    Raises:
        UserError: No clip is long and large enough.
    """
    num_read, side_px = options.num_unique, SCALE * options.crop_px
    suited = clips.suited(num_frames=options.num_frames, side_px=side_px)
    numbers = [suited[index % len(suited)] for index in range(num_clips)]

    def piece(index: int, num_frames: int, side_px: int) -> Bytes:
        generator = np.random.default_rng(index)
        return samples.draw_piece(clips, numbers[index], generator, num_frames=num_frames, side_px=side_px)

    largest = [min(SIDE_PX, clips[number].height, clips[number].width) // 2 * 2 for number in numbers]
    files = [
        Files.write(folder / str(index), piece(index, options.num_frames, largest[index]).transpose(0, 2, 3, 1))
        for index in range(num_clips)
    ]
    drawn = [samples.draw(clips, options, index) for index in range(num_clips)]
    readers: dict[str, Callable[[int, int], object]] = {
        PREPARED: lambda index, num_frames: piece(index, num_frames, side_px),
        PNG: lambda index, num_frames: files[index].read_pngs(num_frames),
        VIDEO: lambda index, num_frames: files[index].read_video(num_frames),
    }
    plain, ours = Watch(num_repeats), Watch(num_repeats)
    reading = {name: Watch(num_repeats) for name in readers}

    def one(index: int) -> None:
        plain_clip(files[index], drawn[index], options.num_frames, plain)
        our_clip(clips, options, index, ours)
        with ours.on(AS_ONE):
            pool.make_sample(clips, options, index)
        for name, read in readers.items():
            for num_frames in (options.num_frames, num_read):
                with reading[name].on(str(num_frames)):
                    read(index, num_frames)

    one(0)  # warms up; not counted
    for watch in (plain, ours, *reading.values()):
        watch.spent.clear()
    for repeat in range(num_repeats):
        for watch in (plain, ours, *reading.values()):
            watch.repeat = repeat
        for index in range(num_clips):
            one(index)

    counted = collections.Counter(STEPS[type(step)] for one in drawn for step in one.recipe.steps)
    times = {name: counted[name] / num_clips if name in STEPS.values() else 1.0 for name in PARTS}
    times |= {detail: times[name] for name, details in _DETAILS.items() for detail in details}
    return report_of(plain, ours, reading, times, options, num_clips=num_clips)


def report_of(
    plain: Watch,
    ours: Watch,
    reading: dict[str, Watch],
    times: dict[str, float],
    options: DataSettings,
    *,
    num_clips: int,
) -> InputReport:
    """Return the report of what was measured.

    Args:
        plain: CPU time of the plain pipeline.
        ours: CPU time of ours.
        reading: CPU time of reading, by kind of file.
        times: How often each row occurs in a clip.
        options: Settings of the samples.
        num_clips: Number of clips.
    """

    def of(watch: Watch, *names: str) -> list[float]:
        return watch.per_clip(names, num_clips)

    def ratio(part: list[float], whole: list[float]) -> float:
        return statistics.median(p / w for p, w in zip(part, whole, strict=True))

    every, half = str(options.num_frames), str(options.num_unique)
    return InputReport(
        num_clips=num_clips,
        num_repeats=plain.num_repeats,
        num_frames=options.num_frames,
        num_read=options.num_unique,
        crop_px=options.crop_px,
        parts={name: (times[name], Spread.of(of(plain, name)), Spread.of(of(ours, name))) for name in ROWS},
        plain=Spread.of(of(plain, *PARTS)),
        ours=Spread.of(of(ours, *PARTS)),
        ratio=ratio(of(ours, *PARTS), of(plain, *PARTS)),
        left_to_cpu=Spread.of(of(ours, *LEFT_TO_CPU)),
        left_to_cpu_ratio=ratio(of(ours, *LEFT_TO_CPU), of(plain, *PARTS)),
        as_one=Spread.of(of(ours, AS_ONE)),
        reading={
            name: (Spread.of(of(watch, every)), Spread.of(of(watch, half)), ratio(of(watch, half), of(watch, every)))
            for name, watch in reading.items()
        },
    )


def make_clips(folder: Path, *, num_frames: int, side_px: int) -> store.ClipDataset:
    """Write a prepared folder of videos: photographs from scikit-image with a moving camera."""
    from skimage import data  # needed without prepared clips only

    entries = []
    folder.mkdir()
    for number, name in enumerate(("astronaut", "coffee", "rocket", "chelsea")):
        generator = np.random.default_rng(number)
        frames = moved_photograph(
            getattr(data, name)(), num_frames=num_frames, height=side_px, width=side_px, generator=generator
        )
        store.write_clip_file(folder / f"{name}.npy", frames)
        entries.append(
            store.Clip(
                file=f"{name}.npy",
                kind="video",
                source=name,
                first_frame=0,
                num_frames=num_frames,
                height=side_px,
                width=side_px,
                top=0,
                left=0,
                frames_per_second=25.0,
            )
        )
    store.write_index(folder, store.Index({}, {}, tuple(entries)))
    return store.ClipDataset.open(folder)


# ---- the whole -------------------------------------------------------------------------------------------------------


def run_input(arguments: argparse.Namespace) -> None:
    """Measure, print the tables, write the JSON. Raise UserError if an argument cannot be used."""
    for name in ("num_clips", "repeats", "num_frames", "crop", "batch", "step_seconds"):
        if getattr(arguments, name) <= 0:
            raise UserError(f"--{name.replace('_', '-')} must be above 0, got {getattr(arguments, name)}")
    options = DataSettings(crop_px=arguments.crop, num_frames=arguments.num_frames, seed=arguments.seed)
    num_threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            if arguments.data is None:
                side_px = max(SIDE_PX, SCALE * arguments.crop)
                clips = make_clips(Path(folder) / "clips", num_frames=arguments.num_frames, side_px=side_px)
            else:
                clips = store.ClipDataset.open(arguments.data)
            report = measure_input(
                clips, options, Path(folder), num_clips=arguments.num_clips, num_repeats=arguments.repeats
            )
    finally:
        cv2.setNumThreads(num_threads)
    print_machine(about := machine())
    print(report.describe(batch=arguments.batch, step_seconds=arguments.step_seconds))
    write_json(arguments.json, {"part": "input", "machine": about, **dataclasses.asdict(report)})
