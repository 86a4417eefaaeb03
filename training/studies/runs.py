"""Training of a study's variants: each run in a folder of its own, resumed where it was, never done twice."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from training.data.dataset import FOOTAGE_NAME, ClipDataset
from training.data.loader import make_loader
from training.locking import alone_in
from training.losses.kinds import Needs
from training.losses.perceptual import PerceptualLoss
from training.processes import Processes
from training.run_folder import EMA, SETTINGS, list_checkpoints, newest_checkpoint, write_text
from training.studies.scales import Start
from training.studies.variants import KINDS, Variant, VariantNetworks, build
from training.trainer import save, save_ema, train
from vsrealbasicvsr.errors import UserError
from vsrealbasicvsr.model import RealBasicVSR
from vsrealbasicvsr.weights import DEFAULT_WEIGHTS, read_tensors

DONE = "done.json"
"""Written last: a run with it is finished."""


@cache
def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Trainer:
    """Trains variants from one set of clips into one folder.

    start: what networks begin with, see Scale. spynet: flow weights to begin with; None: those of the default weights.
    vgg_weights: of the perceptual loss; None: torchvision's.
    """

    folder: Path
    clips: ClipDataset
    device: torch.device
    num_workers: int
    start: Start
    spynet: Path | None
    vgg_weights: Path | None

    def identity(self, variant: Variant) -> Mapping[str, Any]:
        """Return all that decides the variant's weights, as plain JSON."""
        return {
            "settings": dataclasses.asdict(variant.settings),
            "cleaning": variant.cleaning,
            "start": None if variant.start is None else self.identity(variant.start),
            "begins_with": [self.start, None if self.spynet else _digest(DEFAULT_WEIGHTS)],
            "clips": self.clips.identity(),
            "spynet": None if self.spynet is None else _digest(self.spynet),
        }

    def run_folder(self, variant: Variant) -> Path:
        """Return where the variant's run lies: another one for other settings, clips or beginnings."""
        digest = hashlib.sha256(json.dumps(self.identity(variant)).encode()).hexdigest()[:10]
        return self.folder / f"{re.sub(r'[^a-z0-9]+', '-', variant.name.lower()).strip('-')}-{digest}"

    def train(self, variant: Variant) -> None:
        """Train the variant, or go on where its run was; nothing is done for one that is finished.

        Raises KeyboardInterrupt if the user asked it to end; its checkpoint is written then. Raises UserError if the
        run in the folder is of other footage, whose clips have the same names and sizes, or if another process trains
        it.
        """
        folder = self.run_folder(variant)
        if not self.clips.is_noted(folder / FOOTAGE_NAME):
            raise UserError(f"{folder} was trained on other footage of the same names. Name other --out and --runs.")
        if (folder / DONE).is_file() and (folder / EMA).is_file():
            return
        if variant.start is not None:
            self.train(variant.start)
        with alone_in(folder, command="training study"):
            self._train_alone(variant)

    def _train_alone(self, variant: Variant) -> None:
        folder, settings = self.run_folder(variant), variant.settings
        print(f"training {variant.name}: {settings.iterations} steps in {folder}", flush=True)
        networks = VariantNetworks(variant, self.device)
        num_done = self._resume(networks, folder) if list_checkpoints(folder) else self._begin(networks, variant)
        perceptual = None
        if settings.losses.needs(Needs.VGG):
            perceptual = PerceptualLoss.load(self.vgg_weights, settings.losses.perceptual_network).to(self.device)
        seconds, cpu_seconds = time.monotonic(), time.process_time()
        done = num_done
        if num_done < settings.iterations:
            with make_loader(
                self.clips,
                settings.data,
                batch=settings.batch,
                first_iteration=num_done,
                num_iterations=settings.iterations,
                num_workers=self.num_workers,
                device=self.device,
            ) as loader:
                processes = Processes(num=1, rank=0, device=self.device)
                done = train(networks, loader, folder, processes=processes, first=num_done, perceptual=perceptual)
        if done < settings.iterations:
            raise KeyboardInterrupt
        taken = {
            "iterations": done,
            "num_parameters": sum(parameter.numel() for parameter in networks.model.parameters()),
            "seconds": time.monotonic() - seconds,
            "cpu_seconds": time.process_time() - cpu_seconds,
        }
        write_text(folder / DONE, json.dumps(taken, indent=1) + "\n")

    def load(self, variant: Variant) -> RealBasicVSR:
        """Return the variant's moving average, trained."""
        self.train(variant)
        tensors = read_tensors(self.run_folder(variant) / EMA)
        return build(KINDS[variant.cleaning], variant.settings, tensors).to(self.device)

    def what_it_took(self, variant: Variant) -> Mapping[str, float]:
        """Return what DONE says of a finished run; seconds are of its last start."""
        text = (self.run_folder(variant) / DONE).read_text(encoding="utf-8")
        return {name: float(value) for name, value in json.loads(text).items()}

    def _begin(self, networks: VariantNetworks, variant: Variant) -> int:
        folder = self.run_folder(variant)
        if variant.start is not None:
            networks.start_from(self.run_folder(variant.start), None)
        elif self.start == "default":
            networks.take_default_weights()
        elif self.spynet is not None:
            networks.start_from(None, self.spynet)
        else:
            networks.take_default_flow()
        networks.prepare()
        write_text(folder / SETTINGS, variant.settings.to_json())
        save(networks, folder, 0)
        return 0

    def _resume(self, networks: VariantNetworks, folder: Path) -> int:
        networks.prepare()
        state, warnings = newest_checkpoint(folder)
        for warning in warnings:
            print(warning, flush=True)
        num_done = networks.restore(state, folder)
        save_ema(networks, folder, num_done)  # the end may have come between a checkpoint and its average
        return num_done
