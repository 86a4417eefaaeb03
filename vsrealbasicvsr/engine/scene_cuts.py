"""What is seen of source frames before a device gets them: samples beyond their limits, and scene cuts.

Knows no device and no network. The host's threads call it when they supply frames, so that a device never waits for it.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
from torch import Tensor

from vsrealbasicvsr.backends import is_out_of_memory
from vsrealbasicvsr.scenes import Thumbnail, is_scene_cut, thumbnail

from .messages import Messages
from .source_frame import SourceFrame

SceneCuts = Literal["auto", "props", "off"]

LOWEST, HIGHEST = -2.0, 3.0
"""Limits of samples. They include every integer format, super-white and the most saturated colours of YUV (-1.3 to
2.3), and the overshoot that a resizer adds."""


class SceneCutFinder:
    """Finds the scene cuts of one clip. Any thread may call it; two that look at one frame see the same.

    No operation here takes several threads of torch: it would start a pool of workers for each of the host's threads.
    """

    def __init__(self, messages: Messages, scene_cuts: SceneCuts) -> None:
        """Create a finder of scene cuts, "auto", "props" or "off": see `is_cut`."""
        self._messages = messages
        self._scene_cuts = scene_cuts

    def look(self, sources: Mapping[int, SourceFrame], numbers: Iterable[int]) -> None:
        """Look at some of the frames, and find the cuts before and after each of them whose neighbours are there too.

        If there is no memory for it, the device's thread will look, which can free some.
        """
        if self._scene_cuts != "auto":
            return
        try:
            for i in numbers:
                self.see(sources[i])
                for after in (i, i + 1):
                    if after - 1 in sources and after in sources:
                        self.is_cut(sources[after - 1], sources[after])
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise

    def see(self, source: SourceFrame) -> None:
        """Look at a frame while it is there, unless it says on both sides whether there is a cut."""
        if self._scene_cuts == "auto" and None in (source.begins_scene, source.ends_scene):
            self._thumbnail(source)

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
        if after.is_cut_before is None:
            after.is_cut_before = is_scene_cut(self._thumbnail(before), self._thumbnail(after))
        return after.is_cut_before

    def image(self, source: SourceFrame) -> Tensor:
        """Return the frame (3, H, W) with its samples limited: one beyond would spoil all frames of its scene.

        Call with the frame's lock held. The copy that is made replaces the caller's frame.
        """
        assert source.rgb is not None
        image = source.rgb if isinstance(source.rgb, Tensor) else source.rgb()
        if not source.is_limited:
            image = self._limited(image, source.index)
        source.rgb, source.is_limited, source.planes = image, True, None
        return image

    def _thumbnail(self, source: SourceFrame) -> Thumbnail:
        with source.lock:
            if source.thumbnail is None:
                source.thumbnail = thumbnail(self._planes(source))
            return source.thumbnail

    def _planes(self, source: SourceFrame) -> Tensor | Sequence[npt.NDArray[np.float32]]:
        """Return the frame's planes, limited; the caller's own where none of their samples is beyond the limits."""
        if source.planes is None:
            return self.image(source)
        planes = source.planes()
        if not source.is_limited and not _is_within_limits(planes):
            return self.image(source)
        source.is_limited, source.planes = True, None
        return planes

    def _limited(self, image: Tensor, index: int) -> Tensor:
        """Return the image with NaN replaced by 0, and everything else limited to LOWEST and HIGHEST."""
        if _is_within_limits(image.numpy()):
            return image
        num = int((~((image >= LOWEST) & (image <= HIGHEST))).any(0).sum())
        pixels = f"{num} pixels that are" if num > 1 else "1 pixel that is"
        self._messages.warn_of_samples(
            index,
            f"{pixels} no number or beyond {LOWEST:g} to {HIGHEST:g}: NaN is taken for 0, the others for the limits",
        )
        return image.nan_to_num(nan=0.0, posinf=HIGHEST, neginf=LOWEST).clamp_(LOWEST, HIGHEST)


def _is_within_limits(planes: Iterable[npt.NDArray[np.float32]]) -> bool:
    """Return whether all samples are; NaN is not."""
    return all(bool(plane.min() >= LOWEST and plane.max() <= HIGHEST) for plane in planes)
