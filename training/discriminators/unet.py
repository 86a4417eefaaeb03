"""The U-Net discriminator with spectral normalisation (Schonfeld et al., CVPR 2020; Wang et al., ICCVW 2021).

The names of its tensors are the published ones. Calls do not change the network: the estimates of the spectral norms
advance when `advance_spectral_norms` is called, not when the network is used, so that the same image always gets the
same answer.
"""

from collections.abc import Mapping
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsrealbasicvsr.model import StateDictError, check_state_dict, first_names

SIZE_MULTIPLE_PX = 8
_FIRST_POWER_ITERATIONS = 15  # what torch.nn.utils.parametrizations.spectral_norm takes for a new layer


class SpectralConv(nn.Module):
    """A convolution without bias whose weight is divided by its largest singular value (Miyato et al., ICLR 2018).

    weight_orig is the matrix of (channels_out, channels_in * side * side); weight_u and weight_v estimate its first
    pair of singular vectors. Names and values are those of torch.nn.utils.spectral_norm, whose estimate changes in
    every call in training mode and is rounded to bfloat16 under autocast; this class avoids both.
    """

    weight_u: Tensor
    weight_v: Tensor

    def __init__(self, channels_in: int, channels_out: int, side: int, *, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        weight = nn.Conv2d(channels_in, channels_out, side, bias=False).weight
        self.weight_orig = nn.Parameter(weight.detach())
        self.register_buffer("weight_u", F.normalize(weight.new_empty(channels_out).normal_(), dim=0))
        self.register_buffer("weight_v", F.normalize(weight.new_empty(weight[0].numel()).normal_(), dim=0))
        if not weight.is_meta:
            for _ in range(_FIRST_POWER_ITERATIONS):
                self.advance()

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            sigma = torch.dot(self.weight_u, torch.mv(self.weight_orig.flatten(1), self.weight_v))
            weight = self.weight_orig / sigma
        return F.conv2d(x, weight, stride=self.stride, padding=1)

    @torch.no_grad()
    def advance(self) -> None:
        """Advance the estimate by one power iteration: v from u, then u from v."""
        matrix = self.weight_orig.detach().flatten(1)
        self.weight_v.copy_(F.normalize(torch.mv(matrix.t(), self.weight_u), dim=0, eps=1e-12))
        self.weight_u.copy_(F.normalize(torch.mv(matrix, self.weight_v), dim=0, eps=1e-12))


class UNetDiscriminator(nn.Module):
    """Judges how real each pixel of an image looks: (B, 3, H, W) to logits (B, 1, H, W), positive for real.

    Three convolutions down, three up with skip connections, three at full size.

    Args:
        width: Channels at full size; 64 is the published network (4,376,897 parameters).
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"UNetDiscriminator: width must be at least 1, got {width}")
        self.conv_0 = nn.Conv2d(3, width, 3, padding=1)
        self.conv_1 = SpectralConv(width, 2 * width, 4, stride=2)
        self.conv_2 = SpectralConv(2 * width, 4 * width, 4, stride=2)
        self.conv_3 = SpectralConv(4 * width, 8 * width, 4, stride=2)
        self.conv_4 = SpectralConv(8 * width, 4 * width, 3)
        self.conv_5 = SpectralConv(4 * width, 2 * width, 3)
        self.conv_6 = SpectralConv(2 * width, width, 3)
        self.conv_7 = SpectralConv(width, width, 3)
        self.conv_8 = SpectralConv(width, width, 3)
        self.conv_9 = nn.Conv2d(width, 1, 3, padding=1)

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, Tensor]) -> Self:
        """Build the discriminator of these tensors, in float32, its width read from the first one's shape.

        Raises:
            StateDictError: They are not those of one network; the text names missing, extra and misshapen keys.
        """
        first = state_dict.get("conv_0.weight")
        if first is None or first.ndim != 4 or first.shape[0] < 1:
            found = f"shape {tuple(first.shape)}" if first is not None else f"absent from {len(state_dict)} keys"
            raise StateDictError(
                f"not the tensors of a U-Net discriminator: 'conv_0.weight' tells the width, and it is {found}"
                f" (the keys are {first_names(sorted(state_dict)) or 'none'})"
            )
        with torch.device("meta"):  # shapes only: takes no memory and no random numbers
            network = cls(int(first.shape[0]))
        own = network.state_dict()
        check_state_dict("not the tensors of one U-Net discriminator", own, state_dict)
        tensors = {key: tensor.detach().to(torch.float32, copy=True).contiguous() for key, tensor in state_dict.items()}
        network.load_state_dict(tensors, assign=True)
        return network

    def forward(self, frames: Tensor) -> Tensor:
        """Return logits (B, 1, H, W) of frames (B, 3, H, W), RGB in [0, 1]; H and W are multiples of 8.

        Raises:
            ValueError: The frames have another shape: the two halves of the U would differ in size.
        """
        if frames.ndim != 4 or frames.shape[1] != 3 or 0 in frames.shape:
            raise ValueError(f"UNetDiscriminator: expected frames of shape (B, 3, H, W), got {tuple(frames.shape)}")
        height, width = frames.shape[-2:]
        if height % SIZE_MULTIPLE_PX or width % SIZE_MULTIPLE_PX:
            raise ValueError(
                f"UNetDiscriminator: height and width must be multiples of {SIZE_MULTIPLE_PX}, got {width}x{height}."
                " Crop the frames."
            )
        full = _lrelu(self.conv_0(frames))
        half = _lrelu(self.conv_1(full))
        quarter = _lrelu(self.conv_2(half))
        eighth = _lrelu(self.conv_3(quarter))
        x = _lrelu(self.conv_4(_doubled(eighth))) + quarter
        x = _lrelu(self.conv_5(_doubled(x))) + half
        x = _lrelu(self.conv_6(_doubled(x))) + full
        x = _lrelu(self.conv_8(_lrelu(self.conv_7(x))))
        return self.conv_9(x)  # type: ignore[no-any-return]

    def advance_spectral_norms(self) -> None:
        """Advance every spectrally normalised layer by one power iteration; called once in each discriminator step."""
        for layer in self.children():
            if isinstance(layer, SpectralConv):
                layer.advance()


def _lrelu(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.2)


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
