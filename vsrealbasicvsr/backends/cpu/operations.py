"""Fields that arrays of kernel operations have in common."""

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ..base import Tile
from .library import TO_MAP
from .packing import PackedConvolution

type Operations = npt.NDArray[np.void]
"""An array of `library.OPERATION`."""


def set_convolution(
    operations: Operations, convolutions: PackedConvolution | list[PackedConvolution], kind: int
) -> None:
    """Set kind, weights and channels of as many operations, which write maps and rectify (slope 0)."""
    several = convolutions if isinstance(convolutions, list) else [convolutions]
    operations["kind"], operations["store_as"] = kind, TO_MAP
    operations["weights"] = [one.weights.data_ptr() for one in several]
    operations["bias"] = [one.bias.data_ptr() for one in several]
    operations["channels_in"] = [one.channels_in for one in several]
    operations["channels_out"] = [one.channels_out for one in several]


def set_planes(operation: Operations, planes: Tensor, tile: Tile) -> None:
    """Let an operation, whose rows are counted among those that the tile reads, add to planes (3 or 2, H, W)."""
    _, height, width = planes.shape
    operation["target_stride"] = height * width
    operation["target"], operation["target_first"] = planes.data_ptr(), -tile.read_first
