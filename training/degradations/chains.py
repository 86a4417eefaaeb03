"""The fixed chains of the evaluation, the same for every clip. Nothing is random but the noise, which has a seed."""

from __future__ import annotations

from training.degradations.recipe import Blur, GaussianNoise, Jpeg, Recipe, Resize, VideoCodec
from training.degradations.resizing import Filter


def clean_recipe() -> Recipe:
    """Return the chain "clean": bicubic /4 with antialiasing."""
    return Recipe((_quarter("bicubic"),))


def mild_recipe() -> Recipe:
    """Return the chain "mild": bicubic /4, x264 CRF 23; a good file, without noise."""
    return Recipe((_quarter("bicubic"), _x264(23)))


def usual_recipe(seed: int, num_frames: int) -> Recipe:
    """Return the chain "usual": blur of 1.2 px, area mean /4, noise 5/255, x264 CRF 28."""
    return Recipe((_blur(1.2, num_frames), _quarter("area"), _noise(5.0, seed, num_frames), _x264(28)))


def harsh_recipe(seed: int, num_frames: int) -> Recipe:
    """Return the chain "harsh": blur of 1.5 px, area /2, noise 15/255, JPEG 40; then bicubic /2, x264 CRF 35."""
    half = Resize(filter="area", scale=(0.5,) * num_frames)
    first = (_blur(1.5, num_frames), half, _noise(15.0, seed, num_frames), Jpeg(quality=(40.0,) * num_frames))
    return Recipe((*first, _quarter("bicubic"), _x264(35)))


def evaluation_recipe(seed: int, num_frames: int) -> Recipe:
    """Return the chain "evaluation": as "usual", but with a bicubic /4."""
    return Recipe((_blur(1.2, num_frames), _quarter("bicubic"), _noise(5.0, seed, num_frames), _x264(28)))


def _blur(sigma_px: float, num_frames: int) -> Blur:
    sigma, zero, one = (sigma_px,) * num_frames, (0.0,) * num_frames, (1.0,) * num_frames
    return Blur(family="iso", size_px=9, sigma_x_px=sigma, sigma_y_px=sigma, angle_radians=zero, beta=one)


def _quarter(name: Filter) -> Resize:
    return Resize(filter=name, scale=None, antialias=name == "bicubic")


def _noise(sigma_255: float, seed: int, num_frames: int) -> GaussianNoise:
    return GaussianNoise(sigma_255=(sigma_255,) * num_frames, grey=False, seed=seed)


def _x264(crf: int) -> VideoCodec:
    return VideoCodec(codec="h264", preset="medium", crf=crf)
