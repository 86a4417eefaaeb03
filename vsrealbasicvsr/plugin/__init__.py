"""The native plugin `core.rbvsr`: rbvsr.c, and the build hook that compiles it into VapourSynth's plugin folder.

Nothing here is imported at run time; rbvsr.pyi is for type checkers.
"""
