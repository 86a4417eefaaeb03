"""Change of the output's error along the motion. Not in the paper."""

import torch.nn.functional as F
from torch import Tensor

from training.losses.distances import Distance, distance_of
from training.losses.kinds import ClipTensors, Loss, Needs, Reach
from vsrealbasicvsr.model import flow_warp


def flicker_loss(hr: Tensor, gt: Tensor, flow_px: Tensor, *, distance: Distance = "charbonnier") -> Tensor:
    """Return the mean change of the output's error from a frame to the next along the motion; T >= 2 frames.

    Not in the paper. An error that is the same in every frame (missing fine detail) costs nothing; one that comes and
    goes does, and only that is seen as flicker. What comes into view is compared with whatever the flow finds for it.

    Args:
        hr: The output (N, T, 3, S*H, S*W).
        gt: The ground truth, of the same shape.
        flow_px: (N, T - 1, 2, H, W), of the ground truth at the size of the input: frame t, sampled along it by
            `flow_warp`, looks like frame t + 1.
        distance: "charbonnier" or "l1".

    Returns:
        A scalar; NaN if the flow is not finite.
    """
    error = hr - gt
    scale = hr.shape[-1] // flow_px.shape[-1]
    flow_hr_px = scale * F.interpolate(flow_px.flatten(0, 1), scale_factor=scale, mode="bilinear", align_corners=False)
    carried = flow_warp(error[:, :-1].flatten(0, 1), flow_hr_px, padding="border")
    return distance_of(distance)(carried, error[:, 1:].flatten(0, 1)) + 0 * flow_px.sum()  # padding hides a NaN


def _of_clips(clips: ClipTensors) -> Tensor:
    assert clips.flows_px is not None, "the flicker loss needs Needs.MOTION"
    return flicker_loss(clips.hr, clips.gt, clips.flows_px[0], distance=clips.distance)


LOSS: Loss[ClipTensors] = Loss(compute=_of_clips, reaches=Reach.EVERYTHING, needs=Needs.MOTION)
