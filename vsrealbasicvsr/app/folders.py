"""Upscales every video of a folder: what is done is skipped, what fails is listed at the end."""

from pathlib import Path
from typing import Any

from vsrealbasicvsr.errors import UserError, shown_path

from .job import STATE_SUFFIX, Choices
from .progress import Reporter
from .upscaling import upscale_file

VIDEO_SUFFIXES = frozenset(
    {
        ".3gp",
        ".asf",
        ".avi",
        ".divx",
        ".f4v",
        ".flv",
        ".m2ts",
        ".m2v",
        ".m4v",
        ".mkv",
        ".mov",
        ".mp4",
        ".mpeg",
        ".mpg",
        ".mts",
        ".mxf",
        ".ogm",
        ".ogv",
        ".rm",
        ".rmvb",
        ".ts",
        ".vob",
        ".webm",
        ".wmv",
        ".y4m",
    }
)
KEPT_SUFFIXES = {".mp4": ".mp4", ".m4v": ".mp4", ".mov": ".mov"}
"""Containers that an output keeps; from all others it is .mkv, which takes every track."""


def plan_folder(folder: Path, output: Path) -> list[tuple[Path, Path]]:
    """Return (video, output) for each video under a folder, at the same place under the output folder.

    Raises:
        UserError: There is no video, or two would have the same output.
    """
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file() and not _inside(path, output, folder)
        if not path.name.startswith("._")  # macOS's, beside each file on other systems' disks
    )
    if not found:
        raise UserError(f"there is no video in {shown_path(folder)}")
    planned: dict[Path, Path] = {}
    for path in found:
        target = output / path.relative_to(folder).with_suffix(KEPT_SUFFIXES.get(path.suffix.lower(), ".mkv"))
        if target in planned:
            raise UserError(
                f"{shown_path(path)} and {shown_path(planned[target])} would both become {target.name}: rename one"
            )
        planned[target] = path
    return [(path, target) for target, path in planned.items()]


def _inside(path: Path, output: Path, folder: Path) -> bool:
    """Return whether a video belongs to the output folder or to a state folder below the source folder."""
    below = output.resolve() in path.resolve().parents and output.resolve() != folder.resolve()
    return below or any(part.endswith(STATE_SUFFIX) for part in path.relative_to(folder).parts)


def upscale_folder(
    folder: Path, output: Path, choices: Choices, reporter: Reporter, *, overwrite: bool, **options: Any
) -> None:
    """Upscale every video of a folder. Raises UserError at the end if some failed, with each one's reason.

    An error that nobody foresaw fails the video in which it occurs, and is among the causes of the one at the end.
    """
    if output.exists() and not output.is_dir():
        raise UserError(f"{shown_path(output)} is a file: name a folder for the results of a folder")
    if output.resolve() == folder.resolve():
        raise UserError("the results need a folder of their own: name another one")
    failed: list[str] = []
    unexpected: list[Exception] = []
    plan = plan_folder(folder, output)
    for number, (source, target) in enumerate(plan, 1):
        where = f"{source.relative_to(folder)} ({number} of {len(plan)})"
        if target.exists() and not overwrite:
            reporter.note(f"{where}: done before")
            continue
        reporter.note(where)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            upscale_file(source, target, choices, reporter, overwrite=overwrite, **options)
        except BrokenPipeError:  # nobody reads what is reported
            raise
        except Exception as error:
            text = str(error)
            if not isinstance(error, UserError):
                unexpected.append(error)
                text = (
                    f"{type(error).__name__}: {error} (this is a bug of rbvsr: run it again with --debug and report it)"
                )
            failed.append(f"{source.relative_to(folder)}: {text}")
            reporter.note(failed[-1])
    if failed:
        bugs = ExceptionGroup("bugs of rbvsr", unexpected) if unexpected else None  # shown by --debug
        raise UserError(f"{len(failed)} of {len(plan)} videos could not be upscaled: {'; '.join(failed)}") from bugs
