"""The command `rbvsr`. Exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""

import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable
from functools import partial
from json import dumps as json_text
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Group, Parameter
from cyclopts.exceptions import CycloptsError
from rich.console import Console

from vsrealbasicvsr import __version__
from vsrealbasicvsr.errors import UserError, printable, shown_path

from .plan import DEFAULT_SEGMENT_FRAMES

MAX_ERROR_LENGTH = 1000
MAX_NUMBER = 1 << 31
"""Of frames and rows; VapourSynth's arguments have 64 bits."""
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

NETWORK, PICTURE, ENCODING, RUN = (
    Group(name) for name in ("The network (see rbvsr.Upscale in README)", "Picture", "Encoding", "The run")
)
LOOK = Group("What to look at")


def _network(text: str) -> Parameter:
    return Parameter(help=text, group=NETWORK)


# Options of several commands.
Theta = Annotated[float | None, _network("Clean again while cleaning changes a frame by theta/255 or more.")]
Detail = Annotated[float | None, _network("0: nothing invented; 1: as sharp as it gets.")]
Cleaning = Annotated[float | None, _network("0: no cleaning, for good masters; 1: as trained.")]
Model = Annotated[str | None, _network("default, a name from rbvsr models list, or a file of weights.")]
SceneCuts = Annotated[str | None, _network("auto, props or off.")]
OneDevice = Annotated[str | None, _network("auto, cpu, cuda, cuda:1.")]
Precision = Annotated[str | None, _network("auto, fp32, fp16 or bf16.")]
Tile = Annotated[int | None, _network("Rows that are processed at once; 0: as many as fit.")]
Width = Annotated[int | None, Parameter(help="Width of the output in pixels.", group=PICTURE)]
Height = Annotated[int | None, Parameter(help="Height of the output in pixels.", group=PICTURE)]
Deinterlace = Annotated[str | None, Parameter(help="bwdif: deinterlace first.", group=PICTURE)]
Force = Annotated[
    bool, Parameter(negative="", help="Take interlaced and Dolby Vision sources as they are.", group=PICTURE)
]
AsJson = Annotated[
    bool, Parameter(negative="", help="Report progress as JSON, one object a line, on stdout.", group=RUN)
]
At = Annotated[
    list[str] | None,
    Parameter(negative="", help="Show this time: seconds or h:mm:ss. May be repeated.", group=LOOK),
]
OpenPage = Annotated[bool, Parameter(name="--open", negative="", help="Open the page in a browser.", group=RUN)]
Shots = Annotated[int, Parameter(help="Moments to choose where no time is given.", group=LOOK)]
LoopFrames = Annotated[int, Parameter(help="Frames of each moment's loop.", group=LOOK)]
Replace = Annotated[bool, Parameter(negative="", help="Replace any file that exists.", group=RUN)]


def _given(**arguments: Any) -> dict[str, Any]:
    """Return the arguments of rbvsr.Upscale that the user gave; `model` as a full path."""
    for name, value in arguments.items():
        if isinstance(value, int) and abs(value) > MAX_NUMBER:
            raise UserError(f"--{name} must be at most {MAX_NUMBER}, got {printable(str(value), 50)}")
    arguments["model"] = _absolute(arguments["model"])
    return {name: value for name, value in arguments.items() if value is not None}


def _parsed_chunk(text: str | None) -> tuple[int, int] | None:
    """Return (i, n) from i/n. Raises UserError."""
    if text is None:
        return None
    try:
        index, count = (int(part) for part in text.split("/"))
    except ValueError:
        index, count = 0, 0
    if not 1 <= index <= count:
        raise UserError(f"--chunk takes i/n with 1 <= i <= n, such as 3/20, got {printable(text, 50)!r}")
    return index, count


def _parsed_options(pairs: list[str]) -> dict[str, str]:
    """Return a dictionary from name=value texts. Raises UserError."""
    for pair in pairs:
        if "=" not in pair:
            raise UserError(f"--encoder-option takes name=value, such as tune=grain, got {printable(pair, 100)!r}")
    return dict(pair.split("=", 1) for pair in pairs)


@app.command
def upscale(
    source: Path,
    output: Path,
    *,
    theta: Theta = None,
    detail: Detail = None,
    cleaning: Cleaning = None,
    model: Model = None,
    length: Annotated[int | None, _network("Frames that a window keeps.")] = None,
    overlap: Annotated[int | None, _network("Frames that a window sees besides, on each side.")] = None,
    scene_cuts: SceneCuts = None,
    device: Annotated[str | None, _network("auto, cpu, cuda, cuda:1, cuda:0,cuda:1.")] = None,
    precision: Precision = None,
    tile: Tile = None,
    scale: Annotated[
        float | None,
        Parameter(
            help="Size of the output, of the source's. Above or below 4, the network's output is resized by Lanczos.",
            group=PICTURE,
        ),
    ] = None,
    width: Width = None,
    height: Height = None,
    start: Annotated[str | None, Parameter(help="Begin here: seconds or h:mm:ss.", group=PICTURE)] = None,
    stop: Annotated[str | None, Parameter(help="End before this time.", group=PICTURE)] = None,
    deinterlace: Deinterlace = None,
    force: Force = False,
    codec: Annotated[
        str | None,
        Parameter(
            help="Encoder, by ffmpeg's name: libx264 (default for 8 bits), libx265 (for more), libsvtav1, ffv1 ...",
            group=ENCODING,
        ),
    ] = None,
    crf: Annotated[
        float | None,
        Parameter(help="Quality; lower is better. Default: 17 for libx264, 18 for libx265.", group=ENCODING),
    ] = None,
    preset: Annotated[str | None, Parameter(help="Speed of the encoder.", group=ENCODING)] = None,
    encoder_option: Annotated[
        list[str] | None,
        Parameter(negative="", help="name=value, passed to the encoder. May be repeated.", group=ENCODING),
    ] = None,
    segment_frames: Annotated[
        int, Parameter(help="Frames of a segment: what an interruption costs at most.", group=RUN)
    ] = DEFAULT_SEGMENT_FRAMES,
    overwrite: Annotated[bool, Parameter(negative="", help="Replace an output that exists.", group=RUN)] = False,
    restart: Annotated[bool, Parameter(negative="", help="Discard what an interrupted run left.", group=RUN)] = False,
    chunk: Annotated[
        str | None, Parameter(help="i/n: render share i of n and stop; for arrays of jobs.", group=RUN)
    ] = None,
    join: Annotated[bool, Parameter(negative="", help="Join what the chunks rendered.", group=RUN)] = False,
    cluster: Annotated[
        str | None,
        Parameter(
            help="Render by Ray: auto (the cluster that runs here, or this machine's own workers), or an address.",
            group=RUN,
        ),
    ] = None,
    workers: Annotated[
        int | None, Parameter(help="Workers of the cluster. Default: one for each GPU, or each machine.", group=RUN)
    ] = None,
    json: AsJson = False,
) -> None:
    """Upscale a video file, or every video of a folder.

    Audio, subtitles, chapters, attachments, tags, time stamps, colours and the shape of pixels are kept. A run that was
    interrupted, in whatever way, goes on where it was when the same command is given again: finished parts lie in
    OUTPUT.rbvsr beside the output until it is complete.

    Args:
        source: A video file, or a folder of them.
        output: The video to write (.mkv, .mp4, .mov, .webm), or a folder.
    """
    from .folders import upscale_folder
    from .job import Choices
    from .progress import reporting
    from .upscaling import upscale_file

    given = _given(
        theta=theta,
        detail=detail,
        cleaning=cleaning,
        model=model,
        length=length,
        overlap=overlap,
        scene_cuts=scene_cuts,
        device=device,
        precision=precision,
        tile=tile,
    )
    choices = Choices(
        upscale=given,
        width=width,
        height=height,
        scale=scale,
        codec=codec,
        crf=crf,
        preset=preset,
        encoder_options=_parsed_options(encoder_option or []),
        start=start,
        stop=stop,
        deinterlace=deinterlace,
        force=force,
        segment_frames=segment_frames,
    )
    _check(choices)
    if chunk is not None and join:
        raise UserError("--chunk and --join exclude each other: render the chunks first, then join them")
    if workers is not None and workers < 1:
        raise UserError(f"--workers must be 1 or more, got {workers}")
    run: Callable[..., Any] = upscale_folder if source.is_dir() else upscale_file
    with reporting(as_json=json) as reporter, _log_to(reporter):
        run(
            source,
            output,
            choices,
            reporter,
            overwrite=overwrite,
            restart=restart,
            chunk=_parsed_chunk(chunk),
            join_only=join,
            cluster=cluster,
            num_workers=workers,
        )


@app.command
def preview(
    source: Path,
    page: Path | None = None,
    *,
    at: At = None,
    shots: Shots = 4,
    frames: LoopFrames = 8,
    theta: Theta = None,
    detail: Annotated[
        list[float] | None,
        Parameter(
            negative="", help="0: nothing invented; 1: as sharp as it gets. Repeated: one method each.", group=NETWORK
        ),
    ] = None,
    cleaning: Cleaning = None,
    model: Model = None,
    overlap: Annotated[int | None, _network("Frames of context on each side; default 8.")] = None,
    scene_cuts: SceneCuts = None,
    device: OneDevice = None,
    precision: Precision = None,
    tile: Tile = None,
    scale: Annotated[float | None, Parameter(help="Size of the output, of the source's.", group=PICTURE)] = None,
    width: Width = None,
    height: Height = None,
    deinterlace: Deinterlace = None,
    force: Force = False,
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
    from .job import Choices
    from .page import MAX_METHODS, check_page
    from .preview import Look, Variant, preview
    from .progress import reporting

    page = page or Path(f"{source.stem}-preview.html")
    given = _given(
        theta=theta,
        cleaning=cleaning,
        model=model,
        overlap=overlap,
        scene_cuts=scene_cuts,
        device=device,
        precision=precision,
        tile=tile,
    )
    choices = Choices(
        upscale=given,
        width=width,
        height=height,
        scale=scale,
        deinterlace=deinterlace,
        force=force,
    )
    _check(choices)
    details = list(dict.fromkeys(detail or []))
    if len(details) >= MAX_METHODS:
        raise UserError(f"--detail may be given up to {MAX_METHODS - 1} times, got {len(details)}")
    variants = [Variant(name=f"rbvsr, detail {value:g}", arguments={"detail": value}) for value in details]
    look = Look(at=at or (), num_shots=shots, loop_frames=frames)
    check_page(page, overwrite=overwrite)
    with reporting(as_json=json) as reporter, _log_to(reporter):
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
    """Show the same moments of several videos in a web page: rbvsr compare in.mkv out.mkv [more.mkv ...] page.html

    The page is one file, which needs no network. Smaller videos are enlarged by bicubic interpolation.

    Args:
        files: Two to eight videos of the same scenes, such as source and result, then the page to write.
    """
    from .page import MAX_METHODS, check_page
    from .preview import Look, compare, labels_of
    from .progress import reporting

    *videos, page = files or (Path(),)
    if not 2 <= len(videos) <= MAX_METHODS:
        raise UserError(
            f"rbvsr compare takes 2 to {MAX_METHODS} videos and then the page to write, got"
            f" {len(files)} {'file' if len(files) == 1 else 'files'}"
        )
    look = Look(at=at or (), num_shots=shots, loop_frames=frames)
    labels = labels_of(videos, label or [])
    check_page(page, overwrite=overwrite)
    with reporting(as_json=json) as reporter, _log_to(reporter):
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
    given = _given(detail=detail, model=model, device=device, precision=precision)
    run_benchmark(chosen, given, seconds, as_json=json)


@app.command(help_flags=[], version_flags=[])
def train(*arguments: Annotated[str, Parameter(allow_leading_hyphen=True, show=False)]) -> None:
    """Train weights: the commands of python -m training. rbvsr train --help lists them."""
    from .training_command import run_training

    sys.exit(run_training(arguments or ("--help",)))


models = App(name="models", help="List, examine, download, convert and verify weights.")
app.command(models)


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


def _finish(page: Path, *, open_page: bool, as_json: bool) -> None:
    """Say where the page is, and open it if asked to."""
    if not as_json:
        print(page)
    if open_page:
        import webbrowser

        if not webbrowser.open(page.resolve().as_uri()):
            raise UserError(f"no browser can be started here: open {shown_path(page)} yourself")


def _absolute(model: str | None) -> str | None:
    """Return the full path of a file of weights or of a stored model; None and "default" as they are."""
    from .models import resolve

    return None if model is None else resolve(model)


def _check(choices: Any) -> None:
    """Raise UserError for numbers out of their range."""
    for name in ("width", "height", "scale", "segment_frames"):
        value = getattr(choices, name)
        if value is not None and not 0 < value < 1 << 16:
            raise UserError(f"--{name.replace('_', '-')} must be above 0 and below 65536, got {value:g}")
    if choices.scale is not None and (choices.width or choices.height):
        raise UserError("--scale and --width or --height exclude each other: give one of them")


class _log_to:  # noqa: N801
    """Pass what VapourSynth, the filter and joining log to the reporter, each text once."""

    def __init__(self, reporter: Any) -> None:
        self._reporter = reporter
        self._said: set[str] = set()

    def __enter__(self) -> None:
        import vapoursynth as vs

        logging.getLogger("vapoursynth").setLevel(logging.ERROR)
        self._core = vs.core
        self._handle = vs.core.add_log_handler(self._from_core)
        self._handler = logging.Handler(logging.WARNING)
        self._handler.emit = lambda record: self._say(record.getMessage())  # type: ignore[method-assign]
        logging.getLogger("vsrealbasicvsr").addHandler(self._handler)

    def __exit__(self, *exception: object) -> None:
        self._core.remove_log_handler(self._handle)
        logging.getLogger("vsrealbasicvsr").removeHandler(self._handler)

    def _from_core(self, message_type: Any, text: str) -> None:
        if int(message_type) >= 2 and "no return value" not in text:  # a warning, and not of BestSource's extra values
            self._say(text)

    def _say(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self._reporter.note(printable(text, MAX_ERROR_LENGTH))


def main(arguments: list[str] | None = None) -> None:
    """Run the command and end the process with its status."""
    status = run_command(sys.argv[1:] if arguments is None else arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # frames that are still computed are not waited for


def run_command(arguments: list[str]) -> int:
    """Run the command, and say what goes wrong in one line on stderr; return the exit status."""
    given = [argument for argument in arguments if argument != "--debug"]
    debug = len(given) < len(arguments)
    failed = partial(_fail, debug=debug, as_json="--json" in given and given[0] in REPORTING_COMMANDS)
    signal.signal(signal.SIGTERM, _interrupt)
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
