"""The build hook, for what compiles the C files otherwise than an installation does."""

import importlib.util
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]


def load_build_hook() -> ModuleType:
    """Load the build hook, which is not a part of the installed package."""
    spec = importlib.util.spec_from_file_location("rbvsr_build_hook", ROOT / "vsrealbasicvsr/plugin/build_hook.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
