"""CUDA streams as keys of caches."""

import torch


def stream_of(device: torch.device) -> int:
    """Return a number for this thread's current stream; 0 for devices without streams.

    It is a part of the key of every cache of tensors that threads share: torch gives the memory of an evicted tensor to
    the next one on its own stream, while another stream may still read it.
    """
    return int(torch.cuda.current_stream(device).cuda_stream) if device.type == "cuda" else 0
