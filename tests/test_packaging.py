"""What an installation puts on everybody's import path: our packages, and neither tests nor scripts."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from scripts.check_wheel import faults, main
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


@pytest.mark.long
def test_an_installation_brings_our_packages_to_the_import_path_and_nothing_else(installed, tmp_path):
    command = [sys.executable, "-I", "-S", "-c", FIND, str(installed)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == ["vsrealbasicvsr", "training", "rbvsr_kernels"]


def test_an_installation_holds_no_source_that_only_its_build_needs(installed):
    assert not [path for path in installed.rglob("*") if path.suffix == ".c" or path.name == "build_hook.py"]


def test_a_wheel_holds_what_it_should_and_nothing_else(installed):
    if wheels := [path for path in installed.parent.glob("*.whl") if (installed / "vsrealbasicvsr").is_dir()]:
        assert faults(wheels[0]) == []


def test_a_wheel_that_lacks_something_or_holds_too_much_is_told(tmp_path, capsys):
    wheel = tmp_path / "vapoursynth_rbvsr-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("vsrealbasicvsr/weights/default.safetensors", b"")
        archive.writestr("tests/test_x.py", b"")
    assert main([str(wheel)]) == 1
    said = capsys.readouterr().out
    assert "the licence is missing" in said
    assert "the plugin is missing" in said
    assert "the default weights" not in said
    assert "tests/test_x.py does not belong there" in said
    assert "its name does not say py3-none and a platform" in said


def test_the_installed_plugin_and_kernels_are_those_of_a_working_wheel():
    assert main(["--installed"]) == 0
