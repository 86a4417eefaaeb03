"""A progress bar on standard error if tqdm is installed, which the package itself does not need."""

import sys
from typing import Any

try:
    from tqdm import tqdm
except ImportError:
    tqdm = None


def progress_bar(num_frames: int) -> Any:
    """Return a tqdm bar that counts frames; None without tqdm."""
    return None if tqdm is None else tqdm(total=num_frames, desc="upscaling", unit="frame", smoothing=0)


def print_above_bar(text: str) -> None:
    """Print one line on standard error without breaking the bar."""
    (print if tqdm is None else tqdm.write)(text, file=sys.stderr)
