"""The build hook, which is no part of the installed package."""

import importlib.util
from types import ModuleType

from tests import ROOT


def load_build_hook() -> ModuleType:
    """The build hook, which is no part of the installed package."""
    spec = importlib.util.spec_from_file_location("rbvsr_build_hook", ROOT / "vsrealbasicvsr/plugin/build_hook.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
