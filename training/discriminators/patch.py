"""A small conditional discriminator for small networks: patches of three neighbouring frames beside the input.

It sees the luma only. Colours are left to the losses that compare them with the ground truth: a discriminator of RGB
taught a small network to draw cyan and orange fringes along edges.

Source: Isola et al., CVPR 2017 (patches, condition); Wang et al., CVPR 2018 (feature matching); Miyato et al., ICLR
2018 (spectral normalisation); Chu et al., SIGGRAPH 2020 (frames warped onto the middle one). As in unet.py, calls do
not change the network.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.discriminators.unet import SpectralConv
from vsrealbasicvsr.luma import luma
from vsrealbasicvsr.model import flow_warp


class PatchDiscriminator(nn.Module):
    """Judges how real each patch of a frame looks beside its neighbours and the input.

    Four convolutions of stride 2, so that a logit sees 46x46 pixels.

    Args:
        num_frames: 1, or 3 for the frame between its two neighbours, each warped onto it.
        width: Channels of the first layer.
    """

    def __init__(self, num_frames: int = 3, width: int = 32) -> None:
        super().__init__()
        if num_frames not in (1, 3) or width < 1:
            raise ValueError(
                f"PatchDiscriminator: num_frames must be 1 or 3 and width at least 1, got {num_frames} and {width}"
            )
        self.num_frames = num_frames
        channels = (num_frames + 1, width, 2 * width, 3 * width, 4 * width)
        self.down = nn.ModuleList(
            SpectralConv(before, after, 4, stride=2) for before, after in itertools.pairwise(channels)
        )
        self.last = SpectralConv(4 * width, 1, 3)

    def forward(self, views: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Judge views, whose height and width are those of the output.

        Args:
            views: (B, num_frames + 1, H, W) of `views`.

        Returns:
            Logits (B, 1, H / 16, W / 16), positive for real, and the features of the four strided layers.
        """
        x, features = 2 * views - 1, []
        for layer in self.down:
            x = F.leaky_relu(layer(x), 0.2)
            features.append(x)
        return self.last(x), features

    def views(self, hr: Tensor, lr: Tensor, flows_px: tuple[Tensor, Tensor] | None) -> Tensor:
        """Return the discriminator's views: the luma of each frame between its warped neighbours, and the input.

        Args:
            hr: (N, T, 3, S*H, S*W), RGB in [0, 1]; it gets gradients.
            lr: (N, T, 3, H, W), RGB in [0, 1]; enlarged by bicubic interpolation.
            flows_px: Motion as in `Flows`; None if num_frames is 1.

        Returns:
            (N T, num_frames + 1, S*H, S*W). At the ends of a sequence the frame itself stands for its neighbour.
        """
        scale = hr.shape[-1] // lr.shape[-1]
        hr, lr = luma(hr)[:, :, None], luma(lr)[:, :, None]
        base = F.interpolate(lr.flatten(0, 1), scale_factor=scale, mode="bicubic", align_corners=False)
        if self.num_frames == 1:
            return torch.cat((hr.flatten(0, 1), base), dim=1)
        before, after = hr, hr
        if flows_px is not None and hr.shape[1] > 1:
            onto_next, onto_previous = (_warped(hr[:, part], flow) for part, flow in zip(_PARTS, flows_px, strict=True))
            before = torch.cat((hr[:, :1], onto_next), dim=1)
            after = torch.cat((onto_previous, hr[:, -1:]), dim=1)
        return torch.cat((before.flatten(0, 1), hr.flatten(0, 1), after.flatten(0, 1), base), dim=1)

    def advance_spectral_norms(self) -> None:
        """Advance every layer by one power iteration; called once in each discriminator step."""
        for layer in (*self.down, self.last):
            layer.advance()


_PARTS = (slice(None, -1), slice(1, None))


def _warped(hr: Tensor, flow_px: Tensor) -> Tensor:
    """Return frames (N, T, C, S*H, S*W) sampled along flows (N, T, 2, H, W) of the input's size."""
    scale = hr.shape[-1] // flow_px.shape[-1]
    large = scale * F.interpolate(flow_px.flatten(0, 1), scale_factor=scale, mode="bilinear", align_corners=False)
    return flow_warp(hr.flatten(0, 1), large, padding="border").view_as(hr)
