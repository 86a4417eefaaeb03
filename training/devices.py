"""The torch device that the command line of a command names."""

import sys

import torch

from vsrealbasicvsr.devices import DeviceError, find_device
from vsrealbasicvsr.errors import UserError


def choose_device(name: str) -> torch.device:
    """Return the device of the option --device. Raise UserError if torch has none of that name."""
    try:
        return find_device(name, tell=lambda text: print(text, file=sys.stderr))
    except DeviceError as error:
        raise UserError(f"--device {error}. Use auto, cpu, cuda or cuda:N") from None
