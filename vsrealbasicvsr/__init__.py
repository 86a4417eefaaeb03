"""Real-world video super-resolution x4 with RealBasicVSR: the network for Python, and `core.rbvsr` for VapourSynth.

A .vpy script needs no import of this package: the native plugin in VapourSynth's plugin folder finds it.
"""

from .model import RealBasicVSR, refine
from .weights import load_model

__version__ = "0.1.0"

__all__ = ["RealBasicVSR", "__version__", "load_model", "refine"]
