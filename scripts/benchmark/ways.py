"""The ways to upscale a clip that are compared: the plain network, the engine, vspipe, and other upscalers.

Each way's untimed run gives its output for the first frames, with the arguments that compute what the plain network
does, so that outputs can be compared; and the peaks of a run with the arguments that are timed.

Run as a program, this module is one plain or engine run in a process of its own, whose peak memory is measured.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vsrealbasicvsr import load_model
from vsrealbasicvsr.engine import DeviceConfig

from . import peers, process
from .engine_runs import (
    AS_PLAIN,
    USUAL,
    Arguments,
    engine_clip,
    make_upscaler,
    plain_clip,
    plain_flops_per_frame,
    run_engine,
)
from .report import ROOT
from .subjects import build_network, weights_for_upscale
from .turns import First, Way, dtype_name, timed
from .vspipe import Vspipe

PLAIN, ENGINE, VSPIPE = "plain", "engine", "vspipe"
MAX_COMPARED_FRAMES = 10
"""Frames whose output is compared, and with which the plain network is timed: it processes a clip at once, and 90
frames of 1280x720 would need some 60 GB."""

_SCRIPT = """
    import numpy as np
    import vapoursynth as vs

    core = vs.core
    pixels = np.load(frames, mmap_mode="r")[: int(num_frames)]
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
            scene_cuts=scene_cuts,
            device=device,
            precision=precision,
        )

    if int(warm_up):
        for frame in upscaled().frames(close=True):
            pass
    upscaled().set_output()
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One clip and where it is computed.

    Attributes:
        frames: (T, 3, H, W) float32, on the CPU.
        file: The same frames in a file.
        compute: Device and dtype.
        precision: As Upscale takes it.
        folder: For temporary files.
        vspipe: None to leave it out.
        num_requests: Concurrent requests.
        with_stand_ins: Whether to measure other upscalers and their networks.
        with_peaks: Whether to measure peak memory.
    """

    frames: Tensor
    file: Path
    compute: DeviceConfig
    precision: str
    folder: Path
    vspipe: Vspipe | None
    num_requests: int
    with_stand_ins: bool
    with_peaks: bool

    @property
    def num_frames(self) -> int:
        """Number of frames of the clip."""
        return len(self.frames)

    @property
    def compared(self) -> Tensor:
        """The frames whose output is compared."""
        return self.frames[:MAX_COMPARED_FRAMES]

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.frames.shape[3], self.frames.shape[2]


def plain_way(setting: Setting, model: str, dtype: torch.dtype, flops: float) -> Way:
    """Return the plain network in this dtype, contiguous, on the frames that are compared."""
    compute = DeviceConfig(setting.compute.device, dtype)
    network = build_network(model).to(compute.device, dtype)

    def run() -> tuple[float, Tensor]:
        return timed(compute, lambda: plain_clip(network, setting.compared, compute.device))

    def first() -> First:
        return dataclasses.replace(peaks_of_child(setting, PLAIN, model, dtype), hr=run()[1])

    return Way(
        name=PLAIN if compute.device.type == "cpu" else f"{PLAIN} {dtype_name(dtype)}",
        model=model,
        dtype=dtype,
        num_frames=len(setting.compared),
        flops_per_frame=flops,
        first=first,
        seconds=lambda: run()[0],
    )


def engine_way(setting: Setting, model: str, flops: float) -> Way:
    """Return the engine, built for each run, as by Upscale."""
    network, dtype = build_network(model), setting.compute.dtype

    def first() -> First:
        upscaler = make_upscaler(network, setting.compute, len(setting.compared), AS_PLAIN)
        hr = engine_clip(upscaler, setting.compared, setting.num_requests)
        return dataclasses.replace(peaks_of_child(setting, ENGINE, model, dtype), hr=hr)

    def seconds() -> float:
        upscaler = make_upscaler(network, setting.compute, setting.num_frames)
        way.runs.append(run_engine(upscaler, setting.frames, setting.num_requests))
        return way.runs[-1].seconds

    way = Way(
        name=ENGINE,
        model=model,
        dtype=dtype,
        num_frames=setting.num_frames,
        flops_per_frame=flops,
        first=first,
        seconds=seconds,
    )
    return way


def vspipe_way(setting: Setting, vspipe: Vspipe, model: str, flops: float) -> Way:
    """Return a real vspipe, started for each run, with as many concurrent requests as it chooses itself.

    Two untimed runs: one of the compared frames into a file, for their output, and one of the whole clip for the peak.
    """

    def given(arguments: Arguments, num_frames: int, *, warm_up: bool) -> dict[str, str | int]:
        return {
            "frames": str(setting.file),
            "num_frames": num_frames,
            "model": weights_for_upscale(model, setting.folder),
            "device": str(setting.compute.device),
            "precision": setting.precision,
            "warm_up": int(warm_up),
            **{name: str(value) for name, value in dataclasses.asdict(arguments).items()},
        }

    scale = build_network(model).sizes.scale

    def first() -> First:
        path = setting.folder / "frames.raw"
        try:
            vspipe.run(_SCRIPT, given(AS_PLAIN, len(setting.compared), warm_up=False), output=path)
            width, height = setting.size
            planes = np.fromfile(path, np.float32).reshape(-1, 3, scale * height, scale * width)
        finally:
            path.unlink(missing_ok=True)
        hr = torch.from_numpy(planes[:, [2, 0, 1]])  # vspipe writes G, B, R
        if not setting.with_peaks:
            return First(hr=hr)
        piped = vspipe.run(_SCRIPT, given(USUAL, setting.num_frames, warm_up=False))
        return First(hr=hr, rss_bytes=piped.peak_bytes)

    return Way(
        name=VSPIPE,
        model=model,
        dtype=setting.compute.dtype,
        num_frames=setting.num_frames,
        flops_per_frame=flops,
        first=first,
        seconds=lambda: vspipe.run(_SCRIPT, given(USUAL, setting.num_frames, warm_up=True)).seconds,
    )


def all_ways(setting: Setting, models: Sequence[str]) -> tuple[list[Way], dict[str, str]]:
    """Return the ways that are measured on this clip, and why others are not."""
    device, dtype = setting.compute.device, setting.compute.dtype
    dtypes = [torch.float32] if device.type == "cpu" else list(dict.fromkeys([torch.float32, dtype]))
    ways: list[Way] = []
    for model in models:
        flops = plain_flops_per_frame(build_network(model), len(setting.compared), *setting.size)
        ways += [plain_way(setting, model, each, flops) for each in dtypes]
        ways.append(engine_way(setting, model, flops))
        if setting.vspipe is not None:
            ways.append(vspipe_way(setting, setting.vspipe, model, flops))
    if not setting.with_stand_ins:
        return ways, {}
    ways += peers.stand_ins(setting.compared, device, dtypes)
    reasons = {peer: reason for peer in peers.PEERS if (reason := peers.why_not(peer, device))}
    peer_dtype = torch.float16 if dtype == torch.float16 else torch.float32
    for peer in peers.PEERS:
        if peer not in reasons:
            ways.append(peers.peer_way(peer, setting.frames, device, peer_dtype, setting.folder))
    return ways, reasons


# ---- one run in a process of its own ---------------------------------------------------------------------------------


def peaks_of_child(setting: Setting, kind: str, model: str, dtype: torch.dtype) -> First:
    """Return the peaks of one plain or engine run in a process of its own, if they are wanted.

    Raises:
        RuntimeError: The run failed.
    """
    if not setting.with_peaks:
        return First()
    command = [sys.executable, "-m", "scripts.benchmark.ways", kind, weights_for_upscale(model, setting.folder)]
    command += [str(setting.file), str(setting.compute.device), dtype_name(dtype), str(setting.num_requests)]
    done = process.run(command, folder=ROOT)
    if done.returncode:
        raise RuntimeError(f"the run for its peak memory failed: {done.last_words()}")
    return First(rss_bytes=done.peak_bytes, cuda_bytes=json.loads(done.stdout)["cuda_bytes"])


def main(kind: str, weights: str, clip: str, device: str, dtype: str, num_requests: str) -> int:
    """Run one way once and print torch's peak on the GPU as JSON. Return the exit status."""
    compute = DeviceConfig(torch.device(device), getattr(torch, dtype))
    network = load_model(weights if weights == "default" else Path(weights))
    frames = torch.from_numpy(np.load(clip))
    if kind == PLAIN:
        network = network.to(compute.device, compute.dtype)
        timed(compute, lambda: plain_clip(network, frames[:MAX_COMPARED_FRAMES], compute.device))
    else:
        run_engine(make_upscaler(network, compute, len(frames)), frames, int(num_requests))
    on_gpu = compute.device.type == "cuda"
    print(json.dumps({"cuda_bytes": torch.cuda.max_memory_allocated(compute.device) if on_gpu else None}))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
