"""Teach SPyNet the motion between two frames where it is known: photographs warped by a field that we draw.

The network's own recipe takes a ready-made SPyNet; people without one start here.
"""

import argparse
import math
import time
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from training.clips import read_photographs
from training.pool import held_out
from vsrealbasicvsr.model import SPyNet, flow_warp

FIRST_TRANSLATION_PX, LAST_TRANSLATION_PX = 2.0, 8.0
"""The largest translation grows over the run: a level learns nothing while the levels below leave it too much."""


def load_small(paths: list[Path], shrink: int = 3) -> list[NDArray[np.uint8]]:
    """Photographs at about the sharpness of a low-resolution frame, RGB uint8 (H, W, 3), at least 128 pixels a side."""
    images = []
    for path in paths:
        image = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
        if image is None or min(image.shape[:2]) < 128 * shrink:
            continue
        size = (image.shape[1] // shrink, image.shape[0] // shrink)
        images.append(np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8))
    return images


def draw_flow(size: int, max_translation_px: float, generator: torch.Generator) -> Tensor:
    """A random motion field (1, 2, size, size) in pixels: translation, rotation, zoom, a smooth bend, and in half of
    the draws an ellipse that moves by itself.
    """

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=generator).item()

    def translation() -> Tensor:
        length = max_translation_px * uniform(0, 1) ** 2  # small motion is the common case
        angle = uniform(-math.pi, math.pi)
        return torch.tensor([math.cos(angle), math.sin(angle)]).view(1, 2, 1, 1) * length

    axis = torch.arange(size, dtype=torch.float32) - (size - 1) / 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    extent = 0.005 * max_translation_px
    turn, zoom = uniform(-extent, extent), uniform(-extent, extent)
    affine = torch.stack((zoom * x - turn * y, turn * x + zoom * y))[None]
    nodes = torch.randn(1, 2, 4, 4, generator=generator) * uniform(0, 0.15) * max_translation_px
    flow = translation() + affine + F.interpolate(nodes, size=(size, size), mode="bicubic", align_corners=True)
    if uniform(0, 1) < 0.5:
        centre_x, centre_y = uniform(-0.4, 0.4) * size, uniform(-0.4, 0.4) * size
        radius_x, radius_y = uniform(0.1, 0.35) * size, uniform(0.1, 0.35) * size
        inside = ((x - centre_x) / radius_x) ** 2 + ((y - centre_y) / radius_y) ** 2 < 1
        flow = torch.where(inside, flow + translation(), flow)
    return flow


def draw_pairs(
    images: list[NDArray[np.uint8]],
    num_pairs: int,
    *,
    size: int,
    max_translation_px: float,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    """(ref, supp, flow_px): ref(p) = supp(p + flow(p)) to the pixel, each with its own noise; (B, 3|2, size, size)."""
    margin = 16
    refs, supps, flows = [], [], []
    for _ in range(num_pairs):
        image = images[int(torch.randint(len(images), (), generator=generator))]
        side = size + 2 * margin
        top = int(torch.randint(image.shape[0] - side + 1, (), generator=generator))
        left = int(torch.randint(image.shape[1] - side + 1, (), generator=generator))
        crop = torch.from_numpy(image[top : top + side, left : left + side].copy()).permute(2, 0, 1)[None].float() / 255
        if torch.rand((), generator=generator) < 0.5:
            crop = crop.flip(-1)
        if torch.rand((), generator=generator) < 0.5:
            crop = crop.transpose(-1, -2)
        flow = draw_flow(side, max_translation_px, generator)
        inner = (..., slice(margin, -margin), slice(margin, -margin))
        refs.append(flow_warp(crop, flow, padding="border")[inner])
        supps.append(crop[inner])
        flows.append(flow[inner])
    ref, supp, flow = torch.cat(refs), torch.cat(supps), torch.cat(flows)
    sigma = torch.rand(num_pairs, 1, 1, 1, generator=generator) * 0.03
    ref = ref + sigma * torch.randn(ref.shape, generator=generator)
    supp = supp + sigma * torch.randn(supp.shape, generator=generator)
    return ref, supp, flow


def start_as_gradient_matching(level: nn.Module) -> None:
    """Set a level's weights so that it begins as a crude gradient matcher (Lucas and Kanade, 1981).

    Flow is about (ref - supp) * gradient / |gradient|^2, and the sign of that product is what a network without any
    product in it finds last: from random weights it had found nothing after 400 iterations. Rectified sums give it:
    |d + g| - |d - g| = 2 sign(d g) min(|d|, |g|). The other channels stay random.
    """
    convolutions = [layer.conv for layer in level.basic_module]  # type: ignore[union-attr]
    axis = torch.arange(7) - 3.0
    narrow, wide = torch.exp(-(axis**2) / 2), torch.exp(-(axis**2) / 8)
    smooth, average = (line[:, None] * line / line.sum() ** 2 for line in (narrow, wide))
    luma = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    with torch.no_grad():
        first, second, *middle, last = (convolution.weight for convolution in convolutions)
        channel = 0
        for gradient in (smooth * axis, smooth * axis[:, None]):  # to the right, down
            for sign, gradient_sign in ((1, 1), (-1, -1), (1, -1), (-1, 1)):
                # sign * (ref - supp) + gradient_sign * gradient, over the normalised images
                first[channel].zero_()
                first[channel, 0:3] = luma * (2 * sign * smooth + gradient_sign * gradient)
                first[channel, 3:6] = luma * (-2 * sign * smooth + gradient_sign * gradient)
                channel += 1
        for output, (begin, sign) in enumerate(((0, 1), (0, -1), (4, 1), (4, -1))):
            second[output].zero_()
            second[output, begin : begin + 2] = sign * average
            second[output, begin + 2 : begin + 4] = -sign * average
        for weight in middle:
            for output in range(4):
                weight[output].zero_()
                weight[output, output, 3, 3] = 1.0
        last.mul_(0.02)
        last[:, :4].zero_()
        for output in range(2):
            last[output, 2 * output, 3, 3], last[output, 2 * output + 1, 3, 3] = 0.85, -0.85


def flow_loss(flows: list[Tensor], target_px: Tensor) -> Tensor:
    """Charbonnier distance at every level, the target averaged down and scaled to the level's pixels."""
    loss = target_px.new_zeros(())
    for index, flow in enumerate(reversed(flows)):
        target = F.avg_pool2d(target_px, 2**index) / 2**index if index else target_px
        loss = loss + (0.5**index) * ((flow - target).square().sum(1) + 1e-4).sqrt().mean()
    return loss


def end_point_error_px(spynet: SPyNet, images: list[NDArray[np.uint8]], size: int = 96) -> tuple[float, float]:
    """Mean end-point error over 64 fixed pairs: (of the network, of no motion at all), in pixels."""
    generator = torch.Generator().manual_seed(1)
    ref, supp, flow = draw_pairs(images, 64, size=size, max_translation_px=4.0, generator=generator)
    with torch.inference_mode():
        found = spynet(ref, supp)
    return (found - flow).norm(dim=1).mean().item(), flow.norm(dim=1).mean().item()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, required=True, help="folder of photographs")
    parser.add_argument("--out", type=Path, required=True, help="where the weights go (.pt)")
    parser.add_argument("--channels", type=int, nargs=4, default=[16, 32, 16, 8], help="hidden widths of a level")
    parser.add_argument("--iterations", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=96, help="side of a pair in pixels, a multiple of 32")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    torch.manual_seed(arguments.seed)
    generator = torch.Generator().manual_seed(arguments.seed)
    training_paths, held_paths = held_out(read_photographs(arguments.images))
    training_images, held_images = load_small(training_paths), load_small(held_paths)
    widths = tuple(arguments.channels)
    spynet = SPyNet(6, widths)
    # Every level has the same task on pictures of the same kind, so one level's weights learn from all of them, several
    # times faster; they part when the flow network is trained with the rest.
    spynet.basic_module = nn.ModuleList([spynet.basic_module[0]] * len(spynet.basic_module))
    start_as_gradient_matching(spynet.basic_module[0])
    optimizer = torch.optim.Adam(spynet.parameters(), lr=arguments.learning_rate, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, arguments.learning_rate, total_steps=arguments.iterations, pct_start=0.1
    )
    started = time.monotonic()
    for iteration in range(1, arguments.iterations + 1):
        share = iteration / arguments.iterations
        ref, supp, flow = draw_pairs(
            training_images,
            arguments.batch,
            size=arguments.size,
            max_translation_px=FIRST_TRANSLATION_PX + (LAST_TRANSLATION_PX - FIRST_TRANSLATION_PX) * share,
            generator=generator,
        )
        loss = flow_loss(spynet.coarse_to_fine(ref, supp), flow)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(spynet.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if iteration % 100 == 0 or iteration == arguments.iterations:
            error, still = end_point_error_px(spynet, held_images)
            seconds = (time.monotonic() - started) / iteration
            print(
                f"{iteration}/{arguments.iterations} loss {loss.item():.3f}  held-out end-point error {error:.3f} px "
                f"(no motion: {still:.3f} px)  {seconds:.2f} s/it",
                flush=True,
            )
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            partial = arguments.out.with_suffix(".partial")
            torch.save(spynet.state_dict(), partial)
            partial.replace(arguments.out)


if __name__ == "__main__":
    main()
