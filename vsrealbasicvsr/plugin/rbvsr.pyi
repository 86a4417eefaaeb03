"""The types of core.rbvsr, the plugin that rbvsr.c is the source of. For type checkers: nothing to import at run time.

Why not a stub of `vapoursynth` itself, in which `core.rbvsr` would be known at once? There can be one only in an
environment (the folder vapoursynth-stubs), and it is vsstubs' to write: it asks the core for all plugins, so run
`vsstubs` and core.rbvsr is in it. A second package that ships that folder would overwrite it, or be overwritten.
Without vsstubs, name the type where it is used; an installed package is all that this needs:

    if TYPE_CHECKING:
        from vsrealbasicvsr.plugin.rbvsr import CorePlugin

    rbvsr: CorePlugin = core.rbvsr
    upscaled = rbvsr.Upscale(clip, theta=1.5)
"""

from typing import Protocol

from vapoursynth import VideoNode

class CorePlugin(Protocol):
    """core.rbvsr."""

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
    """clip.rbvsr: the clip is already given."""

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
