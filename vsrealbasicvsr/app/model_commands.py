"""`rbvsr models`: the commands for weights."""

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

models = App(name="models", help="List, examine, download, convert and verify weights.")


@models.command(name="list")
def list_models(*, json: Annotated[bool, Parameter(negative="", help="Print JSON.")] = False) -> None:
    """List the default weights, those in the models folder, and what can be downloaded."""
    from .models import list_models

    list_models(as_json=json)


@models.command
def info(model: str, *, json: Annotated[bool, Parameter(negative="", help="Print JSON.")] = False) -> None:
    """Show what weights are: architecture, parameters, sets, default detail, how they were trained, licence, SHA-256.

    Args:
        model: default, a name from the list, or a file.
    """
    from .models import show_model

    show_model(model, as_json=json)


@models.command
def download(
    name: str,
    *,
    keep_checkpoint: Annotated[
        bool, Parameter(negative="", help="Keep the checkpoint as it was published too, to train from.")
    ] = False,
) -> None:
    """Download published weights, check their SHA-256, and convert them. An interrupted download goes on.

    Args:
        name: published.
    """
    from .models import download_model

    print(download_model(name, keep_checkpoint=keep_checkpoint))


@models.command
def convert(
    source: str,
    target: Path,
    *,
    half: Annotated[bool, Parameter(negative="", help="Store float16: half the size, no longer lossless.")] = False,
    licence: Annotated[str | None, Parameter(help="The licence of the weights, written into the file.")] = None,
    overwrite: Annotated[bool, Parameter(negative="", help="Replace TARGET if it exists.")] = False,
) -> None:
    """Convert a published checkpoint to safetensors: the generator's moving average alone, losslessly.

    Args:
        source: A published .pth file, or .safetensors. Nothing in it is executed.
        target: The .safetensors file to write.
    """
    from .models import convert

    made = convert(source, target, half=half, licence=licence, overwrite=overwrite)
    print(f"{target}: {made['network']}, {made['precision']}, from {made['source_is']}.")


@models.command
def verify(*models: str) -> None:
    """Check that weights are whole; without a name, the default ones and all in the models folder.

    Args:
        models: default, names from the list, or files.
    """
    from .models import verify

    verify(models)
