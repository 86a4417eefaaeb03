"""How far a network is above bicubic on a pool of clips: PSNR of the luma, clip by clip."""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vsrealbasicvsr.model import SCALE, RealBasicVSR, refine
from vsrealbasicvsr.weights import load_model


def luma(rgb: Tensor) -> Tensor:
    """BT.601 luma of (..., 3, H, W) in [0, 1]: (..., H, W)."""
    return (rgb * rgb.new_tensor((0.299, 0.587, 0.114)).view(3, 1, 1)).sum(-3)


def psnr_db(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio of two pictures in [0, 1] that were rounded to 8 bits."""
    error = (a.double() - b.double()).square().mean().item()
    return float(-10 * np.log10(max(error, 1e-12)))


def to_bytes(rgb: Tensor) -> Tensor:
    """Clipped and rounded to 8 bits, as a viewer gets it."""
    return (rgb.clamp(0, 1) * 255).round() / 255


def super_resolve(model: RealBasicVSR, lr: Tensor, theta: float) -> Tensor:
    """The clip (T, 3, H, W) as core.rbvsr.Upscale makes it in one window: (T, 3, S*H, S*W)."""
    with torch.inference_mode():
        return model.super_resolve(refine(model, lr[None], theta=theta)[0])[0]


def evaluate(model: RealBasicVSR, pool: Path, theta: float) -> list[dict[str, float | str]]:
    """One record for each clip of the pool: PSNR of ours and of bicubic, and the largest shift of a channel's mean."""
    records: list[dict[str, float | str]] = []
    for path in sorted(pool.glob("*.lr.npy")):
        lr, truth = (
            torch.from_numpy(np.load(file)).permute(0, 3, 1, 2).float() / 255
            for file in (path, path.with_name(path.name.replace(".lr.", ".hr.")))
        )
        ours = to_bytes(super_resolve(model, lr, theta))
        bicubic = to_bytes(F.interpolate(lr, scale_factor=SCALE, mode="bicubic", align_corners=False))
        source = json.loads(path.with_name(path.name.replace(".lr.npy", ".json")).read_text())["source"]
        records.append(
            {
                "clip": path.name.removesuffix(".lr.npy"),
                "source": source,
                "ours_db": psnr_db(luma(ours), luma(truth)),
                "bicubic_db": psnr_db(luma(bicubic), luma(truth)),
                "colour_shift_255": (ours.mean((0, 2, 3)) - bicubic.mean((0, 2, 3))).abs().max().item() * 255,
            }
        )
    return records


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pool", type=Path, required=True, help="made by python -m training.pool --held-out")
    parser.add_argument("--model", default="default", help='"default" or a file of weights')
    parser.add_argument("--theta", type=float, default=5.0)
    arguments = parser.parse_args()
    records = evaluate(load_model(arguments.model), arguments.pool, arguments.theta)
    if not records:
        raise SystemExit(f"training.evaluate: no clips in {arguments.pool}; make some with python -m training.pool")
    for record in records:
        gain = float(record["ours_db"]) - float(record["bicubic_db"])
        print(
            f"{record['clip']} {record['source']:28} bicubic {record['bicubic_db']:.2f} dB  "
            f"ours {record['ours_db']:.2f} dB  {gain:+.2f}  colour shift {record['colour_shift_255']:.2f}/255"
        )
    gains = np.array([float(record["ours_db"]) - float(record["bicubic_db"]) for record in records])
    print(f"mean gain {gains.mean():+.2f} dB, worst {gains.min():+.2f} dB over {len(gains)} clips")


if __name__ == "__main__":
    main()
