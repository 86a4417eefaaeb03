"""Optical flow between two frames (SPyNet, Ranjan and Black, CVPR 2017) and sampling along it.

Always computed in float32, under autocast too: in float16 the sampling coordinates are wrong by half a pixel at a width
of 1920. A backend may compute the convolutions in half precision (backends/cuda/half_flow.py), never the coordinates.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def flow_warp(x: Tensor, flow_px: Tensor, *, padding: Literal["zeros", "border"] = "zeros") -> Tensor:
    """Sample `x` where the flow points: out(p) = x(p + flow(p)), bilinear.

    Coordinates are float32 whatever x is: float16 cannot count pixels beyond 2048.

    Args:
        x: (N, C, H, W).
        flow_px: (N, 2, H, W) in pixels: channel 0 to the right, channel 1 down.
        padding: Values outside of the frame: "zeros", or those of its outermost pixels ("border").

    Returns:
        (N, C, H, W) in x's dtype.

    Raises:
        ValueError: The two sizes differ.
    """
    num, _, height, width = x.shape
    if flow_px.shape != (num, 2, height, width):
        raise ValueError(f"flow_warp: flow {tuple(flow_px.shape)} does not fit x {tuple(x.shape)}")
    flow = flow_px.float()
    columns = torch.arange(width, device=x.device, dtype=torch.float32)
    rows = torch.arange(height, device=x.device, dtype=torch.float32)
    # Normalised the way the network was trained with: -1 and 1 are the centres of the outermost pixels.
    grid_x = (columns + flow[:, 0]) * (2.0 / max(width - 1, 1)) - 1.0
    grid_y = (rows[:, None] + flow[:, 1]) * (2.0 / max(height - 1, 1)) - 1.0
    grid = torch.stack((grid_x, grid_y), dim=3)
    with _without_autocast(x.device):
        sampled: Tensor = _Sample.apply(x.float(), grid, padding == "border")
    return sampled.to(x.dtype)


_BILINEAR, _ZEROS, _BORDER = 0, 0, 1  # as grid_sampler_2d numbers them


class _Sample(torch.autograd.Function):
    """`F.grid_sample`, bilinear with aligned corners, without cuDNN and with a gradient that is the same every time.

    cuDNN's sampler, which F.grid_sample takes on CUDA unless `torch.backends.cudnn.enabled` is off, rounds differently
    from torch's own. Both add the gradient of the input in whatever order threads come; here it is added in the order
    of the pixels. On a CPU values and gradients are F.grid_sample's.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, grid: Tensor, is_border: bool) -> Tensor:
        ctx.save_for_backward(x, grid)
        ctx.is_border = is_border
        padding = _BORDER if is_border else _ZEROS
        return torch.ops.aten.grid_sampler_2d(x, grid, _BILINEAR, padding, True)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, grid = ctx.saved_tensors
        wanted = list(ctx.needs_input_grad[:2])
        if x.device.type == "cpu":
            padding = _BORDER if ctx.is_border else _ZEROS
            of_x, of_grid = torch.ops.aten.grid_sampler_2d_backward(gradient, x, grid, _BILINEAR, padding, True, wanted)
        else:
            of_x, of_grid = sampling_gradients(gradient, x, grid, is_border=ctx.is_border)
        return of_x if wanted[0] else None, of_grid if wanted[1] else None, None


def sampling_gradients(gradient: Tensor, x: Tensor, grid: Tensor, *, is_border: bool) -> tuple[Tensor, Tensor]:
    """Return the gradients of bilinear sampling with aligned corners, added in a fixed order on every device.

    Args:
        gradient: Of the samples, (N, C, h, w).
        x: What was sampled, (N, C, H, W).
        grid: Where, (N, h, w, 2): column and row, from -1 to 1.
        is_border: Whether places outside of x have the values of its outermost pixels; else zeros.

    Returns:
        The gradients of x and of grid, in their shapes.
    """
    num, channels, height, width = x.shape
    sizes = torch.arange(2, device=x.device) * (height - width) + width  # (W, H), without a copy from the host
    at = (grid + 1) * ((sizes - 1) / 2)
    is_inside = torch.ones_like(at)
    if is_border:
        is_inside = ((at > 0) & (at < sizes - 1)).to(at.dtype)  # beyond, a sample does not move with its place
        at = torch.minimum(at.clamp(min=0), (sizes - 1).to(at.dtype))
    # Places that are not finite, or far away, are as good as any outside.
    at = at.nan_to_num(nan=-2.0).clamp(min=-2).minimum((sizes + 1).to(at.dtype))
    first = at.floor()
    share = at - first
    pixels = x.permute(0, 2, 3, 1).reshape(-1, channels)
    gradients = gradient.permute(0, 2, 3, 1).reshape(-1, channels)
    frame = torch.arange(num, device=x.device).view(-1, 1, 1) * (height * width)
    places, values, of_column, of_row = [], [], x.new_zeros(len(gradients)), x.new_zeros(len(gradients))
    for down in (0, 1):
        for right in (0, 1):
            column, row = first[..., 0].long() + right, first[..., 1].long() + down
            is_there = ((column >= 0) & (column < width) & (row >= 0) & (row < height)).reshape(-1).to(x.dtype)
            place = (frame + row.clamp(0, height - 1) * width + column.clamp(0, width - 1)).reshape(-1)
            across = (share[..., 0] if right else 1 - share[..., 0]).reshape(-1)
            along = (share[..., 1] if down else 1 - share[..., 1]).reshape(-1)
            places.append(place)
            values.append(gradients * (across * along * is_there)[:, None])
            products = (pixels.index_select(0, place) * gradients).sum(1) * is_there
            of_column += products * (along if right else -along)
            of_row += products * (across if down else -across)
    # Sorts the places, and adds what belongs to one pixel in order: index_add and scatter_add do not. "Unsafe" leaves
    # out the check of the places, which waits for a GPU.
    of_pixels = torch.ops.aten._index_put_impl_(
        torch.zeros_like(pixels), [torch.cat(places)], torch.cat(values), True, True
    )
    of_x = of_pixels.view(num, height, width, channels).permute(0, 3, 1, 2)
    of_grid = torch.stack((of_column, of_row), dim=1).view_as(grid) * is_inside * ((sizes - 1) / 2)
    return of_x, of_grid


def resize(x: Tensor, height: int, width: int, *, align_corners: bool = False) -> Tensor:
    """Resize maps bilinearly: (N, C, H, W) to (N, C, height, width).

    With `align_corners` the centres of the outermost pixels coincide, else their borders. The values are those of
    `F.interpolate`, but on a CPU the bits are the same for any number of threads: F.interpolate has one kernel for a
    single thread and another for several. Here every operation has one or two operands, so its rounding is determined;
    where F.interpolate takes its general kernel (two threads or more, an output of more than 128 rows and columns) the
    bits are its own.
    """
    if x.device.type != "cpu":
        return F.interpolate(x, size=(height, width), mode="bilinear", align_corners=align_corners)
    for dim, made in ((3, width), (2, height)):
        if x.shape[dim] != made:
            x = _resize_along(x, dim, made, align_corners)
    return x


def _resize_along(x: Tensor, dim: int, made: int, align_corners: bool) -> Tensor:
    size, kind = x.shape[dim], torch.promote_types(x.dtype, torch.float32)
    step, half = ((size - 1) / max(made - 1, 1), 0.0) if align_corners else (size / made, 0.5)
    step = torch.tensor(step, dtype=kind, device=x.device).item()
    # A product of two float32 is exact in float64: a product and a sum are rounded once, as torch's fused ones are.
    at = ((torch.arange(made, dtype=torch.float64, device=x.device) + half) * step - half).to(kind).clamp_(min=0)
    first = at.long().clamp_(max=size - 1)
    share = (at - first).view(-1, *[1] * (3 - dim))  # of the second of two samples
    before, after = x.index_select(dim, first), x.index_select(dim, (first + 1).clamp_(max=size - 1))
    return (before.double() * (1 - share).double() + after * share).to(x.dtype)


def _without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which operations on this kind of device compute in the type of their inputs."""
    if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


class _ConvLayer(nn.Module):
    """A 7x7 convolution under the published key name `conv`."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, 7, padding=3)
        if self.conv.weight.is_meta:  # shapes without values: torch loads 900 modules before it draws nothing
            return
        # torch's own start shrinks the signal at every layer; a flow network then sits on a plateau for very long.
        nn.init.kaiming_normal_(self.conv.weight, nonlinearity="relu")
        assert self.conv.bias is not None
        nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)  # type: ignore[no-any-return]


class _PyramidLevel(nn.Module):
    """Refines the flow of one scale: (N, 3 + 3 + 2, h, w) to (N, 2, h, w)."""

    def __init__(self, hidden_channels: tuple[int, int, int, int]) -> None:
        super().__init__()
        widths = (8, *hidden_channels, 2)
        self.basic_module = nn.ModuleList(_ConvLayer(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        last = len(self.basic_module) - 1
        for index, layer in enumerate(self.basic_module):
            x = layer(x)
            if index < last:
                x = F.relu(x)
        return x


class SPyNet(nn.Module):
    """Coarse-to-fine flow: each level corrects the doubled flow of the level below it.

    With a stride of 1, as published, the last level has the size of the frames; else that size divided by the stride,
    and its flow is enlarged.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        num_levels: int = 6,
        hidden_channels: tuple[int, int, int, int] = (32, 64, 32, 16),
        stride: int = 1,
    ) -> None:
        super().__init__()
        self._stride = stride
        self.basic_module = nn.ModuleList(_PyramidLevel(hidden_channels) for _ in range(num_levels))
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))
        if stride != 1:  # so that a file tells it; a float like all other tensors, for moving averages
            self.register_buffer("stride", torch.tensor(float(stride)))

    def forward(self, ref: Tensor, supp: Tensor) -> Tensor:
        """Return the flow with which `supp`, sampled by `flow_warp`, looks like `ref`.

        Args:
            ref: (N, 3, H, W), of any H, W >= 1.
            supp: The same shape.

        Returns:
            (N, 2, H, W) float32, in pixels.
        """
        height, width = ref.shape[-2:]
        ref, supp = self._resized_up(ref), self._resized_up(supp)
        return self.resized(self.coarse_to_fine(ref, supp)[-1], height, width)

    def pyramid(self, frames: Tensor) -> list[Tensor]:
        """Return frames (N, 3, H, W) of any size as each level sees them, the coarsest first."""
        return self._pyramid(self._resized_up(frames))

    def resized(self, flow: Tensor, height: int, width: int) -> Tensor:
        """Resize the flow of the finest level, (N, 2, h, w), to the size of the frames."""
        height_up, width_up = flow.shape[-2:]
        if (height_up, width_up) == (height, width):
            return flow
        flow = resize(flow, height, width)
        # Not a product with a tensor of two numbers: making one on a GPU waits for all that the GPU has to do.
        return torch.stack((flow[:, 0] * (width / width_up), flow[:, 1] * (height / height_up)), dim=1)

    def _resized_up(self, frames: Tensor) -> Tensor:
        """Resize frames, without padding, up to a size that halves evenly at every level."""
        multiple = self._stride * 2 ** (len(self.basic_module) - 1)
        height, width = (-(-size // multiple) * multiple for size in frames.shape[-2:])
        if (height, width) == frames.shape[-2:]:
            return frames.float()
        return resize(frames.float(), height, width)

    def coarse_to_fine(self, ref: Tensor, supp: Tensor) -> list[Tensor]:
        """Return the flow of each level, the coarsest first; the last has 1 / stride of the frames' size.

        ref and supp (N, 3, H, W), H and W multiples of stride * 2 ** (levels - 1). Each flow is in pixels of its own
        level.
        """
        with _without_autocast(ref.device):
            levels_ref, levels_supp = self._pyramid(ref), self._pyramid(supp)
            flow = levels_ref[0].new_zeros(ref.shape[0], 2, *levels_ref[0].shape[-2:])
            flows: list[Tensor] = []
            for module, level_ref, level_supp in zip(self.basic_module, levels_ref, levels_supp, strict=True):
                if flows:
                    flow = resize(flow, *level_ref.shape[-2:], align_corners=True) * 2.0
                aligned = flow_warp(level_supp, flow, padding="border")
                flow = flow + module(torch.cat((level_ref, aligned, flow), dim=1))
                flows.append(flow)
            return flows

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Follow the network to another device, but stay in float32 when it goes to another type."""

        def without_type(tensor: Tensor) -> Tensor:
            changed = fn(tensor)
            return changed if changed.dtype == tensor.dtype else tensor.to(changed.device)

        return super()._apply(without_type, recurse)  # type: ignore[no-untyped-call, no-any-return]

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *others: Any) -> None:
        """Refuse the tensors of a network of another stride: nothing but this number tells them apart."""
        given = state_dict.get(f"{prefix}stride")
        if given is not None and float(given) != self._stride:
            *_, error_messages = others
            error_messages.append(f"{prefix}stride is {float(given):g}, and this network's is {self._stride}")
            return
        super()._load_from_state_dict(state_dict, prefix, *others)

    def _pyramid(self, image: Tensor) -> list[Tensor]:
        """Return the normalised image at every level's size, the coarsest first."""
        finest = image if self._stride == 1 else F.avg_pool2d(image, self._stride)
        levels = [(finest - self.mean) / self.std]
        while len(levels) < len(self.basic_module):
            levels.insert(0, F.avg_pool2d(levels[0], 2))
        return levels
