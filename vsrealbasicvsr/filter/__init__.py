"""The VapourSynth side: `core.rbvsr.Upscale` in Python. The only room that imports vapoursynth.

The native plugin (vsrealbasicvsr/plugin/rbvsr.c) calls what `entry.FUNCTIONS` names, and drives the steps of `serving`.
"""
