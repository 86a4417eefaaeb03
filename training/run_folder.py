"""A run's folder: checkpoints, the weights for use, settings and log.

    settings.json              every setting of the run
    origin.json                the data, the initial weights, the teacher, versions
    log.jsonl                  one record for each log_every steps
    checkpoints/000001000.pt   everything that is needed to resume; the last few are kept
    ema.safetensors            the moving average at the newest checkpoint, for core.rbvsr.Upscale(model=...)
    tensorboard/

All files are written atomically.
"""

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from vsrealbasicvsr.errors import UserError
from vsrealbasicvsr.model import RealBasicVSR
from vsrealbasicvsr.weights import WeightsError, read_checkpoint, write_weights
from vsrealbasicvsr.whole_file import whole_file as whole_file_of_any

SETTINGS, ORIGIN, LOG, EMA = "settings.json", "origin.json", "log.jsonl", "ema.safetensors"
FOLDER = "checkpoints"

State = dict[str, Any]


class CheckpointError(UserError):
    """A run's files cannot be written or read. The text says which file, what is wrong and what to do."""


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Write a file atomically, as `vsrealbasicvsr.whole_file` does, and create its folder if needed.

    Raises:
        CheckpointError: It cannot be written; the text names the file and the cause.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file_of_any(path) as file:
            yield file
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError of its zip writer
        cause = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
        raise CheckpointError(
            f"{path} could not be written: {cause}. What was written before is complete: make room on the disk or check"
            " the folder, then start the same command again (for a run, with --resume)."
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically. Raise CheckpointError if it cannot be written."""
    with whole_file(path) as file:
        file.write(text.encode())


def checkpoint_path(run: Path, iteration: int) -> Path:
    """Return the path of the checkpoint after `iteration` steps."""
    return run / FOLDER / f"{iteration:09d}.pt"


def list_checkpoints(run: Path) -> list[Path]:
    """Return the paths of the run's checkpoints, oldest first."""
    return sorted(path for path in (run / FOLDER).glob("*.pt") if re.fullmatch(r"\d{9}\.pt", path.name))


def save_checkpoint(run: Path, state: State, *, iteration: int, keep: int) -> None:
    """Write the state after `iteration` steps, then delete all but the last `keep` checkpoints up to it.

    Later checkpoints are deleted too: the run was resumed from an earlier one because they are damaged.

    Raises:
        CheckpointError: The file cannot be written, or the state holds values that are not finite, from which no run
            can be resumed. Earlier checkpoints are then all kept.
    """
    if broken := not_finite(state):
        raise CheckpointError(
            f"step {iteration} ended with values that are not finite ({broken}), and no checkpoint of it is written."
            f" Begin a new run with --from {run}, whose last good checkpoint is taken, and a lower --learning-rate, or"
            " with --precision fp32."
        )
    with whole_file(checkpoint_path(run, iteration)) as file:
        torch.save(state, file)
    written = checkpoint_path(run, iteration)
    up_to_it = [path for path in list_checkpoints(run) if path <= written]
    for other in set(list_checkpoints(run)) - set(up_to_it[-keep:]):
        other.unlink(missing_ok=True)


def load_checkpoint(path: Path) -> State:
    """Read a checkpoint's state, on the CPU; nothing in the file is executed.

    Raises:
        CheckpointError: The file is damaged, would run code, holds values that are not finite, or is no checkpoint.
    """
    try:
        state = read_checkpoint(path)
    except WeightsError as error:
        raise CheckpointError(f"not a complete checkpoint: {error}") from None
    if not isinstance(state, dict) or not {"model", "ema", "optimizer", "iteration"} <= state.keys():
        raise CheckpointError(f"{path} is not a checkpoint of a training run.")
    if broken := not_finite(state):
        raise CheckpointError(f"{path} cannot be resumed: {broken} has values that are not finite.")
    return state


def not_finite(state: object, name: str = "") -> str | None:
    """Return the name of the first tensor that holds NaN or an infinite value, such as model.basicvsr.fusion.bias.

    Args:
        state: A tensor, or mappings of them inside each other; anything else is skipped.
        name: Name of `state`, for the result.
    """
    if isinstance(state, Mapping):
        inside = ((f"{name}.{key}".lstrip("."), value) for key, value in state.items())
        return next((found for key, value in inside if (found := not_finite(value, key))), None)
    return name if isinstance(state, Tensor) and not state.isfinite().all() else None


def newest_checkpoint(run: Path) -> tuple[State, list[str]]:
    """Read the newest complete checkpoint of the run.

    Returns:
        Its state, and a warning for each newer one that is damaged.

    Raises:
        CheckpointError: There is none.
    """
    warnings: list[str] = []
    for path in reversed(list_checkpoints(run)):
        try:
            return load_checkpoint(path), warnings
        except CheckpointError as error:
            warnings.append(f"{error} Trying the one before it.")
    found = f"none of its {len(warnings)} checkpoints is complete" if warnings else f"there is none in {run / FOLDER}"
    raise CheckpointError(
        f"no checkpoint to resume from: {found}. Name a run's folder, or start the run again with another --out."
    )


class Log:
    """log.jsonl: one record a line. Opening it at step `iteration` removes the records of later steps."""

    def __init__(self, run: Path, iteration: int) -> None:
        self.path = run / LOG
        kept = [record for record in read_log(run) if record["iteration"] <= iteration]
        write_text(self.path, "".join(json.dumps(record) + "\n" for record in kept))

    def append(self, record: dict[str, Any]) -> None:
        """Add a record. Raises CheckpointError if the disk is full."""
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise CheckpointError(
                f"{self.path} could not be written: {error.strerror}. The checkpoints are complete: make room on the"
                " disk, then continue with --resume."
            ) from None


def read_log(run: Path) -> list[dict[str, Any]]:
    """Return the run's records up to the first line that is none, such as a last one that is incomplete."""
    path = run / LOG
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            break
        if not isinstance(record, dict) or not isinstance(record.get("iteration"), int):
            break
        records.append(record)
    return records


def find_weights(text: str) -> str | Path:
    """Return what `load_model` accepts: for a run's folder the path of its moving average, else the text itself.

    Raises:
        UserError: The folder has no moving average. A file is checked by `load_model`.
    """
    path = Path(text)
    if text == "default" or not path.is_dir():
        return text
    if not (path / EMA).is_file():
        raise UserError(f"{path} holds no {EMA}: it is not a run, or has not reached its first checkpoint yet")
    return path / EMA


def write_network(
    model: RealBasicVSR,
    out: Path,
    *,
    metadata: dict[str, str],
    dtype: torch.dtype,
    sharp: RealBasicVSR | None = None,
    default_detail: float | None = None,
) -> None:
    """Write weights as `write_weights` does, with CheckpointError if the file cannot be written.

    Args:
        model: The network; of two sets the faithful one.
        out: The .safetensors file; its folder is created if needed.
        metadata: Description.
        dtype: Type of the convolutions.
        sharp: The sharp set, for a file with two.
        default_detail: Mixture of the two in [0, 1] where none is requested.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_weights(model, out, metadata=metadata, dtype=dtype, sharp=sharp, default_detail=default_detail)
    except OSError as error:
        raise CheckpointError(
            f"{out} could not be written: {error.strerror}. Make room on the disk or name another file."
        ) from None
