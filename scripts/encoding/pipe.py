"""`vspipe | ffmpeg`: both processes, their messages, and the report about the frames."""

import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import IO, Any, Self

from vsrealbasicvsr.app.hdr import hdr_words

from .errors import EncodeError
from .frame_options import HDR_PARAMETERS, Output, frame_options
from .programs import find_ffmpeg, find_vspipe
from .progress import progress_bar

REPORTED = Path(__file__).parents[1] / "reported.vpy"
POLL_SECONDS = 0.02

PROGRESS = re.compile(rb"Frame: (\d+)/\d+")
SUMMARY = re.compile(r"Output \d+ frames? in ")
REASON = re.compile(r"^(?:Python exception|Error): (.+)$", re.MULTILINE)

NO_HDR_METADATA = (
    "the mastering display and the light level of this HDR video are left out: only libx264 and libx265 can be told"
)


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
    """Run `vspipe | ffmpeg`: encode the script's first output.

    Args:
        script: The .vpy script.
        arguments: Variables of the script.
        encoded: The file to write.
        rate: Returns the frames per second for the encoder.
        encoder_options: Options of ffmpeg.
        environment: Variables for vspipe.
        warn: Called with what is lost on the way, and with the warnings of vspipe and the script.

    Returns:
        The output, and each frame's duration in seconds; None for a frame without one.

    Raises:
        EncodeError: One of the programs failed.
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
    """Wait for the first frame. Return the output with its properties; None if vspipe ended before."""
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
    """Return each frame's duration in seconds; None for a frame without one."""
    durations: list[Fraction | None] = [None] * num_frames
    for line in report.read_text(encoding="utf-8").splitlines()[1:]:
        frame = json.loads(line)
        num, den = frame["props"].get("_DurationNum"), frame["props"].get("_DurationDen")
        if isinstance(num, int) and isinstance(den, int) and num > 0 and den > 0:
            durations[frame["n"]] = Fraction(num, den)
    return durations


@contextmanager
def running(command: list[str], **options: Any) -> "Iterator[subprocess.Popen[bytes]]":
    """Start a process that is killed when the block ends."""
    process = subprocess.Popen(command, **options)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


class Follower:
    """Reads vspipe's messages on a thread: shows its progress and passes its warnings on."""

    def __init__(self, stderr: IO[bytes] | None, warn: Callable[[str], None]) -> None:
        assert stderr is not None
        self._stderr, self._warn = stderr, warn
        self._said: list[bytes] = []
        self._bar: Any = None
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def begin(self, num_frames: int) -> None:
        """Show the progress from now on, if tqdm is installed."""
        self._bar = progress_bar(num_frames)

    def join(self) -> str:
        """Wait for the end of vspipe and complete the bar. Return all of vspipe's messages but the progress."""
        self._thread.join()
        text = b"\n".join(self._said).decode(errors="replace")
        if self._bar is not None and not REASON.search(text):
            self._bar.update(self._bar.total - self._bar.n)  # vspipe does not report its last frame
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
    """Raise EncodeError, in one line, if vspipe or ffmpeg failed; the first failure causes the other.

    A broken pipe is never caused by vspipe: ffmpeg failed, or an option ended it early, which the number of packets
    shows.
    """
    vspipe_code, ffmpeg_code = codes
    broken_pipe = vspipe_code == -getattr(signal, "SIGPIPE", 0) or "fwrite" in vspipe_said
    if vspipe_code and not broken_pipe:
        raise EncodeError(f"vspipe {ending(vspipe_code)}: {reason(vspipe_said)}")
    if ffmpeg_code:
        raise EncodeError(f"ffmpeg {ending(ffmpeg_code)}: {reason(ffmpeg_said)}")


def ending(code: int) -> str:
    """Describe how a process ended; a negative code is a signal."""
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"failed with exit code {code}"


def reason(said: str) -> str:
    """Return the reason in a program's messages, else their last lines."""
    found = REASON.findall(said)
    # VapourSynth adds a Python traceback; its last line is the exception.
    if found and not found[-1].rstrip().endswith("with error:"):
        return str(found[-1])
    lines = [line.strip() for line in said.splitlines() if line.strip() and not SUMMARY.match(line)]
    return " | ".join(lines[-1 if "Traceback" in said else -3 :]) or "it said nothing"
