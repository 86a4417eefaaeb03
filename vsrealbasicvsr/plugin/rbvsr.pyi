"""Types of core.rbvsr, for type checkers; nothing here is imported at run time.

`core.rbvsr` is not declared in a stub of `vapoursynth` itself: an environment can have only one (the folder
vapoursynth-stubs), and it belongs to vsstubs, which asks the core for all plugins. A second package with that folder
would overwrite it, or be overwritten. So run `vsstubs`, or name the type where it is used:

    if TYPE_CHECKING:
        from vsrealbasicvsr.plugin.rbvsr import CorePlugin

    rbvsr: CorePlugin = core.rbvsr
    upscaled = rbvsr.Upscale(clip, theta=1.5)
"""

from typing import Protocol

from vapoursynth import VideoNode

class CorePlugin(Protocol):
    """Functions of core.rbvsr."""

    def Upscale(
        self,
        clip: VideoNode,
        theta: float | None = None,
        model: str | None = None,
        length: int | None = None,
        overlap: int | None = None,
        scene_cuts: str | None = None,
        device: str | None = None,
        precision: str | None = None,
        tile: int | None = None,
        detail: float | None = None,
        cleaning: float | None = None,
    ) -> VideoNode: ...
    def Version(self) -> dict[str, str | list[str]]: ...

class ClipPlugin(Protocol):
    """Functions of clip.rbvsr, where the clip is already given."""

    def Upscale(
        self,
        theta: float | None = None,
        model: str | None = None,
        length: int | None = None,
        overlap: int | None = None,
        scene_cuts: str | None = None,
        device: str | None = None,
        precision: str | None = None,
        tile: int | None = None,
        detail: float | None = None,
        cleaning: float | None = None,
    ) -> VideoNode: ...
