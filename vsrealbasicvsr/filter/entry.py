"""The plugin's functions: checking their arguments and building their filters."""

import os
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast, get_args

import torch
import vapoursynth as vs

import vsrealbasicvsr
from vsrealbasicvsr.backends import triton_version
from vsrealbasicvsr.devices import available_devices
from vsrealbasicvsr.engine import (
    DeviceConfig,
    Grid,
    SceneCuts,
    WindowUpscaler,
    choose_devices,
    is_out_of_memory,
    memory_cure,
)
from vsrealbasicvsr.engine.device import cpu_kernels
from vsrealbasicvsr.errors import UserError, printable
from vsrealbasicvsr.weights import load_model

from .conversion import cached, from_rgbs, to_rgbs
from .serving import serve

DEFAULT_THETA = 5.0
DEFAULT_CLEANING = 1.0
DEFAULT_LENGTH = 30
DEFAULT_OVERLAP = 8
MAX_THETA = 255.0
MAX_ERROR_LENGTH = 1000
MAX_SUBSAMPLING = 2
"""Binary logarithm of the largest chroma subsampling, in each direction, that core.resize converts."""


def upscale(
    clip: vs.VideoNode,
    theta: float = DEFAULT_THETA,
    model: str | bytes = "default",
    length: int = DEFAULT_LENGTH,
    overlap: int = DEFAULT_OVERLAP,
    scene_cuts: str | bytes = "auto",
    device: str | bytes = "auto",
    precision: str | bytes = "auto",
    tile: int = 0,
    detail: float | None = None,
    cleaning: float = DEFAULT_CLEANING,
) -> vs.VideoNode:
    """Upscale a clip to four times its width and height, in the same format and with the same frame properties.

    Colour properties that had to be assumed are added; a plane in the property `_Alpha` is enlarged too.

    Args:
        clip: Constant format and size; GRAY, RGB or YUV, 8 to 16 bit integer or float.
        theta: Threshold for another cleaning pass (Eq. 5), in units of 1/255, in [0, 255].
        model: "default", or the path of a .safetensors or .pth file.
        length: Frames that a window keeps, 1 or more.
        overlap: Frames of context on each side of a window, 0 or more.
        scene_cuts: "auto" detects them, "props" reads _SceneChangePrev and _SceneChangeNext, "off" ignores them.
        device: "auto", or one or several torch devices separated by commas.
        precision: "auto", "fp32", "fp16" or "bf16".
        tile: Rows of a frame that are processed at once; 0 for as many as fit into memory.
        detail: Mixture of two sets of weights, from 0 (faithful) to 1 (sharp); None for the file's default.
        cleaning: Share of a cleaning pass that is added to a frame, in [0, 1].

    Raises:
        vapoursynth.Error: An argument cannot be used. One line: what is wrong, what was given, what to do.
    """
    model, scene_cuts, device, precision = (_text(value) for value in (model, scene_cuts, device, precision))
    _check_clip(clip)
    _check_numbers(theta, length, overlap, tile, detail, cleaning)
    _check_words(model, scene_cuts)
    try:
        computes = choose_devices(device, precision)
        network = load_model(model if model == "default" else Path(model), detail=detail)
        grid = Grid(num_frames=clip.num_frames, length=length, overlap=overlap)
        upscaler = WindowUpscaler(
            network,
            computes,
            grid,
            theta=theta,
            cleaning=cleaning,
            scene_cuts=cast(SceneCuts, scene_cuts),
            max_tile_rows=tile or None,
        )
    except UserError as error:
        raise _error(str(error)) from None
    except (RuntimeError, MemoryError, OSError) as error:
        raise _error(_why_not_made(error)) from None
    _log(clip, computes, grid, network.sizes.scale)
    # What a window requests at once, and other threads meanwhile. The window keeps the same frames as RGBS anyway.
    num_frames = min(length + 2 * overlap + 2 * vs.core.num_threads, clip.num_frames)
    served = serve(to_rgbs(cached(clip, num_frames)), upscaler, convert_to=clip.format if _converts(computes) else None)
    return from_rgbs(served.rgbs, served.props, clip, served.converted)


def version() -> dict[str, Any]:
    """Return the versions of everything that affects the pixels, and the devices.

    A dictionary such as {"rbvsr": "0.1.0", ..., "devices": ["cpu", "cuda:0 (NVIDIA H100, 79 GiB)"]}.
    """
    return {
        "rbvsr": vsrealbasicvsr.__version__,
        "vapoursynth": str(vs.__version__),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "kernels": cpu_kernels(),
        "triton": triton_version(),
        "devices": available_devices(),
    }


def _log(clip: vs.VideoNode, computes: Sequence[DeviceConfig], grid: Grid, scale: int) -> None:
    """Log one line: size, devices, precision and windows."""
    where = ", ".join(str(one.device) for one in computes)
    length, overlap = min(grid.length, grid.num_frames), grid.overlap
    windows = f"{grid.num_windows} windows" if grid.num_windows > 1 else "1 window"
    frames = f"{length} frames" if length > 1 else "1 frame"
    more = f" + {overlap} on each side" if grid.num_windows > 1 else ""
    vs.core.log_message(
        vs.MESSAGE_TYPE_INFORMATION,
        f"rbvsr.Upscale: {clip.width}x{clip.height} to {clip.width * scale}x{clip.height * scale} on {where} "
        f"in {str(computes[0].dtype).removeprefix('torch.')}, {windows} of {frames}{more}",
    )


def _why_not_made(error: BaseException) -> str:
    """Return the error text for a failure of the device or of memory while the filter is built."""
    text = printable(str(error) or type(error).__name__, 300)
    if is_out_of_memory(error):
        return f'the network does not fit on the device ({text}). {memory_cure()} For a GPU\'s memory use device="cpu".'
    return f'the network could not be loaded onto the device ({text}). Try another device, or device="cpu".'


FUNCTIONS: dict[str, Callable[..., Any]] = {"Upscale": upscale, "Version": version}


def _check_numbers(theta: float, length: int, overlap: int, tile: int, detail: float | None, cleaning: float) -> None:
    if not 0 <= theta <= MAX_THETA:
        raise _error(
            f"theta must be between 0 and 255 (units of 1/255), got {theta:g}. The usual values are 1.5 and 5."
        )
    if length < 1:
        raise _error(f"length must be at least 1 frame, got {length}. The default is {DEFAULT_LENGTH}.")
    if overlap < 0:
        raise _error(f"overlap must be at least 0 frames, got {overlap}. The default is {DEFAULT_OVERLAP}.")
    if tile < 0:
        raise _error(f"tile must be at least 1 row, or 0 for as many as fit, got {tile}. The default is 0.")
    if detail is not None and not 0 <= detail <= 1:
        raise _error(
            f"detail must be between 0 (faithful) and 1 (sharp), got {detail:g}. "
            "Leave it out for the mixture that the weights name."
        )
    if not 0 <= cleaning <= 1:
        raise _error(
            f"cleaning must be between 0 (none) and 1 (as the network was trained), got {cleaning:g}. "
            f"The default is {DEFAULT_CLEANING:g}."
        )


def _check_words(model: str, scene_cuts: str) -> None:
    if not model.strip():
        raise _error('model must be "default" or the path of a .safetensors or .pth file, got "".')
    if scene_cuts not in get_args(SceneCuts):
        raise _error(f'scene_cuts must be one of {", ".join(get_args(SceneCuts))}, got "{printable(scene_cuts, 100)}".')


def _check_clip(clip: vs.VideoNode) -> None:
    if clip.format is None or clip.format.color_family == vs.UNDEFINED:
        raise _error(
            "clip must have a constant format, got a clip with variable format. "
            "Convert it to one format first, for example with resize.Bicubic(format=vs.YUV420P8)."
        )
    if clip.width == 0 or clip.height == 0:
        raise _error(
            "clip must have a constant size, got a clip with variable size. Crop or resize it to one size first."
        )
    known = (vs.GRAY, vs.RGB, vs.YUV)
    if clip.format.color_family not in known:
        raise _error(f"clip must be GRAY, RGB or YUV, got {clip.format.name}. Convert it with resize first.")
    is_float = clip.format.sample_type == vs.FLOAT
    if not is_float and clip.format.bits_per_sample > 16:
        raise _error(
            f"clip must have 8 to 16 bit integer or float samples, got {clip.format.name}. "
            "Convert it with resize to 16 bit or float first."
        )
    if max(clip.format.subsampling_w, clip.format.subsampling_h) > MAX_SUBSAMPLING:
        raise _error(
            f"clip must have at least a chroma sample for each 4 rows and columns, got {clip.format.name} with one for "
            f"{1 << clip.format.subsampling_w}x{1 << clip.format.subsampling_h} pixels, which core.resize cannot "
            "convert. Convert it first, for example with std.ShufflePlanes(clip, 0, vs.GRAY) to its luma."
        )
    if clip.width >> clip.format.subsampling_w == 0 or clip.height >> clip.format.subsampling_h == 0:
        raise _error(
            f"clip of {clip.width}x{clip.height} in {clip.format.name} has chroma planes of size 0. "
            "Convert it to a format without subsampling first, for example YUV444P8."
        )


def _converts(computes: Sequence[DeviceConfig]) -> bool:
    """Return whether frames are converted to the clip's format on the devices that compute them.

    On a GPU they are: in 8-bit 4:2:0 an eighth of the bytes is transferred. On a CPU core.resize converts them, on
    VapourSynth's threads.
    """
    return all(compute.device.type != "cpu" for compute in computes)


def _text(value: str | bytes) -> str:
    """Return an argument as text. Bytes that are not UTF-8 are preserved, as they occur in file names."""
    return os.fsdecode(value) if isinstance(value, bytes) else value


def _error(text: str) -> vs.Error:
    """Return an error of one printable line for the user."""
    return vs.Error(f"rbvsr.Upscale: {printable(text, MAX_ERROR_LENGTH)}")
