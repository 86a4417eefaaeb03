"""Files of weights: reading and checking them, converting published ones, writing our own format."""

from .converting import PUBLISHED_SHA256, convert_weights, published_name, sha256_of
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
from .sealing import tensors_sha256
from .writing import write_weights

__all__ = [
    "DEFAULT_WEIGHTS",
    "PUBLISHED_SHA256",
    "StoredNetwork",
    "WeightsError",
    "build_network",
    "convert_weights",
    "default_detail",
    "load_model",
    "published_name",
    "read_checkpoint",
    "read_discriminator",
    "read_network",
    "read_tensors",
    "reason_of",
    "sha256_of",
    "tensors_sha256",
    "write_weights",
]
