"""Distance of the output to the output of a teacher, its contrast raised to the ground truth's. Not in the paper."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from training.losses.distances import l1
from training.losses.kinds import ClipTensors, Loss, Needs, Reach
from vsrealbasicvsr.luma import luma

MIN_CONTRAST = 1 / 255
"""Contrast below which a place counts as plain: it gains little."""

type Boxes = tuple[int, ...]
"""Sides of box filters, odd, in pixels. One after another they blur almost like a Gaussian."""

SIGMA_1_PX, SIGMA_2_PX, SIGMA_3_PX, SIGMA_8_PX = (3, 3), (5, 5), (7, 7, 3), (17, 17, 15)
"""The Gaussians' standard deviations are 1.2, 2.0, 2.9 and 8.1 pixels."""

_AROUND = (33, 33)
"""Boxes, as above, over which contrast is measured around each pixel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """A band of spatial frequencies, the difference of two blurs, and how much contrast a clip gains in it.

    Attributes:
        fine: The narrower blur; it removes finer detail.
        wide: The wider blur; what it leaves is coarser than the band.
        share: Share of the missing contrast that is added: 1 gives the contrast of the ground truth.
        limit: At most this share of the clip's own contrast is added.
    """

    fine: Boxes
    wide: Boxes
    share: float
    limit: float


def contrast_loss(hr: Tensor, taught: Tensor, gt: Tensor, *, strength: float = 1.0) -> Tensor:
    """Return the L1 distance of the output to a teacher's output with more contrast.

    A network that minimises an error has less contrast than the ground truth where it is unsure. At periods of 6 to 60
    pixels it can restore most of it by amplifying the detail that it has, which flickers less and looks better than
    invented detail (docs/decisions.md). How much is missing depends on how damaged the clip is, and on the place: what
    is out of focus lacks nothing. The network learns to tell from the input.

    Args:
        hr: Output (N, T, 3, S*H, S*W) in [0, 1].
        taught: Output of the teacher, of the same shape.
        gt: Ground truth, of the same shape.
        strength: 1: all the missing contrast at periods of 12 to 60 pixels and 0.6 of it at 6 to 20, within limits. 2:
            twice as much, for a sharp set of which the default mixture takes about half.
    """
    return l1(hr, with_contrast(taught, gt, contrast_bands(strength)))


def contrast_bands(strength: float) -> tuple[Band, Band]:
    """Return the two bands of the contrast loss; for strength, see there."""
    coarse = Band(fine=SIGMA_2_PX, wide=SIGMA_8_PX, share=strength, limit=0.3 * strength)
    return coarse, Band(fine=SIGMA_1_PX, wide=SIGMA_3_PX, share=0.6 * strength, limit=0.22 * strength)


def with_contrast(clip: Tensor, gt: Tensor, bands: Sequence[Band]) -> Tensor:
    """Raise the contrast of clips' luma towards that of the ground truth, at each place as much as is missing there.

    Each band is multiplied by a factor of 1 or more.

    Args:
        clip: Clips (N, T, 3, H, W).
        gt: Ground truth, of the same shape.
        bands: The bands; an empty sequence changes nothing.

    Returns:
        Clips of the same shape; values may leave [0, 1].
    """
    plane, real = luma(clip), luma(gt)
    added = torch.zeros_like(plane)
    for band in bands:
        if band.limit > 0:
            detail, wanted = _detail(plane, band), _detail(real, band)
            ratio = (_deviation(wanted) + MIN_CONTRAST) / (_deviation(detail) + MIN_CONTRAST)
            added = added + (band.share * (ratio - 1)).clamp(0, band.limit) * detail
    return clip + added.unsqueeze(-3)


def _detail(plane: Tensor, band: Band) -> Tensor:
    return _blurred(plane, band.fine) - _blurred(plane, band.wide)


def _deviation(detail: Tensor) -> Tensor:
    """Return the root of the mean square around each pixel of clips (N, T, H, W)."""
    return _blurred(detail.square(), _AROUND).sqrt()


def _blurred(plane: Tensor, boxes: Boxes) -> Tensor:
    """Return clips (N, T, H, W) blurred by boxes; borders are repeated."""
    reach = sum(side // 2 for side in boxes)
    blurred = F.pad(plane, (reach, reach, reach, reach), mode="replicate")
    for side in boxes:  # rows and columns in turn: torch adds up a whole box anew for each pixel
        blurred = F.avg_pool2d(F.avg_pool2d(blurred, (side, 1), stride=1), (1, side), stride=1)
    return blurred


def _of_clips(clips: ClipTensors) -> Tensor:
    assert clips.faithful is not None, "the contrast loss needs Needs.TEACHER"
    return contrast_loss(clips.hr, clips.faithful, clips.gt, strength=clips.contrast_strength)


LOSS: Loss[ClipTensors] = Loss(compute=_of_clips, reaches=Reach.EVERYTHING, needs=Needs.TEACHER)
