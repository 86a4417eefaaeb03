"""Cut a folder of videos, numbered frames and photographs into clips for training, and report what is left out and why.

    python -m training prepare FOLDER OUT

FOLDER is searched with everything below it. Each scene of a video becomes clips of --min-frames to --max-frames frames,
shrunk (compressed video is too soft for ground truth) and cut into tiles of about --tile-px, so that reading a crop
reads little more than the crop. A photograph becomes tiles of twice that side: the camera moves over them when they are
loaded. The same command with the same FOLDER gives the same bytes in OUT; interrupted, it continues where it was; clips
that exist are not made again. Training accepts several prepared folders, so prepare different footage into different
ones.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import get_args

from training.data.cutting import LOSSY_SHRINK, CutSettings, Part
from training.data.dataset import Index
from training.data.preparing import prepare
from training.data.sources import LOSSY_PICTURE_SUFFIXES, Found, Images, find_sources
from vsrealbasicvsr.errors import UserError


def summary(index: Index, found: Found, out: Path) -> str:
    """Return the closing report."""
    videos = [clip for clip in index.clips if clip.kind == "video"]
    num_photographs = len(index.clips) - len(videos)
    num_frames = sum(clip.num_frames for clip in index.clips)
    num_bytes = sum(clip.num_frames * clip.height * clip.width * 3 for clip in index.clips)
    lines = [
        f"{out}: {len(index.clips)} clips ({len(videos)} of moving pictures, {num_photographs} of photographs),"
        f" {num_frames} frames, {num_bytes / 1e9:.2f} GB, from {len({clip.source for clip in index.clips})} sources"
    ]
    used = {clip.source for clip in index.clips}
    troubled = {name: record for name, record in sorted(index.sources.items()) if record.trouble}
    for title, names in (
        ("skipped", [name for name in troubled if name not in used]),
        ("used in part", [name for name in troubled if name in used]),
    ):
        if names:
            lines += [f"{title}: {len(names)}", *(f"  {name}: {troubled[name].trouble}" for name in names)]
    if found.num_ignored:
        counted = ", ".join(f"{number} {suffix}" for suffix, number in found.num_ignored.items())
        lines.append(f"files that are neither video nor picture: {counted}")
    return "\n".join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m training prepare`."""
    usual = CutSettings()
    add = parser.add_argument
    add("folder", type=Path, metavar="FOLDER", help="searched with everything below it")
    add("out", type=Path, metavar="OUT", help="folder for the clips, made or continued")
    add(
        "--images",
        choices=get_args(Images.__value__),
        default=usual.images,
        help="what pictures with consecutive numbers are; auto: the frames of a clip if they have one size and"
        " neighbours look alike (default %(default)s)",
    )
    add("--min-frames", type=int, default=usual.min_frames, help="shortest clip (default %(default)s)")
    add("--max-frames", type=int, default=usual.max_frames, help="longest clip (default %(default)s)")
    add(
        "--gap-frames",
        type=int,
        default=usual.gap_frames,
        help="frames to leave out after a full clip, to thin long videos (default %(default)s)",
    )
    add(
        "--shrink",
        type=_shrink,
        default=usual.shrink,
        metavar="FACTOR",
        help=f"auto, or how many times smaller frames get: 1 for lossless footage, 1.5 to 2 for compressed. auto:"
        f" {LOSSY_SHRINK:g} for lossy video and frames in {' '.join(sorted(LOSSY_PICTURE_SUFFIXES))}, less where"
        " --min-px would not fit, 1 for the rest; photographs are shrunk when they are loaded (default auto)",
    )
    add("--min-px", type=int, default=usual.min_px, help="smallest side of a clip (default %(default)s)")
    add("--tile-px", type=int, default=usual.tile_px, help="about the side of a clip (default %(default)s)")
    add(
        "--part",
        choices=get_args(Part.__value__),
        default=usual.part,
        help="use all sources, or hold some out for evaluation (default %(default)s)",
    )
    add(
        "--held-out-every",
        type=int,
        default=usual.held_out_every,
        help="of each kind of source, sorted by name, every n-th is held out (default %(default)s)",
    )
    add("--workers", type=int, default=max(1, (os.cpu_count() or 1) // 2), help="processes (default %(default)s)")
    add("--remove-missing", action="store_true", help="delete clips of sources that are no longer in FOLDER")


def run(arguments: argparse.Namespace) -> int:
    """Prepare the clips and print the report. Return the exit status, 0.

    Raises:
        UserError: An argument cannot be used, or no clip was made.
        OSError: The disk is full.
        KeyboardInterrupt: The user pressed Ctrl-C.
    """
    settings = CutSettings(
        images=arguments.images,
        min_frames=arguments.min_frames,
        max_frames=arguments.max_frames,
        gap_frames=arguments.gap_frames,
        shrink=arguments.shrink,
        min_px=arguments.min_px,
        tile_px=arguments.tile_px,
        held_out_every=arguments.held_out_every,
        part=arguments.part,
    )
    found = find_sources(arguments.folder, images=settings.images)
    index = prepare(
        found, arguments.out, settings, num_workers=arguments.workers, remove_missing=arguments.remove_missing
    )
    print(summary(index, found, arguments.out))
    if not index.clips:
        raise UserError(f"no clip came out of {arguments.folder}, see above. Name a folder with usable footage.")
    return 0


def _shrink(text: str) -> float:
    return 0.0 if text == "auto" else float(text)
