"""Encode what a .vpy script makes of a video: its colours, its aspect, its times and its audio stay right.

    python scripts/encode.py upscale.vpy in.mkv out.mkv [--arg name=value ...] [-- FFMPEG OPTIONS]

Runs `vspipe -c y4m upscale.vpy - | ffmpeg` and gives ffmpeg the properties of the first frame, which y4m does not
carry; then sets the time of each encoded frame and adds what else is in in.mkv: audio, subtitles, chapters. The script
finds in.mkv in the variable `source`, other arguments by their names. The result is progressive; rbvsr.Upscale warns of
interlaced frames. No incomplete file is left behind. For a file without a script of your own: `rbvsr upscale`.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # Python looks beside this file; `scripts` is one above
    from scripts.encoding.command import main

    sys.exit(main())
