"""Weights of convolutions in the layout of the kernels, 3x3 and 7x7 ones transformed for Winograd's algorithm."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsrealbasicvsr.model.network import ResidualTrunk

_WINOGRAD_G = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
"""Weight transform of F(4x4, 3x3) (Lavin and Gray, CVPR 2016)."""

_WINOGRAD_G7 = (
    *(
        tuple(scale * point**power for power in range(7))
        for point, scale in (
            (0.0, 1.0),
            (1.0, -2 / 9),
            (-1.0, -2 / 9),
            (2.0, 1 / 90),
            (-2.0, 1 / 90),
            (0.5, 32 / 45),
            (-0.5, 32 / 45),
        )
    ),
    (0, 0, 0, 0, 0, 0, 1),
)
"""Weight transform of F(2x2, 7x7): a row holds the powers of a point, the last is the point at infinity."""


@dataclass(frozen=True, slots=True)
class PackedConvolution:
    """A convolution's weights in the layout of the kernels, its channels in, and its padded channels out."""

    weights: Tensor
    bias: Tensor
    channels_in: int
    channels_out: int


@dataclass(frozen=True, slots=True)
class Packer:
    """Packs weights for kernels whose feature maps have channels in multiples of `lanes`."""

    lanes: int

    def padded(self, channels: int) -> int:
        """Return the number of channels that a feature map of so many has in memory."""
        return -(-channels // self.lanes) * self.lanes

    def convolution(self, conv: nn.Conv2d, *, groups: int = 1, state_channels: int | None = None) -> PackedConvolution:
        """Pack a 3x3 or 7x7 convolution.

        Args:
            conv: The convolution.
            groups: 4 if its output is shuffled to twice the size: then it comes quarter by quarter.
            state_channels: If given, its input is a frame and a hidden state of so many channels, and the kernels put
                the padded state first.

        Returns:
            Winograd weights, (36 or 64, panels, channels in, lanes).
        """
        weight, bias = conv.weight.detach().cpu().double(), conv.bias
        assert bias is not None
        if state_channels is not None:
            frame, state = weight[:, :3], weight[:, 3:]
            more = self.padded(state_channels) - state_channels
            weight = torch.cat((F.pad(state, (0, 0, 0, 0, 0, more)), frame), dim=1)
        bias = bias.detach().cpu()
        channels_in = weight.shape[1]
        if groups > 1:
            weight = weight.view(-1, groups, *weight.shape[1:]).transpose(0, 1)
            bias = bias.view(-1, groups).transpose(0, 1)
        else:
            weight, bias = weight[None], bias[None]
        more = self.padded(weight.shape[1]) - weight.shape[1]
        weight = F.pad(weight, (0, 0, 0, 0, 0, 0, 0, more)).flatten(0, 1)
        bias = F.pad(bias, (0, more)).flatten()
        matrix = _WINOGRAD_G if weight.shape[-1] == 3 else _WINOGRAD_G7
        transform = torch.tensor(matrix, dtype=torch.float64)
        points = torch.einsum("ay,nkyx,bx->abnk", transform, weight, transform).flatten(0, 1)
        panels = points.view(len(points), -1, self.lanes, channels_in).transpose(2, 3)
        return PackedConvolution(_own(panels), _own(bias), channels_in, len(bias))

    def trunk(self, trunk: ResidualTrunk, *, state_channels: int) -> list[PackedConvolution]:
        """Pack all convolutions of a trunk whose input is a frame and a hidden state of so many channels."""
        first, _, blocks = trunk.main
        assert isinstance(first, nn.Conv2d)
        assert isinstance(blocks, nn.Sequential)
        inside: list[nn.Conv2d] = [conv for block in blocks for conv in (block.conv1, block.conv2)]  # type: ignore[misc]
        return [
            self.convolution(first, state_channels=state_channels),
            *(self.convolution(conv) for conv in inside),
        ]

    def flow_level(self, level: nn.Module) -> list[PackedConvolution]:
        """Pack the convolutions of one level of the flow network."""
        *inner, last = (module for module in level.modules() if isinstance(module, nn.Conv2d))
        return [*(self.convolution(conv) for conv in inner), self.to_planes(last)]

    def to_planes(self, conv: nn.Conv2d) -> PackedConvolution:
        """Pack a convolution whose output are planes: (planes, taps, taps, padded channels in)."""
        assert conv.bias is not None
        weight = conv.weight.detach().cpu().permute(0, 2, 3, 1)
        more = self.padded(weight.shape[-1]) - weight.shape[-1]
        weight = F.pad(weight, (0, more))
        return PackedConvolution(_own(weight), _own(conv.bias.detach().cpu()), weight.shape[-1], len(weight))

    def fusion(self, conv: nn.Conv2d, *, state_channels: int) -> PackedConvolution:
        """Pack the 1x1 convolution of two hidden states: (2, panels, padded channels of one state, lanes)."""
        assert conv.bias is not None
        weight = conv.weight.detach().cpu().reshape(-1, 2, state_channels)
        more_out = self.padded(len(weight)) - len(weight)
        more_in = self.padded(state_channels) - state_channels
        weight = F.pad(weight, (0, more_in, 0, 0, 0, more_out))
        panels = weight.view(-1, self.lanes, 2, state_channels + more_in).permute(2, 0, 3, 1)
        bias = F.pad(conv.bias.detach().cpu(), (0, more_out))
        return PackedConvolution(_own(panels), _own(bias), state_channels + more_in, len(bias))


def _own(tensor: Tensor) -> Tensor:
    """Return a dense float32 copy: the model may be changed afterwards."""
    return tensor.float().clone(memory_format=torch.contiguous_format)
