"""The network of vs-basicvsrpp in plain torch, so that it can be timed where the plugin itself cannot run.

Source: Chan et al., "BasicVSR++: Improving Video Super-Resolution with Enhanced Propagation and Alignment", CVPR 2022:
second-order grid propagation, flow-guided deformable alignment. Sizes of the paper's x4 network. Weights are random,
which does not affect the time. In half precision its flow network stays in float32, as ours does; the plugin's does
not.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vsrealbasicvsr.model.flow import SPyNet, flow_warp
from vsrealbasicvsr.model.network import PixelShuffleUpsample, ResidualTrunk

SCALE = 4
MID_CHANNELS = 64
NUM_BLOCKS = 7
NUM_DEFORMABLE_GROUPS = 16
MAX_RESIDUE_PX = 10
BRANCHES = ("backward_1", "forward_1", "backward_2", "forward_2")


class DeformableAlignment(nn.Module):
    """Samples two states (N, 2 C, H, W) along their flows plus a learnt offset: to (N, C, H, W)."""

    def __init__(self) -> None:
        super().__init__()
        c = MID_CHANNELS
        self.weight = nn.Parameter(torch.randn(c, 2 * c, 3, 3) * 0.03)
        self.bias = nn.Parameter(torch.zeros(c))
        layers: list[nn.Module] = [nn.Conv2d(3 * c + 4, c, 3, padding=1), nn.LeakyReLU(0.1)]
        for _ in range(2):
            layers += [nn.Conv2d(c, c, 3, padding=1), nn.LeakyReLU(0.1)]
        self.conv_offset = nn.Sequential(*layers, nn.Conv2d(c, 27 * NUM_DEFORMABLE_GROUPS, 3, padding=1))

    def forward(self, states: Tensor, condition: Tensor, flows: tuple[Tensor, Tensor]) -> Tensor:
        from torchvision.ops import deform_conv2d  # imported here: torchvision is optional

        rows_first, columns_first, mask = self.conv_offset(torch.cat((condition, *flows), dim=1)).chunk(3, dim=1)
        learnt = MAX_RESIDUE_PX * torch.tanh(torch.cat((rows_first, columns_first), dim=1))
        along = [flow.flip(1).repeat(1, learnt.shape[1] // 4, 1, 1) for flow in flows]
        offset = learnt + torch.cat(along, dim=1)
        return deform_conv2d(states, offset, self.weight, self.bias, padding=1, mask=torch.sigmoid(mask))  # type: ignore[no-any-return]


class BasicVSRPlusPlus(nn.Module):
    """Super-resolves a clip: (1, T, 3, H, W), T >= 2, to (1, T, 3, S*H, S*W)."""

    def __init__(self) -> None:
        super().__init__()
        c = MID_CHANNELS
        self.spynet = SPyNet()
        self.feat_extract = ResidualTrunk(3, c, 5)
        self.deform_align = nn.ModuleDict({name: DeformableAlignment() for name in BRANCHES})
        self.backbone = nn.ModuleDict(
            {name: ResidualTrunk((2 + i) * c, c, NUM_BLOCKS) for i, name in enumerate(BRANCHES)}
        )
        self.reconstruction = ResidualTrunk((1 + len(BRANCHES)) * c, c, 5)
        self.upsample1, self.upsample2 = PixelShuffleUpsample(c, c), PixelShuffleUpsample(c, c)
        self.conv_hr = nn.Conv2d(c, c, 3, padding=1)
        self.conv_last = nn.Conv2d(c, 3, 3, padding=1)

    def forward(self, clip: Tensor) -> Tensor:
        frames = list(torch.split(clip[0], 1))
        maps = [[features] for features in torch.split(self.feat_extract(clip[0]), 1)]
        before, after = clip[0, :-1].float(), clip[0, 1:].float()
        to_next = torch.split(self.spynet(after, before).to(clip.dtype), 1)
        from_next = torch.split(self.spynet(before, after).to(clip.dtype), 1)
        for name in BRANCHES:
            order = list(range(len(frames)))
            if name.startswith("backward"):
                self._propagate(name, order[::-1], maps, dict(enumerate(from_next)))
            else:
                self._propagate(name, order, maps, dict(enumerate(to_next, start=1)))
        return torch.stack([self._upsample(*pair) for pair in zip(frames, maps, strict=True)], dim=1)

    def _propagate(self, name: str, order: list[int], maps: list[list[Tensor]], flows: dict[int, Tensor]) -> None:
        """Add the branch's state to the maps of each frame. flows[i] aligns the state before frame i, in this order."""
        last, second_last, flow_before = None, None, None
        for i in order:
            current, state = maps[i][0], torch.zeros_like(maps[i][0])
            if last is not None:
                flow = flows[i]
                far_flow, far = torch.zeros_like(flow), torch.zeros_like(last)
                condition = [flow_warp(last, flow), current, far]
                if second_last is not None and flow_before is not None:
                    far_flow, far = flow + flow_warp(flow_before, flow), second_last
                    condition[2] = flow_warp(far, far_flow)
                states = torch.cat((last, far), dim=1)
                state = self.deform_align[name](states, torch.cat(condition, dim=1), (flow, far_flow))
                flow_before = flow
            state = state + self.backbone[name](torch.cat((*maps[i], state), dim=1))
            maps[i].append(state)
            last, second_last = state, last

    def _upsample(self, frame: Tensor, maps: list[Tensor]) -> Tensor:
        x = self.reconstruction(torch.cat(maps, dim=1))
        for up in (self.upsample1, self.upsample2):
            x = F.leaky_relu(up(x), 0.1)
        x = self.conv_last(F.leaky_relu(self.conv_hr(x), 0.1))
        return x + F.interpolate(frame, scale_factor=SCALE, mode="bilinear", align_corners=False)  # type: ignore[no-any-return]
