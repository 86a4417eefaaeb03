"""Other upscalers for VapourSynth, and their networks in plain torch.

vs-realesrgan and vs-basicvsrpp need CUDA. If there is a GPU and they are installed, they run here, in this process,
through the core. Their networks, `realesr-animevideov3` and BasicVSR++, are also stand-ins that run everywhere. Weights
are random, which does not affect the time.
"""

from __future__ import annotations

import importlib
import importlib.util
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vsrealbasicvsr.engine import DeviceConfig as DeviceConfig

from .basicvsrpp import SCALE, BasicVSRPlusPlus
from .turns import First, Way, timed

STAND_IN = "stand-in for vs-realesrgan (needs CUDA): realesr-animevideov3 in torch"
CHANNELS_LAST = ", channels_last"
BASICVSRPP_STAND_IN = "stand-in for vs-basicvsrpp (needs CUDA): BasicVSR++ in torch"
PEERS = ("vsrealesrgan", "vsbasicvsrpp")


class CompactNetwork(nn.Module):
    """realesr-animevideov3: 18 convolutions at low resolution and a pixel shuffle, added to the repeated pixels.

    (N, 3, H, W) to (N, 3, S*H, S*W). Source: Wang et al., "Real-ESRGAN", 2021, its SRVGGNetCompact; the same key names.
    """

    def __init__(self, channels: int = 64, num_convolutions: int = 16) -> None:
        super().__init__()
        self.body = nn.ModuleList([nn.Conv2d(3, channels, 3, padding=1), nn.PReLU(channels)])
        for _ in range(num_convolutions):
            self.body += [nn.Conv2d(channels, channels, 3, padding=1), nn.PReLU(channels)]
        self.body.append(nn.Conv2d(channels, 3 * SCALE * SCALE, 3, padding=1))

    def forward(self, frames: Tensor) -> Tensor:
        features = frames
        for layer in self.body:
            features = layer(features)
        return F.pixel_shuffle(features, SCALE) + F.interpolate(frames, scale_factor=SCALE, mode="nearest")


def compact_network() -> CompactNetwork:
    """Return the network with the same random weights every time, on the CPU, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return CompactNetwork().eval().requires_grad_(False)


def compact_flops(width: int, height: int) -> float:
    """Return the multiplications and additions of a frame."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        CompactNetwork().to("meta")(torch.empty(1, 3, height, width, device="meta"))
    return float(counter.get_total_flops())


def stand_ins(frames: Tensor, device: torch.device, dtypes: list[torch.dtype]) -> list[Way]:
    """Return the ways that run the peers' networks in plain torch, in each of the dtypes.

    The network of vs-realesrgan runs frame by frame, in both memory layouts; that of vs-basicvsrpp on the whole clip,
    if torchvision is installed and the clip has two frames or more.
    """
    num_frames, _, height, width = frames.shape
    flops = compact_flops(width, height)

    def way(dtype: torch.dtype, layout: torch.memory_format) -> Way:
        network, compute = compact_network().to(device, dtype).to(memory_format=layout), DeviceConfig(device, dtype)

        def once() -> float:
            def job() -> Tensor:
                hr = torch.empty(0)
                for n in range(num_frames):
                    lr = frames[n : n + 1].to(device, dtype).contiguous(memory_format=layout)
                    hr = network(lr).float().cpu()
                return hr

            return timed(compute, job)[0]

        def first() -> First:
            once()
            return First()

        name = STAND_IN + (CHANNELS_LAST if layout == torch.channels_last else "") + _type_name(dtype, dtypes)
        return Way(
            name=name, model="", dtype=dtype, num_frames=num_frames, flops_per_frame=flops, first=first, seconds=once
        )

    layouts = (torch.contiguous_format, torch.channels_last)
    ways = [way(dtype, layout) for dtype in dtypes for layout in layouts]
    if importlib.util.find_spec("torchvision") is not None and num_frames > 1:
        ways += [_basicvsrpp_stand_in(frames, device, dtype, dtypes) for dtype in dtypes]
    return ways


def _basicvsrpp_stand_in(frames: Tensor, device: torch.device, dtype: torch.dtype, dtypes: list[torch.dtype]) -> Way:
    """Return BasicVSR++ on the whole clip, without FLOPs: torch's counter does not support deformable convolutions."""
    compute = DeviceConfig(device, dtype)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = BasicVSRPlusPlus().eval().requires_grad_(False).to(device, dtype)

    def once() -> float:
        return timed(compute, lambda: network(frames[None].to(device, dtype)).float().cpu())[0]

    def first() -> First:
        once()
        return First()

    name = BASICVSRPP_STAND_IN + _type_name(dtype, dtypes)
    return Way(
        name=name, model="", dtype=dtype, num_frames=len(frames), flops_per_frame=None, first=first, seconds=once
    )


def _type_name(dtype: torch.dtype, dtypes: list[torch.dtype]) -> str:
    """Return the dtype for a name; "" if there is only one."""
    return f", {str(dtype).removeprefix('torch.')}" if len(dtypes) > 1 else ""


def why_not(peer: str, device: torch.device) -> str | None:
    """Return why a peer cannot be measured here; None if it can."""
    if importlib.util.find_spec(peer) is None:
        return "not installed"
    return None if device.type == "cuda" else "needs CUDA"


def peer_way(peer: str, frames: Tensor, device: torch.device, dtype: torch.dtype, folder: Path) -> Way:
    """Return one of PEERS through the core, in float16 or float32. Call it only if `why_not` returns None.

    vsrealesrgan gets the stand-in's random weights, from a file in `folder`; vsbasicvsrpp downloads its own.
    """
    _, _, height, width = frames.shape

    def node() -> Any:
        import vapoursynth as vs

        switch = torch.get_float32_matmul_precision()
        try:
            clip = _clip_of(frames, vs.RGBH if dtype == torch.float16 else vs.RGBS)
            build = _build_realesrgan if peer == "vsrealesrgan" else _build_basicvsrpp
            return build(clip, device.index or 0, folder)
        except (vs.Error, ImportError, TypeError, AttributeError) as error:
            raise RuntimeError(str(error)) from None
        finally:
            torch.set_float32_matmul_precision(switch)  # the peers change it for the whole process

    def once() -> float:
        built = node()  # a new one each time, without cached frames
        torch.cuda.synchronize(device)
        before = time.perf_counter()
        for _ in built.frames(close=True):
            pass
        return time.perf_counter() - before

    def first() -> First:
        torch.cuda.reset_peak_memory_stats(device)
        once()
        return First(cuda_bytes=torch.cuda.max_memory_allocated(device))

    flops = compact_flops(width, height) if peer == "vsrealesrgan" else None
    return Way(
        name=peer, model="", dtype=dtype, num_frames=len(frames), flops_per_frame=flops, first=first, seconds=once
    )


def _build_realesrgan(clip: Any, device_index: int, folder: Path) -> Any:
    package = importlib.import_module("vsrealesrgan")
    path = folder / "realesr_animevideov3.pth"
    if not path.exists():
        torch.save({"params": compact_network().state_dict()}, path)
    model = package.RealESRGANModel.realesr_animevideov3
    return package.realesrgan(clip, device_index=device_index, model=model, model_path=str(path))


def _build_basicvsrpp(clip: Any, device_index: int, folder: Path) -> Any:
    return importlib.import_module("vsbasicvsrpp").basicvsrpp(clip, device_index=device_index)


def _clip_of(frames: Tensor, vs_format: int) -> Any:
    """Return a clip of the core whose frames are created beforehand."""
    import vapoursynth as vs

    num_frames, _, height, width = frames.shape
    numbers = frames.half().numpy() if vs_format == vs.RGBH else frames.numpy()

    def make(n: int) -> Any:
        frame = vs.core.create_video_frame(vs_format, width, height)
        for plane in range(3):
            np.copyto(np.asarray(frame[plane]), numbers[n, plane])
        return frame

    made = [make(n) for n in range(num_frames)]
    choose: Callable[..., Any] = lambda n, f: made[n]  # noqa: E731
    form = vs.core.std.BlankClip(format=vs_format, width=width, height=height, length=num_frames, keep=True)
    return form.std.ModifyFrame(form, choose)
