"""torch devices by name."""

from collections.abc import Callable

import torch

from vsrealbasicvsr.errors import UserError, printable


class DeviceError(UserError):
    """A device cannot be used. The text names it and the reason; the caller adds what to do."""


def find_device(name: str, *, tell: Callable[[str], object] = lambda _: None) -> torch.device:
    """Return the torch device of a name, after a test allocation on it.

    Args:
        name: "auto" (the current CUDA device if there is one that torch can use, else the CPU) or any name that torch
            accepts.
        tell: Called with a line for the user where "auto" means the CPU although there is a CUDA device.

    Returns:
        A canonical device: "cuda" and "xpu" with their index, "cpu:0" as "cpu".

    Raises:
        DeviceError: torch has no such device, or it cannot be used. With "auto": the CUDA device has no memory left
            (the CPU would be many times slower).
        MemoryError: The process has no memory left even for a scalar.
    """
    if name != "auto":
        return _usable(name)
    if torch.cuda.is_available():
        try:
            return _usable("cuda")
        except DeviceError as error:
            if "out of memory" in str(error.__cause__).lower():
                raise
            tell(f'device="auto" is the CPU: {error}')
    return _usable("cpu")


def _usable(name: str) -> torch.device:
    try:
        device = torch.device(_with_index(name))
        torch.zeros(1, device=device).item()
    except MemoryError:
        raise
    except Exception as error:  # torch raises what it likes, import errors for instance
        reason = printable(str(error).strip().split("\n")[0].split(". ")[0], 120) or type(error).__name__
        if "no kernel image" in str(error):
            reason += _missing_kernels()
        raise DeviceError(f'"{printable(name, 100)}" cannot be used ({reason})') from error
    return torch.device("cpu") if device.type == "cpu" else device


def _with_index(name: str) -> str:
    if name == "cuda":
        return f"cuda:{torch.cuda.current_device()}"
    if name == "xpu" and torch.xpu.is_available():
        return f"xpu:{torch.xpu.current_device()}"
    return name


def _missing_kernels() -> str:
    """Return what is wrong, and what to do, where this torch was built for other GPUs than the current one."""
    capability = "sm_{}{}".format(*torch.cuda.get_device_capability())
    built_for = ", ".join(torch.cuda.get_arch_list())
    return (
        f": the GPU is {capability}, torch {torch.__version__} was built for {built_for}; install a build for this "
        "GPU, as pytorch.org lists them"
    )


def available_devices() -> list[str]:
    """Return the devices that torch can use here, as `find_device` takes them, with a GPU's name and memory."""
    found = ["cpu"]
    for kind, module in (("cuda", torch.cuda), ("xpu", torch.xpu)):
        for index in range(module.device_count() if module.is_available() else 0):
            properties = module.get_device_properties(index)
            found.append(f"{kind}:{index} ({properties.name}, {properties.total_memory / 2**30:.0f} GiB)")
    if torch.backends.mps.is_available():
        found.append("mps")
    return found


def device_name(device: torch.device) -> str:
    """Return the name of the GPU's model, or the type of a device that has none."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return str(torch.xpu.get_device_name(device)) if device.type == "xpu" else device.type
