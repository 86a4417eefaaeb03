"""`rbvsr doctor` in installations that are broken for real: each cause is named, with the command that mends it."""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import vapoursynth as vs

from tests import ROOT, TIMEOUT_SECONDS

pytestmark = pytest.mark.long

Broken = Callable[..., Path]


def link_tree(source: Path, target: Path) -> None:
    """Copy a folder by hard links, or by copies where the disk is another."""

    def link(one: str, other: str) -> None:
        try:
            os.link(one, other)
        except OSError:
            shutil.copy2(one, other)

    shutil.copytree(source, target, copy_function=link, ignore=shutil.ignore_patterns("__pycache__"))


def replace(path: Path, content: bytes) -> None:
    """Write a new file in place of a hard link, which leaves the other end alone."""
    path.unlink()
    path.write_bytes(content)


@pytest.fixture
def environment(vspipe_environment: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """Of a machine whose vspipe is configured, with no program of others on PATH."""
    (tmp_path / "bin").mkdir()
    kept = {name: text for name, text in vspipe_environment.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")}
    return {**kept, "PATH": str(tmp_path / "bin"), "HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def vapoursynth_copy(environment: dict[str, str], tmp_path: Path) -> Path:
    """A copy of VapourSynth that comes before the installed one, configured like it."""
    copy = tmp_path / "site" / "vapoursynth"
    link_tree(Path(vs.__file__).parent, copy)
    for folder in Path(vs.__file__).parents[1].glob("*.libs"):  # what the plugins are linked with
        (copy.parent / folder.name).symlink_to(folder)
    environment["PYTHONPATH"] = str(copy.parent)
    environment["XDG_CONFIG_HOME"] = str(tmp_path / "config")
    configure(environment)
    return copy


def configure(environment: dict[str, str]) -> None:
    python = Path(sys.executable).parent.resolve() / Path(sys.executable).name
    command = [str(python), "-m", "vapoursynth", "config"]
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=TIMEOUT_SECONDS)


def doctor(environment: dict[str, str], tmp_path: Path, status: int) -> dict[str, dict[str, Any]]:
    """What is found, by name. All is there in any case, and nothing is said beside it but one line for a fault."""
    command = [sys.executable, "-m", "vsrealbasicvsr", "doctor", "--json"]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=TIMEOUT_SECONDS, cwd=tmp_path, check=False
    )
    checks = {check["name"]: check for check in json.loads(done.stdout)}
    assert done.returncode == status, done.stdout + done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("rbvsr: ")]
    assert len(said) == (1 if status else 0)
    assert "Traceback" not in done.stderr
    assert {"Python", "VapourSynth", "plugin core.rbvsr", "vspipe", "BestSource", "torch", "GPU", "kernels"} <= {
        *checks
    }
    assert {"kernels", "default weights", "encoders", "models", "disk"} <= {*checks}
    for check in checks.values():
        assert check["status"] in ("ok", "warning", "fault")
        assert bool(check["cure"]) == (check["status"] != "ok"), check
    return checks


def faults(checks: dict[str, dict[str, Any]]) -> list[str]:
    return [name for name, check in checks.items() if check["status"] == "fault"]


def test_vspipe_without_configuration_is_the_only_fault_of_a_whole_installation_and_the_cure_cures(
    environment: dict[str, str], tmp_path: Path
) -> None:
    environment["XDG_CONFIG_HOME"] = str(tmp_path / "empty")
    checks = doctor(environment, tmp_path, 1)
    assert faults(checks) == ["vspipe"]
    assert "is not configured" in checks["vspipe"]["found"]
    cure = checks["vspipe"]["cure"]
    assert cure.endswith("-m vapoursynth config")
    subprocess.run(cure, shell=True, env=environment, check=True, capture_output=True, timeout=TIMEOUT_SECONDS)
    checks = doctor(environment, tmp_path, 0)
    assert faults(checks) == []
    assert checks["VapourSynth"]["found"].startswith(f"R{vs.__version__.release_major} in ")
    assert checks["vspipe"]["found"].endswith("runs this Python")


def test_vspipe_that_is_configured_for_another_python(environment: dict[str, str], tmp_path: Path) -> None:
    venv.create(tmp_path / "other", symlinks=True)
    environment["XDG_CONFIG_HOME"] = str(tmp_path / "config")
    configure(environment)
    path = tmp_path / "config" / "vapoursynth" / "vapoursynth.toml"
    python = Path(sys.executable).parent.resolve() / Path(sys.executable).name
    path.write_text(path.read_text().replace(str(python), str(tmp_path / "other" / "bin" / "python")))
    checks = doctor(environment, tmp_path, 1)
    assert faults(checks) == ["vspipe"]
    assert "another Python" in checks["vspipe"]["found"]
    assert str(tmp_path / "other") in checks["vspipe"]["found"]
    assert checks["vspipe"]["cure"].endswith("-m vapoursynth config")


# Independent faults are looked for in one run: each takes seconds.


def test_plugins_that_are_not_there(vapoursynth_copy: Path, environment: dict[str, str], tmp_path: Path) -> None:
    shutil.rmtree(vapoursynth_copy / "plugins" / "rbvsr")
    (vapoursynth_copy / "plugins" / "libbestsource.so").unlink()
    checks = doctor(environment, tmp_path, 1)
    assert faults(checks) == ["plugin core.rbvsr", "vspipe", "BestSource"]
    assert f"there is no {vapoursynth_copy}" in checks["plugin core.rbvsr"]["found"]
    assert "pip install" in checks["plugin core.rbvsr"]["cure"]
    assert "plugin first" in checks["vspipe"]["cure"]
    assert "not in VapourSynth's plugin folder" in checks["BestSource"]["found"]
    assert checks["BestSource"]["cure"].endswith("vapoursynth-bestsource")


def test_plugins_that_cannot_be_loaded_are_named_with_the_reason_that_vapoursynth_does_not_tell(
    vapoursynth_copy: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    replace(vapoursynth_copy / "plugins" / "rbvsr" / "librbvsr.so", b"not a library")
    for folder in vapoursynth_copy.parent.glob("*.libs"):  # BestSource's
        folder.unlink()
    checks = doctor(environment, tmp_path, 1)
    assert faults(checks) == ["plugin core.rbvsr", "vspipe", "BestSource"]
    assert "cannot be loaded (" in checks["plugin core.rbvsr"]["found"]
    assert "file too short" in checks["plugin core.rbvsr"]["found"] or "ELF" in checks["plugin core.rbvsr"]["found"]
    assert "cannot be loaded (" in checks["BestSource"]["found"]
    assert "cannot open shared object file" in checks["BestSource"]["found"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is in use here")
@pytest.mark.parametrize(
    ("cuda", "found", "cure"),
    [("None", "this torch is without CUDA", "pytorch.org"), ('"13.0"', "cannot use it", "update the NVIDIA driver")],
)
def test_a_gpu_that_torch_does_not_use_and_damaged_default_weights(
    environment: dict[str, str], tmp_path: Path, cuda: str, found: str, cure: str
) -> None:
    folder = Path(torch.__file__).parent
    (tmp_path / "site" / "torch").mkdir(parents=True)
    for path in folder.iterdir():
        if path.name not in ("version.py", "__pycache__"):
            (tmp_path / "site" / "torch" / path.name).symlink_to(path)
    text = (folder / "version.py").read_text()
    (tmp_path / "site" / "torch" / "version.py").write_text(f"{text}\ncuda = {cuda}\n")
    program = tmp_path / "bin" / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA GeForce RTX 9999, 600.1'\n")
    program.chmod(0o755)
    copy = tmp_path / "site" / "vsrealbasicvsr"
    link_tree(ROOT / "vsrealbasicvsr", copy)
    weights = copy / "weights" / "default.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1000] ^= 1
    replace(weights, bytes(content))
    checks = doctor(environment | {"PYTHONPATH": str(copy.parent)}, tmp_path, 1)
    assert checks["GPU"]["status"] == "warning"
    assert "NVIDIA GeForce RTX 9999 with driver 600.1" in checks["GPU"]["found"]
    assert found in checks["GPU"]["found"]
    assert cure in checks["GPU"]["cure"]
    assert faults(checks) == ["default weights"]
    assert "is damaged: the SHA-256" in checks["default weights"]["found"]
    cure = checks["default weights"]["cure"]
    assert cure.startswith("git ") if is_editable() else "pip install" in cure


def is_editable() -> bool:
    text = importlib.metadata.distribution("vapoursynth-rbvsr").read_text("direct_url.json") or "{}"
    return bool(json.loads(text).get("dir_info", {}).get("editable"))


@pytest.mark.parametrize("names", [["torch", "av"], ["vapoursynth"]])
def test_packages_that_are_missing_or_cannot_be_imported_stop_nothing(
    environment: dict[str, str], tmp_path: Path, names: list[str]
) -> None:
    (tmp_path / "site").mkdir()
    for name in names:
        (tmp_path / "site" / f"{name}.py").write_text("raise OSError('libfoo.so.1: cannot open shared object file')")
    checks = doctor(environment | {"PYTHONPATH": str(tmp_path / "site")}, tmp_path, 1)
    for name in names:
        which = {"torch": "torch", "vapoursynth": "VapourSynth", "av": "encoders"}[name]
        assert which in faults(checks)
        assert "libfoo.so.1" in checks[which]["found"]
        assert f"pip install --force-reinstall {name}" in checks[which]["cure"]


def test_torch_without_the_runtime_libraries_of_windows(environment: dict[str, str], tmp_path: Path) -> None:
    reason = '[WinError 126] The specified module could not be found. Error loading "torch/lib/shm.dll"'
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "torch.py").write_text(f"raise OSError({reason!r})")  # what torch 2.14 raises there
    checks = doctor(environment | {"PYTHONPATH": str(tmp_path / "site")}, tmp_path, 1)
    for name in ("torch", "plugin core.rbvsr"):
        assert "WinError 126" in checks[name]["found"]
    assert "vc_redist" in checks["torch"]["cure"]
    assert checks["plugin core.rbvsr"]["cure"] == "mend torch first"


def test_the_earlier_name_beside_the_new_one_and_an_installation_from_a_clone(
    environment: dict[str, str], tmp_path: Path
) -> None:
    for name in ("vsrealbasicvsr", "vapoursynth_rbvsr"):
        folder = tmp_path / "site" / f"{name}-0.1.0.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {name.replace('_', '-')}\nVersion: 0.1.0\n")
    (folder / "direct_url.json").write_text(json.dumps({"url": "file:///home/me/a%20clone", "dir_info": {}}))
    check = doctor(environment | {"PYTHONPATH": str(folder.parent)}, tmp_path, 0)["rbvsr"]
    assert check["status"] == "warning"
    assert check["found"].endswith("and under its earlier name vsrealbasicvsr too")
    assert "pip uninstall --yes vsrealbasicvsr, then " in check["cure"]
    assert check["cure"].endswith("pip install --force-reinstall --no-deps '/home/me/a clone'")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="needs a user who is not root")
def test_a_folder_in_which_nothing_can_be_written(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "home").mkdir(mode=0o500)
    environment.pop("XDG_CACHE_HOME")
    checks = doctor(environment, tmp_path, 1)
    assert "nothing can be written" in checks["models"]["found"]
    assert "chown" in checks["models"]["cure"]


def test_it_can_be_read_without_json(environment: dict[str, str], tmp_path: Path) -> None:
    environment["RBVSR_KERNELS"] = "off"
    command = [sys.executable, "-m", "vsrealbasicvsr", "doctor"]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=TIMEOUT_SECONDS, cwd=tmp_path, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    number = next(n for n, line in enumerate(lines) if line.startswith("warning kernels: RBVSR_KERNELS=off"))
    assert lines[number + 1] == "        -> unset RBVSR_KERNELS"
