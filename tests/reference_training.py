"""Losses, discriminator and gradients a second time, in float64, written from their descriptions, not from the package.

Clip by clip and frame by frame. Convolutions are torch's; resizing, warping, shuffling and averaging are matrices,
indices and reshapes, so that autograd finds the gradients of other formulas than the package's. The network's values
have a third make, in numpy: reference_network.py.
"""

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tests.reference_network import axis_matrix, formula_weights
from training.discriminators.unet import UNetDiscriminator
from vsrealbasicvsr.model import RealBasicVSR

GRADIENT = 1e-4
"""Float32 gradients and losses against float64, relative to the largest entry of the same tensor (issue 3, acceptance
8). Measured: 3e-6. A loss that misses a frame or a gradient that goes another way shows at 1e-2 and more."""

Tensors = Mapping[str, Tensor]


def doubles(tensors: Tensors) -> dict[str, Tensor]:
    """Leaves of float64 with a gradient to be; SPyNet's constants, which are none, left out."""
    kept = {key: tensor for key, tensor in tensors.items() if not key.endswith(("spynet.mean", "spynet.std"))}
    return {key: tensor.detach().double().requires_grad_() for key, tensor in kept.items()}


# ---- layers ---------------------------------------------------------------------------------------------------------


def convolve(x: Tensor, tensors: Tensors, name: str) -> Tensor:
    weight = tensors[name + ".weight"]
    return F.conv2d(x[None], weight, tensors[name + ".bias"], padding=weight.shape[-1] // 2)[0]


def lrelu(x: Tensor, slope: float = 0.1) -> Tensor:
    return torch.where(x > 0, x, slope * x)


def resize(x: Tensor, height: int, width: int, *, align_corners: bool = False) -> Tensor:
    rows = torch.from_numpy(axis_matrix(x.shape[-2], height, align_corners))
    columns = torch.from_numpy(axis_matrix(x.shape[-1], width, align_corners))
    return torch.einsum("hy,...yx,wx->...hw", rows, x, columns)


def average(x: Tensor, side: int) -> Tensor:
    *rest, height, width = x.shape
    return x.view(*rest, height // side, side, width // side, side).mean(dim=(-3, -1))


def shuffle(x: Tensor) -> Tensor:
    channels, height, width = x.shape
    cells = x.view(channels // 4, 2, 2, height, width)
    return cells.permute(0, 3, 1, 4, 2).reshape(channels // 4, 2 * height, 2 * width)


def warp(x: Tensor, flow: Tensor, *, border: bool = False) -> Tensor:
    _, height, width = x.shape
    to_x = torch.arange(width) + flow[0]
    to_y = torch.arange(height)[:, None] + flow[1]
    if border:
        to_x, to_y = to_x.clamp(0, width - 1), to_y.clamp(0, height - 1)
    left, top = to_x.detach().floor().long(), to_y.detach().floor().long()
    out = torch.zeros_like(x)
    for row, share_y in ((top, top + 1 - to_y), (top + 1, to_y - top)):
        for column, share_x in ((left, left + 1 - to_x), (left + 1, to_x - left)):
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            value = x[:, row.clamp(0, height - 1), column.clamp(0, width - 1)]
            out = out + torch.where(inside, share_y * share_x, 0.0) * value
    return out


def trunk(x: Tensor, tensors: Tensors, name: str) -> Tensor:
    x = lrelu(convolve(x, tensors, f"{name}.main.0"))
    block = 0
    while f"{name}.main.2.{block}.conv1.weight" in tensors:
        inner = convolve(x, tensors, f"{name}.main.2.{block}.conv1").clamp(min=0)
        x = x + convolve(inner, tensors, f"{name}.main.2.{block}.conv2")
        block += 1
    return x


# ---- the network, on one clip (T, 3, H, W) --------------------------------------------------------------------------


def flow_between(ref: Tensor, supp: Tensor, tensors: Tensors) -> Tensor:
    name = "basicvsr.spynet.basic_module"
    num_levels = len({key.split(".")[3] for key in tensors if key.startswith(name)})
    step = 2 ** (num_levels - 1)
    _, height, width = ref.shape
    up_h, up_w = -(-height // step) * step, -(-width // step) * step
    mean = torch.tensor([0.485, 0.456, 0.406], dtype=torch.float64).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225], dtype=torch.float64).view(3, 1, 1)
    ref, supp = ((resize(image, up_h, up_w) - mean) / std for image in (ref, supp))
    flow = torch.zeros(2, up_h // step, up_w // step, dtype=torch.float64)
    for level in range(num_levels):
        side = 2 ** (num_levels - 1 - level)
        a, b = average(ref, side), average(supp, side)
        if level > 0:
            flow = 2 * resize(flow, a.shape[1], a.shape[2], align_corners=True)
        x = torch.cat([a, warp(b, flow, border=True), flow])
        for layer in range(5):
            x = convolve(x, tensors, f"{name}.{level}.basic_module.{layer}.conv")
            x = x.clamp(min=0) if layer < 4 else x
        flow = flow + x
    flow = resize(flow, height, width)
    return torch.stack([flow[0] * width / up_w, flow[1] * height / up_h])


def clean(lr: Tensor, tensors: Tensors) -> Tensor:
    return torch.stack(
        [x + convolve(trunk(x, tensors, "image_cleaning.0"), tensors, "image_cleaning.1") for x in lr.unbind()]
    )


def super_resolve(cleaned: Tensor, tensors: Tensors) -> Tensor:
    num_frames, _, height, width = cleaned.shape
    nothing = cleaned.new_zeros(tensors["basicvsr.fusion.weight"].shape[1] // 2, height, width)
    features: dict[tuple[str, int], Tensor] = {}
    for way, order in (("backward", list(range(num_frames))[::-1]), ("forward", list(range(num_frames)))):
        for before, i in zip([None, *order], order, strict=False):
            state = nothing
            if before is not None:
                state = warp(features[way, before], flow_between(cleaned[i], cleaned[before], tensors))
            features[way, i] = trunk(torch.cat([cleaned[i], state]), tensors, f"basicvsr.{way}_resblocks")
    frames = []
    for i in range(num_frames):
        x = torch.cat([features["backward", i], features["forward", i]])
        x = lrelu(convolve(x, tensors, "basicvsr.fusion"))
        x = lrelu(shuffle(convolve(x, tensors, "basicvsr.upsample1.upsample_conv")))
        x = lrelu(shuffle(convolve(x, tensors, "basicvsr.upsample2.upsample_conv")))
        x = lrelu(convolve(x, tensors, "basicvsr.conv_hr"))
        x = convolve(x, tensors, "basicvsr.conv_last")
        frames.append(x + resize(cleaned[i], 4 * height, 4 * width))
    return torch.stack(frames)


# ---- losses ---------------------------------------------------------------------------------------------------------


def rho(difference: Tensor, distance: str) -> Tensor:
    return difference.abs().mean() if distance == "l1" else (difference**2 + 1e-6).sqrt().mean()


def stage_1(lr: Tensor, truth: Tensor, tensors: Tensors, distance: str = "charbonnier") -> dict[str, Tensor]:
    """Output and cleaning loss of clips (N, T, 3, H, W) and (N, T, 3, 4H, 4W)."""
    cleaned = torch.stack([clean(clip, tensors) for clip in lr.double()])
    hr = torch.stack([super_resolve(clip, tensors) for clip in cleaned])
    truth = truth.double()
    return {"output": rho(hr - truth, distance), "cleaning": rho(cleaned - average(truth, 4), distance)}


VGG_STAGES = {"vgg19": (2, 2, 4, 4, 4), "vgg16": (2, 2, 3, 3, 3)}
"""Convolutions of each stage."""


def perceptual(frames: Tensor, truth: Tensor, tensors: Tensors, network: str = "vgg19") -> Tensor:
    """VGG's five features of frames (B, 3, H, W); `tensors` under torchvision's names."""
    mean = torch.tensor([0.485, 0.456, 0.406], dtype=torch.float64).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225], dtype=torch.float64).view(3, 1, 1)
    loss = torch.zeros((), dtype=torch.float64)
    both = [(frames.double() - mean) / std, (truth.double() - mean) / std]
    counts = (0.1, 0.1, 1.0, 1.0, 1.0)
    index = 0
    for stage, num_convolutions in enumerate(VGG_STAGES[network], start=1):
        for number in range(1, num_convolutions + 1):
            weight, bias = (tensors[f"features.{index}.{kind}"].double() for kind in ("weight", "bias"))
            both = [F.conv2d(x, weight, bias, padding=1) for x in both]
            if number == num_convolutions:
                loss = loss + counts[stage - 1] * (both[0] - both[1]).abs().mean()
            both = [x.clamp(min=0) for x in both]
            index += 2  # the convolution and its activation
        both = [F.max_pool2d(x, 2) for x in both] if stage < 5 else both
        index += 1
    return loss


def vgg_tensors(network: str = "vgg19") -> dict[str, Tensor]:
    """The formula's weights for VGG's convolutions, at a gain that keeps the features alive to the last."""
    shapes: dict[str, tuple[int, ...]] = {}
    index, channels = 0, 3
    for width, num_convolutions in zip((64, 128, 256, 512, 512), VGG_STAGES[network], strict=True):
        for _ in range(num_convolutions):
            shapes[f"features.{index}.weight"], shapes[f"features.{index}.bias"] = (width, channels, 3, 3), (width,)
            index, channels = index + 2, width
        index += 1
    weights = formula_weights(shapes)
    return {key: torch.from_numpy(weight * np.float32(1.4)) for key, weight in weights.items()}


# ---- the discriminator ----------------------------------------------------------------------------------------------


def discriminator_tensors(width: int = 64) -> dict[str, Tensor]:
    """The formula's weights for the discriminator; u and v are those that ten power iterations arrive at, in numpy."""
    with torch.device("meta"):
        shapes = {key: tuple(tensor.shape) for key, tensor in UNetDiscriminator(width).state_dict().items()}
    weights = formula_weights({key: shape for key, shape in shapes.items() if not key.endswith(("_u", "_v"))})
    for key in [key for key in weights if key.endswith("_orig")]:
        matrix = weights[key].astype(np.float64).reshape(len(weights[key]), -1)
        u = np.ones(len(matrix))
        for _ in range(10):
            v = unit(matrix.T @ u)
            u = unit(matrix @ v)
        weights[key.replace("_orig", "_u")] = u.astype(np.float32)
        weights[key.replace("_orig", "_v")] = v.astype(np.float32)
    return {key: torch.from_numpy(weights[key]) for key in shapes}


def unit(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    return vector / np.sqrt((vector**2).sum())


def discriminate(frames: Tensor, tensors: Tensors) -> Tensor:
    """Logits (B, 1, H, W) of frames (B, 3, H, W) by the published layout; the spectral norm is u W v, in numpy."""

    def normalised(x: Tensor, number: int, stride: int = 1) -> Tensor:
        weight, u, v = (tensors[f"conv_{number}.weight_{kind}"].double().numpy() for kind in ("orig", "u", "v"))
        sigma = u @ weight.reshape(len(weight), -1) @ v
        return lrelu(F.conv2d(x, torch.from_numpy(weight / sigma), stride=stride, padding=1), 0.2)

    def twice(x: Tensor) -> Tensor:
        return resize(x, 2 * x.shape[-2], 2 * x.shape[-1])

    ends = {number: [tensors[f"conv_{number}.{kind}"].double() for kind in ("weight", "bias")] for number in (0, 9)}
    x0 = lrelu(F.conv2d(frames.double(), *ends[0], padding=1), 0.2)
    x1 = normalised(x0, 1, 2)
    x2 = normalised(x1, 2, 2)
    x3 = normalised(x2, 3, 2)
    x4 = normalised(twice(x3), 4) + x2
    x5 = normalised(twice(x4), 5) + x1
    x6 = normalised(twice(x5), 6) + x0
    return F.conv2d(normalised(normalised(x6, 7), 8), *ends[9], padding=1)


# ---- pictures to learn from -----------------------------------------------------------------------------------------


def clips(num_clips: int, num_frames: int, height: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A moving texture in [0, 1]: (lr (N, T, 3, H, W) with noise, truth (N, T, 3, 4H, 4W)), float32."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[: 4 * height, : 4 * width] / 4.0
    truth = np.empty((num_clips, num_frames, 3, 4 * height, 4 * width), dtype=np.float32)
    for n, c in np.ndindex(num_clips, 3):
        a, b, phase, speed = generator.uniform(0.3, 1.2, 4)
        for t in range(num_frames):
            truth[n, t, c] = 0.5 + 0.4 * np.sin(a * x + phase + speed * t) * np.cos(b * y - speed * t)
    small = truth.reshape(num_clips, num_frames, 3, height, 4, width, 4).mean(axis=(4, 6))
    lr = small + generator.normal(0, 0.05, small.shape).astype(np.float32)
    return torch.from_numpy(lr), torch.from_numpy(truth)


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    """The gradient of each parameter, zero where there is none."""
    return {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for name, parameter in model.named_parameters()
    }


def learning(model: RealBasicVSR) -> RealBasicVSR:
    """The same network with every parameter to learn and no gradient yet."""
    model.requires_grad_(True).zero_grad(set_to_none=True)
    return model
