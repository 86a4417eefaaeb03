"""Stochastic degradation (paper, section 4.1, Fig. 7, Fig. 8 and Table 1): half the frames, mirrored, and walks."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from training.data.loader import Batch
from training.data.sampler import degrade, draw, one_thread
from training.processes import Processes
from training.settings import Settings, changed
from training.steps import Steps
from training.studies.comparing import crop_rows, measured_on
from training.studies.measuring import ONE_PASS
from training.studies.plan import Study, pairwise, paper_variant, scope_of
from training.studies.report import Column, Crops, Finding, Plot, Report, compared, counted, equal
from training.studies.variants import Variant, VariantNetworks
from training.studies.workbench import Workbench
from training.trainer import to_floats

CHAINS = ("usual", "harsh")
LEAST_SAVED = 0.4
"""Share of the loading time that the scheme must save to agree with Table 1."""
EQUAL_DB = 0.1
"""Difference of PSNR within which two networks are of equal quality."""


def variants(bench: Workbench) -> list[Variant]:
    """Return the three ways to make samples: L frames; L/2 mirrored; L/2 mirrored, with walks (the paper's)."""
    base = bench.scale.stage_1
    constant = {"degradations.stochastic": False}
    return [
        Variant(name="L frames", settings=changed(base, {"stochastic": False, **constant})),
        Variant(name="half mirrored", settings=changed(base, {"stochastic": True, **constant})),
        paper_variant(bench),
    ]


NAMES = ("L frames", "L/2 mirrored", "L/2 mirrored, walks")


def make(bench: Workbench) -> Report:
    """Time the making of samples, train a network with each, and compare them."""
    networks = variants(bench)
    timed = [_timed(bench, variant.settings) for variant in networks]
    times = bench.kept(
        "timing",
        {"samples": bench.scale.num_timed, "runs": [bench.trainer.run_folder(v).name for v in networks]}
        | {"frames": bench.scale.timed_num_frames, "crop_px": bench.scale.timed_crop_px},
        lambda store: measure_times(bench, networks, timed),
    )[0]
    found = measured_on(bench, dict(zip(NAMES, networks, strict=True)), CHAINS)
    rows = []
    for name, parts in zip(NAMES, times, strict=True):
        total = sum(parts.values())
        rows.append(
            {
                "variant": name,
                **{part: 1000 * seconds for part, seconds in parts.items()},
                "total": 1000 * total,
                "loading_saved": 100 * (1 - parts["loading"] / times[0]["loading"]),
                "total_saved": 100 * (1 - total / sum(times[0].values())),
                **{f"psnr_{chain}": found[name, chain].mean("psnr_db") for chain in CHAINS},
                **{f"niqe_{chain}": found[name, chain].mean("niqe") for chain in CHAINS},
            }
        )
    rows.append(_bicubic_row(bench))
    pictures = crop_rows(bench, CHAINS[1], [found[name, CHAINS[1]] for name in NAMES])
    return Report(
        columns=COLUMNS,
        rows=rows,
        findings=findings(bench, times, found),
        plots=[Plot(name="times", num_axes=2,
                    caption="Time to make a clip, by part (the network's is the same for all); quality",
                    draw=lambda axes: _draw(axes, times, rows))],
        crops=[Crops(name="crops", caption="After the harsh chain: the networks trained in the three ways",
                     columns=["input", *NAMES, "truth"], rows=pictures)],
        limits=(
            "Times are CPU seconds of one run, one sample of each way after the other, so their ratios hold at"
            " any scale; loading is from prepared clips, where photographs cost a moving camera's pictures and"
            f" videos cost reads. {scope_of(bench)} Quality at equal iterations shows that the three ways can"
            " stand beside each other, not which is better after 300,000 iterations."
        ),
    )  # fmt: skip


def findings(bench: Workbench, times: Sequence[Mapping[str, float]], found: Mapping[Any, Any]) -> list[Finding]:
    """Return what Table 1 and Fig. 7 and 8 say, beside ours."""
    saved = 1 - times[2]["loading"] / times[0]["loading"]
    before, after = (sum(parts.values()) for parts in (times[0], times[2]))
    input_before, input_after = (parts["loading"] + parts["degradation"] for parts in (times[0], times[2]))

    whole = counted(
        1 - after / before >= LEAST_SAVED,
        paper="Table 1: up to 40 % less training time",
        ours=f"an iteration takes {100 * (1 - after / before):.0f} % less, its input (loading and degradation)"
        f" {100 * (1 - input_after / input_before):.0f} %; the network's part depends on the machine",
    )
    if bench.trainer.device.type == "cpu" and whole.verdict == "disagrees":
        whole = Finding(paper=whole.paper, ours=whole.ours + ", and here it runs on a CPU", verdict="cannot be told")
    return [
        counted(
            saved >= LEAST_SAVED,
            paper="Table 1: loading half the frames saves the time, -40 %",
            ours=f"loading takes {100 * saved:.0f} % less",
        ),
        whole,
        equal(
            pairwise(found, NAMES[2], NAMES[0], CHAINS, "psnr_db"),
            tolerance=EQUAL_DB,
            paper="Table 1: equal quality at equal iterations",
            what="PSNR of L/2 mirrored with walks, less that of L frames",
            unit="dB",
        ),
        compared(
            pairwise(found, NAMES[2], NAMES[1], CHAINS, "psnr_db"),
            paper="Fig. 7, 8: mirrored frames need degradations that walk",
            what="PSNR with walks, less that without",
            unit="dB",
        ),
    ]


def measure_times(bench: Workbench, networks: Sequence[Variant], timed: Sequence[Settings]) -> list[dict[str, float]]:
    """Return the CPU seconds that a clip costs in loading, in degradation and in the network, for each variant.

    Sample by sample, one of each variant after the other, so that a machine that slows down slows all of them. The
    network's part is the same for all: it sees as many frames of the same size.
    """
    clips = bench.trainer.clips
    loading, degradation = (np.zeros(len(networks)) for _ in range(2))
    with one_thread():
        for settings in timed:  # what is set up on first use is not counted
            degrade(draw(clips, settings.data, 0), settings.data)
        for index in range(bench.scale.num_timed):
            for number, settings in enumerate(timed):
                begun = time.process_time()
                drawn = draw(clips, settings.data, index)
                loaded = time.process_time()
                degrade(drawn, settings.data)
                loading[number] += loaded - begun
                degradation[number] += time.process_time() - loaded
    network = _network_seconds(bench, networks[-1], timed[-1])
    num = bench.scale.num_timed
    return [
        {"loading": float(a) / num, "degradation": float(b) / num, "network": network}
        for a, b in zip(loading, degradation, strict=True)
    ]


def _timed(bench: Workbench, settings: Settings) -> Settings:
    """Return the settings with the size of the samples that are timed."""
    return changed(settings, {"num_frames": bench.scale.timed_num_frames, "crop_px": bench.scale.timed_crop_px})


def _network_seconds(bench: Workbench, variant: Variant, settings: Settings) -> float:
    """Return the seconds of a training step of one clip: of the CPU, or on a GPU of the clock, after a warm-up."""
    device = bench.trainer.device
    networks = VariantNetworks(Variant(name=variant.name, settings=settings, cleaning=variant.cleaning), device)
    networks.prepare()
    steps = Steps(networks, Processes(num=1, rank=0, device=device), None)
    sample = degrade(draw(bench.trainer.clips, settings.data, 0), settings.data)
    sharpened = None if sample.gt_unsharp is None else sample.gt_unsharp[None]
    batch = Batch(sample.lr[None], sample.gt[None], sharpened, settings.data.stochastic, 0.0)
    tensors = to_floats(batch, settings, device)
    clock: Callable[[], float] = time.process_time if device.type == "cpu" else time.perf_counter
    taken = []
    for iteration in range(1 if device.type == "cpu" else 4):
        begun = clock()
        steps.take(tensors, iteration)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(clock() - begun)
    return min(taken)


def _bicubic_row(bench: Workbench) -> dict[str, Any]:
    row: dict[str, Any] = {"variant": "bicubic"}
    for chain in CHAINS:
        measured = bench.measured(None, ONE_PASS, chain, num_frames=bench.scale.num_frames)
        row |= {f"psnr_{chain}": measured.mean("psnr_db"), f"niqe_{chain}": measured.mean("niqe")}
    return row


def _draw(axes: Sequence[Any], times: Sequence[Mapping[str, float]], rows: Sequence[Mapping[str, Any]]) -> None:
    below = np.zeros(len(NAMES))
    for part in ("loading", "degradation"):
        heights = np.array([1000 * parts[part] for parts in times])
        axes[0].bar(NAMES, heights, bottom=below, label=part)
        below += heights
    axes[0].set_ylabel("CPU ms for a clip")
    axes[0].tick_params(axis="x", labelsize=7)
    axes[0].legend(fontsize=8)
    places = np.arange(len(NAMES))
    for number, chain in enumerate(CHAINS):
        axes[1].bar(places + 0.4 * number - 0.2, [row[f"psnr_{chain}"] for row in rows[: len(NAMES)]], 0.4, label=chain)
    lowest = min(row[f"psnr_{chain}"] for row in rows for chain in CHAINS)
    axes[1].set_ylim(bottom=lowest - 1)
    axes[1].set_xticks(places, NAMES, fontsize=7)
    axes[1].set_ylabel("PSNR, dB")
    axes[1].legend(fontsize=8)


COLUMNS = [
    Column("variant", "frames loaded"),
    Column("loading", "loading, ms a clip", 1),
    Column("degradation", "degradation, ms", 1),
    Column("network", "network, ms", 0),
    Column("loading_saved", "loading saved, %", 0),
    Column("total_saved", "iteration saved, %", 0),
    *(Column(f"psnr_{chain}", f"PSNR {chain}, dB", 2) for chain in CHAINS),
    *(Column(f"niqe_{chain}", f"NIQE {chain}", 2) for chain in CHAINS),
]

STUDY = Study(
    name="stochastic",
    title="Stochastic degradation: half the frames loaded",
    source="Fig. 7, Fig. 8 and Table 1 of the paper",
    question="What does it save to load L/2 frames and mirror them in time, and what does it cost in quality?",
    make=make,
)
