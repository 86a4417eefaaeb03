"""The command `rbvsr`. Exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from json import dumps as json_text
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter
from cyclopts.exceptions import CycloptsError
from rich.console import Console

from vsrealbasicvsr import __version__
from vsrealbasicvsr.errors import UserError, print_any_text, printable, shown_path

from .model_commands import models
from .options import (
    LOOK,
    NETWORK,
    PICTURE,
    AsJson,
    At,
    Detail,
    EncodingOptions,
    LoopFrames,
    Model,
    NetworkOptions,
    OneDevice,
    OpenPage,
    PictureOptions,
    Precision,
    Replace,
    RunOptions,
    Shots,
    choices_of,
    given,
    option,
    parsed_options,
)

if TYPE_CHECKING:
    from .progress import Reporter

MAX_ERROR_LENGTH = 1000
FAILED, WRONG_USAGE, INTERRUPTED = 1, 2, 130
REPORTING_COMMANDS = ("upscale", "preview", "compare")
"""Whose --json is one object a line: an error is the last of them."""

app = App(
    name="rbvsr",
    version=__version__,
    help="Upscale videos by four with RealBasicVSR.",
    help_format="markdown",
    console=Console(stderr=False),
    suppress_keyboard_interrupt=False,
)
_NETWORK, _PICTURE, _ENCODING, _RUN = NetworkOptions(), PictureOptions(), EncodingOptions(), RunOptions()


@app.command
def upscale(
    source: Path,
    output: Path,
    *,
    network: NetworkOptions = _NETWORK,
    detail: Detail = None,
    length: Annotated[int | None, option(NETWORK, "Frames of a window; default 30.")] = None,
    device: Annotated[str | None, option(NETWORK, "auto, cpu, cuda, cuda:1, cuda:0,cuda:1.")] = None,
    picture: PictureOptions = _PICTURE,
    start: Annotated[str | None, option(PICTURE, "Begin here: seconds or h:mm:ss.")] = None,
    stop: Annotated[str | None, option(PICTURE, "End before this time.")] = None,
    encoding: EncodingOptions = _ENCODING,
    run: RunOptions = _RUN,
) -> None:
    """Upscale a video file, or every video of a folder.

    Audio, subtitles, chapters, attachments, tags, time stamps, colours and the shape of pixels are kept. A run that was
    interrupted, in whatever way, goes on where it was when the same command is given again: finished parts lie in
    OUTPUT.rbvsr beside the output until it is complete.

    Args:
        source: A video file, or a folder of them.
        output: The video to write (.mkv, .mp4, .mov, .webm), or a folder.
    """
    from .paths import check_paths

    choices = choices_of(
        network.given(detail=detail, length=length, device=device),
        picture,
        start=start,
        stop=stop,
        codec=encoding.codec,
        crf=encoding.crf,
        preset=encoding.preset,
        encoder_options=parsed_options(encoding.encoder_option or []),
        segment_frames=run.segment_frames,
    )
    arguments = run.arguments()
    if not source.is_dir():
        check_paths(source, output, overwrite=run.overwrite or run.chunk is not None)
    with _reported(as_json=run.json) as reporter:
        from .folders import upscale_folder
        from .upscaling import upscale_file

        call: Callable[..., Any] = upscale_folder if source.is_dir() else upscale_file
        call(source, output, choices, reporter, **arguments)


@app.command
def preview(
    source: Path,
    page: Path | None = None,
    *,
    at: At = None,
    shots: Shots = 4,
    frames: LoopFrames = 8,
    detail: Annotated[
        list[float] | None,
        option(NETWORK, "0: nothing invented; 1: as sharp as it gets. Repeated: one method each.", negative=""),
    ] = None,
    network: NetworkOptions = _NETWORK,
    device: OneDevice = None,
    picture: PictureOptions = _PICTURE,
    open_page: OpenPage = False,
    overwrite: Replace = False,
    json: AsJson = False,
) -> None:
    """Upscale a few moments of a video, and show them beside bicubic interpolation in a web page.

    The page is one file, which needs no network. Without --at, moments with much detail and motion are chosen.

    Args:
        source: A video file.
        page: The page to write; default: the video's name with -preview.html, in the current folder.
    """
    from .page import MAX_METHODS, check_page

    page = page or Path(f"{source.stem}-preview.html")
    choices = choices_of(network.given(device=device), picture)
    details = list(dict.fromkeys(detail or []))
    if len(details) >= MAX_METHODS:
        raise UserError(f"--detail may be given up to {MAX_METHODS - 1} times, got {len(details)}")
    check_page(page, overwrite=overwrite)
    with _reported(as_json=json) as reporter:
        from .preview import Look, Variant, preview

        variants = [Variant(name=f"rbvsr, detail {value:g}", arguments={"detail": value}) for value in details]
        look = Look(at=at or (), num_shots=shots, loop_frames=frames)
        preview(source, page, choices, variants or [Variant(name="rbvsr")], look, reporter)
    _finish(page, open_page=open_page, as_json=json)


@app.command
def compare(
    *files: Path,
    label: Annotated[
        list[str] | None,
        Parameter(negative="", help="What to call a video; once for each, in their order.", group=LOOK),
    ] = None,
    at: At = None,
    shots: Shots = 4,
    frames: LoopFrames = 8,
    open_page: OpenPage = False,
    overwrite: Replace = False,
    json: AsJson = False,
) -> None:
    """Show the same moments of several videos in a web page.

    rbvsr compare in.mkv out.mkv [more.mkv ...] page.html

    The page is one file, which needs no network. Smaller videos are enlarged by bicubic interpolation.

    Args:
        files: Two to eight videos of the same scenes, such as source and result, then the page to write.
    """
    from .page import MAX_METHODS, check_page
    from .preview import Look, compare, labels_of

    *videos, page = files or (Path(),)
    if not 2 <= len(videos) <= MAX_METHODS:
        raise UserError(
            f"rbvsr compare takes 2 to {MAX_METHODS} videos and then the page to write, got"
            f" {len(files)} {'file' if len(files) == 1 else 'files'}"
        )
    look = Look(at=at or (), num_shots=shots, loop_frames=frames)
    labels = labels_of(videos, label or [])
    check_page(page, overwrite=overwrite)
    with _reported(as_json=json) as reporter:
        compare(videos, labels, page, look, reporter)
    _finish(page, open_page=open_page, as_json=json)


@app.command
def doctor(
    *, json: Annotated[bool, Parameter(negative="", help="Print a JSON list of name, status, found and cure.")] = False
) -> None:
    """Examine the installation: what is there, what is missing, what to type. The exit status is 1 with a fault."""
    from .doctor import run_doctor

    faults, _ = run_doctor(as_json=json)
    if faults:
        raise UserError(f"{faults} {'fault was' if faults == 1 else 'faults were'} found: see the lines above")


@app.command
def benchmark(
    *,
    sizes: Annotated[str | None, Parameter(help="WIDTHxHEIGHT of the source, with commas between them.")] = None,
    seconds: Annotated[float, Parameter(help="What all may take; larger sizes are estimated beyond it.")] = 75,
    detail: Detail = None,
    model: Model = None,
    device: OneDevice = None,
    precision: Precision = None,
    json: Annotated[bool, Parameter(negative="", help="Print JSON.")] = False,
) -> None:
    """Measure how many frames a second are upscaled here, at the usual sizes, without reading or encoding a video."""
    from .measuring import DEFAULT_SIZES, parse_sizes, run_benchmark

    if not seconds > 0:
        raise UserError(f"--seconds must be above 0, got {seconds:g}")
    chosen = DEFAULT_SIZES if sizes is None else parse_sizes(sizes)
    arguments = given(detail=detail, model=model, device=device, precision=precision)
    run_benchmark(chosen, arguments, seconds, as_json=json)


@app.command(help_flags=[], version_flags=[])
def train(*arguments: Annotated[str, Parameter(allow_leading_hyphen=True, show=False)]) -> None:
    """Train weights: the commands of python -m training. rbvsr train --help lists them."""
    from .training_command import run_training

    sys.exit(run_training(arguments or ("--help",)))


app.command(models)


@contextmanager
def _reported(*, as_json: bool) -> Iterator["Reporter"]:
    """Report what a command does from its first moment on; what is imported inside, such as torch, takes seconds."""
    from .notes import logged_to
    from .progress import reporting

    with reporting(as_json=as_json) as reporter:
        reporter.phase("loading")
        with logged_to(reporter):
            yield reporter


def _finish(page: Path, *, open_page: bool, as_json: bool) -> None:
    """Say where the page is, and open it if asked to."""
    if not as_json:
        print(page)
    if open_page:
        import webbrowser

        if not webbrowser.open(page.resolve().as_uri()):
            raise UserError(f"no browser can be started here: open {shown_path(page)} yourself")


def main(arguments: list[str] | None = None) -> None:
    """Run the command and end the process with its status."""
    for name in ("stdout", "stderr"):  # where the caller closed them, as some that start programs do
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115
    print_any_text()
    for number in (signal.SIGTERM, getattr(signal, "SIGBREAK", signal.SIGTERM)):  # Ctrl-Break of Windows
        signal.signal(number, _interrupt)
    status = run_command(sys.argv[1:] if arguments is None else arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # frames that are still computed are not waited for


def run_command(arguments: list[str]) -> int:
    """Run the command, and say what goes wrong in one line on stderr; return the exit status."""
    given = [argument for argument in arguments if argument != "--debug"]
    debug = len(given) < len(arguments)
    failed = partial(_fail, debug=debug, as_json="--json" in given and given[0] in REPORTING_COMMANDS)
    try:
        app(given, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        return failed(str(error), WRONG_USAGE)
    except UserError as error:
        return failed(str(error), FAILED)
    except KeyboardInterrupt:
        return failed("interrupted; run the same command again to go on", INTERRUPTED, debug=False)
    except BrokenPipeError:
        return FAILED
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else FAILED
    except OSError as error:
        where = f"{shown_path(error.filename)}: " if error.filename else ""
        return failed(f"{where}{error.strerror or error}", FAILED)
    except Exception as error:
        advice = "report it" if debug else "run it again with --debug and report it"
        return failed(f"{type(error).__name__}: {error} (this is a bug of rbvsr: {advice})", FAILED)
    return 0


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _fail(text: str, status: int, *, debug: bool, as_json: bool) -> int:
    """Say in one line what is wrong; return the status."""
    if debug:
        traceback.print_exc()
    text = printable(text, MAX_ERROR_LENGTH)
    if as_json:
        print(json_text({"event": "error", "text": text, "status": status}))
    print(f"rbvsr: {text}", file=sys.stderr)
    return status
