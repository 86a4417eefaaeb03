"""Source frames on their way into the network: samples limited, scene cuts found, frames cleaned."""

import contextlib
import itertools
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from vsrealbasicvsr.model import refine
from vsrealbasicvsr.scenes import Thumbnail, is_scene_cut, thumbnail

from .memory import packed, unpacked
from .messages import Messages
from .source_frame import SourceFrame
from .worker import Worker

SceneCuts = Literal["auto", "props", "off"]

LOWEST, HIGHEST = -2.0, 3.0
"""Limits of samples. They include every integer format, super-white and the most saturated colours of YUV (-1.3 to
2.3), and the overshoot that a resizer adds."""


class Cleaner:
    """Cleans source frames on one device. For its compute thread; devices that share frames lock them."""

    def __init__(
        self, worker: Worker, messages: Messages, *, theta: float, cleaning: float, scene_cuts: SceneCuts
    ) -> None:
        """theta, cleaning: see `refine`. scene_cuts: "auto", "props" or "off", see `is_cut`."""
        self._worker = worker
        self._messages = messages
        self._theta = theta
        self._cleaning = cleaning
        self._scene_cuts = scene_cuts

    def cleaned(self, source: SourceFrame) -> Tensor:
        """Return the cleaned frame (1, 3, H, W), float32, on the worker's device."""
        if source.cleaned is None:
            with source.lock:
                if source.cleaned is None:
                    self._clean([source])
        assert source.cleaned is not None
        if self._worker.budget is None:
            self._worker.set_budget(source.cleaned)
        return unpacked(source.cleaned.to(self._worker.device.device))

    def clean_concurrently(self, sources: Sequence[SourceFrame], num: int) -> None:
        """Clean those that are not cleaned yet, `num` at a time.

        They must come in the order of their indices: every worker locks them in that order.
        """
        for group in itertools.batched([source for source in sources if source.cleaned is None], num):
            with contextlib.ExitStack() as locks:
                for source in group:
                    locks.enter_context(source.lock)
                if dirty := [source for source in group if source.cleaned is None]:
                    self._clean(dirty)

    def is_cut(self, before: SourceFrame | None, after: SourceFrame | None) -> bool:
        """Return whether a scene begins between two neighbouring frames; always at a lost one (None).

        What the frames say themselves decides with "auto" and "props"; with "auto" the detector decides where they say
        nothing.
        """
        if before is None or after is None:
            return True
        if self._scene_cuts == "off":
            return False
        told = [cut for cut in (before.ends_scene, after.begins_scene) if cut is not None]
        if told or self._scene_cuts == "props":
            return any(told)
        return is_scene_cut(self._thumbnail(before), self._thumbnail(after))

    def _thumbnail(self, source: SourceFrame) -> Thumbnail:
        with source.lock:
            if source.thumbnail is None:
                source.thumbnail = thumbnail(self._image(source))
            return source.thumbnail

    def _clean(self, sources: Sequence[SourceFrame]) -> None:
        """Clean frames of one size, whose locks are held."""
        worker = self._worker
        images = [self._image(source) for source in sources]
        worker.height = images[0].shape[-2]
        if self._scene_cuts == "auto":
            for source, image in zip(sources, images, strict=True):
                # Later, beside a frame that comes with another window, it is too late. A frame that says on both sides
                # whether there is a cut is never looked at.
                if source.thumbnail is None and None in (source.begins_scene, source.ends_scene):
                    source.thumbnail = thumbnail(image)
        on_device = [worker.device.to_device(image)[None] for image in images]
        lr = (on_device[0] if len(on_device) == 1 else torch.cat(on_device))[None]
        cleaned, num_passes = refine(worker.backend, lr, theta=self._theta, cleaning=self._cleaning)
        for source, frame in zip(sources, torch.split(cleaned[0], 1), strict=True):
            # A tensor of its own, not a view that keeps the other frames alive too.
            source.cleaned = packed(frame if len(sources) == 1 else frame.clone())
            source.rgb = None
        worker.statistics.frames_cleaned += len(sources)
        worker.statistics.cleaning_passes += int(num_passes.sum().item())

    def _image(self, source: SourceFrame) -> Tensor:
        """Return the frame (3, H, W) with its samples limited: one beyond would spoil all frames of its scene.

        Call with the frame's lock held. The scene detector and the cleaning share one copy, which replaces the caller's
        frame.
        """
        assert source.rgb is not None
        image = source.rgb if isinstance(source.rgb, Tensor) else source.rgb()
        if not source.is_limited:
            image = self._limited(image, source.index)
            source.rgb, source.is_limited = image, True
        return image

    def _limited(self, image: Tensor, index: int) -> Tensor:
        """Return the image with NaN replaced by 0, and everything else limited to LOWEST and HIGHEST."""
        lowest, highest = image.aminmax()
        if lowest >= LOWEST and highest <= HIGHEST:  # neither is true of NaN
            return image
        num = int((~((image >= LOWEST) & (image <= HIGHEST))).any(0).sum())
        pixels = f"{num} pixels that are" if num > 1 else "1 pixel that is"
        self._messages.warn_of_samples(
            index,
            f"{pixels} no number or beyond {LOWEST:g} to {HIGHEST:g}: NaN is taken for 0, the others for the limits",
        )
        return image.nan_to_num(nan=0.0, posinf=HIGHEST, neginf=LOWEST).clamp_(LOWEST, HIGHEST)
