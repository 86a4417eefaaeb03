"""Teach a trained cleaning module to come to rest: what it has cleaned, it must leave alone.

Training sees one cleaning pass, core.rbvsr.Upscale up to three. A module that was trained for hours also sharpens, and
sharpens again on the next pass: stripes of high contrast ended 1.6 dB below bicubic. Here the cleaning loss holds the
second and third pass too, and the clean frames themselves; the first pass stays what the rest of the network knows.
"""

import argparse
import copy
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from training.losses import charbonnier
from training.train import Crops, Settings
from vsrealbasicvsr.model import MAX_CLEANING_PASSES, SCALE, RealBasicVSR
from vsrealbasicvsr.weights import load_model


def settling_loss(model: RealBasicVSR, before: RealBasicVSR, lr: Tensor, truth: Tensor) -> Tensor:
    """The sum of: first pass against what it was, later passes and a pass on the truth against the truth.

    lr and truth (B, 3, H, W): truth is the ground truth, averaged down to the size of lr.
    """
    with torch.no_grad():
        target = lr + before.cleaning_residue(lr)
    cleaned = lr + model.cleaning_residue(lr)
    loss = charbonnier(cleaned, target)
    for _ in range(MAX_CLEANING_PASSES - 1):
        cleaned = cleaned + model.cleaning_residue(cleaned)
        loss = loss + charbonnier(cleaned, truth)
    return loss + charbonnier(truth + model.cleaning_residue(truth), truth)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, help="an ema.pt or .safetensors; its cleaning module is trained on")
    parser.add_argument("out", type=Path, help="where the whole network's weights go (.pt)")
    parser.add_argument("--pool", type=Path, nargs="+", required=True)
    parser.add_argument("--minutes", type=float, default=7.0)
    parser.add_argument("--learning-rate", type=float, default=4e-4)
    parser.add_argument("--batch", type=int, default=6)
    arguments = parser.parse_args()

    torch.manual_seed(0)
    before = load_model(arguments.weights)
    model = copy.deepcopy(before)
    model.image_cleaning.requires_grad_(True)
    crops = Crops(arguments.pool, Settings(batch=arguments.batch, num_frames=1, crop_px=64, seed=1))
    optimizer = torch.optim.Adam(model.image_cleaning.parameters(), lr=arguments.learning_rate, betas=(0.9, 0.99))
    started, iteration, share = time.monotonic(), 0, 0.0
    while share < 1:
        share = (time.monotonic() - started) / (60 * arguments.minutes)
        optimizer.param_groups[0]["lr"] = arguments.learning_rate * max(1 - share, 0.01)
        lr, truth = (clip.flatten(0, 1) for clip in crops.batch(iteration, 0))
        loss = settling_loss(model, before, lr, F.avg_pool2d(truth, SCALE))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.image_cleaning.parameters(), 0.5)
        optimizer.step()
        iteration += 1
        if iteration % 25 == 0 or share >= 1:
            print(f"{iteration}: loss {loss.item():.4f}, {share:.0%}", flush=True)
            partial = arguments.out.with_suffix(".partial")
            torch.save(model.state_dict(), partial)
            partial.replace(arguments.out)


if __name__ == "__main__":
    main()
