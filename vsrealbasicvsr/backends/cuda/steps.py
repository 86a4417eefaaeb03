"""Which steps a CUDA backend computes with: fused convolutions, fused epilogues, or torch's operations alone.

The choice depends on the network, the precision and the kind of GPU, and on whether the kernels compile and give
torch's values there, which is found out once in a process. It never depends on a measurement of time, nor on what else
runs: results of two ways differ by rounding.
"""

import os
import threading
from collections.abc import Iterator

import torch
from torch import Tensor

from vsrealbasicvsr.errors import UserError, printable
from vsrealbasicvsr.model import RealBasicVSR

from ..memory import is_out_of_memory
from ..torch import TorchBackend
from . import convolution, half_flow, join
from .convolution import capability_of, pack
from .convolution_task import Task
from .epilogue import Epilogue, fuse, unsupported_reason
from .fused import FusedBackend, Kernels, LayerKind, flow_kinds_of, fuse_convolutions, kinds_of, unfit_reason

MIN_CAPABILITY = 80
"""Below 8.0 Triton multiplies without tensor cores."""

ENVIRONMENT = "RBVSR_KERNELS"
"""Set to "off", torch computes alone, here as on a CPU."""


def choose_steps(
    model: RealBasicVSR,
    *,
    kernels: Kernels | None,
    epilogue: Epilogue,
    max_tile_rows: int | None,
) -> tuple[TorchBackend, list[str]]:
    """Return the steps of a model, which is changed, and notes about what is not in use.

    Args:
        model: The network, on its device and in its precision.
        kernels: Operations for fused convolutions. None: there are none.
        epilogue: Operations after convolutions of cuDNN, where convolutions are not fused.
        max_tile_rows: See `Backend.max_tile_rows`.
    """
    if os.environ.get(ENVIRONMENT) == "off":
        return TorchBackend(model, max_tile_rows=max_tile_rows), []
    device, dtype = model.basicvsr.fusion.weight.device, model.dtype
    notes, reason = [], None
    if kernels is not None and dtype != torch.float32 and capability_of(device) >= MIN_CAPABILITY:
        if (reason := unfit_reason(model) or kernels_unsupported_reason(kernels, model)) is None:
            fuse_convolutions(model, kernels)
            return FusedBackend(model, kernels, max_tile_rows=max_tile_rows), []
        notes.append(f"convolutions are cuDNN's, and the flow is in float32 ({reason})")
    if (unfused := unsupported_reason(epilogue, device, dtype)) is None:
        fuse(model, epilogue)
    elif notes and unfused == reason:  # Triton is missing: the user hears of it once
        notes = [f"convolutions are cuDNN's, nothing is fused with them, and the flow is in float32 ({reason})"]
    else:
        notes.append(f"bias, activation and residual sum are not fused ({unfused})")
    return TorchBackend(model, max_tile_rows=max_tile_rows), notes


def kernels_unsupported_reason(kernels: Kernels, model: RealBasicVSR) -> str | None:
    """Return why the kernels of a model cannot be used on its kind of device; None if they give torch's values there.

    Each is compiled and compared with torch's operations, on random maps, and has to give the same bytes twice. The
    check runs once in a process: devices of one kind, and filters of one process, have to compute alike.

    Raises:
        RuntimeError: There is no memory for the check.
        UserError: A kernel broke the process's connection to the device, where torch could not compute either.
    """
    device, dtype = model.basicvsr.fusion.weight.device, model.dtype
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    layers, flow_layers = kinds_of(model), flow_kinds_of(model)
    key = (kernels, kind, dtype, frozenset(layers), frozenset(flow_layers), model.sizes.mid_channels)
    with _lock:
        if key not in _verdicts:
            _verdicts[key] = _find_reason(kernels, model, layers, flow_layers)
        return _verdicts[key]


_verdicts: dict[object, str | None] = {}
_lock = threading.Lock()


def _find_reason(
    kernels: Kernels, model: RealBasicVSR, layers: set[LayerKind], flow_layers: set[LayerKind]
) -> str | None:
    device = model.basicvsr.fusion.weight.device
    name = "the kernels"
    try:
        checks = (
            _check_layers(kernels, layers, device, model.dtype),
            _check_layers(kernels, flow_layers, device, torch.float16),
            _check_joins(kernels, model.sizes.mid_channels, device, model.dtype),
            _check_levels(kernels, device),
        )
        for name, is_right in (found for check in checks for found in check):
            if not is_right:
                return f"{name} differed from torch's results"
    except Exception as error:  # compilers and drivers raise what they like
        if is_out_of_memory(error):
            raise
        if isinstance(error, ModuleNotFoundError) and error.name == "triton":  # Windows
            return "Triton is not installed"
        if not _responds(device):
            raise UserError(
                f"{device} does not respond any more after our kernels were tried on it "
                f"({printable(str(error), 200)}). Start again with {ENVIRONMENT}=off in the environment."
            ) from error
        return f"after {name}: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return None


def _responds(device: torch.device) -> bool:
    """Return whether a device still computes: after an illegal access CUDA refuses all else in the same process."""
    try:
        made = torch.zeros(1, device=device).add_(1)
        if not made.is_meta:  # has no values to wait for
            made.item()
    except Exception:  # drivers raise what they like
        return False
    return True


class _Random:
    """Random numbers that are the same on each device."""

    def __init__(self, device: torch.device) -> None:
        self._generator = torch.Generator().manual_seed(0)
        self._device = device

    def __call__(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        values = torch.randn(shape, generator=self._generator, device="cpu", dtype=torch.float32)
        return values.to(self._device, dtype)


def _check_layers(
    kernels: Kernels, kinds: set[LayerKind], device: torch.device, dtype: torch.dtype
) -> Iterator[tuple[str, bool]]:
    for kind in sorted(kinds, key=repr):
        random = _Random(device)
        size = (12, 36)  # of some tiles; no multiple of theirs
        weight = random(kind.channels_out, kind.channels, kind.side, kind.side)
        weight *= (2 / (kind.channels * kind.side**2)) ** 0.5
        packed = pack(weight, random(kind.channels_out), dtype, shuffle=kind.shuffle)
        x = random(2, kind.channels, *size, dtype=dtype).contiguous(memory_format=torch.channels_last)
        shape = (kind.channels_out // 4, 24, 72) if kind.shuffle else (kind.channels_out, *size)
        out = torch.empty(2, *shape, dtype=torch.float32 if kind.planar else dtype, device=device)
        layout = torch.contiguous_format if kind.planar else torch.channels_last
        outs = [out.contiguous(memory_format=layout).fill_(torch.nan) for out in (out, out.clone(), out.clone())]
        residual = None
        if kind.residual == "map":
            residual = random(2, *shape, dtype=out.dtype).contiguous(memory_format=layout)
        elif kind.residual == "small":
            residual = random(2, kind.channels_out, size[0] // 4, size[1] // 4)
        for convolve, result in zip((convolution.by_torch, kernels.convolve, kernels.convolve), outs, strict=True):
            convolve(
                Task(
                    x=x,
                    packed=packed,
                    slope=kind.slope,
                    out=result,
                    residual=residual,
                    residual_is_small=kind.residual == "small",
                    shuffle=kind.shuffle,
                    planar=kind.planar,
                    limit=kind.limit,
                )
            )
        name = f"the {kind.side}x{kind.side} convolution from {kind.channels} to {kind.channels_out} channels"
        yield name, _agree(outs[1:], outs[0], dtype)


def _check_joins(
    kernels: Kernels, channels: int, device: torch.device, dtype: torch.dtype
) -> Iterator[tuple[str, bool]]:
    random = _Random(device)
    frame, state = random(2, 3, 11, 37), random(2, channels, 11, 37, dtype=dtype)
    state, flow = state.contiguous(memory_format=torch.channels_last), random(2, 2, 11, 37) * 5
    for the_state, flow_px in ((None, None), (state, None), (state, flow)):
        results = [kernels.join(frame, the_state, flow_px, dtype) for _ in range(2)]
        yield "the warp of a state", _agree(results, join.by_torch(frame, the_state, flow_px, dtype), dtype)


def _check_levels(kernels: Kernels, device: torch.device) -> Iterator[tuple[str, bool]]:
    random = _Random(device)
    frames, coarse = random(4, 3, 10, 36), random(2, 2, 5, 18) * 2
    for below in (None, coarse):
        results = [kernels.prepare(frames, below) for _ in range(2)]
        for made, expected in zip(zip(*results, strict=True), half_flow.prepare_by_torch(frames, below), strict=True):
            yield "the preparation of a flow level", _agree(made, expected, torch.float16)


def _agree(results: list[Tensor] | tuple[Tensor, ...], expected: Tensor, dtype: torch.dtype) -> bool:
    """Return whether two results have the same bits, and the expected values but for rounding."""
    one, other = results
    step = torch.finfo(dtype).eps
    return (
        (one.shape, one.dtype) == (expected.shape, expected.dtype)
        and torch.equal(one, other)  # NaN is not equal
        and torch.allclose(one.float(), expected.float(), rtol=2 * step, atol=2 * step)
    )
