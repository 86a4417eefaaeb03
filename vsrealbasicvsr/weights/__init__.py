"""Weights: reading them from files, writing our own format. Knows the model and files; knows no windows and no host."""

from .reading import (
    DEFAULT_WEIGHTS,
    StoredNetwork,
    build_network,
    default_detail,
    load_model,
    read_checkpoint,
    read_discriminator,
    read_network,
    read_tensors,
)
from .refusing import WeightsError, reason_of
from .writing import write_weights

__all__ = [
    "DEFAULT_WEIGHTS",
    "StoredNetwork",
    "WeightsError",
    "build_network",
    "default_detail",
    "load_model",
    "read_checkpoint",
    "read_discriminator",
    "read_network",
    "read_tensors",
    "reason_of",
    "write_weights",
]
