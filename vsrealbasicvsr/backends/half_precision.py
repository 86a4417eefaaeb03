"""Which GPUs compute in half precision as they should."""

import re
import threading

import torch
import torch.nn.functional as F

from vsrealbasicvsr.devices import device_name

from .cuda.streams import place_of
from .memory import is_out_of_memory

TENSOR_CORES, BFLOAT16 = (7, 0), (8, 0)
"""CUDA capabilities from which on there are tensor cores, and convolutions in bfloat16 in cuDNN (though torch's
is_bf16_supported says yes below)."""

_WITHOUT_TENSOR_CORES = re.compile(r"\bGTX 16|\bT(400|500|550|600|1000|1200|2000)\b|\bMX(450|550)\b|\bCMP [34]0HX")
"""GPUs of capability 7.5 (TU116, TU117) without tensor cores. Their convolutions in float16 gave NaN (issues 58123 and
77955 of pytorch/pytorch), and are no faster."""

_MAX_ERROR = 2e-3
"""Of a convolution in float16, relative to its largest value. The result's own rounding makes 5e-4 of it, sums in
float16 instead of float32 more than 5e-3."""


def float16_flaw(device: torch.device) -> str | None:
    """Return why a GPU should not compute in float16; None if it is right and, on CUDA, fast.

    The check runs once in a process for each model of GPU.

    Raises:
        RuntimeError: There is no memory for the check.
    """
    with _lock:
        if (kind := device_name(device)) not in _flaws:
            _flaws[kind] = _lacks_tensor_cores(device) or _wrong_convolution(device)
        return _flaws[kind]


def bfloat16_flaw(device: torch.device) -> str | None:
    """Return why a device cannot compute in bfloat16; None if it can."""
    if not _is_nvidia(device) or torch.cuda.get_device_capability(device) >= BFLOAT16:
        return None
    given, needed = (".".join(map(str, one)) for one in (torch.cuda.get_device_capability(device), BFLOAT16))
    return f"cuDNN has no convolutions in bfloat16 below capability {needed}, and {device_name(device)} has {given}"


_flaws: dict[str, str | None] = {}
_lock = threading.Lock()


def _is_nvidia(device: torch.device) -> bool:
    return device.type == "cuda" and torch.version.hip is None  # AMD's numbers mean something else


def _lacks_tensor_cores(device: torch.device) -> str | None:
    if not _is_nvidia(device):
        return None
    if torch.cuda.get_device_capability(device) >= TENSOR_CORES and not _WITHOUT_TENSOR_CORES.search(
        device_name(device)
    ):
        return None
    return f"{device_name(device)} has no tensor cores"


def _wrong_convolution(device: torch.device) -> str | None:
    """Compute one convolution of the network's kind in both precisions."""
    generator = torch.Generator().manual_seed(0)
    try:
        with torch.inference_mode(), place_of(device):
            x = torch.rand((1, 64, 16, 16), generator=generator, device="cpu").to(device, torch.float16)
            weight = torch.randn((64, 64, 3, 3), generator=generator, device="cpu").to(device, torch.float16)
            x, weight = (one.contiguous(memory_format=torch.channels_last) for one in (x, weight))
            found = F.conv2d(x, weight, padding=1).float()
            expected = F.conv2d(x.float(), weight.float(), padding=1)
            is_right = bool(((found - expected).abs().max() <= _MAX_ERROR * expected.abs().max()).item())
    except Exception as error:  # drivers raise what they like
        if is_out_of_memory(error):
            raise
        return f"a convolution in float16 failed there: {' '.join(str(error).split())[:200]}"
    return None if is_right else "a convolution in float16 is wrong there"
