"""Flow between a frame and itself, which should be 0. Not in the paper."""

from collections.abc import Callable

from torch import Tensor

from training.losses.kinds import ClipTensors, Loss, Reach


def flow_rest_loss(flow: Callable[[Tensor, Tensor], Tensor], frames: Tensor) -> Tensor:
    """Return the mean length in pixels, along each axis, of the flow between a frame and itself.

    Not in the paper. A flow network trained through the output alone keeps a constant offset (0.39 px was observed),
    which the layers after it learn to undo. At the beginning of a sequence, and in a still image, the output then
    changes for several frames.

    Args:
        flow: The flow network.
        frames: (N, 3, H, W); they get no gradient.
    """
    frames = frames.detach()
    return flow(frames, frames).abs().mean()


LOSS: Loss[ClipTensors] = Loss(
    compute=lambda clips: flow_rest_loss(clips.flow, clips.cleaned[:, 0]),
    reaches=Reach.FLOW,
)
