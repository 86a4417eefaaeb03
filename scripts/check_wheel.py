"""Check the contents of a wheel, and an installed one as far as it works without torch.

    python scripts/check_wheel.py FILE.whl      prints what is wrong; ends with 1 if anything is
    python scripts/check_wheel.py --installed   in an environment with the wheel and vapoursynth alone

Uses the standard library alone, so that it runs wherever wheels are built.
"""

import ctypes
import importlib.util
import re
import sys
import zipfile
from pathlib import Path

PACKAGES = ("vsrealbasicvsr/", "training/", "rbvsr_kernels/", "vapoursynth/plugins/rbvsr/")
WANTED = {
    "the model card": r"vsrealbasicvsr/weights/MODEL_CARD\.md",
    "the default weights": r"vsrealbasicvsr/weights/default\.safetensors",
    "the type marker": r"vsrealbasicvsr/py\.typed",
    "the page's template": r"vsrealbasicvsr/app/templates/page\.html\.jinja",
    "the plugin": r"vapoursynth/plugins/rbvsr/(librbvsr\.(so|dylib)|rbvsr\.dll)",
    "the plugin's manifest": r"vapoursynth/plugins/rbvsr/manifest\.vs",
    "kernels": r"rbvsr_kernels/\w+\.(so|dll)",
    "the training commands": r"training/__main__\.py",
    "the licence": r"vapoursynth_rbvsr-[\w.]+\.dist-info/licenses/LICENSE",
    "the command rbvsr": r"vapoursynth_rbvsr-[\w.]+\.dist-info/entry_points\.txt",
}
UNWANTED = re.compile(r"(^|/)(tests?|scripts|docs|__pycache__)/|\.(c|h|pyc)$|build_hook\.py$")
MAX_BYTES = 8 * 2**20


def faults(wheel: Path) -> list[str]:
    """Return what is wrong with a wheel, a line each."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
    found = [f"{what} is missing" for what, name in WANTED.items() if not any(re.fullmatch(name, n) for n in names)]
    found += [f"{name} does not belong there" for name in names if UNWANTED.search(name)]
    others = (name for name in names if not name.startswith(PACKAGES) and ".dist-info/" not in name)
    found += [f"{name} is in no package of ours" for name in others]
    if not re.search(r"-py3-none-(?!any)", wheel.name):
        found.append("its name does not say py3-none and a platform")
    if wheel.stat().st_size > MAX_BYTES:
        found.append(f"{wheel.stat().st_size / 2**20:.1f} MiB are more than {MAX_BYTES >> 20}")
    return found


def faults_installed() -> list[str]:
    """Return what is wrong with the compiled parts of the installed package, a line each."""
    import vapoursynth

    if not hasattr(vapoursynth.core, "rbvsr"):
        return ["VapourSynth does not load the plugin"]
    found = []
    try:
        vapoursynth.core.rbvsr.Version()
    except vapoursynth.Error as error:
        if "No module named" not in str(error):  # the plugin has reached Python; its packages may be lacking here
            found.append(f"the plugin does not reach Python: {error}")
    spec = importlib.util.find_spec("rbvsr_kernels")
    folders = [Path(folder) for folder in (spec.submodule_search_locations if spec else None) or ()]
    for path in (path for folder in folders for path in folder.iterdir()):
        try:
            if ctypes.CDLL(str(path)).rbvsr_operation_bytes() != 120:
                found.append(f"{path.name} has operations of another size")
        except (OSError, AttributeError) as error:
            found.append(f"{path.name}: {error}")
    return found if folders else [*found, "there are no kernels"]


def main(arguments: list[str]) -> int:
    """Check; 0 if nothing is wrong."""
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    found = faults_installed() if arguments == ["--installed"] else faults(Path(arguments[0]))
    print("\n".join(found) or f"{arguments[0]}: nothing is wrong")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
