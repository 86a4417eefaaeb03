"""The CPU time of one training clip of the published recipe, ours against a plain pipeline.

Plain: every degradation frame by frame with OpenCV and NumPy, in the published order, codecs through PyAV with their
own threads. Ours: what training does without a GPU. Both carry out the same recipes on the same frames.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import itertools
import math
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import numpy.typing as npt
import torch
from benchmark_report import Spread, aligned, machine, print_machine, write_json
from scipy import special

from training import degradations, samples, store
from training.clips import moved_photograph, read_video
from training.degradations import (
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
from training.samples import Drawn, SampleOptions
from vsrealbasicvsr.errors import UserError
from vsrealbasicvsr.model import SCALE

type Bytes = npt.NDArray[np.uint8]
type Floats = npt.NDArray[np.float32]


# ---- CPU time --------------------------------------------------------------------------------------------------------


def cpu_seconds() -> float:
    """CPU time of this process, all of its threads, and of its children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


@dataclass(slots=True)
class Watch:
    """CPU seconds by what they were spent on, one sum for each repeat."""

    num_repeats: int
    repeat: int = 0
    spent: dict[str, list[float]] = field(default_factory=dict)

    @contextlib.contextmanager
    def on(self, name: str) -> Iterator[None]:
        """What happens inside counts as `name`, in the repeat that `repeat` says."""
        before = cpu_seconds()
        yield
        self.add(name, cpu_seconds() - before)

    def add(self, name: str, seconds: float) -> None:
        """So much more was spent on `name`."""
        self.spent.setdefault(name, [0.0] * self.num_repeats)[self.repeat] += seconds

    def per_clip(self, names: Sequence[str], num_clips: int) -> list[float]:
        """What all of these cost together for one clip, repeat by repeat."""
        nothing = [0.0] * self.num_repeats
        sums = zip(*(self.spent.get(name, nothing) for name in names), strict=True)
        return [sum(parts) / num_clips for parts in sums]


# ---- a plain pipeline ------------------------------------------------------------------------------------------------

# Frames are float32 (H, W, 3) in [0, 1], RGB, one after another, as in the published code.


def plain_unsharp(frame: Floats) -> Floats:
    """The published mask: two convolutions with 51 x 51 taps."""
    line = cv2.getGaussianKernel(51, 8.0)
    kernel = line @ line.T
    difference = frame - cv2.filter2D(frame, -1, kernel)
    edges = cv2.filter2D((np.abs(difference) * 255 > 10).astype(np.float32), -1, kernel)
    sharp = np.clip(frame + 0.5 * difference, 0, 1)
    return np.asarray(edges * sharp + (1 - edges) * frame, dtype=np.float32)


def plain_step(step: Step, frames: list[Floats], output_size: tuple[int, int], watch: Watch) -> list[Floats]:
    """The frames after a step of the recipe, made one by one; output_size is (height, width)."""
    match step:
        case Blur() | SincBlur():
            return [
                np.asarray(cv2.filter2D(frame, -1, plain_kernel(step, t)), dtype=np.float32)
                for t, frame in enumerate(frames)
            ]
        case Resize():
            return plain_resize(step, frames, output_size)
        case GaussianNoise():
            generator = np.random.RandomState(step.seed)
            noise = (generator.randn(*frame.shape[:2], 1 if step.grey else 3).astype(np.float32) for frame in frames)
            strengths = np.array(step.sigma_255, dtype=np.float32) / 255
            return [frame + sigma * some for frame, sigma, some in zip(frames, strengths, noise, strict=True)]
        case PoissonNoise():
            return plain_poisson(step, frames, watch)
        case ChromaNoise():
            return plain_chroma_noise(step, frames)
        case Jpeg():
            return [plain_jpeg(frame, round(quality)) for frame, quality in zip(frames, step.quality, strict=True)]
        case VideoCodec():
            return plain_codec(step, frames)


def plain_chroma_noise(step: ChromaNoise, frames: list[Floats]) -> list[Floats]:
    """Blotches of colour, new in every frame."""
    generator = np.random.RandomState(step.seed)
    out = []
    for frame, sigma in zip(frames, step.sigma_255, strict=True):
        cells = generator.randn(frame.shape[0] // step.cell_px + 2, frame.shape[1] // step.cell_px + 2, 2)
        blue, red = np.moveaxis(cv2.resize(cells * sigma * 1.5 / 255, frame.shape[1::-1]), 2, 0)
        added = np.stack([1.402 * red, -0.344136 * blue - 0.714136 * red, 1.772 * blue], axis=2)
        out.append(frame + added.astype(np.float32))
    return out


def plain_kernel(step: Blur | SincBlur, t: int) -> npt.NDArray[np.float64]:
    """The kernel of frame t, (size, size)."""
    offsets = np.arange(step.size_px) - step.size_px // 2
    x, y = np.meshgrid(offsets, offsets)
    if isinstance(step, SincBlur):
        cutoff, radius = step.cutoff_radians[t], np.maximum(np.hypot(x, y), 1e-9)
        kernel = cutoff * special.j1(cutoff * radius) / (2 * np.pi * radius)
        kernel[radius < 0.5] = cutoff**2 / (4 * np.pi)
        return np.asarray(kernel / kernel.sum())
    cos, sin = np.cos(step.angle_radians[t]), np.sin(step.angle_radians[t])
    q = ((x * cos + y * sin) / step.sigma_x_px[t]) ** 2 + ((y * cos - x * sin) / step.sigma_y_px[t]) ** 2
    power = q ** step.beta[t] if step.beta[t] != 1 else q
    kernel = 1 / (1 + power) if step.family.startswith("plateau") else np.exp(-0.5 * power)
    return np.asarray(kernel / kernel.sum())


def plain_resize(step: Resize, frames: list[Floats], output_size: tuple[int, int]) -> list[Floats]:
    """Every frame in its own size: OpenCV's, without antialiasing."""
    names = {"bilinear": cv2.INTER_LINEAR, "area": cv2.INTER_AREA, "bicubic": cv2.INTER_CUBIC}
    height, width = frames[0].shape[:2]
    sizes = [output_size] * len(frames)
    if step.scale is not None:
        sizes = [(max(2, int(height * s) // 2 * 2), max(2, int(width * s) // 2 * 2)) for s in step.scale]
    return [
        np.asarray(cv2.resize(frame, size[::-1], interpolation=names[step.filter]), dtype=np.float32)
        for frame, size in zip(frames, sizes, strict=True)
    ]


def plain_poisson(step: PoissonNoise, frames: list[Floats], watch: Watch) -> list[Floats]:
    """Photons counted one by one. The published code takes as many at white as the frame has different levels."""
    generator = np.random.RandomState(step.seed)
    out: list[Floats] = []
    for frame, scale in zip(frames, step.scale, strict=True):
        light = (np.clip((frame * 255).round(), 0, 255) / 255).astype(np.float32)
        if step.grey:
            light = np.asarray(cv2.cvtColor(light, cv2.COLOR_RGB2GRAY), dtype=np.float32)[..., None]
        with watch.on(LEVELS):
            photons = 2 ** np.ceil(np.log2(len(np.unique(light))))
        noise = generator.poisson(light * photons) / photons - light
        out.append(frame + noise.astype(np.float32) * np.float32(scale))
    return out


def plain_jpeg(frame: Floats, quality: int) -> Floats:
    """To JPEG and back."""
    fine, encoded = cv2.imencode(".jpg", plain_bytes(frame)[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not fine:
        raise RuntimeError(f"plain_jpeg: OpenCV failed to encode a frame of {frame.shape}.")
    return plain_floats(np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR))[:, :, ::-1])


def plain_codec(step: VideoCodec, frames: list[Floats]) -> list[Floats]:
    """Into an MP4 in memory and back, with FFmpeg's own choice of threads."""
    buffer, options = BytesIO(), {"preset": step.preset or ""} if step.codec != "mpeg4" else {}
    if step.crf is not None:
        options["crf"] = str(step.crf)
    height, width = frames[0].shape[:2]
    with av.open(buffer, "w", format="mp4") as file:
        stream = file.add_stream(codecs.IMPLEMENTATIONS[step.codec].encoder, rate=1, options=options)
        if not isinstance(stream, av.VideoStream):
            raise RuntimeError(f"plain_codec: {step.codec} is no video codec.")
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        if step.bits_per_frame is not None:
            stream.bit_rate = step.bits_per_frame
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(plain_bytes(frame), format="rgb24")))
        file.mux(stream.encode())
    buffer.seek(0)
    with av.open(buffer, "r") as file:
        return [plain_floats(picture.to_ndarray(format="rgb24")) for picture in file.decode(video=0)]


def plain_bytes(frame: Floats) -> Bytes:
    """Rounded to 8 bits, overshoot cut off: the published fault of wrapping around costs no less."""
    return np.asarray(np.clip(frame * 255, 0, 255).round(), dtype=np.uint8)


def plain_floats(frame: npt.NDArray[Any]) -> Floats:
    """In [0, 1]."""
    return frame.astype(np.float32) / np.float32(255)


# ---- the input of training -------------------------------------------------------------------------------------------

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
LEVELS, ENCODER, AS_ONE = "  of it, counting levels", "  of it, encoder and decoder", "make_sample"
_DETAILS = {"Poisson noise": (LEVELS,), "video codec": (ENCODER,)}
ROWS = (READ, SHARPEN, *(row for name in STEPS.values() for row in (name, *_DETAILS.get(name, ()))), OTHER)
"""Of the table; a detail is a part of the row above it."""
PREPARED, PNG, VIDEO = "prepared clips, as training does", "PNG frames", "H.264 video"
MOST_READING, MOST_INPUT = 0.55, 1 / 3
"""What is aimed at: of reading every frame, and of the plain pipeline."""
SIDE_PX = 480
"""Of the frames in the files, where the clips are as large: the published ones."""


@dataclass(frozen=True, slots=True)
class Files:
    """The frames of one clip as other programs keep them: PNG files, and a video."""

    pngs: tuple[Path, ...]
    video: Path

    @staticmethod
    def write(folder: Path, frames: Bytes) -> Files:
        """The files of a clip (T, H, W, 3) of even size."""
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
        """The first frames, decoded one by one, as the published pipeline does."""
        return [np.asarray(cv2.imread(str(path)), dtype=np.uint8)[:, :, ::-1] for path in self.pngs[:num_frames]]

    def read_video(self, num_frames: int) -> list[object]:
        """The first frames of the video."""
        return list(itertools.islice(read_video(self.video), num_frames))


def plain_clip(files: Files, drawn: Drawn, num_frames: int, watch: Watch) -> Bytes:
    """The degraded clip (T, h, w, 3) in the published order: read half, mirror in time, sharpen, degrade each frame.

    The files are read for what it costs; the frames are those that ours gets, so that both do the same work.
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


def our_clip(clips: store.ClipStore, options: SampleOptions, index: int, watch: Watch) -> Bytes:
    """The same as training.samples.make_sample does it, part by part."""

    def run_codec(step: VideoCodec, planes: codecs.Planes) -> codecs.Planes:
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
    """What the input costs, CPU seconds a clip. Ratios are to the plain pipeline, medians over repeats.

    parts: row -> how often in a clip, plain, ours. reading: name -> L frames, U frames, the ratio of the two.
    left_to_cpu: of ours where a GPU does all but reading, encoding and decoding.
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
        """The tables."""
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
            f"aim: at most {MOST_INPUT:.2f}; training.data.make_sample as one call: {self.as_one} ms",
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
    clips: store.ClipStore, options: SampleOptions, folder: Path, *, num_clips: int, num_repeats: int
) -> InputReport:
    """Plain and ours, clip by clip in turns; `folder` gets files to read.

    Raises ValueError if no clip is long and large enough.
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
            samples.make_sample(clips, options, index)
        for name, read in readers.items():
            for num_frames in (options.num_frames, num_read):
                with reading[name].on(str(num_frames)):
                    read(index, num_frames)

    one(0)  # what is set up on first use is not counted
    for watch in (plain, ours, *reading.values()):
        watch.spent.clear()
    for repeat in range(num_repeats):
        for watch in (plain, ours, *reading.values()):
            watch.repeat = repeat
        for index in range(num_clips):
            one(index)

    def of(watch: Watch, *names: str) -> list[float]:
        return watch.per_clip(names, num_clips)

    def ratio(part: list[float], whole: list[float]) -> float:
        return statistics.median(p / w for p, w in zip(part, whole, strict=True))

    counted = collections.Counter(STEPS[type(step)] for one in drawn for step in one.recipe.steps)
    times = {name: counted[name] / num_clips if name in STEPS.values() else 1.0 for name in PARTS}
    times |= {detail: times[name] for name, details in _DETAILS.items() for detail in details}
    every, half = str(options.num_frames), str(num_read)
    return InputReport(
        num_clips=num_clips,
        num_repeats=num_repeats,
        num_frames=options.num_frames,
        num_read=num_read,
        crop_px=options.crop_px,
        parts={name: (times[name], Spread.of(of(plain, name)), Spread.of(of(ours, name))) for name in ROWS},
        plain=Spread.of(of(plain, *PARTS)),
        ours=Spread.of(of(ours, *PARTS)),
        ratio=ratio(of(ours, *PARTS), of(plain, *PARTS)),
        left_to_cpu=Spread.of(of(ours, READ, ENCODER)),
        left_to_cpu_ratio=ratio(of(ours, READ, ENCODER), of(plain, *PARTS)),
        as_one=Spread.of(of(ours, AS_ONE)),
        reading={
            name: (Spread.of(of(watch, every)), Spread.of(of(watch, half)), ratio(of(watch, half), of(watch, every)))
            for name, watch in reading.items()
        },
    )


def make_clips(folder: Path, *, num_frames: int, side_px: int) -> store.ClipStore:
    """A prepared folder of moved photographs, as videos: those that scikit-image carries."""
    from skimage import data  # only who has no clips needs it

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
    return store.ClipStore.open(folder)


# ---- the whole -------------------------------------------------------------------------------------------------------


def run_input(arguments: argparse.Namespace) -> None:
    """Measure, print the tables, write the JSON. Raises ValueError with one line for what the user can mend."""
    for name in ("num_clips", "repeats", "num_frames", "crop", "batch", "step_seconds"):
        if getattr(arguments, name) <= 0:
            raise UserError(f"--{name.replace('_', '-')} must be above 0, got {getattr(arguments, name)}")
    options = SampleOptions(crop_px=arguments.crop, num_frames=arguments.num_frames, seed=arguments.seed)
    num_threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            if arguments.data is None:
                side_px = max(SIDE_PX, SCALE * arguments.crop)
                clips = make_clips(Path(folder) / "clips", num_frames=arguments.num_frames, side_px=side_px)
            else:
                clips = store.ClipStore.open(arguments.data)
            report = measure_input(
                clips, options, Path(folder), num_clips=arguments.num_clips, num_repeats=arguments.repeats
            )
    finally:
        cv2.setNumThreads(num_threads)
    print_machine(about := machine())
    print(report.describe(batch=arguments.batch, step_seconds=arguments.step_seconds))
    write_json(arguments.json, {"part": "input", "machine": about, **dataclasses.asdict(report)})
