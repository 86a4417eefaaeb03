"""Which CUDA stream a cached tensor belongs to. Knows no degradations."""

import torch


def stream_of(device: torch.device) -> int:
    """A number for the stream that this thread works on; 0 where the device has none.

    A part of the key of every cache of tensors that threads share: torch gives the memory of an evicted tensor to the
    next one on its own stream, while work on another stream may still read it.
    """
    return int(torch.cuda.current_stream(device).cuda_stream) if device.type == "cuda" else 0
