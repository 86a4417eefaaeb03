"""Real-world video super-resolution x4 with RealBasicVSR: the network for Python, and `core.rbvsr` for VapourSynth.

A .vpy script needs no import of this package: the native plugin in VapourSynth's plugin folder finds it. torch is
imported when a name that needs it is first used, so that `rbvsr --help` is fast and `rbvsr doctor` runs without it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .model import RealBasicVSR, refine
    from .weights import load_model

__version__ = "0.1.0"

__all__ = ["RealBasicVSR", "__version__", "load_model", "refine"]

_MODULES = {"RealBasicVSR": "model", "refine": "model", "load_model": "weights"}


def __getattr__(name: str) -> Any:
    """Import a public name, or the module that holds it, when it is first used."""
    if name in ("model", "weights"):
        return import_module(f"{__name__}.{name}")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
