"""Encoding of one video: the script's frames, joined with the source's times, audio and the rest."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import av

from vsrealbasicvsr.app.joining import count_frames, join
from vsrealbasicvsr.app.timeline import Timeline
from vsrealbasicvsr.errors import shown_path

from .errors import EncodeError
from .frame_options import Output
from .pipe import pipe
from .programs import vspipe_environment
from .timeline import SourceTimes, nominal_rate, source_times, timeline_of

ENCODER = ("-c:v", "libx264", "-crf", "16")
"""Options of ffmpeg for the encoder where the user gives none."""
MAX_DRIFT_SECONDS = Fraction(1, 10)
"""Maximum difference between the beginnings of the last frames of result and source; beyond it there is a warning."""


def encode(
    script: Path,
    source: Path,
    path: Path,
    *,
    arguments: Mapping[str, str],
    encoder_options: Sequence[str] = ENCODER,
    warn: Callable[[str], None],
) -> str:
    """Encode what the script makes of the source, atomically.

    Args:
        script: The .vpy script.
        source: The video.
        path: The file to write.
        arguments: Variables of the script.
        encoder_options: Options of ffmpeg.
        warn: Called with each warning.

    Returns:
        A line about the result.

    Raises:
        UserError: Something failed that the user can mend.
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
        _warn_of_drift(timeline, times, source, warn)
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


def _warn_of_drift(timeline: Timeline, times: SourceTimes, source: Path, warn: Callable[[str], None]) -> None:
    """Warn if the last frames of result and source begin at different times."""
    last = timeline.pts[-1] * timeline.time_base
    if times.last and abs(last - times.last) > MAX_DRIFT_SECONDS:
        warn(
            f"the last frame begins at {float(last):.2f} s, that of {shown_path(source)} at "
            f"{float(times.last):.2f} s: the audio may not fit"
        )
