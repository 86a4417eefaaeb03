"""The arguments of rbvsr.Upscale wherever they are written down: the core's own signature against all others."""

import ast
import inspect
import re
import runpy
import subprocess
import tomllib
from pathlib import Path

import numpy as np
import pytest
import vapoursynth as vs

from scripts import demo
from tests import ROOT, TIMEOUT_SECONDS
from vsrealbasicvsr.filter import entry

SCRIPT = ROOT / "scripts" / "upscale.vpy"
STUB = ROOT / "vsrealbasicvsr" / "plugin" / "rbvsr.pyi"
README = ROOT / "README.md"


@pytest.fixture(scope="module")
def native(core: vs.Core) -> dict[str, str]:
    """From name to kind, in their order: what rbvsr.c registers is what users can give."""
    return dict(argument.split(":", 1) for argument in core.rbvsr.Upscale.signature.split(";") if argument)


def test_the_filter_takes_the_arguments_of_the_native_function_in_their_order(native):
    parameters = inspect.signature(entry.upscale).parameters
    assert list(parameters) == list(native)
    for name, kind in native.items():
        assert (parameters[name].default is inspect.Parameter.empty) == (not kind.endswith(":opt")), name


def test_the_stub_has_the_arguments_of_the_native_function_in_their_order(native):
    types = {"vnode": "VideoNode", "float:opt": "float | None", "int:opt": "int | None", "data:opt": "str | None"}
    expected = [(name, types[kind]) for name, kind in native.items()]
    classes = {node.name: node for node in ast.parse(STUB.read_text()).body if isinstance(node, ast.ClassDef)}
    for class_name, arguments in (("CorePlugin", expected), ("ClipPlugin", expected[1:])):
        functions = [node for node in classes[class_name].body if isinstance(node, ast.FunctionDef)]
        upscale = next(node for node in functions if node.name == "Upscale")
        assert [(a.arg, ast.unparse(a.annotation)) for a in upscale.args.args[1:] if a.annotation] == arguments


def test_the_readme_has_a_row_for_each_argument_and_the_defaults_that_hold(native):
    section = README.read_text(encoding="utf-8").split("## Arguments\n")[1].split("\n## ")[0]
    call = ast.parse(re.search(r"`core\.rbvsr\.Upscale(\(.+\))`", section)[1].replace("(", "f(", 1), mode="eval").body
    assert isinstance(call, ast.Call)
    assert [*(name.id for name in call.args), *(keyword.arg for keyword in call.keywords)] == list(native)
    defaults = {name: parameter.default for name, parameter in inspect.signature(entry.upscale).parameters.items()}
    written = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    assert written == {name: value for name, value in defaults.items() if name != "clip"}
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| .+ \|$", section, re.MULTILINE)
    assert [name for name, _ in rows] == list(native)
    for name, values in rows:
        if isinstance(written.get(name), int | float):
            assert f"default {written[name]:g}" in values, name


# ---- scripts/upscale.vpy ---------------------------------------------------------------------------------------------


@pytest.fixture
def script(small_clip_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs upscale.vpy as vspipe does, with texts; its clip."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # BestSource keeps its index there

    def run(**texts: str) -> vs.VideoNode:
        runpy.run_path(str(SCRIPT), init_globals={"source": str(small_clip_file), "frames": "3", **texts})
        return vs.get_output(0).clip

    yield run
    vs.clear_outputs()


def test_the_script_passes_every_argument_on(native, script):
    kinds = {"float": "-1", "int": "-1", "data": "no such thing"}
    for name, kind in list(native.items())[1:]:
        wrong = kinds[kind.split(":")[0]]
        with pytest.raises(vs.Error) as caught:
            script(**{name: wrong})
        what = "no such thing" if name == "model" else name  # of a file its path is named
        assert str(caught.value).startswith("rbvsr.Upscale: "), name
        assert what in str(caught.value)


@pytest.mark.long
def test_the_script_gives_what_the_function_gives(native, script, core, two_sets, small_clip_file):
    texts = {"theta": "1.5", "model": str(two_sets), "length": "2", "overlap": "1", "scene_cuts": "off"}
    texts |= {"device": "cpu", "precision": "fp32", "tile": "7", "detail": "0.25", "cleaning": "0.5"}
    assert list(texts) == list(native)[1:]
    clip = core.bs.VideoSource(str(small_clip_file))[:3]
    values = {"theta": 1.5, "length": 2, "overlap": 1, "tile": 7, "detail": 0.25, "cleaning": 0.5}
    expected = clip.rbvsr.Upscale(**{**texts, **values})
    assert pixels(script(**texts)) == pixels(expected)
    assert pixels(script(model=texts["model"])) == pixels(clip.rbvsr.Upscale(model=two_sets)) != pixels(expected)


def test_the_script_says_what_must_be_a_number(script):
    for name, text in (("cleaning", "much"), ("length", "1.5")):
        with pytest.raises(vs.Error, match=rf"^upscale\.vpy: {name} must be a number, got '{text}'\.$"):
            script(**{name: text})


def test_the_script_says_how_many_frames_can_be_asked_for(script):
    for text in ("many", "0", "-1", "1.5"):
        with pytest.raises(vs.Error, match=rf"^upscale\.vpy: frames must be a whole number from 1 on, got '{text}'\.$"):
            script(frames=text)


def pixels(clip: vs.VideoNode) -> bytes:
    return b"".join(np.asarray(plane).tobytes() for frame in clip.frames(close=True) for plane in frame)


# ---- scripts/demo.py and make ----------------------------------------------------------------------------------------


def test_the_demo_passes_every_argument_on(native, monkeypatch, tmp_path):
    names = list(native)[1:]
    assert list(demo.OPTIONS) == names
    given: dict[str, str] = {}
    monkeypatch.setattr(demo, "demo", lambda source, out, *, frames, options: given.update(options) or "")
    monkeypatch.setattr("signal.signal", lambda *_: None)
    texts = {name: "7" if kind.split(":")[0] in ("float", "int") else f"a {name}" for name, kind in native.items()}
    words = [word for name in names for word in (f"--{name.replace('_', '-')}", texts[name])]
    assert demo.main(["--out", str(tmp_path), *words]) == 0
    assert given == {name: texts[name] for name in names} | {"model": str(Path("a model").resolve())}


def test_the_demo_knows_which_arguments_are_numbers(native, monkeypatch, capsys, tmp_path):
    kinds = {"float": float, "int": int, "data": str}
    assert dict(demo.OPTIONS) == {name: kinds[kind.split(":")[0]] for name, kind in list(native.items())[1:]}
    monkeypatch.setattr(demo, "demo", lambda *_, **__: pytest.fail("something was started"))
    monkeypatch.setattr("signal.signal", lambda *_: None)
    for option, text, said in (
        ("theta", "abc", "--theta must be a number, got 'abc'"),
        ("length", "1.5", "--length must be a whole number, got '1.5'"),
        ("cleaning", "\x1b[31m", "--cleaning must be a number, got '?[31m'"),
    ):
        assert demo.main(["--out", str(tmp_path / "out"), f"--{option}", text]) == 1
        assert capsys.readouterr().err == f"demo: {said}\n"
    assert not (tmp_path / "out").exists()


def test_make_demo_passes_on_what_it_says_that_it_takes(tmp_path):
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    (tmp_path / ".installed").touch()
    said = re.findall(r"\b([A-Z]+)=", (ROOT / "Makefile").read_text().split("make test")[0])
    assert {"INPUT", "FRAMES", "OUT", "THETA", "DETAIL", "CLEANING"} == set(said)
    values = {name: f"{name.lower()} of mine" for name in said}
    command = ["make", "-s", "demo", f"VENV={tmp_path}", *(f"{name}={value}" for name, value in values.items())]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=True)
    option, program, *words = done.stdout.splitlines()
    assert (option, program) == ("-m", "scripts.demo")
    assert dict(zip(words[::2], words[1::2], strict=True)) == {f"--{n.lower()}": value for n, value in values.items()}


def test_what_the_readme_installs_has_the_plugins_that_its_scripts_use():
    text = README.read_text(encoding="utf-8")
    scripts = "".join(re.findall(r"```python\n(.+?)```", text, re.DOTALL)) + SCRIPT.read_text()
    used = set(re.findall(r"\bcore\.(\w+)\.\w+\(", scripts)) - {"rbvsr"}
    packages = {"bs": "vapoursynth-bestsource"}
    installed = text.split("## Install\n")[1].split("\n## ")[0]
    assert used == set(packages)
    assert re.search(r"^pip install \.", installed, re.MULTILINE)
    required = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert all(any(line.startswith(package) for line in required) for package in packages.values())
