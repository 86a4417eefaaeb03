"""Types of the arrays that hold images before they become tensors."""

import numpy as np
import numpy.typing as npt

type Frames = npt.NDArray[np.uint8]
"""A frame (H, W, 3) or a clip (T, H, W, 3), RGB, gamma-encoded."""
type Floats = npt.NDArray[np.float64]
