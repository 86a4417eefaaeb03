"""Weights: reading them from files, writing our own format. Knows the model and files; knows no windows and no host."""

from .reading import DEFAULT_WEIGHTS, WeightsError, load_model, read_state_dict
from .writing import write_weights

__all__ = ["DEFAULT_WEIGHTS", "WeightsError", "load_model", "read_state_dict", "write_weights"]
