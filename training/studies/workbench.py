"""What every study works with: trained networks, held-out clips, and measurements that are kept on disk.

    FOLDER/kept/UNIT.json          one measurement and what it was made from
    FOLDER/kept/UNIT/CLIP.png      the picture of the middle measured frame; CLIP.cleaned.png, cleaned
A measurement's JSON is written after its pictures, so what it lists is there.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from training.benchmarking.measured import Way
from training.benchmarking.methods import digest_of
from training.data.dataset import ClipDataset
from training.evaluation.enlarging import bicubic
from training.evaluation.pairs import Footage, Pair, degrade, read_footage
from training.run_folder import whole_file, write_text
from training.studies.measuring import Made, enlarge, footage_identity, picture_of, pixels, png_of, scores_of
from training.studies.report import Bytes
from training.studies.runs import Trainer
from training.studies.scales import Scale
from training.studies.variants import Variant
from vsrealbasicvsr.errors import UserError
from vsrealbasicvsr.model import RealBasicVSR

VERSION = 1
"""Goes up when the same arguments give other measurements: those of before are then made again."""
HELD_OUT_EVERY = 5
"""Of the sources, sorted by name, every n-th is measured and not trained on, where no held-out clips are given."""
BICUBIC = "bicubic"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A method's scores by clip, see measuring.scores_of, and its pictures by clip: the output, and cleaned."""

    clips: Sequence[Mapping[str, Any]]
    outputs: Sequence[Bytes]
    cleaned: Sequence[Bytes]

    def mean(self, name: str) -> float | None:
        """Return the mean of a score over the clips that have it; None if there is none."""
        there = [float(clip[name]) for clip in self.clips if clip[name] is not None]
        return sum(there) / len(there) if there else None


@dataclass(kw_only=True)
class Workbench:
    """The parts of a study of one scale in one folder. seed: of what is drawn for the held-out clips."""

    out: Path
    scale: Scale
    trainer: Trainer
    held_out: ClipDataset
    seed: int = 0
    _models: dict[Path, RealBasicVSR] = field(default_factory=dict)
    _footage: dict[int, list[Footage]] = field(default_factory=dict)
    _pairs: dict[tuple[int, str], list[Pair]] = field(default_factory=dict)
    _cpu_seconds: float = 0.0
    _variants: dict[Path, Variant] = field(default_factory=dict)

    def trained(self, variant: Variant) -> RealBasicVSR:
        """Return the variant's network, trained."""
        folder = self.trainer.run_folder(variant)
        if folder not in self._models:
            self._models[folder] = self.trainer.load(variant)
            self._variants[folder] = variant
            if variant.start is not None:
                self.trained(variant.start)
        return self._models[folder]

    @property
    def cpu_seconds(self) -> float:
        """CPU seconds of this study's measurements, and of its runs since their last start, whenever that was."""
        return self._cpu_seconds + sum(self.trainer.what_it_took(v)["cpu_seconds"] for v in self._variants.values())

    def footage(self, num_frames: int) -> list[Footage]:
        """Return the held-out clips."""
        if num_frames not in self._footage:
            self._footage[num_frames] = list(
                read_footage(
                    self.held_out,
                    num_clips=self.scale.num_clips,
                    num_frames=num_frames,
                    crop_px=self.scale.crop_px,
                    seed=self.seed,
                )
            )
        return self._footage[num_frames]

    def describe_footage(self) -> str:
        """Return how many clips of which size were measured, for the page."""
        sizes = sorted({tuple(clip.truth.shape) for clips in self._footage.values() for clip in clips})
        words = " or ".join(f"{num_frames} frames of {width}×{height}" for num_frames, _, height, width in sizes)
        num_clips = max((len(clips) for clips in self._footage.values()), default=0)
        return f"{num_clips} clips that were not trained on, {words}"

    def pairs(self, num_frames: int, chain: str) -> list[Pair]:
        """Return the held-out clips after a chain of degradations."""
        if (num_frames, chain) not in self._pairs:
            self._pairs[num_frames, chain] = [degrade(clip, chain) for clip in self.footage(num_frames)]
        return self._pairs[num_frames, chain]

    def measured(
        self, variant: Variant | None, way: Way, chain: str, *, num_frames: int, frames: Sequence[int] | None = None
    ) -> Measured:
        """Return how a variant does on the held-out clips after a chain; None: bicubic interpolation.

        frames: those that are measured; None: all.
        """
        measured = list(range(num_frames)) if frames is None else list(frames)
        model = None if variant is None else self.trained(variant)
        asked = {
            "weights": BICUBIC if model is None else digest_of(model),
            "way": asdict(way),
            "chain": chain,
            "frames": measured,
            "footage": footage_identity(self.footage(num_frames)),
            "held_out": [self.held_out.identity(), self.held_out.footage()],
            "seed": self.seed,
        }
        words = [BICUBIC if variant is None else variant.name, chain, *_words_of(way), f"{len(measured)}of{num_frames}"]

        def make(store: Callable[[str, Bytes], None]) -> list[dict[str, Any]]:
            found = []
            for pair in self.pairs(num_frames, chain):
                made = _made(model, pair, way, measured)
                middle = len(measured) // 2
                store(pair.name, pixels(made.pictures[middle]))
                store(f"{pair.name}.cleaned", pixels(made.cleaned[measured[middle]]))
                found.append(scores_of(made, pair, measured))
            return found

        clips, pictures = self.kept(" ".join(words), asked, make)
        names = [clip["clip"] for clip in clips]
        return Measured(
            clips=clips,
            outputs=[pictures[name] for name in names],
            cleaned=[pictures[f"{name}.cleaned"] for name in names],
        )

    def kept(
        self, unit: str, asked: Mapping[str, Any], make: Callable[[Callable[[str, Bytes], None]], Any]
    ) -> tuple[Any, dict[str, Bytes]]:
        """Return a measurement, plain JSON, and its pictures: those on disk if they were made from the very same.

        make: called with a function that stores a picture under a name.
        """
        name = re.sub(r"[^a-z0-9.]+", "-", unit.lower()).strip("-")
        path, folder = self.out / "kept" / f"{name}.json", self.out / "kept" / name
        plain = json.loads(json.dumps({"version": VERSION, **asked}))
        found = _read(path, folder, plain)
        if found is not None:
            values, pictures, seconds = found
            self._cpu_seconds += seconds
            return values, pictures
        path.unlink(missing_ok=True)  # it would vouch for pictures that are now written over
        begun, pictures = time.process_time(), {}

        def store(picture_name: str, picture: Bytes) -> None:
            pictures[picture_name] = picture
            with whole_file(folder / f"{picture_name}.png") as file:
                file.write(png_of(picture))

        values = make(store)
        seconds = time.process_time() - begun
        stored = {"asked": plain, "cpu_seconds": seconds, "pictures": list(pictures), "values": values}
        write_text(path, json.dumps(stored, indent=1, allow_nan=False) + "\n")
        self._cpu_seconds += seconds
        print(f"measured {unit}  ({seconds:.1f} s of CPU)", flush=True)
        return json.loads(json.dumps(values)), pictures


def _read(path: Path, folder: Path, asked: Mapping[str, Any]) -> tuple[Any, dict[str, Bytes], float] | None:
    """Return values, pictures and CPU seconds; what is damaged or was made from something else counts as missing."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["asked"] != asked:
            return None
        pictures = {}
        for name in stored["pictures"]:
            picture = picture_of((folder / f"{name}.png").read_bytes())
            if picture is None:
                return None
            pictures[name] = picture
        return stored["values"], pictures, float(stored["cpu_seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _words_of(way: Way) -> list[str]:
    words = [] if way.theta >= 255 and way.num_passes is None else [f"theta {way.theta:g}"]
    if way.num_passes is not None:
        words = [f"{way.num_passes} passes"]
    return words if way.length is None else [*words, f"length {way.length}"]


def _made(model: RealBasicVSR | None, pair: Pair, way: Way, measured: Sequence[int]) -> Made:
    if model is not None:
        return enlarge(model, pair.lr, way, measured)
    pictures = bicubic(pair.lr[list(measured)], pair.scale).clamp(0, 1)
    return Made(pictures=pictures, cleaned=pair.lr, num_passes=[0] * len(pair.lr))


def split(clips: Sequence[tuple[Path, Any]]) -> tuple[list[tuple[Path, Any]], list[tuple[Path, Any]]]:
    """Return (training, held out) of clips with their folders: of the sources, sorted, every HELD_OUT_EVERY-th.

    Raises UserError if there is only one source.
    """
    sources = sorted({clip.source for _, clip in clips})
    if len(sources) < 2:
        raise UserError(
            "the clips are all of one source, and what is measured must not be trained on: give other clips"
            " with --held-out, or --data of several sources"
        )
    held_out = set(sources[::HELD_OUT_EVERY])
    return [c for c in clips if c[1].source not in held_out], [c for c in clips if c[1].source in held_out]
