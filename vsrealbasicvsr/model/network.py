"""The generator: a cleaning module, then BasicVSR. Published key names and numerics (Chan et al., CVPR 2021 and 2022).

The steps are public one by one (`clean`, `flows`, `propagate`, `reconstruct`), so that an engine can run them lazily;
`super_resolve` composes them over a whole sequence.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .architecture import CLEANING_LEVELS_KEY, Architecture
from .cleaning_levels import residue_of_levels
from .flow import IMAGENET_MEAN, IMAGENET_STD, SPyNet, flow_warp, resize
from .state_dict import check_state_dict

_HALO_ROWS = 2
"""Halo of the reconstruction: low-resolution rows on each side that a reconstructed row depends on."""


class RunStep(Protocol):
    """Calls a step of the network on its arguments and returns its result.

    Gradient checkpointing passes one that computes activations again in the backward pass instead of keeping them.
    """

    def __call__[*Ts, R](self, step: Callable[[*Ts], R], /, *arguments: *Ts) -> R: ...


def run_directly[*Ts, R](step: Callable[[*Ts], R], /, *arguments: *Ts) -> R:
    """Run a step eagerly."""
    return step(*arguments)


class ResidualBlock(nn.Module):
    """x + conv2(ReLU(conv1(x))), 3x3, (N, C, H, W) to the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        if self.conv1.weight.is_meta:  # shapes without values: torch loads 900 modules before it draws nothing
            return
        for conv in (self.conv1, self.conv2):  # small residues at the start keep a deep recurrent trunk stable
            nn.init.kaiming_normal_(conv.weight)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
            with torch.no_grad():
                conv.weight.mul_(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(x)))  # type: ignore[no-any-return]


class ResidualTrunk(nn.Module):
    """A convolution, LeakyReLU(0.1), then residual blocks: (N, channels_in, H, W) to (N, channels, H, W)."""

    def __init__(self, channels_in: int, channels: int, num_blocks: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(channels_in, channels, 3, padding=1),
            nn.LeakyReLU(0.1),
            nn.Sequential(*(ResidualBlock(channels) for _ in range(num_blocks))),
        )

    @property
    def halo_rows(self) -> int:
        """The halo: rows on each side that an output row depends on, one for each 3x3 convolution."""
        return _num_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.main(x)  # type: ignore[no-any-return]


class PixelShuffleUpsample(nn.Module):
    """A 3x3 convolution and a pixel shuffle: (N, channels_in, H, W) to (N, channels_out, 2H, 2W)."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.upsample_conv = nn.Conv2d(channels_in, channels_out * 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.upsample_conv(x), 2)


class BasicVSR(nn.Module):
    """Plain (uncoupled) BasicVSR. Holds the published names; its steps are composed by RealBasicVSR."""

    def __init__(self, sizes: Architecture) -> None:
        super().__init__()
        if sizes.scale != 4:
            raise ValueError(f"BasicVSR: two pixel shuffles by 2 enlarge by 4, got a scale of {sizes.scale}")
        self.scale = sizes.scale
        self.spynet = SPyNet(sizes.num_flow_levels, sizes.flow_channels, sizes.flow_stride)
        self.backward_resblocks = ResidualTrunk(3 + sizes.mid_channels, sizes.mid_channels, sizes.num_backward_blocks)
        self.forward_resblocks = ResidualTrunk(3 + sizes.mid_channels, sizes.mid_channels, sizes.num_forward_blocks)
        self.fusion = nn.Conv2d(2 * sizes.mid_channels, sizes.fusion_channels, 1)
        self.upsample1 = PixelShuffleUpsample(sizes.fusion_channels, sizes.quarter_channels)
        self.upsample2 = PixelShuffleUpsample(sizes.quarter_channels, sizes.hr_channels)
        self.conv_hr = nn.Conv2d(sizes.hr_channels, sizes.hr_out_channels, 3, padding=1)
        self.conv_last = nn.Conv2d(sizes.hr_out_channels, 3, 3, padding=1)
        self.activation: nn.Module = nn.LeakyReLU(0.1)
        if sizes.start_passes:  # so that a file tells it; a float like all other tensors, for moving averages
            self.register_buffer("start_passes", torch.tensor(float(sizes.start_passes)))

    def reconstruct(self, cleaned: Tensor, backward_features: Tensor, forward_features: Tensor) -> Tensor:
        x = self.activation(self.fusion(torch.cat((backward_features, forward_features), dim=1)))
        x = self.activation(self.upsample1(x))
        x = self.activation(self.upsample2(x))
        x = self.activation(self.conv_hr(x))
        base = resize(cleaned, *(self.scale * size for size in cleaned.shape[-2:]))
        return self.conv_last(x).to(base.dtype) + base  # type: ignore[no-any-return]


class RealBasicVSR(nn.Module):
    """Real-world video super-resolution x4: clean every frame, then propagate the cleaned frames both ways in time.

    Source: Chan et al., "Investigating Tradeoffs in Real-World Video Super-Resolution", CVPR 2022.
    """

    def __init__(self, sizes: Architecture | None = None) -> None:
        super().__init__()
        self.sizes = sizes or Architecture()
        self.image_cleaning = nn.Sequential(
            ResidualTrunk(3, self.sizes.cleaning_channels, self.sizes.num_cleaning_blocks),
            nn.Conv2d(self.sizes.cleaning_channels, 3, 3, padding=1),
        )
        if self.sizes.num_cleaning_levels > 1:  # so that a file tells it, see start_passes
            self.image_cleaning.register_buffer("levels", torch.tensor(float(self.sizes.num_cleaning_levels)))
        self.basicvsr = BasicVSR(self.sizes)

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, Tensor]) -> Self:
        """Create the network that these tensors belong to, in float32, its sizes read from their shapes.

        Args:
            state_dict: Tensors by their published names. SPyNet's `mean` and `std` may be absent: they are constants.

        Raises:
            StateDictError: They are not the tensors of one network; the text names missing, extra and misshapen keys.
        """
        with torch.device("meta"):  # shapes only: takes no memory, and no random numbers from the user's generator
            network = cls(Architecture.from_state_dict(state_dict))
        own = network.state_dict()
        constants = {
            f"basicvsr.spynet.{name}": torch.tensor(value).view(1, 3, 1, 1)
            for name, value in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD))
        }
        check_state_dict("not the tensors of one RealBasicVSR network", own, state_dict, optional=constants)
        tensors = {
            key: tensor.detach().to(torch.float32, copy=True).contiguous()
            for key, tensor in (constants | dict(state_dict)).items()
        }
        network.load_state_dict(tensors, assign=True)
        return network

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *others: Any) -> None:
        """Refuse the tensors of a network that cleans at another number of sizes: nothing else tells them apart."""
        given = state_dict.get(f"{prefix}{CLEANING_LEVELS_KEY}")
        if given is not None and float(given) != self.sizes.num_cleaning_levels:
            *_, error_messages = others
            own = self.sizes.num_cleaning_levels
            error_messages.append(f"{prefix}{CLEANING_LEVELS_KEY} is {float(given):g}, and this network's is {own}")
        super()._load_from_state_dict(state_dict, prefix, *others)

    @property
    def dtype(self) -> torch.dtype:
        """The type of all convolutions but the flow network's.

        Frames keep their own type: an image stored in bfloat16 would show bands.
        """
        return self.basicvsr.fusion.weight.dtype

    def forward(self, lr: Tensor) -> Tensor:
        """Super-resolve a clip after one cleaning pass, as in training: (N, T, 3, H, W) to (N, T, 3, S*H, S*W)."""
        return self.super_resolve(self.clean(lr))

    @property
    def cleaning_halo_rows(self) -> int:
        """The halo of `cleaning_residue_of_size`: rows on each side that a cleaned row depends on."""
        return _num_convolutions(self.image_cleaning)

    def cleaning_residue(self, frames: Tensor, *, num_levels: int | None = None) -> Tensor:
        """Return what one cleaning pass adds: (B, 3, H, W) to the same, in the dtype of the frames.

        Args:
            frames: (B, 3, H, W).
            num_levels: Number of sizes to clean at, if not the network's own.
        """
        num_levels = self.sizes.num_cleaning_levels if num_levels is None else num_levels
        return residue_of_levels(frames, num_levels, self.cleaning_residue_of_size)

    def cleaning_residue_of_size(self, frames: Tensor) -> Tensor:
        """Return what the cleaning module adds to frames (B, 3, H, W) of one of its sizes."""
        return self.image_cleaning(frames.to(self.dtype)).to(frames.dtype)  # type: ignore[no-any-return]

    def clean(self, lr: Tensor, *, num_levels: int | None = None) -> Tensor:
        """Return the clip after one cleaning pass, each frame independently: (N, T, 3, H, W) to the same.

        `num_levels` is the number of sizes to clean at, if not the network's own.
        """
        check_clip("RealBasicVSR.clean", lr)
        frames = lr.flatten(0, 1)
        return (frames + self.cleaning_residue(frames, num_levels=num_levels)).view_as(lr)

    def flows(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Return the forward and the backward flow, (B, 2, H, W), between neighbouring cleaned frames (B, 3, H, W).

        `forward` aligns the state of `first` to `second`, `backward` that of `second` to `first`.
        """
        both = self.basicvsr.spynet(torch.cat((second, first)), torch.cat((first, second)))
        forward_flow, backward_flow = both.chunk(2)
        return forward_flow, backward_flow

    def propagate_backward(self, cleaned: Tensor, state: Tensor | None, flow_px: Tensor | None) -> Tensor:
        """Return the backward state (B, mid, H, W) of a frame, from that of the next frame (None: there is none)."""
        return self._propagate(self.basicvsr.backward_resblocks, cleaned, state, flow_px)

    def propagate_forward(self, cleaned: Tensor, state: Tensor | None, flow_px: Tensor | None) -> Tensor:
        """Return the forward state (B, mid, H, W) of a frame, from that of the previous frame (None: none)."""
        return self._propagate(self.basicvsr.forward_resblocks, cleaned, state, flow_px)

    def reconstruct(self, cleaned: Tensor, backward_features: Tensor, forward_features: Tensor) -> Tensor:
        """Return the high-resolution frame: (B, 3, H, W) and two (B, mid, H, W) to (B, 3, S*H, S*W)."""
        return self.basicvsr.reconstruct(cleaned, backward_features, forward_features)

    def reconstruct_in_tiles(
        self, cleaned: Tensor, backward_features: Tensor, forward_features: Tensor, *, rows: int
    ) -> Iterator[tuple[int, Tensor]]:
        """Reconstruct a frame tile by tile, so that only one tile's feature maps are in memory.

        Each tile has a halo of two rows on each side: the convolutions depend on 1 + 1/2 + 1/4 + 1/4 rows. The result
        is that of `reconstruct` but for rounding, where a library chooses another kernel for another size.

        Args:
            cleaned: (B, 3, H, W).
            backward_features: (B, mid, H, W).
            forward_features: (B, mid, H, W).
            rows: Low-resolution rows of a tile.

        Yields:
            From top to bottom (first row, (B, 3, rows of the tile, S*W)).

        Raises:
            ValueError: `rows` is below 1.
        """
        if rows < 1:
            raise ValueError(f"RealBasicVSR.reconstruct_in_tiles: rows must be at least 1, got {rows}")
        height, scale = cleaned.shape[2], self.sizes.scale
        for first in range(0, height, rows):
            stop = min(first + rows, height)
            seen_first, seen_stop = max(first - _HALO_ROWS, 0), min(stop + _HALO_ROWS, height)
            tile = self.reconstruct(
                *(maps[:, :, seen_first:seen_stop] for maps in (cleaned, backward_features, forward_features))
            )
            yield first * scale, tile[:, :, (first - seen_first) * scale : (stop - seen_first) * scale]

    def super_resolve(self, cleaned: Tensor, *, run: RunStep = run_directly) -> Tensor:
        """Run BasicVSR on cleaned frames, the whole sequence at once: (N, T, 3, H, W) to (N, T, 3, S*H, S*W).

        `run` calls each step (flows, propagation and reconstruction of a frame): the seam for gradient checkpointing.
        """
        check_clip("RealBasicVSR.super_resolve", cleaned)
        num_clips, num_frames, _, height, width = cleaned.shape
        flows_forward, flows_backward = None, None
        if num_frames > 1:
            first, second = cleaned[:, :-1].flatten(0, 1), cleaned[:, 1:].flatten(0, 1)
            flows_forward, flows_backward = (
                flow.view(num_clips, num_frames - 1, 2, height, width) for flow in run(self.flows, first, second)
            )

        state: Tensor | None = None
        backward_features: list[Tensor] = []
        for i in reversed(range(num_frames)):
            flow = flows_backward[:, i] if flows_backward is not None and state is not None else None
            state = run(self.propagate_backward, cleaned[:, i], state, flow)
            backward_features.insert(0, state)

        state = None
        frames = []
        for i in range(num_frames):
            flow = flows_forward[:, i - 1] if flows_forward is not None and state is not None else None
            state = run(self.propagate_forward, cleaned[:, i], state, flow)
            frames.append(run(self.reconstruct, cleaned[:, i], backward_features[i], state))
        return torch.stack(frames, dim=1)

    def _propagate(self, trunk: ResidualTrunk, cleaned: Tensor, state: Tensor | None, flow_px: Tensor | None) -> Tensor:
        if state is None:
            for _ in range(self.sizes.start_passes):
                state = trunk(self.trunk_input(cleaned, state, None))
        return trunk(self.trunk_input(cleaned, state, flow_px))  # type: ignore[no-any-return]

    def trunk_input(self, cleaned: Tensor, state: Tensor | None, flow_px: Tensor | None) -> Tensor:
        """Return the input of a propagation trunk, (B, 3 + mid, H, W).

        It is a frame (B, 3, H, W) and the hidden state, sampled along the flow. Without a state it is zeros; without a
        flow the state stays as it is.
        """
        if state is None:
            shape = (cleaned.shape[0], self.sizes.mid_channels, *cleaned.shape[-2:])
            state = cleaned.new_zeros(shape, dtype=self.dtype)
        elif flow_px is not None:
            state = flow_warp(state, flow_px)
        return torch.cat((cleaned.to(state.dtype), state), dim=1)


def _num_convolutions(module: nn.Module) -> int:
    return sum(isinstance(part, nn.Conv2d) for part in module.modules())


def check_clip(function: str, clip: Tensor) -> None:
    """Raise ValueError unless `clip` is (N, T, 3, H, W) with no empty axis."""
    if clip.ndim != 5 or clip.shape[2] != 3 or 0 in clip.shape:
        raise ValueError(f"{function}: expected a clip of shape (N, T, 3, H, W), got {tuple(clip.shape)}")
