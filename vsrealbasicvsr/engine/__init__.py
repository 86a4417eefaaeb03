"""Upscaling of clips: windows of frames through the network, lazily and in bounded memory.

The promise that everything here keeps: frame n of the output depends on (clip, arguments, n) alone, never on the order
of the requests, on the number of threads or on what is still cached.
"""

from vsrealbasicvsr.backends import is_out_of_memory
from vsrealbasicvsr.scenes import Thumbnail, is_scene_cut, thumbnail

from .device import DeviceConfig, DeviceError, Precision, choose_device, choose_devices
from .frame_cache import FrameCache
from .limits import memory_cure
from .planes import MATRICES, PlaneFormat, to_planes
from .scene_cuts import SceneCuts
from .source_frame import SourceFrame
from .upscaler import WindowUpscaler
from .windows import Grid, Window
from .worker import Statistics

__all__ = [
    "MATRICES",
    "DeviceConfig",
    "DeviceError",
    "FrameCache",
    "Grid",
    "PlaneFormat",
    "Precision",
    "SceneCuts",
    "SourceFrame",
    "Statistics",
    "Thumbnail",
    "Window",
    "WindowUpscaler",
    "choose_device",
    "choose_devices",
    "is_out_of_memory",
    "is_scene_cut",
    "memory_cure",
    "thumbnail",
    "to_planes",
]
