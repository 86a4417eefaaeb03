"""What an installation puts on everybody's import path: our packages, and neither tests nor scripts."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests import ROOT

BUILD = "import sys; from hatchling import build; print(getattr(build, 'build_' + sys.argv[1])(sys.argv[2]))"
FIND = """
import importlib.util, json, site, sys
site.addsitedir(sys.argv[1])
names = ("vsrealbasicvsr", "training", "rbvsr_kernels", "scripts", "tests", "conftest", "docs")
print(json.dumps([name for name in names if importlib.util.find_spec(name)]))
"""


@pytest.fixture(scope="module", params=["wheel", "editable"])
def installed(request, tmp_path_factory) -> Path:
    """A folder of packages with nothing but us in it, as pip would unpack us."""
    folder = tmp_path_factory.mktemp(request.param)
    environment = dict(os.environ)
    if sys.platform != "win32":  # what is compiled is not run: a compiler that is quick
        compiler = folder / "cc"
        compiler.write_text(f'#!/bin/sh\nexec {os.environ.get("CC", "cc")} "$@" -O0\n')
        compiler.chmod(0o755)
        environment["CC"] = str(compiler)
    command = [sys.executable, "-c", BUILD, request.param, str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(folder / done.stdout.split()[-1]) as wheel:
        wheel.extractall(folder / "site")
    return folder / "site"


def test_an_installation_brings_our_packages_to_the_import_path_and_nothing_else(installed, tmp_path):
    command = [sys.executable, "-I", "-S", "-c", FIND, str(installed)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == ["vsrealbasicvsr", "training", "rbvsr_kernels"]


def test_an_installation_holds_no_source_that_only_its_build_needs(installed):
    assert not [path for path in installed.rglob("*") if path.suffix == ".c" or path.name == "build_hook.py"]
