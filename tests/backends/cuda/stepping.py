"""The steps of a network on a few pictures, in the order of the engine."""

import torch


def steps(network, frames: list[torch.Tensor]) -> list[torch.Tensor]:
    """All that is made of frames, in the order in which it is made; states are carried on."""
    made = []
    backward = None
    for this, after in zip(frames, [*frames[1:], None], strict=True):
        made.append(network.cleaning_residue(this))
        flow = None if after is None else network.flow(this, after)
        made += [] if flow is None else [flow]
        backward = network.propagate_backward(this, backward, flow)
        forward = network.propagate_forward(this, None if flow is None else backward, flow)
        made += [backward, forward, *(rows for _, rows in network.reconstruct(this, backward, forward))]
    return made
