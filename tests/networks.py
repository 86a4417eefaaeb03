"""Sizes of networks small enough to be fast."""

from vsrealbasicvsr.model import Architecture

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
