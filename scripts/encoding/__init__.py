"""`python scripts/encode.py`: vspipe and ffmpeg joined by a pipe, with what the pipe loses restored.

From the inside out: errors; programs (which vspipe, which ffmpeg); frame_options and timeline (what a y4m stream does
not carry); progress; pipe; job (one video); command_line, shared with the demo; command.
"""
