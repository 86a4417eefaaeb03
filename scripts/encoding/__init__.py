"""What `python scripts/encode.py` is made of: vspipe and ffmpeg joined by a pipe, and what the pipe loses put back.

From the inside out: errors; programs (which vspipe, which ffmpeg); frame_options, timeline (what a y4m stream does not
carry); pipe; job (one video); command_line, shared with the demo; command.
"""
