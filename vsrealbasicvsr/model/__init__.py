"""The RealBasicVSR network (Chan et al., CVPR 2022).

Axes, used everywhere in this package: `N` clips, `T` frames, `C` channels, `H W` pixels of the low-resolution frame,
`S = 4` scale. RGB is gamma-encoded, in [0, 1]; nothing in the network clamps. Flow is in pixels of the frame it belongs
to, channel 0 to the right, channel 1 down.
"""

from .architecture import (
    CLEANING_LEVELS_KEY,
    MAX_BLOCKS,
    MAX_CLEANING_LEVELS,
    MAX_FLOW_LEVELS,
    MAX_START_PASSES,
    START_PASSES_KEY,
    STRIDES,
    Architecture,
)
from .flow import SPyNet, flow_warp
from .network import RealBasicVSR, RunStep, run_directly
from .refinement import MAX_CLEANING_PASSES, DecidePer, refine
from .state_dict import StateDictError, check_state_dict, first_names

__all__ = [
    "CLEANING_LEVELS_KEY",
    "MAX_BLOCKS",
    "MAX_CLEANING_LEVELS",
    "MAX_CLEANING_PASSES",
    "MAX_FLOW_LEVELS",
    "MAX_START_PASSES",
    "START_PASSES_KEY",
    "STRIDES",
    "Architecture",
    "DecidePer",
    "RealBasicVSR",
    "RunStep",
    "SPyNet",
    "StateDictError",
    "check_state_dict",
    "first_names",
    "flow_warp",
    "refine",
    "run_directly",
]
