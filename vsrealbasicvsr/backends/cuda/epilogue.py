"""The epilogue of a convolution on a GPU, fused into one pass: bias, activation, residual sum, pixel shuffle.

A 3x3 convolution of 64 channels in half precision takes a GPU about as long as reading and writing its feature map, so
each further pass counts. torch makes one pass for each of these operations; of a frame's traffic (143 kB for each
low-resolution pixel by count, in float16) that is more than half.

The only kernel (epilogue_triton.py) is written in Triton, which comes with torch for Linux. Where it is missing, or
does not give torch's values, torch's own operations stay: results never differ beyond floating-point rounding.
"""

import threading
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsrealbasicvsr.model import RealBasicVSR
from vsrealbasicvsr.model.network import PixelShuffleUpsample, ResidualBlock, ResidualTrunk

from ..memory import is_out_of_memory


class Epilogue(Protocol):
    """Computes act(x + bias) + residual for a feature map x (N, C, H, W).

    It is computed in float32; the result has x's type, channels last. act multiplies values below zero by `slope`. x
    may be overwritten. With `shuffle`, the C channels are four times those of the result (N, C/4, 2H, 2W), in the order
    row, column, channel.
    """

    def __call__(
        self, x: Tensor, bias: Tensor, slope: float, residual: Tensor | None = None, *, shuffle: bool = False
    ) -> Tensor:
        """Return the next feature map."""
        ...


def by_torch(x: Tensor, bias: Tensor, slope: float, residual: Tensor | None = None, *, shuffle: bool = False) -> Tensor:
    """Compute the epilogue with torch's operations: the reference for the kernel, and for tests without a GPU."""
    y = x.float() + bias.float().view(1, -1, 1, 1)
    y = F.relu(y) if slope == 0 else F.leaky_relu(y, slope)
    if residual is not None:
        y = y + residual.float()
    y = y.to(x.dtype)
    if shuffle:
        num, channels, height, width = y.shape
        y = y.view(num, 2, 2, channels // 4, height, width).permute(0, 3, 4, 1, 5, 2)
        y = y.reshape(num, channels // 4, 2 * height, 2 * width)
    return y.contiguous(memory_format=torch.channels_last)


def by_triton(
    x: Tensor, bias: Tensor, slope: float, residual: Tensor | None = None, *, shuffle: bool = False
) -> Tensor:
    """Compute the epilogue with one kernel, on the thread's current device, which x is on, and its current stream."""
    from .epilogue_triton import launch  # not above: loading Triton takes long, and only a GPU has a use for it

    x = x.contiguous(memory_format=torch.channels_last)
    out = x
    num, channels, height, width = x.shape
    if shuffle:
        out = torch.empty(
            (num, channels // 4, 2 * height, 2 * width),
            dtype=x.dtype,
            device=x.device,
            memory_format=torch.channels_last,
        )
    if residual is not None:
        residual = residual.contiguous(memory_format=torch.channels_last)
    launch(x, bias, residual, out, slope, shuffle=shuffle)
    return out


def unsupported_reason(epilogue: Epilogue, device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why an epilogue cannot be used on this kind of device; None if it gives torch's values there.

    The check runs once in a process: were the epilogue used on one device and not on its twin, or in one filter and not
    in the next, their results would differ by rounding. Raises torch's error if there is no memory for the check.
    """
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    with _lock:
        if (key := (epilogue, kind, dtype)) not in _verdicts:
            _verdicts[key] = _find_unsupported_reason(epilogue, device, dtype)
        return _verdicts[key]


_verdicts: dict[tuple[Epilogue, str, torch.dtype], str | None] = {}
_lock = threading.Lock()


def _find_unsupported_reason(epilogue: Epilogue, device: torch.device, dtype: torch.dtype) -> str | None:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return (torch.randn(shape, generator=generator, device="cpu", dtype=torch.float32) * 2).to(device, dtype)

    try:
        for channels, height, width, with_residual, shuffle in (
            (64, 9, 21, True, False),
            (64, 9, 21, False, False),
            (256, 5, 7, False, True),
            (20, 3, 5, True, False),
            (12, 3, 5, False, True),
        ):
            x, bias = random(2, channels, height, width), random(channels)
            x[0, 0, 0, :3] = torch.tensor((torch.inf, -torch.inf, torch.nan))
            residual = random(2, channels, height, width) if with_residual else None
            for slope in (0.0, 0.1, 1.0):
                expected = by_torch(x, bias, slope, residual, shuffle=shuffle)
                result = epilogue(x.clone(), bias, slope, residual, shuffle=shuffle)
                step = torch.finfo(dtype).eps
                if result.shape != expected.shape or not torch.allclose(
                    result.float(), expected.float(), rtol=2 * step, atol=2 * step, equal_nan=True
                ):
                    return "its results differed from torch's"
    except Exception as error:  # compilers and drivers raise what they like
        if is_out_of_memory(error):
            raise
        if isinstance(error, ModuleNotFoundError) and error.name == "triton":  # Windows
            return "Triton is not installed"
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return None


def fuse(model: RealBasicVSR, epilogue: Epilogue) -> None:
    """Replace the operations after the convolutions of the model's trunks and its reconstruction by an epilogue.

    For inference only. The flow network, in float32 and a tenth of the work, and the convolutions whose output are
    images stay as they are.
    """
    for trunk in [module for module in model.modules() if isinstance(module, ResidualTrunk)]:
        first, _, blocks = trunk.main
        assert isinstance(first, nn.Conv2d)
        assert isinstance(blocks, nn.Sequential)
        trunk.main[0] = _Convolution(first, epilogue, slope=0.1)
        trunk.main[1] = nn.Identity()
        for i, block in enumerate(blocks):
            assert isinstance(block, ResidualBlock)
            blocks[i] = _Block(block, epilogue)
    vsr = model.basicvsr
    vsr.fusion = _Convolution(vsr.fusion, epilogue, slope=0.1)  # type: ignore[assignment]
    vsr.conv_hr = _Convolution(vsr.conv_hr, epilogue, slope=0.1)  # type: ignore[assignment]
    vsr.upsample1 = _Upsample(vsr.upsample1, epilogue)  # type: ignore[assignment]
    vsr.upsample2 = _Upsample(vsr.upsample2, epilogue)  # type: ignore[assignment]
    vsr.activation = nn.Identity()


class _Convolution(nn.Module):
    """A convolution without its bias, then the epilogue with the bias."""

    def __init__(self, conv: nn.Conv2d, epilogue: Epilogue, *, slope: float, shuffle: bool = False) -> None:
        super().__init__()
        assert conv.bias is not None
        weight, bias = conv.weight.detach(), conv.bias.detach()
        if shuffle:  # the epilogue writes runs of channels that belong to one pixel
            weight, bias = (
                values.reshape(-1, 4, *values.shape[1:]).transpose(0, 1).flatten(0, 1) for values in (weight, bias)
            )
            weight = weight.contiguous(memory_format=torch.channels_last)
        self.conv = conv
        conv.weight, conv.bias = nn.Parameter(weight, requires_grad=False), None
        self.bias = nn.Parameter(bias.contiguous(), requires_grad=False)
        self._epilogue = epilogue
        self._slope = slope
        self._shuffle = shuffle

    @property
    def weight(self) -> Tensor:
        """The convolution's weight."""
        return self.conv.weight

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return self._epilogue(self.conv(x), self.bias, self._slope, residual, shuffle=self._shuffle)


class _Block(nn.Module):
    """A ResidualBlock with fused epilogues."""

    def __init__(self, block: ResidualBlock, epilogue: Epilogue) -> None:
        super().__init__()
        self.inner = _Convolution(block.conv1, epilogue, slope=0.0)
        self.outer = _Convolution(block.conv2, epilogue, slope=1.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.inner(x), x)  # type: ignore[no-any-return]


class _Upsample(nn.Module):
    """A PixelShuffleUpsample and its activation, with a fused epilogue."""

    def __init__(self, up: PixelShuffleUpsample, epilogue: Epilogue) -> None:
        super().__init__()
        self.upsample_conv = _Convolution(up.upsample_conv, epilogue, slope=0.1, shuffle=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.upsample_conv(x)  # type: ignore[no-any-return]
