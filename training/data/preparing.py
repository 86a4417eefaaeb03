"""Preparation of a folder of clips: which sources to cut, parallel processes, and the index."""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.synchronize import Event
from pathlib import Path

import cv2
from tqdm import tqdm

from training.data.cutting import CutResult, CutSettings, cut_source
from training.data.dataset import INDEX_NAME, Clip, Index, SourceRecord, read_index, write_index
from training.data.sources import Found, Source, split_held_out
from training.locking import alone_in
from vsrealbasicvsr.errors import UserError
from vsrealbasicvsr.whole_file import PARTIAL_SUFFIX

SECONDS_BETWEEN_INDEXES = 10.0


_FINGERPRINT_BYTES = 1 << 16


def prepare(found: Found, out: Path, settings: CutSettings, *, num_workers: int, remove_missing: bool = False) -> Index:
    """Cut the sources that were found into clips in `out`, and write the index.

    Sources that are unchanged since an earlier call are not cut again. Progress is shown on standard error. Whatever is
    raised, the files under final names are complete.

    Args:
        found: The sources.
        out: Folder of the clips, created if needed.
        settings: How to cut.
        num_workers: Processes that read sources; 0 or 1: this one.
        remove_missing: Delete the clips of sources that were not found.

    Returns:
        The index of `out`.

    Raises:
        UserError: There is nothing to cut, `out` holds clips of other settings or other sources, or another process
            prepares it.
        OSError: The disk is full.
        KeyboardInterrupt: The user pressed Ctrl-C.
    """
    sources = part_of(found.sources, settings)
    if not sources and not found.unused:
        raise UserError(f"no source is left for --part {settings.part}. Name a folder with at least two of a kind.")
    with alone_in(out, command="training prepare"):
        return _prepare_alone(found, sources, out, settings, num_workers=num_workers, remove_missing=remove_missing)


def _prepare_alone(
    found: Found, sources: Sequence[Source], out: Path, settings: CutSettings, *, num_workers: int, remove_missing: bool
) -> Index:
    """Do what `prepare` does, with the sources of the part that the settings name."""
    for leftover in out.glob(f"*{PARTIAL_SUFFIX}"):
        leftover.unlink(missing_ok=True)
    fingerprints = {source.name: fingerprint(source) for source in sources}
    known = _known_sources(out, settings, fingerprints, remove_missing=remove_missing)
    records, clips = dict(known.sources), list(known.clips)
    records |= {one.name: SourceRecord(kind="picture", fingerprint="", trouble=one.reason) for one in found.unused}

    def write() -> Index:
        index = Index(settings.to_plain(), records, tuple(clips))
        write_index(out, index)
        return index

    write()  # marks the folder as one of these settings
    pending = [source for source in sources if source.name not in records]
    written_at = time.monotonic()
    try:
        with tqdm(total=len(pending), desc="prepare", unit="source", disable=None) as bar:
            for source, (num_frames, num_kept, trouble, new_clips) in _results(pending, settings, out, num_workers):
                records[source.name] = SourceRecord(
                    kind=source.kind,
                    fingerprint=fingerprints[source.name],
                    num_frames=num_frames,
                    num_kept=num_kept,
                    trouble=trouble,
                )
                clips += new_clips
                bar.update()
                if time.monotonic() - written_at > SECONDS_BETWEEN_INDEXES:
                    write()
                    written_at = time.monotonic()
    except BaseException:
        with contextlib.suppress(OSError):  # the original exception matters more than a full disk
            write()
        raise
    return write()


def part_of(sources: Sequence[Source], settings: CutSettings) -> list[Source]:
    """Return the sources of the part that the settings name: of each kind, sorted by name, every n-th is held out."""
    if settings.part == "all":
        return list(sources)
    chosen: list[Source] = []
    for kind in ("video", "frames", "photograph"):
        alike = [source for source in sources if source.kind == kind]
        train, held_out = split_held_out(alike, every=settings.held_out_every)
        chosen += train if settings.part == "train" else held_out
    return sorted(chosen, key=lambda source: source.name)


def fingerprint(source: Source) -> str:
    """Return a text that differs if the source's files do, by names, sizes, and 64 KiB at both ends of two files."""
    digest = hashlib.blake2b(digest_size=16)
    for path in source.paths:
        with contextlib.suppress(OSError):
            digest.update(os.fsencode(f"{path.name} {path.stat().st_size}\n"))
    for path in dict.fromkeys((source.paths[0], source.paths[-1])):  # in order: that of a set differs between processes
        with contextlib.suppress(OSError), path.open("rb") as file:
            digest.update(file.read(_FINGERPRINT_BYTES))
            file.seek(max(0, path.stat().st_size - _FINGERPRINT_BYTES))
            digest.update(file.read(_FINGERPRINT_BYTES))
    return digest.hexdigest()


def _known_sources(out: Path, settings: CutSettings, fingerprints: dict[str, str], *, remove_missing: bool) -> Index:
    """Return the part of the index in `out` that is still valid: sources with equal fingerprints and all clip files.

    Raises UserError as `prepare` does.
    """
    if not (out / INDEX_NAME).exists():
        return Index(settings.to_plain())
    index = read_index(out)
    if dict(index.settings) != settings.to_plain():
        plain = settings.to_plain()
        other = ", ".join(f"{key} {value}" for key, value in index.settings.items() if plain.get(key) != value)
        raise UserError(f"{out} holds clips that were cut with other settings ({other}). Name another folder.")
    made_of = {clip.source for clip in index.clips}
    missing = sorted(made_of - set(fingerprints))
    if missing and not remove_missing:
        raise UserError(
            f"{out} holds clips of {len(missing)} sources that are not in this folder, such as {missing[0]}."
            " Name another OUT (training takes several), or pass --remove-missing to delete these clips."
        )
    by_source: dict[str, list[Clip]] = {}
    for clip in index.clips:
        by_source.setdefault(clip.source, []).append(clip)
    kept: dict[str, SourceRecord] = {}
    for name, record in index.sources.items():
        files = [out / clip.file for clip in by_source.get(name, [])]
        if record.fingerprint == fingerprints.get(name) and all(file.exists() for file in files):
            kept[name] = record
            continue
        for file in files:
            file.unlink(missing_ok=True)
    return Index(settings.to_plain(), kept, tuple(clip for clip in index.clips if clip.source in kept))


def _results(
    sources: Sequence[Source], settings: CutSettings, out: Path, num_workers: int
) -> Iterator[tuple[Source, CutResult]]:
    """Yield (source, result of `cut_source`) as they are finished."""
    num_workers = min(num_workers, len(sources))
    if num_workers <= 1:
        for source in sources:
            yield source, cut_source(source, settings, out)
        return
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    executor = ProcessPoolExecutor(num_workers, mp_context=context, initializer=_start_worker, initargs=(stop,))
    try:
        # Largest first, so that no single worker is busy with a long film at the end.
        waiting = sorted(sources, key=lambda source: -sum(_num_bytes(path) for path in source.paths))
        futures: dict[Future[CutResult], Source] = {
            executor.submit(_cut_in_worker, source, settings, out): source for source in waiting
        }
        while futures:
            for future in wait(futures, return_when=FIRST_COMPLETED).done:
                yield futures.pop(future), future.result()
    except BrokenProcessPool:
        raise OSError(
            "a worker process has died, perhaps out of memory. Use fewer --workers or --max-frames."
        ) from None
    finally:
        stop.set()
        executor.shutdown(wait=True, cancel_futures=True)


_stop: Event | None = None


def _start_worker(stop: Event) -> None:
    global _stop
    _stop = stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process handles it and sets `stop`
    cv2.setNumThreads(1)
    threading.Thread(target=_end_with_main_process, daemon=True).start()


def _end_with_main_process() -> None:
    """End this worker as soon as the main process is killed. It would cut what is queued, then wait forever."""
    main_process = multiprocessing.parent_process()
    assert main_process is not None
    main_process.join()
    os._exit(1)


def _cut_in_worker(source: Source, settings: CutSettings, out: Path) -> CutResult:
    return cut_source(source, settings, out, _stop)


def _num_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
