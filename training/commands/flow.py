"""Train SPyNet on known motion: photographs warped by random flow fields.

The network's own recipe needs a trained SPyNet; this command makes one.
"""

import argparse
import math
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from training.data.dataset import ClipDataset
from training.run_folder import whole_file
from vsrealbasicvsr.errors import UserError
from vsrealbasicvsr.luma import LUMA_WEIGHTS
from vsrealbasicvsr.model import STRIDES, SPyNet, flow_warp

MARGIN_PX = 16
HELD_OUT_EVERY = 12
WARM_UP_ITERATIONS = 100
FIRST_TRANSLATION_PX, LAST_TRANSLATION_PX = 2.0, 6.0
"""Largest translation at the beginning and from the middle of the run on, in pixels. A level learns nothing while the
levels below it leave it too much motion."""


def load_small(dataset: ClipDataset, size: int) -> tuple[list[NDArray[np.uint8]], list[NDArray[np.uint8]]]:
    """Read first frames of the clips, shrunk by 3 and by 2 to about the sharpness of a low-resolution frame.

    Args:
        dataset: Prepared clips; every 12th is held out.
        size: Side of the pairs in pixels; smaller images are skipped.

    Returns:
        Images to train from, and held-out ones: RGB uint8 (H, W, 3).

    Raises:
        ValueError: There are too few.
    """
    images: list[NDArray[np.uint8]] = []
    held: list[NDArray[np.uint8]] = []
    for number in range(len(dataset)):
        clip = dataset[number]
        for shrink in (3, 2):
            if min(clip.height, clip.width) < (size + 2 * MARGIN_PX) * shrink:
                continue
            frame = dataset.read(number, num_frames=1)[0]
            small = cv2.resize(frame, (clip.width // shrink, clip.height // shrink), interpolation=cv2.INTER_AREA)
            (held if number % HELD_OUT_EVERY == 0 else images).append(np.asarray(small, dtype=np.uint8))
            if number % HELD_OUT_EVERY == 0:
                break
    if not images or not held:
        raise ValueError(
            f"too few large pictures: {len(dataset)} clips, {len(images)} of at least {2 * (size + 2 * MARGIN_PX)}"
            " pixels a side to learn from. Prepare more or larger ones, or give a smaller --size (a multiple of 32)."
        )
    return images, held


def draw_flow(size: int, max_translation_px: float, generator: torch.Generator) -> Tensor:
    """Return a random flow field (1, 2, size, size) in pixels.

    It is the sum of translation, rotation, zoom and a smooth bend; in half of the draws an ellipse moves separately.

    Args:
        size: Side of the field in pixels.
        max_translation_px: Maximum length of the translation; the other motion is proportional to it.
        generator: Source of random numbers.
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
    """Return pairs of images with known flow: ref(p) = supp(p + flow(p)) exactly, then noise is added to each.

    Args:
        images: RGB uint8 (H, W, 3), from which random pieces are cut.
        num_pairs: B.
        size: Side of the pairs in pixels.
        max_translation_px: See `draw_flow`.
        generator: Source of random numbers.

    Returns:
        ref and supp (B, 3, size, size), flow in pixels (B, 2, size, size).
    """
    refs, supps, flows = [], [], []
    for _ in range(num_pairs):
        image = images[int(torch.randint(len(images), (), generator=generator))]
        side = size + 2 * MARGIN_PX
        top = int(torch.randint(image.shape[0] - side + 1, (), generator=generator))
        left = int(torch.randint(image.shape[1] - side + 1, (), generator=generator))
        crop = torch.from_numpy(image[top : top + side, left : left + side].copy()).permute(2, 0, 1)[None].float() / 255
        if torch.rand((), generator=generator) < 0.5:
            crop = crop.flip(-1)
        if torch.rand((), generator=generator) < 0.5:
            crop = crop.transpose(-1, -2)
        flow = draw_flow(side, max_translation_px, generator)
        inner = (..., slice(MARGIN_PX, -MARGIN_PX), slice(MARGIN_PX, -MARGIN_PX))
        refs.append(flow_warp(crop, flow, padding="border")[inner])
        supps.append(crop[inner])
        flows.append(flow[inner])
    ref, supp, flow = torch.cat(refs), torch.cat(supps), torch.cat(flows)
    sigma = torch.rand(num_pairs, 1, 1, 1, generator=generator) * 0.03
    ref = ref + sigma * torch.randn(ref.shape, generator=generator)
    supp = supp + sigma * torch.randn(supp.shape, generator=generator)
    return ref, supp, flow


def start_as_gradient_matching(level: nn.Module) -> None:
    """Initialise a level as a crude gradient matcher (Lucas and Kanade, 1981).

    Flow is about (ref - supp) * gradient / |gradient|^2, and the sign of that product is what a network without
    products learns last: from random weights it had learned nothing after 400 iterations. Rectified sums give it: |d +
    g| - |d - g| = 2 sign(d g) min(|d|, |g|). The other channels stay random.
    """
    convolutions = [layer.conv for layer in level.basic_module]  # type: ignore[union-attr]
    axis = torch.arange(7) - 3.0
    narrow, wide = torch.exp(-(axis**2) / 2), torch.exp(-(axis**2) / 8)
    smooth, average = (line[:, None] * line / line.sum() ** 2 for line in (narrow, wide))
    luma = torch.tensor(LUMA_WEIGHTS).view(3, 1, 1)
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
    """Return the Charbonnier distance summed over levels, the target averaged and scaled to each level's pixels."""
    loss = target_px.new_zeros(())
    for index, flow in enumerate(reversed(flows)):
        scale = target_px.shape[-1] // flow.shape[-1]
        target = F.avg_pool2d(target_px, scale) / scale if scale > 1 else target_px
        loss = loss + (0.5**index) * ((flow - target).square().sum(1) + 1e-4).sqrt().mean()
    return loss


def end_point_error_px(spynet: SPyNet, images: list[NDArray[np.uint8]], size: int) -> tuple[float, float]:
    """Return mean end-point error over 64 fixed pairs: (of the network, of no motion at all), in pixels."""
    generator = torch.Generator().manual_seed(1)
    ref, supp, flow = draw_pairs(images, 64, size=size, max_translation_px=4.0, generator=generator)
    with torch.inference_mode():
        found = spynet(ref, supp)
    return (found - flow).norm(dim=1).mean().item(), flow.norm(dim=1).mean().item()


def blurred(images: Tensor, sigma_px: float) -> Tensor:
    """Return the images (B, 3, H, W), blurred by a Gaussian, mirrored at the edges."""
    radius = math.ceil(3 * sigma_px)
    line = torch.exp(-0.5 * ((torch.arange(2 * radius + 1) - radius) / sigma_px) ** 2)
    line = (line / line.sum()).repeat(3, 1)
    images = F.pad(images, (radius, radius, radius, radius), mode="reflect")
    return F.conv2d(F.conv2d(images, line[:, None, None, :], groups=3), line[:, None, :, None], groups=3)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m training flow`."""
    parser.add_argument(
        "--data", type=Path, nargs="+", required=True, metavar="CLIPS", help="folders of python -m training prepare"
    )
    parser.add_argument("--out", type=Path, required=True, help="where the weights go (.pt), for train --spynet")
    parser.add_argument(
        "--channels",
        type=int,
        nargs=4,
        default=[32, 64, 32, 16],
        help="hidden widths of a level; the compact preset has 16 32 16 8",
    )
    parser.add_argument("--levels", type=int, default=6, help="of the pyramid; the compact preset has 5")
    parser.add_argument(
        "--stride",
        type=int,
        choices=(1, *STRIDES),
        default=1,
        help="frame pixels on a pixel of the finest level; the compact preset has 2",
    )
    parser.add_argument("--iterations", type=int, default=2300)
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--size", type=int, default=96, help="side of a pair in pixels, a multiple of 32")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)


def run(arguments: argparse.Namespace) -> int:
    """Train the flow network and write its weights. Return the exit status."""
    if arguments.iterations < 1 or arguments.batch < 1 or arguments.size < 32 or arguments.size % 32:
        raise UserError("--iterations and --batch must be at least 1, and --size a multiple of 32")
    if arguments.levels < 1 or arguments.size % (arguments.stride * 2 ** (arguments.levels - 1)):
        raise UserError("--size must be a multiple of --stride times 2 for each of the --levels but one")
    if min(arguments.channels[:2]) < 8 or min(arguments.channels[2:]) < 4:
        raise UserError("--channels must be at least 8 8 4 4: the first start needs that many")
    torch.manual_seed(arguments.seed)
    generator = torch.Generator().manual_seed(arguments.seed)
    images, held_images = load_small(ClipDataset.open(arguments.data), arguments.size)
    spynet = SPyNet(arguments.levels, tuple(arguments.channels), arguments.stride)
    # Every level has the same task on similar images, so all levels share one set of weights here, which learns several
    # times faster. They become independent when the flow network is trained with the rest.
    spynet.basic_module = nn.ModuleList([spynet.basic_module[0]] * len(spynet.basic_module))
    start_as_gradient_matching(spynet.basic_module[0])
    optimizer = torch.optim.Adam(spynet.parameters(), betas=(0.9, 0.99))
    with tqdm(total=arguments.iterations, unit="step") as bar:
        for iteration in range(1, arguments.iterations + 1):
            share = iteration / arguments.iterations
            rate = min(iteration / WARM_UP_ITERATIONS, 1) * (0.002 + (1 + math.cos(math.pi * share)) / 2)
            optimizer.param_groups[0]["lr"] = arguments.learning_rate * rate
            ref, supp, flow = draw_pairs(
                images,
                arguments.batch,
                size=arguments.size,
                max_translation_px=FIRST_TRANSLATION_PX
                + (LAST_TRANSLATION_PX - FIRST_TRANSLATION_PX) * min(2 * share, 1),
                generator=generator,
            )
            if torch.rand((), generator=generator) < 0.5:
                sigma_px = 0.3 + 0.9 * torch.rand((), generator=generator).item()
                ref, supp = blurred(ref, sigma_px), blurred(supp, sigma_px)
            loss = flow_loss(spynet.coarse_to_fine(ref, supp), flow)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(spynet.parameters(), 1.0)
            optimizer.step()
            bar.update()
            if iteration % 100 == 0 or iteration == arguments.iterations:
                error_px, still_px = end_point_error_px(spynet, held_images, arguments.size)
                bar.set_postfix_str(f"held-out end-point error {error_px:.3f} px (no motion: {still_px:.3f} px)")
                with whole_file(arguments.out) as file:
                    torch.save(spynet.state_dict(), file)
    print(f"{arguments.out}: held-out end-point error {error_px:.3f} px (no motion: {still_px:.3f} px)")
    return 0
