"""The options of the command line, each written once, and what they say as values for the rest of the command."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Group, Parameter

from vsrealbasicvsr.errors import UserError, printable

from .plan import DEFAULT_SEGMENT_FRAMES

if TYPE_CHECKING:
    from .job import Choices

MAX_NUMBER = 1 << 31
"""Of frames and rows; VapourSynth's arguments have 64 bits."""

NETWORK, PICTURE, ENCODING, RUN = (
    Group(name) for name in ("The network (see rbvsr.Upscale in README)", "Picture", "Encoding", "The run")
)
LOOK = Group("What to look at")


def option(group: Group, text: str, **more: Any) -> Parameter:
    """Return how an option is shown: its group and its help."""
    return Parameter(help=text, group=group, **more)


Detail = Annotated[float | None, option(NETWORK, "0: nothing invented; 1: as sharp as it gets.")]
Model = Annotated[str | None, option(NETWORK, "default, a name from rbvsr models list, or a file of weights.")]
OneDevice = Annotated[str | None, option(NETWORK, "auto, cpu, cuda, cuda:1.")]
Precision = Annotated[str | None, option(NETWORK, "auto, fp32, fp16 or bf16.")]
AsJson = Annotated[bool, option(RUN, "Report progress as JSON, one object a line, on stdout.", negative="")]
At = Annotated[list[str] | None, option(LOOK, "Show this time: seconds or h:mm:ss. May be repeated.", negative="")]
OpenPage = Annotated[bool, option(RUN, "Open the page in a browser.", name="--open", negative="")]
Shots = Annotated[int, option(LOOK, "Moments to choose where no time is given.")]
LoopFrames = Annotated[int, option(LOOK, "Frames of each moment's loop.")]
Replace = Annotated[bool, option(RUN, "Replace any file that exists.", negative="")]


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkOptions:
    """Arguments of rbvsr.Upscale that every command has."""

    theta: Annotated[
        float | None, option(NETWORK, "Clean again while cleaning changes a frame by theta/255 or more; default 5.")
    ] = None
    cleaning: Annotated[float | None, option(NETWORK, "0: no cleaning, for good masters; 1: as trained.")] = None
    model: Model = None
    overlap: Annotated[int | None, option(NETWORK, "Frames of context on each side of a window; default 8.")] = None
    scene_cuts: Annotated[str | None, option(NETWORK, "auto, props or off.")] = None
    precision: Precision = None
    tile: Annotated[int | None, option(NETWORK, "Rows that are processed at once; 0: as many as fit.")] = None

    def given(self, **more: Any) -> dict[str, Any]:
        """Return the arguments of rbvsr.Upscale that the user gave. Raises UserError."""
        names = ("theta", "cleaning", "model", "overlap", "scene_cuts", "precision", "tile")
        return given(**{name: getattr(self, name) for name in names}, **more)


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class PictureOptions:
    """Size and kind of the picture."""

    scale: Annotated[
        float | None,
        option(
            PICTURE,
            "Output size as a multiple of the source's; other than 4, the network's output is resized by Lanczos.",
        ),
    ] = None
    width: Annotated[int | None, option(PICTURE, "Width of the output in pixels.")] = None
    height: Annotated[int | None, option(PICTURE, "Height of the output in pixels.")] = None
    deinterlace: Annotated[str | None, option(PICTURE, "bwdif: deinterlace first.")] = None
    force: Annotated[bool, option(PICTURE, "Take interlaced and Dolby Vision sources as they are.", negative="")] = (
        False
    )


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class EncodingOptions:
    """The encoder."""

    codec: Annotated[
        str | None,
        option(
            ENCODING,
            "Encoder, by ffmpeg's name: libx264 (default for 8 bits), libx265 (for more), libvpx-vp9 and"
            " libsvtav1 (the same for .webm), ffv1 ...",
        ),
    ] = None
    crf: Annotated[
        float | None,
        option(
            ENCODING, "Quality; lower is better. Default: 17 for libx264, 18 for libx265, 24 for libsvtav1 and VP9."
        ),
    ] = None
    preset: Annotated[str | None, option(ENCODING, "Speed of the encoder.")] = None
    encoder_option: Annotated[
        list[str] | None, option(ENCODING, "name=value, passed to the encoder. May be repeated.", negative="")
    ] = None


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """How a job is run."""

    segment_frames: Annotated[int, option(RUN, "Frames of a segment: what an interruption costs at most.")] = (
        DEFAULT_SEGMENT_FRAMES
    )
    overwrite: Annotated[bool, option(RUN, "Replace an output that exists.", negative="")] = False
    restart: Annotated[
        bool,
        option(RUN, "Discard what an interrupted run left; with --chunk, only that of other options.", negative=""),
    ] = False
    chunk: Annotated[str | None, option(RUN, "i/n: render share i of n and stop; for arrays of jobs.")] = None
    join: Annotated[bool, option(RUN, "Join what the chunks rendered.", negative="")] = False
    cluster: Annotated[
        str | None,
        option(RUN, "Render by Ray: auto (the cluster that runs here, or this machine's own workers), or an address."),
    ] = None
    workers: Annotated[
        int | None, option(RUN, "Workers of the cluster. Default: one for each GPU, or each machine.")
    ] = None
    json: AsJson = False

    def arguments(self) -> dict[str, Any]:
        """Return the options as `upscale_file` takes them. Raises UserError."""
        if self.chunk is not None and self.join:
            raise UserError("--chunk and --join exclude each other: render the chunks first, then join them")
        if self.restart and self.join:
            raise UserError("--restart and --join exclude each other: nothing would be left to join")
        if self.workers is not None and self.workers < 1:
            raise UserError(f"--workers must be 1 or more, got {self.workers}")
        return {
            "overwrite": self.overwrite,
            "restart": self.restart,
            "chunk": _parsed_chunk(self.chunk),
            "join_only": self.join,
            "cluster": self.cluster,
            "num_workers": self.workers,
        }


def given(**arguments: Any) -> dict[str, Any]:
    """Return the arguments of rbvsr.Upscale that the user gave; `model` as a full path. Raises UserError."""
    from .models import resolve

    for name, value in arguments.items():
        if isinstance(value, int) and abs(value) > MAX_NUMBER:
            raise UserError(f"--{name} must be at most {MAX_NUMBER}, got {printable(str(value), 50)}")
    if arguments["model"] is not None:
        arguments["model"] = resolve(arguments["model"])
    return {name: value for name, value in arguments.items() if value is not None}


def choices_of(arguments: dict[str, Any], picture: PictureOptions, **more: Any) -> "Choices":
    """Return what the user chose, as a job takes it.

    Args:
        arguments: Of rbvsr.Upscale.
        picture: Size and kind of the picture.
        more: Other fields of Choices.

    Raises:
        UserError: A number is out of its range, or two options exclude each other.
    """
    from .job import Choices

    choices = Choices(
        upscale=arguments,
        width=picture.width,
        height=picture.height,
        scale=picture.scale,
        deinterlace=picture.deinterlace,
        force=picture.force,
        **more,
    )
    for name in ("width", "height", "scale", "segment_frames"):
        value = getattr(choices, name)
        if value is not None and not 0 < value < 1 << 16:
            raise UserError(f"--{name.replace('_', '-')} must be above 0 and below 65536, got {value:g}")
    if choices.scale is not None and (choices.width or choices.height):
        raise UserError("--scale and --width or --height exclude each other: give one of them")
    return choices


def parsed_options(pairs: list[str]) -> dict[str, str]:
    """Return a dictionary from name=value texts. Raises UserError."""
    for pair in pairs:
        if "=" not in pair:
            raise UserError(f"--encoder-option takes name=value, such as tune=grain, got {printable(pair, 100)!r}")
    return dict(pair.split("=", 1) for pair in pairs)


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
