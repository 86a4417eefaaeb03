"""Time and memory of a frame, three ways side by side: the plain network, the engine alone, and vspipe with all.

plain: the published structure as it is written: torch, eager, float32, contiguous, the whole clip as one sequence.
engine: WindowUpscaler, fed with the same frames as the host does it, frame by frame in order.
vspipe: the same frames through core.rbvsr.Upscale in a real vspipe, which drops what comes out. Its source is RGBS
    frames that are made beforehand. The script upscales the whole clip once before vspipe starts its own clock.
The stand-in and the other upscalers are described in benchmark_peers.

Ours clean each frame exactly once (theta=255) and look for no scene cuts, as plain does. Frames of a window share the
pass that its first one pays, so a time is always that of the whole clip, from pixels in memory to pixels in memory, by
the number of its frames. Building networks and filters does not count. FLOP/s are effective: multiplications and
additions of the plain network, by the time of whatever was measured; a faster algorithm shows as a higher rate.

Run as a program, this file is one plain or engine run in a process of its own: its peak memory is what is read.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import benchmark_peers
import benchmark_process
import numpy as np
import torch
import torch.nn.functional as F
from benchmark_report import Spread, aligned, machine, print_machine, write_json
from benchmark_subjects import MODELS, build_network, moving_clip, size_of, weights_for_upscale
from benchmark_turns import First, Turns, Way, measure_in_turns, psnr_db, synchronise, timed
from benchmark_vspipe import Vspipe, VspipeError
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vsrealbasicvsr import load_model
from vsrealbasicvsr.backends import Backend as Network
from vsrealbasicvsr.engine import DeviceConfig as Compute
from vsrealbasicvsr.engine import Grid, WindowUpscaler
from vsrealbasicvsr.engine import choose_device as choose_compute
from vsrealbasicvsr.engine.device import cpu_kernels
from vsrealbasicvsr.errors import UserError
from vsrealbasicvsr.model import SCALE, RealBasicVSR

CPU_SIZES = "64x64,128x96,320x180"
GPU_SIZES = f"{CPU_SIZES},640x360,720x480,1280x720"
LENGTH, OVERLAP, ONE_PASS = 30, 8, 255
"""Upscale's own defaults, and the theta that cleans exactly once."""
PLAIN, ENGINE, VSPIPE = "plain", "engine", "vspipe"
STEPS = {
    "cleaning_residue": "cleaning",
    "flow": "flow",
    "propagate_backward": "backward",
    "propagate_forward": "forward",
    "reconstruct": "reconstruction",
}
ABREAST = {"propagate_both": "both directions"}
"""Steps that are done together, of small frames on a GPU: they have a share only where they are."""
REST = "rest"
ENGINE_ALONE, AROUND = "engine alone", "conversion and the rest"
MOST_OVER_ENGINE = 0.05
"""What is aimed at: how much longer vspipe may take than the engine alone."""

_SCRIPT = """
    import numpy as np
    import vapoursynth as vs

    core = vs.core
    pixels = np.load(frames)
    num_frames, _, height, width = pixels.shape

    def make(n):
        frame = core.create_video_frame(vs.RGBS, width, height)
        for plane in range(3):
            np.copyto(np.asarray(frame[plane]), pixels[n, plane])
        return frame

    made = [make(n) for n in range(num_frames)]
    form = core.std.BlankClip(format=vs.RGBS, width=width, height=height, length=num_frames, keep=True)
    clip = form.std.ModifyFrame(form, lambda n, f: made[n])

    def upscaled():
        return core.rbvsr.Upscale(
            clip,
            theta=float(theta),
            model=model,
            length=int(length),
            overlap=int(overlap),
            scene_cuts="off",
            device=device,
            precision=precision,
        )

    if int(warm_up):
        for frame in upscaled().frames(close=True):
            pass
    upscaled().set_output()
"""


# ---- the plain network and the engine --------------------------------------------------------------------------------


def plain_clip(network: RealBasicVSR, frames: Tensor, device: torch.device) -> Tensor:
    """The clip (T, 3, S*H, S*W), float32 on the CPU, by the network as it is. Call it on the compute thread."""
    hr: Tensor = network(frames[None].to(device))
    return hr[0].float().cpu()


def make_upscaler(network: RealBasicVSR, compute: Compute, num_frames: int) -> WindowUpscaler:
    """The engine for a clip of so many frames: one cleaning pass, no scene cuts, windows of the usual length."""
    grid = Grid(num_frames=num_frames, length=LENGTH, overlap=OVERLAP)
    return WindowUpscaler(network, compute, grid, theta=ONE_PASS, scene_cuts="off")


def engine_frames(upscaler: WindowUpscaler, frames: Tensor) -> Iterator[Tensor]:
    """The frames (3, S*H, S*W), float32 on the CPU, in order, as the host asks for them."""
    yield from upscaler.upscale_frames(frame.clone() for frame in frames)


def run_engine(upscaler: WindowUpscaler, frames: Tensor) -> tuple[float, Tensor]:
    """The seconds that the whole clip takes, and the clip."""
    before = time.perf_counter()
    hr = list(engine_frames(upscaler, frames))
    seconds = time.perf_counter() - before
    return seconds, torch.stack(hr)


@dataclass(frozen=True, slots=True)
class TimedCompute(Compute):
    """A compute whose networks add what each of their steps takes to `spent`, seconds by the step's name.

    On a GPU each step waits until it is done. Of a step that calls another, the outer one is charged.
    """

    spent: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STEPS.values(), 0.0), compare=False)

    def prepare(self, *args: Any, **kwargs: Any) -> Network:
        """As Compute's, with a clock at each step."""
        network = Compute.prepare(self, *args, **kwargs)
        running: list[str] = []

        def timed_step(name: str, step: Callable[..., Any]) -> Callable[..., Any]:
            def run(*args: Any, **kwargs: Any) -> Any:
                if running:
                    return step(*args, **kwargs)
                running.append(name)
                synchronise(self.device)
                before = time.perf_counter()
                try:
                    made = step(*args, **kwargs)
                    return list(made) if isinstance(made, Iterator) else made  # rows are made as they are read
                finally:
                    synchronise(self.device)
                    self.spent[name] = self.spent.get(name, 0.0) + time.perf_counter() - before
                    running.pop()

            return run

        for method, name in {**STEPS, **ABREAST}.items():
            if hasattr(network, method):
                setattr(network, method, timed_step(name, getattr(network, method)))
        return network


def engine_shares(network: RealBasicVSR, compute: Compute, frames: Tensor) -> dict[str, float]:
    """Which share of a whole clip each step of the network takes, and the rest. A run of its own: the clocks cost."""
    clocked = TimedCompute(compute.device, compute.dtype)
    seconds, _ = run_engine(make_upscaler(network, clocked, len(frames)), frames)
    shares = {name: spent / seconds for name, spent in clocked.spent.items()}
    return {**shares, REST: 1 - sum(shares.values())}


def plain_flops_per_frame(network: RealBasicVSR, num_frames: int, width: int, height: int) -> float:
    """Multiplications and additions of the plain network's convolutions, a frame of the clip."""
    shapes = RealBasicVSR(network.sizes).to("meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        shapes(torch.empty(1, num_frames, 3, height, width, device="meta"))
    return float(counter.get_total_flops()) / num_frames


# ---- what the machine can do at most ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class PeakRate:
    """FLOP/s of the two things that libraries do best; `largest` of the two is taken as the machine's peak."""

    dtype: str
    product: float
    convolution: float

    @property
    def largest(self) -> float:
        """The better of the two."""
        return max(self.product, self.convolution)

    def larger_of(self, other: PeakRate) -> PeakRate:
        """Both measured again: the better rate of each."""
        return dataclasses.replace(
            self, product=max(self.product, other.product), convolution=max(self.convolution, other.convolution)
        )

    def __str__(self) -> str:
        return (
            f"peak in {self.dtype}: {self.largest / 1e9:.0f} GFLOP/s, the larger of a product of square matrices"
            f" ({self.product / 1e9:.0f}) and a convolution 3x3, 64 to 64 channels, channels_last"
            f" ({self.convolution / 1e9:.0f})"
        )


def measure_peak(compute: Compute) -> PeakRate:
    """The best of several runs each. A GPU gets larger ones, to be busy."""
    side, (width, height) = (2048, (320, 180)) if compute.device.type == "cpu" else (8192, (1280, 720))
    options: dict[str, Any] = {"device": compute.device, "dtype": compute.dtype}
    a, b = torch.randn(side, side, **options), torch.randn(side, side, **options)
    maps = torch.randn(1, 64, height, width, **options).contiguous(memory_format=torch.channels_last)
    weights = torch.randn(64, 64, 3, 3, **options).contiguous(memory_format=torch.channels_last)

    def rate(flops: float, job: Callable[[], Tensor]) -> float:
        return flops / min(timed(compute, job)[0] for _ in range(6))

    return PeakRate(
        dtype=_name_of(compute.dtype),
        product=rate(2 * side**3, lambda: a @ b),
        convolution=rate(2 * 9 * 64 * 64 * width * height, lambda: F.conv2d(maps, weights, padding=1)),
    )


# ---- the ways --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One clip and where it is computed. frames (T, 3, H, W) float32, on the CPU and in `file`."""

    frames: Tensor
    file: Path
    compute: Compute
    precision: str
    folder: Path
    vspipe: Vspipe | None

    @property
    def num_frames(self) -> int:
        """Of the clip."""
        return len(self.frames)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.frames.shape[3], self.frames.shape[2]


def plain_way(setting: Setting, model: str, dtype: torch.dtype, flops: float) -> Way:
    """The plain network in this type, contiguous."""
    compute = Compute(setting.compute.device, dtype)
    network = build_network(model).to(compute.device, dtype)

    def run() -> tuple[float, Tensor]:
        return timed(compute, lambda: plain_clip(network, setting.frames, compute.device))

    def first() -> First:
        return dataclasses.replace(peaks_of_child(setting, PLAIN, model, dtype), hr=run()[1])

    name = PLAIN if compute.device.type == "cpu" else f"{PLAIN} {_name_of(dtype)}"
    return Way(name=name, model=model, dtype=dtype, flops_per_frame=flops, first=first, seconds=lambda: run()[0])


def engine_way(setting: Setting, model: str, flops: float) -> Way:
    """The engine, made anew for each run."""
    network, dtype = build_network(model), setting.compute.dtype

    def run() -> tuple[float, Tensor]:
        return run_engine(make_upscaler(network, setting.compute, setting.num_frames), setting.frames)

    def first() -> First:
        return dataclasses.replace(peaks_of_child(setting, ENGINE, model, dtype), hr=run()[1])

    return Way(name=ENGINE, model=model, dtype=dtype, flops_per_frame=flops, first=first, seconds=lambda: run()[0])


def vspipe_way(setting: Setting, vspipe: Vspipe, model: str, flops: float) -> Way:
    """A real vspipe, started anew for each run; its untimed run writes the frames to a file and upscales only once."""
    given: dict[str, str | int] = {
        "frames": str(setting.file),
        "theta": ONE_PASS,
        "model": weights_for_upscale(model, setting.folder),
        "length": LENGTH,
        "overlap": OVERLAP,
        "device": str(setting.compute.device),
        "precision": setting.precision,
    }

    def first() -> First:
        path = setting.folder / "frames.raw"
        try:
            piped = vspipe.run(_SCRIPT, {**given, "warm_up": 0}, output=path)
            width, height = setting.size
            planes = np.fromfile(path, np.float32).reshape(-1, 3, SCALE * height, SCALE * width)
        finally:
            path.unlink(missing_ok=True)
        return First(hr=torch.from_numpy(planes[:, [2, 0, 1]]), rss_bytes=piped.peak_bytes)  # vspipe writes G, B, R

    def seconds() -> float:
        return vspipe.run(_SCRIPT, {**given, "warm_up": 1}).seconds

    dtype = setting.compute.dtype
    return Way(name=VSPIPE, model=model, dtype=dtype, flops_per_frame=flops, first=first, seconds=seconds)


def all_ways(setting: Setting, models: Sequence[str]) -> tuple[list[Way], dict[str, str]]:
    """What is measured on this clip, and why others are not."""
    device, dtype = setting.compute.device, setting.compute.dtype
    dtypes = [torch.float32] if device.type == "cpu" else list(dict.fromkeys([torch.float32, dtype]))
    ways: list[Way] = []
    for model in models:
        flops = plain_flops_per_frame(build_network(model), setting.num_frames, *setting.size)
        ways += [plain_way(setting, model, each, flops) for each in dtypes]
        ways.append(engine_way(setting, model, flops))
        if setting.vspipe is not None:
            ways.append(vspipe_way(setting, setting.vspipe, model, flops))
    ways += benchmark_peers.stand_ins(setting.frames, device, dtypes)
    reasons = {peer: reason for peer in benchmark_peers.PEERS if (reason := benchmark_peers.why_not(peer, device))}
    peer_dtype = torch.float16 if dtype == torch.float16 else torch.float32
    for peer in benchmark_peers.PEERS:
        if peer not in reasons:
            ways.append(benchmark_peers.peer_way(peer, setting.frames, device, peer_dtype, setting.folder))
    return ways, reasons


# ---- one run in a process of its own ---------------------------------------------------------------------------------


def peaks_of_child(setting: Setting, kind: str, model: str, dtype: torch.dtype) -> First:
    """The peaks of one plain or engine run in a process of its own. Raises RuntimeError if it failed."""
    command = [sys.executable, str(Path(__file__).resolve()), kind, weights_for_upscale(model, setting.folder)]
    command += [str(setting.file), str(setting.compute.device), _name_of(dtype)]
    done = benchmark_process.run(command)
    if done.returncode:
        raise RuntimeError(f"the run for its peak memory failed: {done.last_words()}")
    return First(rss_bytes=done.peak_bytes, cuda_bytes=json.loads(done.stdout)["cuda_bytes"])


def main(kind: str, weights: str, clip: str, device: str, dtype: str) -> int:
    """Run one way once, the exit status; what torch took of the GPU is printed as JSON."""
    compute = Compute(torch.device(device), getattr(torch, dtype))
    network = load_model(weights if weights == "default" else Path(weights))
    frames = torch.from_numpy(np.load(clip))
    if kind == PLAIN:
        network = network.to(compute.device, compute.dtype)
        timed(compute, lambda: plain_clip(network, frames, compute.device))
    else:
        for _ in engine_frames(make_upscaler(network, compute, len(frames)), frames):
            pass
    on_gpu = compute.device.type == "cuda"
    print(json.dumps({"cuda_bytes": torch.cuda.max_memory_allocated(compute.device) if on_gpu else None}))
    return 0


# ---- the report ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What one way took on one clip, by its frames.

    Rates and ratios are medians over repeats. times_plain: how many times as fast as the plain network of the same
    model in float32; of the first model's where the way has none. over_engine: how much longer than the engine alone,
    as a share of it. shares: of the time, by what it was spent on; they make 1.
    """

    width: int
    height: int
    model: str
    name: str
    dtype: str
    seconds_per_frame: Spread
    frames_per_second: float
    flops_per_second: float | None
    times_plain: float | None
    over_engine: float | None
    psnr_db: float | None
    rss_bytes: int | None
    cuda_bytes: int | None
    shares: Mapping[str, float] = field(default_factory=dict)
    share_of_peak: float | None = None

    def with_share_of(self, peaks: Sequence[PeakRate]) -> Row:
        """The same row with the share that its rate has of the peak of its type."""
        largest = next(peak.largest for peak in peaks if peak.dtype == self.dtype)
        rate = self.flops_per_second
        return dataclasses.replace(self, share_of_peak=rate / largest if rate else None)

    @property
    def title(self) -> str:
        """Size, model and name, in columns."""
        return f"{f'{self.width}x{self.height}':<9} {self.model:<9} {self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkReport:
    """All rows, and why others are missing."""

    num_frames: int
    num_repeats: int
    peaks: Sequence[PeakRate]
    rows: Sequence[Row]
    not_measured: Mapping[str, str]

    def describe(self) -> str:
        """The tables."""
        parts = [f"{row.title}: {_parts(row)}" for row in self.rows if row.shares]
        lines = [
            f"{self.num_frames} frames, whole clip by its frames; median of {self.num_repeats} repeats in turns"
            " (lowest-highest)",
            *(str(peak) for peak in self.peaks),
            "",
            *aligned([_HEAD, *map(_cells, self.rows)]),
            "",
            *(["where the time goes, ms a frame", *parts] if parts else []),
        ]
        over = [(row, row.over_engine) for row in self.rows if row.over_engine is not None]
        lines += [
            f"{row.title}: {share:+.1%} over the engine alone (aim: at most {MOST_OVER_ENGINE:+.0%})"
            for row, share in over
        ]
        lines += [f"not measured: {name}: {reason}" for name, reason in self.not_measured.items()]
        return "\n".join(lines)


_HEAD = ["", "ms a frame", "frames/s", "GFLOP/s", "of peak", "times plain", "PSNR, dB", "peak, GiB", "GPU, GiB"]


def _cells(row: Row) -> list[str]:
    def cell(value: float | None, form: str, unit: float = 1.0) -> str:
        return "-" if value is None else format(value / unit, form)

    return [
        row.title,
        str(row.seconds_per_frame),
        f"{row.frames_per_second:.2f}",
        cell(row.flops_per_second, ".0f", 1e9),
        cell(row.share_of_peak, ".0%"),
        cell(row.times_plain, ".2f"),
        cell(row.psnr_db, ".1f"),
        cell(row.rss_bytes, ".2f", 2**30),
        cell(row.cuda_bytes, ".2f", 2**30),
    ]


def _parts(row: Row) -> str:
    total_ms = 1000 * row.seconds_per_frame.median
    return ", ".join(f"{name} {share * total_ms:.1f} ({share:.0%})" for name, share in row.shares.items())


def rows_of(setting: Setting, ways: Sequence[Way], turns: Turns) -> list[Row]:
    """A row for each way that was measured, as yet without a share of the peak. Ratios are medians over the turns."""
    names = [(way.model, way.name.split()[0]) for way in ways]
    first_model = ways[0].model

    def times_of(model: str, name: str) -> Sequence[float] | None:
        """The seconds of the first way of this name, in turns."""
        index = names.index((model, name)) if (model, name) in names else -1
        return turns.seconds.get(index)

    def row(index: int, way: Way) -> Row:
        seconds, first = turns.seconds[index], turns.first[index]
        plain, engine = times_of(way.model or first_model, PLAIN), times_of(way.model, ENGINE)
        over_engine, shares = None, {}
        if way.name == VSPIPE and engine:
            over_engine = statistics.median(ours / alone - 1 for ours, alone in zip(seconds, engine, strict=True))
            shares = {ENGINE_ALONE: 1 / (1 + over_engine), AROUND: over_engine / (1 + over_engine)}
        elif way.name == ENGINE:
            shares = engine_shares(build_network(way.model), setting.compute, setting.frames)
        median = statistics.median(seconds) / setting.num_frames
        rate = way.flops_per_frame / median if way.flops_per_frame else None
        reference = turns.first.get(names.index((way.model, PLAIN))) if way.model else None
        is_comparable = reference is not None and reference is not first
        return Row(
            width=setting.size[0],
            height=setting.size[1],
            model=way.model,
            name=way.name,
            dtype=_name_of(way.dtype),
            seconds_per_frame=Spread.of([each / setting.num_frames for each in seconds]),
            frames_per_second=1 / median,
            flops_per_second=rate,
            times_plain=statistics.median(p / s for p, s in zip(plain, seconds, strict=True)) if plain else None,
            over_engine=over_engine,
            psnr_db=_psnr(first, reference) if is_comparable else None,
            rss_bytes=first.rss_bytes,
            cuda_bytes=first.cuda_bytes,
            shares=shares,
        )

    return [row(index, way) for index, way in enumerate(ways) if index in turns.seconds]


def _psnr(first: First, reference: First | None) -> float | None:
    if first.hr is None or reference is None or reference.hr is None:
        return None
    return psnr_db(first.hr, reference.hr)


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# ---- the whole -------------------------------------------------------------------------------------------------------


def run_network(arguments: argparse.Namespace) -> None:
    """Measure, print the tables, write the JSON. Raises ValueError with one line for what the user can mend."""
    for name in ("repeats", "frames"):
        if getattr(arguments, name) <= 0:
            raise UserError(f"--{name} must be above 0, got {getattr(arguments, name)}")
    models = [name.strip() for name in arguments.models.split(",")]
    if unknown := [name for name in models if name not in MODELS]:
        raise UserError(f'--models must be of {", ".join(MODELS)}, got "{unknown[0]}"')
    compute = choose_compute(arguments.device, arguments.precision)
    on_gpu = compute.device.type == "cuda"
    sizes = [size_of(text) for text in (arguments.sizes or (GPU_SIZES if on_gpu else CPU_SIZES)).split(",")]
    computes = [Compute(compute.device, dtype) for dtype in dict.fromkeys([torch.float32, compute.dtype])]
    peaks = [measure_peak(each) for each in computes]
    rows: list[Row] = []
    not_measured: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as name:
        folder, vspipe = Path(name), None
        try:
            vspipe = Vspipe.configured_in(folder) if arguments.vspipe else None
        except VspipeError as error:
            not_measured[VSPIPE] = str(error)
        for width, height in sizes:
            print(f"{width}x{height} ...", file=sys.stderr, flush=True)
            frames, file = moving_clip(arguments.frames, width, height), folder / f"{width}x{height}.npy"
            np.save(file, frames.numpy())
            setting = Setting(
                frames=frames,
                file=file,
                compute=compute,
                precision=arguments.precision,
                folder=folder,
                vspipe=vspipe,
            )
            ways, reasons = all_ways(setting, models)
            turns = measure_in_turns(ways, arguments.repeats)
            rows += rows_of(setting, ways, turns)
            not_measured |= reasons
            for index, reason in turns.failed.items():
                not_measured[f"{width}x{height} {ways[index].model} {ways[index].name}"] = reason
    # Before and after: another program may have been at work for a while.
    peaks = [before.larger_of(measure_peak(each)) for before, each in zip(peaks, computes, strict=True)]
    about = {**machine(), "kernels": cpu_kernels(), "num_torch_threads": torch.get_num_threads()}
    about["device"] = torch.cuda.get_device_name(compute.device) if on_gpu else str(compute.device)
    report = NetworkReport(
        num_frames=arguments.frames,
        num_repeats=arguments.repeats,
        peaks=peaks,
        rows=[row.with_share_of(peaks) for row in rows],
        not_measured=not_measured,
    )
    print_machine(about)
    print(report.describe())
    write_json(arguments.json, {"part": "network", "machine": about, **dataclasses.asdict(report)})


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
