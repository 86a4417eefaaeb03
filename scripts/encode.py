"""Encode what a .vpy script makes of a video: its colours, its aspect, its times and its audio stay right.

    python scripts/encode.py upscale.vpy in.mkv out.mkv [--arg name=value ...] [-- FFMPEG OPTIONS]

Runs `vspipe -c y4m upscale.vpy - | ffmpeg`, tells ffmpeg what the first frame says of itself, for y4m carries none of
that, and then gives each encoded frame its time and adds what else is in in.mkv: audio, subtitles, chapters. The script
finds in.mkv in the variable `source`, the others by their names. The result is progressive; rbvsr.Upscale warns of
interlaced frames. Nothing half-written stays behind. For a file without a script of your own: `rbvsr upscale`.
"""

import argparse
import importlib.util
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import IO, Any, Self

import av

from vsrealbasicvsr.app.joining import count_frames, join
from vsrealbasicvsr.app.rendering import hdr_words
from vsrealbasicvsr.app.source import check_readable
from vsrealbasicvsr.app.timeline import MAX_RATE_DEVIATION, Timeline
from vsrealbasicvsr.errors import UserError, printable, shown_path

try:
    from tqdm import tqdm
except ImportError:  # not among what the package itself needs
    tqdm = None

REPORTED = Path(__file__).with_name("reported.vpy")
ENCODER = ("-c:v", "libx264", "-crf", "16")
OWN_OPTIONS = frozenset({"-vf", "-filter:v", "-filter_complex", "-lavfi", "-i", "-r", "-map", "-an", "-c:a", "-acodec"})
"""Options of ffmpeg that would undo what is done here."""
SUFFIXES = frozenset({".mkv", ".mp4", ".m4v", ".mov"})
MAX_ERROR_LENGTH = 1000
MAX_DRIFT_SECONDS = Fraction(1, 10)
"""By how much the last frame may begin earlier or later than the source's before a warning is given."""
MAX_TICKS_PER_SECOND = 1_000_000
POLL_SECONDS = 0.02

PROGRESS = re.compile(rb"Frame: (\d+)/\d+")
SUMMARY = re.compile(r"Output \d+ frames? in ")
REASON = re.compile(r"^(?:Python exception|Error): (.+)$", re.MULTILINE)

HDR_PARAMETERS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "libx264": ("-x264-params", {"master-display": "mastering-display", "max-cll": "cll"}),
    "libx265": ("-x265-params", {}),
}
"""The encoders that can be told of HDR, by which option, and what they call otherwise than x265 does."""
NO_HDR_METADATA = (
    "the mastering display and the light level of this HDR video are left out: only libx264 and libx265 can be told"
)
_UNSPECIFIED = 2
_CHROMA_LOCATIONS = ("left", "center", "topleft", "top", "bottomleft", "bottom")


class EncodeError(UserError):
    """What went wrong, in words for the user."""


# ---- times -----------------------------------------------------------------------------------------------------------


def timeline_of(
    durations: Sequence[Fraction | None],
    *,
    rate: Fraction,
    start_seconds: Fraction,
    last_seconds: Fraction | None = None,
) -> Timeline:
    """The times of frames that are shown one after another for so many seconds each.

    None: a frame does not say. The last one is then shown for `last_seconds`, or as long as the one before it, others
    for 1 / rate.
    """
    known = [1 / rate if duration is None else duration for duration in durations]
    if durations[-1] is None and (last_seconds or len(known) > 1):
        known[-1] = last_seconds or known[-2]
    ticks = math.lcm(start_seconds.denominator, *{duration.denominator for duration in known})
    ticks = min(ticks, MAX_TICKS_PER_SECOND)
    seconds = [start_seconds]
    for duration in known:
        seconds.append(seconds[-1] + duration)
    *pts, end = (round(second * ticks) for second in seconds)
    return Timeline(pts=tuple(pts), end=end, time_base=Fraction(1, ticks))


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceTimes:
    """When a file's first and last video frame begin, and how long the last one is shown where it says so: seconds."""

    first: Fraction
    last: Fraction
    last_duration: Fraction | None


def source_times(path: Path) -> SourceTimes:
    """The times of a file's video. Raises UserError if it has none that can be read."""
    check_readable(path)
    with av.open(str(path)) as file:
        cover = av.stream.Disposition.attached_pic
        stream = next(stream for stream in file.streams.video if not stream.disposition & cover)
        times = [
            (packet.pts * packet.time_base, (packet.duration or 0) * packet.time_base)
            for packet in file.demux(stream)
            if packet.pts is not None and packet.time_base is not None
        ]
    if not times:  # as in .avi files: the frames' durations must do
        return SourceTimes(first=Fraction(0), last=Fraction(0), last_duration=None)
    last, duration = max(times)
    return SourceTimes(first=min(times)[0], last=last, last_duration=duration or None)


def nominal_rate(rate: Fraction, mean: Fraction) -> Fraction:
    """The rate to tell the encoder: the clip's own; the mean where that is not what it has (a variable rate)."""
    mean = mean.limit_denominator(1001)
    return rate if mean and rate and abs(rate / mean - 1) < MAX_RATE_DEVIATION else mean or rate or Fraction(25)


# ---- what a y4m stream does not carry --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """What a script's first output is, and the properties of its first frame, those that are numbers."""

    width: int
    height: int
    num_frames: int
    rate: Fraction
    props: Mapping[str, Any]


def frame_filter(props: Mapping[str, Any]) -> str:
    """An ffmpeg filter that names range, matrix, primaries, transfer and aspect of frames, and changes no sample.

    What the frame leaves open stays open, but that an unnamed range is limited, as ffmpeg takes it too. All frames are
    progressive: fields do not survive being enlarged.
    """
    tags = {"field_mode": "prog", "range": "pc" if props.get("_Range") == 1 else "tv"}
    for name, prop in (("colorspace", "_Matrix"), ("color_primaries", "_Primaries"), ("color_trc", "_Transfer")):
        value = props.get(prop)
        if isinstance(value, int) and value not in (0, _UNSPECIFIED):
            tags[name] = str(value)
    filters = "setparams=" + ":".join(f"{name}={value}" for name, value in tags.items())
    num, den = props.get("_SARNum"), props.get("_SARDen")
    if isinstance(num, int) and isinstance(den, int) and num > 0 and den > 0:
        filters += f",setsar={num}/{den}"
    return filters


def frame_options(props: Mapping[str, Any], encoder_options: Sequence[str]) -> list[str]:
    """The options of ffmpeg's output: those of the encoder, and what tells it what the frames are."""
    options = ["-vf", frame_filter(props)]
    location = props.get("_ChromaLocation")
    if isinstance(location, int) and 0 <= location < len(_CHROMA_LOCATIONS):
        options += ["-chroma_sample_location", _CHROMA_LOCATIONS[location]]
    return options + with_hdr_metadata(encoder_options, hdr_words(props))


def with_hdr_metadata(encoder_options: Sequence[str], words: Mapping[str, str]) -> list[str]:
    """The options with mastering display and light level among the encoder's own parameters, unless named there.

    words: as x265 has them, see `hdr_words`.
    """
    options = list(encoder_options)
    for encoder, (option, names) in HDR_PARAMETERS.items():
        if encoder not in options or not words:
            continue
        if option not in options[:-1]:
            options += [option, ""]
        at = options.index(option) + 1
        found = {names.get(name, name): text for name, text in words.items()}
        more = [f"{name}={text}" for name, text in found.items() if f"{name}=" not in options[at]]
        options[at] = ":".join([*filter(None, [options[at]]), *more])
    return options


# ---- vspipe | ffmpeg -------------------------------------------------------------------------------------------------


def find_vspipe() -> Path:
    """The program itself, not the launcher in bin/, which would not pass a signal on. Raises EncodeError."""
    spec = importlib.util.find_spec("vapoursynth")
    folder = Path(spec.origin).parent if spec and spec.origin else Path()
    found = shutil.which("vspipe", path=str(folder))
    if not found:
        raise EncodeError(f"there is no vspipe in {folder}. Reinstall it: pip install --force-reinstall vapoursynth")
    return Path(found)


def find_ffmpeg() -> Path:
    """The ffmpeg on PATH if it can encode H.264, else the one that imageio-ffmpeg carries. Raises EncodeError."""
    on_path = shutil.which("ffmpeg")
    if on_path:
        encoders = subprocess.run([on_path, "-v", "quiet", "-encoders"], capture_output=True, text=True, check=False)
        if "libx264" in encoders.stdout:
            return Path(on_path)
    try:
        import imageio_ffmpeg
    except ImportError:
        if on_path:
            return Path(on_path)
        raise EncodeError("there is no ffmpeg on PATH. Install it, or: pip install imageio-ffmpeg") from None
    return Path(imageio_ffmpeg.get_ffmpeg_exe())


def configured_environment(folder: Path) -> dict[str, str]:
    """Variables under which vspipe finds this Python, for which it is configured in `folder`."""
    environment = {**os.environ, "XDG_CONFIG_HOME": str(folder)}
    python = Path(sys.executable)
    python = python.parent.resolve() / python.name  # vspipe looks itself up by its real path
    subprocess.run([str(python), "-m", "vapoursynth", "config"], env=environment, capture_output=True, check=False)
    return environment


def vspipe_environment(folder: Path) -> dict[str, str]:
    """The user's own variables if he has configured vspipe, else those of a configuration in `folder`."""
    works = subprocess.run([str(find_vspipe()), "--version"], capture_output=True, check=False).returncode == 0
    return dict(os.environ) if works else configured_environment(folder)


def pipe(
    script: Path,
    arguments: Mapping[str, str],
    encoded: Path,
    *,
    rate: Callable[[Output], Fraction],
    encoder_options: Sequence[str],
    environment: Mapping[str, str],
    warn: Callable[[str], None],
) -> tuple[Output, list[Fraction | None]]:
    """Run `vspipe | ffmpeg`: the script's first output, encoded into the file `encoded`.

    arguments: variables of the script. rate: frames per second, for the encoder. warn: is told what is lost on the way,
    and the warnings of vspipe and the script. Returns the output, and how many seconds each frame is shown, where it
    says so. Raises EncodeError.
    """
    report, log = encoded.with_suffix(".jsonl"), encoded.with_suffix(".log")
    report.touch()
    given = {**arguments, "reported_script": str(script.resolve()), "report": str(report.resolve())}
    words = [text for name, value in given.items() for text in ("--arg", f"{name}={value}")]
    vspipe = [str(find_vspipe()), "-p", "-c", "y4m", *words, str(REPORTED), "-"]
    with (
        log.open("wb") as ffmpeg_errors,
        running(vspipe, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as producer,
        Follower(producer.stderr, warn) as said,
    ):
        assert producer.stdout is not None
        output = first_frame(report, producer)
        if output is None:
            check((producer.wait(), 0), said.join(), "")
            raise EncodeError(f"vspipe ended without a frame: {reason(said.join())}")
        if hdr_words(output.props) and not HDR_PARAMETERS.keys() & set(encoder_options):
            warn(NO_HDR_METADATA)
        ffmpeg = [str(find_ffmpeg()), "-nostdin", "-v", "error"]
        ffmpeg += ["-f", "yuv4mpegpipe", "-r", str(rate(output)), "-i", "-"]
        ffmpeg += [*frame_options(output.props, encoder_options), str(encoded)]
        said.begin(output.num_frames)
        with running(ffmpeg, stdin=producer.stdout, stdout=ffmpeg_errors, stderr=ffmpeg_errors) as consumer:
            producer.stdout.close()  # ffmpeg alone holds the end of the pipe: if it dies, vspipe learns of it
            codes = producer.wait(), consumer.wait()
        vspipe_said = said.join()
    check(codes, vspipe_said, log.read_text(errors="replace"))
    return output, durations_of(report, output.num_frames)


def first_frame(report: Path, producer: "subprocess.Popen[bytes]") -> Output | None:
    """The output and its first frame, once that is made; None if vspipe ended before."""
    while True:
        has_ended = producer.poll() is not None
        *lines, _ = report.read_text(encoding="utf-8").split("\n")
        for line in lines[1:]:
            frame = json.loads(line)
            if frame["n"] == 0:
                about = json.loads(lines[0])
                num, den = about["fps"]
                return Output(
                    width=about["width"],
                    height=about["height"],
                    num_frames=about["num_frames"],
                    rate=Fraction(num, den) if den else Fraction(0),
                    props=frame["props"],
                )
        if has_ended:
            return None
        time.sleep(POLL_SECONDS)


def durations_of(report: Path, num_frames: int) -> list[Fraction | None]:
    """How many seconds each frame is shown, where it says so."""
    durations: list[Fraction | None] = [None] * num_frames
    for line in report.read_text(encoding="utf-8").splitlines()[1:]:
        frame = json.loads(line)
        num, den = frame["props"].get("_DurationNum"), frame["props"].get("_DurationDen")
        if isinstance(num, int) and isinstance(den, int) and num > 0 and den > 0:
            durations[frame["n"]] = Fraction(num, den)
    return durations


@contextmanager
def running(command: list[str], **options: Any) -> "Iterator[subprocess.Popen[bytes]]":
    """A process that does not outlive this block."""
    process = subprocess.Popen(command, **options)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


class Follower:
    """Reads what vspipe says, on a thread of its own: its progress is shown, its warnings are passed on."""

    def __init__(self, stderr: IO[bytes] | None, warn: Callable[[str], None]) -> None:
        assert stderr is not None
        self._stderr, self._warn = stderr, warn
        self._said: list[bytes] = []
        self._bar: Any = None
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def begin(self, num_frames: int) -> None:
        """Show the progress from now on, if tqdm is installed."""
        if tqdm is not None:
            self._bar = tqdm(total=num_frames, desc="upscaling", unit="frame", smoothing=0)

    def join(self) -> str:
        """Everything that vspipe said but its progress, once it has ended."""
        self._thread.join()
        text = b"\n".join(self._said).decode(errors="replace")
        if self._bar is not None and not REASON.search(text):
            self._bar.update(self._bar.total - self._bar.n)  # vspipe does not tell of its last frame
        return text

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def _follow(self) -> None:
        rest = b""
        while chunk := os.read(self._stderr.fileno(), 1 << 16):
            *lines, rest = re.split(rb"[\r\n]", rest + chunk)
            for line in lines:
                if match := PROGRESS.match(line):
                    if self._bar is not None:
                        self._bar.update(int(match.group(1)) - self._bar.n)
                    continue
                self._said.append(line)
                if line.startswith(b"Warning: "):
                    self._warn(line.removeprefix(b"Warning: ").decode(errors="replace"))
        self._said.append(rest)


def check(codes: tuple[int, int], vspipe_said: str, ffmpeg_said: str) -> None:
    """Raise EncodeError, in one line, if vspipe or ffmpeg failed; the first to fail pulls the other along.

    A broken pipe is never the fault of vspipe: ffmpeg failed, or an option ended it early, which the number of
    packets tells.
    """
    vspipe_code, ffmpeg_code = codes
    broken_pipe = vspipe_code == -getattr(signal, "SIGPIPE", 0) or "fwrite" in vspipe_said
    if vspipe_code and not broken_pipe:
        raise EncodeError(f"vspipe {ending(vspipe_code)}: {reason(vspipe_said)}")
    if ffmpeg_code:
        raise EncodeError(f"ffmpeg {ending(ffmpeg_code)}: {reason(ffmpeg_said)}")


def ending(code: int) -> str:
    """How a process ended: a negative code is a signal's."""
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"failed with exit code {code}"


def reason(said: str) -> str:
    """What a program gives as its reason, else its last words."""
    found = REASON.findall(said)
    # VapourSynth puts a Python traceback after this; its last line has the words of the exception.
    if found and not found[-1].rstrip().endswith("with error:"):
        return str(found[-1])
    lines = [line.strip() for line in said.splitlines() if line.strip() and not SUMMARY.match(line)]
    return " | ".join(lines[-1 if "Traceback" in said else -3 :]) or "it said nothing"


# ---- all together ----------------------------------------------------------------------------------------------------


def encode(
    script: Path,
    source: Path,
    path: Path,
    *,
    arguments: Mapping[str, str],
    encoder_options: Sequence[str] = ENCODER,
    warn: Callable[[str], None],
) -> str:
    """Encode what the script makes of the source into `path`, which is whole or not there. Returns a line about it.

    Raises UserError.
    """
    times = source_times(source)
    with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=path.parent) as name:
        folder = Path(name)
        encoded, made = folder / "encoded.mkv", folder / f"whole{path.suffix}"

        def rate(output: Output) -> Fraction:
            length = times.last - times.first
            return nominal_rate(output.rate, (output.num_frames - 1) / length if length else output.rate)

        output, durations = pipe(
            script,
            {"source": str(source.resolve()), **arguments},
            encoded,
            rate=rate,
            encoder_options=encoder_options,
            environment=vspipe_environment(folder),
            warn=warn,
        )
        timeline = timeline_of(
            durations, rate=rate(output), start_seconds=times.first, last_seconds=times.last_duration
        )
        last = timeline.pts[-1] * timeline.time_base
        if times.last and abs(last - times.last) > MAX_DRIFT_SECONDS:
            warn(
                f"the last frame begins at {float(last):.2f} s, that of {shown_path(source)} at "
                f"{float(times.last):.2f} s: the audio may not fit"
            )
        if (count := count_frames(encoded)) != output.num_frames:
            raise EncodeError(
                f"ffmpeg wrote {count} packets for {output.num_frames} frames. Leave out the option that drops some"
            )
        try:
            join([encoded], source, timeline, made, suffix=path.suffix, whole=True)
        except av.FFmpegError as error:
            raise EncodeError(
                f"{shown_path(path)} could not be written with what belongs to {shown_path(source)} ({error}). "
                "A file that ends in .mkv takes more"
            ) from error
        made.replace(path)
    return f"{output.num_frames} frames of {output.width}x{output.height}: {shown_path(path)}"


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """What was asked for. Exits with argparse's message if that makes no sense."""
    parser = argparse.ArgumentParser(
        prog="encode",
        description="Encode what a .vpy script makes of a video; colours, aspect, times and audio stay right.",
        epilog=f"After -- come options of ffmpeg for the encoder. Without them: {shlex.join(ENCODER)}",
    )
    parser.add_argument("script", type=Path, help="a .vpy script that finds the video in its variable `source`")
    parser.add_argument("source", type=Path, help="the video, from which the audio comes as well")
    parser.add_argument("result", type=Path, help="the file to write: .mkv, .mp4 or .mov")
    parser.add_argument("--arg", action="append", default=[], metavar="NAME=VALUE", help="a variable of the script")
    arguments = list(arguments)
    at = arguments.index("--") if "--" in arguments else len(arguments)
    given = parser.parse_args(arguments[:at])
    given.encoder_options = arguments[at + 1 :] or list(ENCODER)
    return given


def checked(given: argparse.Namespace) -> dict[str, str]:
    """The script's variables. Raises EncodeError for what cannot work, before anything is started."""
    for path in (given.script, given.source):
        if not path.is_file():
            raise EncodeError(f"{shown_path(path)} is not a file")
    if given.result.suffix.lower() not in SUFFIXES:
        raise EncodeError(f"{shown_path(given.result)} must end in {', '.join(sorted(SUFFIXES))}")
    if given.result.exists() and given.result.samefile(given.source):
        raise EncodeError(f"{shown_path(given.result)} is the source itself. Name another file")
    if not given.result.resolve().parent.is_dir():
        raise EncodeError(f"{shown_path(given.result.parent)} is not a folder. Make it first")
    if wrong := sorted(OWN_OPTIONS.intersection(given.encoder_options)):
        raise EncodeError(f"{wrong[0]} cannot be given: filters go into the script, and times and audio are kept here")
    pairs = [text.partition("=") for text in given.arg]
    if wrong := [name for name, equals, _ in pairs if not equals or not name.isidentifier()]:
        raise EncodeError(f"--arg must be NAME=VALUE, got {printable(wrong[0], 100)!r}")
    return {name: value for name, _, value in pairs}


def interrupt_once(number: int, frame: Any) -> None:
    """A signal handler: the first Ctrl-C or SIGTERM ends the program in good order, and none after it disturbs that."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def print_warning(program: str, text: str) -> None:
    """One line on standard error, above the progress bar."""
    write = print if tqdm is None else tqdm.write
    write(f"{program}: warning: {printable(text, MAX_ERROR_LENGTH)}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Encode; the exit status."""
    given = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    signal.signal(signal.SIGINT, interrupt_once)
    signal.signal(signal.SIGTERM, interrupt_once)
    try:
        variables = checked(given)
        print(
            encode(
                given.script,
                given.source,
                given.result,
                arguments=variables,
                encoder_options=given.encoder_options,
                warn=partial(print_warning, "encode"),
            )
        )
    except UserError as error:
        print(f"encode: {printable(str(error), MAX_ERROR_LENGTH)}", file=sys.stderr)
        return 1
    except OSError as error:  # a full disk, a folder that is not the user's
        where = shown_path(error.filename2 or error.filename or given.result)
        print(f"encode: {where} cannot be written ({error.strerror}). Check the disk", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("encode: interrupted; nothing half-written was left", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
