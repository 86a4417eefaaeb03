"""Windows of frames through the network, lazily and in a bounded memory. Knows the model; knows no VapourSynth.

The promise that everything here keeps: frame n of the output depends on (clip, arguments, n) alone, never on the
order of the requests, on the number of threads or on what is still held.
"""

from vsrealbasicvsr.scenes import Thumbnail, is_scene_cut, thumbnail

from .compute import Compute, ComputeError, Precision, choose_compute, choose_computes
from .limits import memory_cure
from .memory import is_out_of_memory
from .planes import MATRICES, PlaneFormat, to_planes
from .upscaler import SceneCuts, SourceFrame, Statistics, WindowUpscaler
from .windows import Grid, Window

__all__ = [
    "MATRICES",
    "Compute",
    "ComputeError",
    "Grid",
    "PlaneFormat",
    "Precision",
    "SceneCuts",
    "SourceFrame",
    "Statistics",
    "Thumbnail",
    "Window",
    "WindowUpscaler",
    "choose_compute",
    "choose_computes",
    "is_out_of_memory",
    "is_scene_cut",
    "memory_cure",
    "thumbnail",
    "to_planes",
]
