"""`rbvsr models`: the weights that are there, what they are, and how to get more."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import platformdirs

from vsrealbasicvsr.errors import UserError, printable, shown_path

from .downloading import Download, download

DEFAULT = "default"
NOT_STATED = "not stated"
MAX_SHOWN_LENGTH = 300
SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt")


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """Weights that others published. `page`: where they describe them."""

    download: Download
    title: str
    licence: str
    page: str


PUBLISHED = {
    # OpenMMLab writes the first eight digits of a file's SHA-256 into its name; the whole of it, and its size, are
    # recorded alike by several projects that use the file.
    "published": Published(
        download=Download(
            url="https://download.openmmlab.com/mmediting/restorers/real_basicvsr/"
            "realbasicvsr_c64b20_1x30x8_lr5e-5_150k_reds_20211104-52f77c2c.pth",
            sha256="52f77c2c835aaa3fe675b3959b2f85010a6c6f63f77f7e279394646e55a4e376",
            num_bytes=148_239_017,
        ),
        title="RealBasicVSR (CVPR 2022), trained with a GAN on REDS",
        licence="Apache-2.0, OpenMMLab (MMagic)",
        page="https://github.com/ckkelvinchan/RealBasicVSR",
    ),
}


def models_folder() -> Path:
    """Return the folder of this user's models. It need not exist."""
    return Path(platformdirs.user_data_path("rbvsr", appauthor=False)) / "models"


def stored_models() -> dict[str, Path]:
    """Return the files in the models folder by their names, which are those of the files without a suffix."""
    found: dict[str, Path] = {}
    for suffix in SUFFIXES:
        for path in sorted(models_folder().glob(f"*{suffix}")):
            found.setdefault(path.stem, path)
    return dict(sorted(found.items()))


def resolve(model: str) -> str:
    """Return what rbvsr.Upscale takes as `model`: "default", or the full path of a file or of a stored model.

    A file comes before a stored model of the same name. What is neither is returned as a path: the error that follows
    names it, unless it is a bare name.

    Raises:
        UserError: A bare name that is neither a file nor a stored model.
    """
    if model == DEFAULT:
        return model
    path = Path(model)
    if path.exists():
        return str(path.resolve())
    stored = stored_models()
    if model in stored:
        return str(stored[model])
    if model and path.name == model and path.suffix not in SUFFIXES:
        advice = f"rbvsr models download {model} gets it" if model in PUBLISHED else "rbvsr models list shows them"
        raise UserError(f"there is no file and no stored model {printable(model, 100)!r}: {advice}")
    return str(path.resolve())


def path_of(model: str) -> Path:
    """Return the file of "default", of a stored model, or of a path. Raises UserError as `resolve` does."""
    from vsrealbasicvsr.weights import DEFAULT_WEIGHTS

    resolved = resolve(model)
    return DEFAULT_WEIGHTS if resolved == DEFAULT else Path(resolved)


def describe(path: Path) -> dict[str, Any]:
    """Return what a file of weights holds, in words and numbers that JSON can hold.

    Raises:
        UserError: It holds no network, or is damaged.
    """
    from vsrealbasicvsr.weights import build_network, default_detail, published_name, read_network, sha256_of

    stored = read_network(path)
    network = build_network(path, stored)
    sha256 = sha256_of(path)
    metadata = dict(stored.metadata)
    metadata.pop("architecture", None)  # what the tensors themselves say follows
    licences = [metadata.pop(name, "") for name in ("licence", "license")]
    licence = next((text for text in licences if text not in ("", NOT_STATED)), NOT_STATED)
    return {
        "file": str(path),
        "bytes": path.expanduser().stat().st_size,
        "sha256": sha256,
        "published_as": published_name(sha256) or metadata.get("source_is"),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "sets": 2 if stored.sharp else 1,
        "default_detail": default_detail(path, stored) if stored.sharp else None,
        "licence": licence,
        "architecture": asdict(network.sizes),
        "metadata": metadata,
    }


def list_models(*, as_json: bool) -> None:
    """Print the models that are there, and those that can be downloaded. A file that cannot be read is listed so."""
    rows: list[dict[str, Any]] = []
    for name, path in {DEFAULT: path_of(DEFAULT), **stored_models()}.items():
        try:
            rows.append({"name": name, **describe(path), "problem": None})
        except UserError as error:
            rows.append({"name": name, "file": str(path), "problem": str(error)})
    there = {row["name"] for row in rows}
    missing = {name: one for name, one in PUBLISHED.items() if name not in there}
    if as_json:
        downloadable = [{"name": name, "title": one.title, "licence": one.licence} for name, one in missing.items()]
        facts = {"folder": str(models_folder()), "models": rows, "downloadable": downloadable}
        print(json.dumps(facts, indent=1))
        return
    _print_table(rows)
    print(f"\nStored models are files in {shown_path(models_folder())}")
    for name, one in missing.items():
        print(f"rbvsr models download {name}: {one.title} ({one.licence})")


def _print_table(rows: Sequence[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("name", "parameters", "sets", "detail", "MiB", "licence", box=None, header_style="bold")
    for row in rows:
        if row["problem"]:
            table.add_row(row["name"], "", "", "", "", printable(row["problem"], 200))
            continue
        detail = "" if row["default_detail"] is None else f"{row['default_detail']:g}"
        size = f"{row['bytes'] / 2**20:.1f}"
        licence = printable(str(row["licence"]), 60)
        table.add_row(row["name"], f"{row['parameters']:,}", str(row["sets"]), detail, size, licence)
    Console(highlight=False, markup=False).print(table)


def show_model(model: str, *, as_json: bool) -> None:
    """Print what a model is; long settings are cut off unless as JSON.

    Raises:
        UserError: It is not there or cannot be used.
    """
    facts = describe(path_of(model))
    if as_json:
        print(json.dumps(facts, indent=1))
        return
    architecture, metadata = facts.pop("architecture"), facts.pop("metadata")
    for name, value in {**facts, **metadata}.items():
        if value is not None:
            text = f"{value:,}" if isinstance(value, int) else printable(str(value), MAX_SHOWN_LENGTH)
            print(f"{name.replace('_', ' ') + ':':<16} {text}")
    print(f"{'architecture:':<16} {', '.join(f'{name} {value}' for name, value in architecture.items())}")


def verify(models: Sequence[str]) -> None:
    """Print for each model that it is whole, by default for all that are there.

    Raises:
        UserError: At the end, if some are damaged or are no weights.
    """
    chosen = {model: path_of(model) for model in models} or {DEFAULT: path_of(DEFAULT), **stored_models()}
    bad = []
    for name, path in chosen.items():
        try:
            facts = describe(path)
        except UserError as error:
            bad.append(name)
            print(f"bad  {name}: {error}")
            continue
        known = f", {facts['published_as']}" if facts["published_as"] else ""
        checked = "checked" if "tensors_sha256" in facts["metadata"] or path.suffix != ".safetensors" else "no checksum"
        print(f"ok   {name}: {checked}, SHA-256 of the file {facts['sha256']}{known}")
    if bad:
        names = ", ".join(printable(name, 100) for name in bad)
        raise UserError(f"{len(bad)} of {len(chosen)} models cannot be used: {names}. Get them again")


def download_model(name: str, *, keep_checkpoint: bool, published: dict[str, Published] | None = None) -> Path:
    """Download published weights into the models folder, and convert them to safetensors; return the file.

    Args:
        name: A key of `published`.
        keep_checkpoint: Keep the file as it was published too, for training.
        published: What there is; default: PUBLISHED.

    Raises:
        UserError: There is no such model, or it cannot be had or written.
    """
    from vsrealbasicvsr.weights import convert_weights

    known = PUBLISHED if published is None else published
    if name not in known:
        raise UserError(f"there is no model {printable(name, 100)!r} to download: there is {', '.join(known)}")
    one, target = known[name], models_folder() / f"{name}.safetensors"
    if target.exists():
        raise UserError(f"{shown_path(target)} exists: rbvsr models verify {name} checks it, delete it to get it again")
    checkpoint = target.with_suffix(".pth")
    if not checkpoint.exists():
        try:
            with _progress(one.download.num_bytes) as on_bytes:
                download(one.download, checkpoint, on_bytes)
        except UserError as error:
            by_hand = f"or get the file in a browser, see {one.page}, and run rbvsr models convert FILE {target}"
            raise UserError(f"{error}; {by_hand}") from None
    convert_weights(checkpoint, target, licence=one.licence)
    if not keep_checkpoint:
        checkpoint.unlink()
    return target


class _progress:  # noqa: N801
    """A bar in a terminal; elsewhere nothing."""

    def __init__(self, num_bytes: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

        columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty())
        self._task = self._progress.add_task("", total=num_bytes)

    def __enter__(self) -> Any:
        self._progress.start()
        return lambda count: self._progress.update(self._task, completed=count)

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()


def convert(source: str, target: Path, *, half: bool, licence: str | None, overwrite: bool) -> dict[str, str]:
    """Write a safetensors file from a published checkpoint; return what it says of itself. Raises UserError."""
    import torch

    from vsrealbasicvsr.weights import convert_weights

    dtype = torch.float16 if half else torch.float32
    return convert_weights(path_of(source), target, licence=licence, dtype=dtype, overwrite=overwrite)
