"""Stage 1 of training (paper, section 4.1): output and cleaning loss, on the CPU or one GPU.

One run is one folder: `settings.json`, `log.jsonl`, `checkpoint.pt` (everything that resuming needs) and `ema.pt`.
"""

import argparse
import dataclasses
import json
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed

from training.losses import cleaning_loss, colour_loss, output_loss
from vsrealbasicvsr.model import SCALE, Architecture, RealBasicVSR

COMPACT = Architecture(
    cleaning_channels=32,
    num_cleaning_blocks=6,
    mid_channels=32,
    num_backward_blocks=8,
    num_forward_blocks=8,
    fusion_channels=32,
    quarter_channels=32,
    hr_channels=16,
    hr_out_channels=16,
    flow_channels=(16, 32, 16, 8),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that decides a run's result, with the pool of clips and the code."""

    architecture: Architecture = COMPACT
    iterations: int = 2400
    batch: int = 2
    num_frames: int = 6
    crop_px: int = 48  # side of the low-resolution crop
    learning_rate: float = 1e-3
    final_learning_rate: float = 1e-5
    flow_learning_rate: float = 5e-5
    warm_up_iterations: int = 60
    flow_frozen_share: float = 0.6  # of the run; afterwards the flow network is trained with the rest
    ema_decay: float = 0.997
    colour_weight: float = 1.0
    max_gradient_norm: float = 0.5
    seed: int = 0


class Crops:
    """Random crops of a pool's clips, flipped and transposed, backwards in time half of the time."""

    def __init__(self, pools: list[Path], settings: Settings) -> None:
        self.pools = [sorted(pool.glob("*.lr.npy")) for pool in pools]
        self.settings = settings
        for pool, clips in zip(pools, self.pools, strict=True):
            if not clips:
                raise SystemExit(f"training: no clips in {pool}; make some with python -m training.pool")

    def batch(self, iteration: int, rank: int) -> tuple[Tensor, Tensor]:
        """The batch of this iteration for one process: (lr, truth), (N, T, 3, H, W) and (N, T, 3, S*H, S*W), in [0, 1].

        It depends on the seed, the iteration and the rank only, so that a resumed run sees what it would have seen.
        """
        generator = np.random.default_rng((self.settings.seed, iteration, rank))
        pairs = [self._crop(generator) for _ in range(self.settings.batch)]
        lr, truth = (torch.from_numpy(np.stack(arrays)) for arrays in zip(*pairs, strict=True))
        return lr.permute(0, 1, 4, 2, 3).float() / 255, truth.permute(0, 1, 4, 2, 3).float() / 255

    def _crop(self, generator: np.random.Generator) -> tuple[Any, Any]:
        clips = self.pools[int(generator.integers(len(self.pools)))]
        path = clips[int(generator.integers(len(clips)))]
        lr = np.load(path, mmap_mode="r")
        hr = np.load(path.with_name(path.name.replace(".lr.", ".hr.")), mmap_mode="r")
        size, num_frames = self.settings.crop_px, self.settings.num_frames
        first = int(generator.integers(lr.shape[0] - num_frames + 1))
        top, left = (int(generator.integers(axis - size + 1)) for axis in lr.shape[1:3])
        pair = []
        for clip, scale in ((lr, 1), (hr, SCALE)):
            y, x, side = top * scale, left * scale, size * scale
            pair.append(np.asarray(clip[first : first + num_frames, y : y + side, x : x + side]))
        for axis, probability in ((0, 0.5), (1, 0.5), (2, 0.5)):
            if generator.random() < probability:
                pair = [np.flip(clip, axis) for clip in pair]
        if generator.random() < 0.5:
            pair = [clip.swapaxes(1, 2) for clip in pair]
        return np.ascontiguousarray(pair[0]), np.ascontiguousarray(pair[1])


def learning_rate_factor(iteration: int, settings: Settings) -> float:
    """Linear warm-up, then a cosine down to final_learning_rate; a factor of learning_rate."""
    if iteration < settings.warm_up_iterations:
        return (iteration + 1) / settings.warm_up_iterations
    share = min(
        (iteration - settings.warm_up_iterations) / max(settings.iterations - settings.warm_up_iterations, 1), 1
    )
    floor = settings.final_learning_rate / settings.learning_rate
    return floor + (1 - floor) * (1 + math.cos(math.pi * share)) / 2


def train(
    pools: list[Path], out: Path, settings: Settings, *, start: Path | None, spynet: Path | None, save_every: int
) -> None:
    """Run or resume training in the folder `out`; `start` and `spynet` are weights to begin from."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "settings.json").write_text(json.dumps(dataclasses.asdict(settings), indent=2))
    torch.manual_seed(settings.seed)
    crops = Crops(pools, settings)
    # Under torchrun several processes share the work: each has crops of its own, and the gradients are averaged.
    num_processes = int(os.environ.get("WORLD_SIZE", "1"))
    if num_processes > 1:
        distributed.init_process_group("gloo")
    rank = distributed.get_rank() if num_processes > 1 else 0

    model = RealBasicVSR(settings.architecture)
    with torch.no_grad():  # start as bilinear enlargement and as no cleaning at all
        model.basicvsr.conv_last.weight.mul_(0.1)
        model.image_cleaning[1].weight.mul_(0.1)  # type: ignore[operator]
    if start is not None:
        model.load_state_dict(torch.load(start, weights_only=True))
    if spynet is not None:
        model.basicvsr.spynet.load_state_dict(torch.load(spynet, weights_only=True))
    flow_parameters = list(model.basicvsr.spynet.parameters())
    flow_ids = {id(parameter) for parameter in flow_parameters}
    parameters = [parameter for parameter in model.parameters() if id(parameter) not in flow_ids]
    print(f"{sum(map(len, crops.pools))} clips, {sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    ema = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.Adam(
        [
            {"params": parameters, "base_lr": settings.learning_rate},
            {"params": flow_parameters, "base_lr": settings.flow_learning_rate},
        ],
        lr=settings.learning_rate,
        betas=(0.9, 0.99),
    )
    first = 0
    checkpoint = out / "checkpoint.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        ema, first = saved["ema"], saved["iteration"]

    started, sums = time.monotonic(), {"output": 0.0, "cleaning": 0.0, "colour": 0.0}
    for iteration in range(first, settings.iterations):
        flow_trains = iteration >= settings.flow_frozen_share * settings.iterations
        for parameter in flow_parameters:
            parameter.requires_grad_(flow_trains)
        factor = learning_rate_factor(iteration, settings)
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor

        lr, truth = crops.batch(iteration, rank)
        cleaned = model.clean(lr)
        hr = model.super_resolve(cleaned)
        losses = {
            "output": output_loss(hr, truth),
            "cleaning": cleaning_loss(cleaned, truth),
            "colour": colour_loss(hr, lr),
        }
        loss = losses["output"] + losses["cleaning"] + settings.colour_weight * losses["colour"]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if num_processes > 1:
            average_gradients(model, num_processes)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_gradient_norm)
        if not math.isfinite(norm.item()):
            print(f"{iteration}: gradient is not finite, step skipped", flush=True)
            continue
        optimizer.step()
        if rank > 0:
            continue
        decay = min(settings.ema_decay, (iteration + 1) / (iteration + 10))
        for name, tensor in model.state_dict().items():
            ema[name].lerp_(tensor, 1 - decay)

        for name, value in losses.items():
            sums[name] += value.item()
        done = iteration + 1
        if done % 50 == 0 or done == settings.iterations:
            count = (done - 1) % 50 + 1
            seconds = (time.monotonic() - started) / (done - first)
            record = {
                "iteration": done,
                **{name: total / count for name, total in sums.items()},
                "gradient_norm": norm.item(),
                "seconds_per_iteration": seconds,
            }
            sums = dict.fromkeys(sums, 0.0)
            with (out / "log.jsonl").open("a") as log:
                log.write(json.dumps(record) + "\n")
            left = seconds * (settings.iterations - done) / 60
            print(
                f"{done}/{settings.iterations} output {record['output']:.4f} cleaning {record['cleaning']:.4f} "
                f"colour {record['colour']:.4f} "
                f"norm {record['gradient_norm']:.3f} {seconds:.2f} s/it, {left:.0f} min left",
                flush=True,
            )
        if done % save_every == 0 or done == settings.iterations:
            state = {
                "model": model.state_dict(),
                "ema": ema,
                "optimizer": optimizer.state_dict(),
                "iteration": done,
            }
            _save(state, checkpoint)
            _save(ema, out / "ema.pt")
    if num_processes > 1:
        distributed.destroy_process_group()


def average_gradients(model: RealBasicVSR, num_processes: int) -> None:
    """Replace the gradients by their mean over the processes."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    flat /= num_processes
    for gradient, mean in zip(gradients, torch.split(flat, [gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def _save(state: dict[str, Any], path: Path) -> None:
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pool", type=Path, nargs="+", required=True, help="folders made by python -m training.pool")
    parser.add_argument("--out", type=Path, required=True, help="the run's folder; a run found there is resumed")
    parser.add_argument("--from", dest="start", type=Path, help="weights to begin from (an ema.pt)")
    parser.add_argument("--spynet", type=Path, help="flow weights made by python -m training.flow")
    parser.add_argument("--save-every", type=int, default=100, help="iterations between checkpoints")
    for field in dataclasses.fields(Settings):
        if field.name != "architecture":
            option = "--" + field.name.replace("_", "-")
            parser.add_argument(option, type=type(field.default), default=field.default)
    arguments = vars(parser.parse_args())
    pool, out, start, spynet, save_every = (
        arguments.pop(name) for name in ("pool", "out", "start", "spynet", "save_every")
    )
    train(pool, out, Settings(**arguments), start=start, spynet=spynet, save_every=save_every)


if __name__ == "__main__":
    main()
