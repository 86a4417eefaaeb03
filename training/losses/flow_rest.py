"""No motion between a frame and itself. Not in the paper."""

from collections.abc import Callable

from torch import Tensor

from training.losses.kinds import ClipTensors, Loss, Reach


def flow_rest_loss(flow: Callable[[Tensor, Tensor], Tensor], frames: Tensor) -> Tensor:
    """Return the mean length in pixels, along each axis, of the flow between a frame (N, 3, H, W) and itself.

    Not in the paper. A flow network trained through the output alone keeps a constant offset, which what comes after it
    learns to undo: 0.39 px were seen. A sequence that begins, or a picture that stands still, then changes for several
    frames. `flow` is that of SPyNet; the frames get no gradient.
    """
    frames = frames.detach()
    return flow(frames, frames).abs().mean()


LOSS: Loss[ClipTensors] = Loss(
    compute=lambda clips: flow_rest_loss(clips.flow, clips.cleaned[:, 0]),
    reaches=Reach.FLOW,
)
