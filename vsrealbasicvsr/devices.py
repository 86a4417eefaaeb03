"""torch devices by name."""

import torch

from vsrealbasicvsr.errors import UserError, printable


class DeviceError(UserError):
    """A device cannot be used. The text names it and the reason; the caller adds what to do."""


def find_device(name: str) -> torch.device:
    """Return the torch device of a name, after a test allocation on it.

    Args:
        name: "auto" (the current CUDA device if there is one, else the CPU) or any name that torch accepts.

    Returns:
        A canonical device: "cuda" with its index, "cpu:0" as "cpu".

    Raises:
        DeviceError: torch has no such device, or it cannot be used.
        MemoryError: The process has no memory left even for a scalar.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(f"cuda:{torch.cuda.current_device()}" if name == "cuda" else name)
        torch.zeros(1, device=device).item()
    except MemoryError:
        raise
    except Exception as error:  # torch raises what it likes, import errors for instance
        reason = printable(str(error).strip().split("\n")[0].split(". ")[0], 120) or type(error).__name__
        raise DeviceError(f'"{printable(name, 100)}" cannot be used ({reason})') from None
    return torch.device("cpu") if device.type == "cpu" else device
