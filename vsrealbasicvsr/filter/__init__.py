"""The VapourSynth side: `core.rbvsr.Upscale` in Python. Above the engine; no layer below imports vapoursynth.

The native plugin (vsrealbasicvsr/plugin/rbvsr.c) calls the functions in `entry.FUNCTIONS` and the steps of `serving`.
"""
