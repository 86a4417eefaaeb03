"""Networks small enough to be fast, and pictures for them."""

import torch

from vsrealbasicvsr.model import Architecture, RealBasicVSR

TINY = Architecture(
    cleaning_channels=8,
    num_cleaning_blocks=1,
    mid_channels=8,
    num_backward_blocks=1,
    num_forward_blocks=1,
    fusion_channels=8,
    quarter_channels=8,
    hr_channels=8,
    hr_out_channels=8,
    flow_channels=(8, 8, 8, 8),
)
"""Every layer, once."""


FOUR_CHANNELS = Architecture(
    cleaning_channels=4,
    num_cleaning_blocks=1,
    mid_channels=4,
    num_backward_blocks=1,
    num_forward_blocks=1,
    fusion_channels=4,
    quarter_channels=4,
    hr_channels=4,
    hr_out_channels=4,
    num_flow_levels=2,
    flow_channels=(4, 4, 4, 4),
)
"""The same with fewer channels and flow levels, for tests that read and write weights."""


def random_network(sizes: Architecture) -> RealBasicVSR:
    """Random weights of a size that lets every layer matter, flows of several pixels included."""
    torch.manual_seed(0)
    model = RealBasicVSR(sizes).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            torch.nn.init.uniform_(parameter, -0.2, 0.2)
        elif "resblocks" in name or "image_cleaning" in name:
            torch.nn.init.kaiming_normal_(parameter, a=1)
    return model


def smooth_frames(num: int, height: int, width: int) -> list[torch.Tensor]:
    """Frames (1, 3, H, W) that have little to do with each other."""
    generator = torch.Generator().manual_seed(height * 1000 + width)
    coarse = torch.rand(num, 3, height // 3 + 2, width // 3 + 2, generator=generator)
    return list(torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic").split(1))
