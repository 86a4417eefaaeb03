"""The layers, held: who imports whom, one room for each third party, and no switch of torch changed on the way."""

import ast
import graphlib
import json
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests import ROOT
from tests.programs import run_program

PACKAGE = "vsrealbasicvsr"

# Imports go from right to left only. The root module (the public names for Python) lies above `weights`.
LAYERS = [
    f"{PACKAGE}.errors",
    f"{PACKAGE}.whole_file",
    f"{PACKAGE}.scheduling",
    f"{PACKAGE}.devices",
    f"{PACKAGE}.luma",
    f"{PACKAGE}.scenes",
    f"{PACKAGE}.model",
    f"{PACKAGE}.weights",
    PACKAGE,
    f"{PACKAGE}.backends",
    f"{PACKAGE}.engine",
    f"{PACKAGE}.filter",
    f"{PACKAGE}.app",
    f"{PACKAGE}.__main__",
]
PLUGIN = f"{PACKAGE}.plugin"

ROOMS = {
    # The programs in scripts/ are hosts: they read clips as a user's script does.
    "vapoursynth": [
        "vsrealbasicvsr/app/",
        "vsrealbasicvsr/filter/",
        "vsrealbasicvsr/plugin/build_hook.py",
        "scripts/check_wheel.py",
        "vsrealbasicvsr/plugin/rbvsr.pyi",
        "scripts/benchmark/peers.py",
        "scripts/demo.py",
        "scripts/measure_hdr.py",
        "scripts/sanitize.py",
        "scripts/sanitized_frames.py",
    ],
    "triton": [
        "vsrealbasicvsr/backends/cuda/convolution_triton.py",
        "vsrealbasicvsr/backends/cuda/epilogue_triton.py",
        "vsrealbasicvsr/backends/cuda/flow_triton.py",
        "vsrealbasicvsr/backends/cuda/join_triton.py",
        "scripts/compile_triton.py",
    ],
    "vsutil": ["vsrealbasicvsr/filter/"],
    "safetensors": ["vsrealbasicvsr/weights/"],
    "cyclopts": [
        "vsrealbasicvsr/app/",
        "training/options.py",
        "training/commands/study.py",
        "training/commands/train.py",
    ],
    "rich": ["vsrealbasicvsr/app/"],
    "filelock": ["vsrealbasicvsr/app/", "training/locking.py"],
    "ray": ["vsrealbasicvsr/app/cluster.py"],
    "jinja2": ["vsrealbasicvsr/app/", "training/studies/page.py"],
    "matplotlib": ["training/studies/page.py", "training/studies/report.py"],
    "platformdirs": ["vsrealbasicvsr/app/"],
    "av": [
        "vsrealbasicvsr/app/",
        "training/data/sources.py",
        "training/degradations/codecs.py",
        "scripts/benchmark/command.py",
        "scripts/benchmark/input.py",
        "scripts/benchmark/plain_pipeline.py",
        "scripts/demo.py",
        "scripts/encoding/",
        "scripts/measure_scenes.py",
        "scripts/measure_windows.py",
    ],
    "cv2": ["training/", "scripts/benchmark/input.py", "scripts/benchmark/plain_pipeline.py"],
    "docstring_parser": ["training/options.py"],
    "lpips": ["training/evaluation/libraries.py"],
    "piq": ["training/evaluation/libraries.py"],
    "pyiqa": ["training/benchmarking/naturalness.py"],
    "spandrel": ["training/benchmarking/methods.py"],
    "pycvvdp": ["training/evaluation/visible.py"],
    "ncnn": ["training/evaluation/peers.py"],
    "scipy": ["training/evaluation/", "training/studies/report.py", "scripts/benchmark/plain_pipeline.py"],
    "skimage": [
        "training/evaluation/metrics.py",
        "scripts/benchmark/input.py",
        "scripts/demo.py",
        "scripts/measure_half_flow.py",
        "scripts/measure_hdr.py",
        "scripts/measure_scenes.py",
    ],
    "torchvision": [
        "training/losses/perceptual.py",
        "training/evaluation/libraries.py",
        "training/degradations/",
        "scripts/benchmark/basicvsrpp.py",
    ],
    "hatchling": ["vsrealbasicvsr/plugin/build_hook.py"],
    "mkdocs": ["scripts/site_pages.py"],
}


def sources() -> Iterator[Path]:
    """Every Python file and stub of ours but the tests."""
    for folder in (PACKAGE, "training", "scripts"):
        yield from sorted(path for path in (ROOT / folder).rglob("*.py*") if path.suffix in {".py", ".pyi"})


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path) -> set[str]:
    """The full names of what a file imports, wherever in the file: modules, or names in modules."""
    package = module_name(path).split(".")
    if path.stem != "__init__":
        package = package[:-1]
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *(node.module.split(".") if node.module else [])])
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


def is_in(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def layer_of(name: str) -> str | None:
    """The layer, the plugin, or the folder that a module or a name in it belongs to; None for a third party."""
    for place in (PLUGIN, *sorted(LAYERS, key=len, reverse=True), "training", "scripts", "tests"):
        if is_in(name, place):
            return place
    return None


@cache
def all_imports() -> list[tuple[Path, str]]:
    return [(path, name) for path in sources() for name in sorted(imported(path))]


def test_there_is_something_to_hold():
    found = {layer_of(module_name(path)) for path in sources()}
    assert found == {*LAYERS, PLUGIN, "training", "scripts"}
    crossings = [(layer_of(module_name(path)), layer_of(name)) for path, name in all_imports()]
    assert (f"{PACKAGE}.filter", f"{PACKAGE}.engine") in crossings
    assert (f"{PACKAGE}.engine", f"{PACKAGE}.model") in crossings


def may_import(importer: str, place: str) -> bool:
    if importer == place:
        return True
    if importer == "scripts":
        return place not in {"tests"}
    if importer == "training":
        return place in LAYERS[: LAYERS.index(f"{PACKAGE}.backends") + 1]  # never the engine or the filter
    if PLUGIN in (importer, place):
        return False  # it reaches the filter through the interpreter, at run time
    return place in LAYERS and LAYERS.index(place) < LAYERS.index(importer)


def test_imports_only_go_down():
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path, name in all_imports()
        if (place := layer_of(name)) is not None and not may_import(str(layer_of(module_name(path))), place)
    ]
    assert wrong == []


def test_the_layers_above_the_backends_know_none_of_them():
    """What computes on which device stays behind the names of backends/__init__.py."""
    inside = {name for path, _ in all_imports() if is_in(name := module_name(path), f"{PACKAGE}.backends")}
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path, name in all_imports()
        if layer_of(module_name(path)) not in {f"{PACKAGE}.backends", "scripts"}
        and any(is_in(name, module) for module in inside - {f"{PACKAGE}.backends"})
    ]
    assert wrong == []


@pytest.mark.parametrize(("one", "other"), [("cpu", "cuda"), ("cuda", "cpu")])
def test_one_backend_does_not_know_the_other(one, other):
    names = [name for path, name in all_imports() if is_in(module_name(path), f"{PACKAGE}.backends.{one}")]
    assert names
    assert not [name for name in names if is_in(name, f"{PACKAGE}.backends.{other}")]


def test_no_file_and_no_function_is_long():
    """400 lines a file, 60 a function: beyond, they do several things."""
    wrong = []
    for path in sources():
        text = path.read_text(encoding="utf-8")
        functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
        wrong += [f"{path.name}: {node.name}" for node in functions if node.end_lineno - node.lineno >= 60]
        wrong += [path.name] if text.count("\n") > 400 else []
    assert wrong == []


def test_no_imports_go_in_circles():
    modules = {module_name(path): path for path in sources()}

    def module_of(name: str) -> str | None:
        return name if name in modules else name.rpartition(".")[0] if name.rpartition(".")[0] in modules else None

    graph = {
        module: {m for name in imported(path) if (m := module_of(name)) is not None and m != module}
        for module, path in modules.items()
    }
    tuple(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError


@pytest.mark.parametrize("third_party", ROOMS)
def test_each_third_party_has_one_room(third_party):
    strangers = [
        f"{place} imports {name}"
        for path, name in all_imports()
        if is_in(name, third_party)
        and not any((place := path.relative_to(ROOT).as_posix()).startswith(room) for room in ROOMS[third_party])
    ]
    assert strangers == []


def test_the_model_knows_torch_only():
    names = {name for path, name in all_imports() if layer_of(module_name(path)) == f"{PACKAGE}.model"}
    third_parties = {name.split(".")[0] for name in names} - sys.stdlib_module_names - {PACKAGE}
    assert third_parties == {"torch"}


def test_no_module_is_called_after_nothing():
    vague = {"utils", "util", "helpers", "helper", "common", "misc", "tools"}
    assert [
        str(path) for path in sources() if vague & {part.lower() for part in (path.stem, *path.parent.parts[-2:])}
    ] == []


def run(program: str) -> list[Any]:
    """What a program prints as JSON, a list of its lines, in a fresh interpreter."""
    return [json.loads(line) for line in run_program(program).stdout.splitlines()]


@pytest.mark.long
def test_importing_the_package_imports_no_host_no_codec_and_no_training():
    (loaded,) = run(f"import json, sys, {PACKAGE}; print(json.dumps(sorted(sys.modules)))")
    unwanted = ["vapoursynth", "vsutil", "cv2", "av", "skimage", "training", "scripts"]
    unwanted += [f"{PACKAGE}.engine", f"{PACKAGE}.filter", f"{PACKAGE}.app", PLUGIN]
    assert [name for name in loaded if any(is_in(name, module) for module in unwanted)] == []


def test_programs_that_start_others_do_not_wait_for_torch():
    """It takes a second of a core. vspipe, which they start, imports it."""
    modules = f"scripts.demo, scripts.encoding.command, {PACKAGE}.app.cli"
    assert run(f"import json, sys, {modules}; print(json.dumps('torch' in sys.modules))") == [False]


SWITCHES = """
import json, locale, logging, os, random, signal, sys, warnings
import numpy, torch

def switches():
    return {
        "default dtype": str(torch.get_default_dtype()),
        "default device": str(torch.get_default_device()),
        "threads": torch.get_num_threads(),
        "threads between operations": torch.get_num_interop_threads(),
        "gradients": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": [torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")],
        "anomaly detection": torch.is_anomaly_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "float32 products": torch.get_float32_matmul_precision(),
        "cudnn": [torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic],
        "mkldnn": torch.backends.mkldnn.enabled,
        "denormals": torch.tensor([1e-40]).mul(1).item(),
        "printing": repr(torch._tensor_str.PRINT_OPTS),
        "allowed in pickles": len(torch.serialization.get_safe_globals()),
        "random numbers": [hash(bytes(torch.get_rng_state())), hash(random.getstate()), str(numpy.random.get_state())],
        "errors of numpy": numpy.geterr(),
        "warnings": len(warnings.filters),
        "log": [logging.root.level, len(logging.root.handlers)],
        "signals": str(signal.getsignal(signal.SIGINT)),
        "locale": locale.setlocale(locale.LC_ALL),
        "environment": sorted(os.environ.items()),
        "folder": os.getcwd(),
        "recursion": sys.getrecursionlimit(),
        "path": sys.path,
    }

lr = torch.rand(1, 2, 3, 9, 8)
torch.nn.functional.conv2d(lr[0], torch.rand(3, 3, 3, 3))  # whatever torch sets itself on first use
import sympy  # torch 2.6 imports it on first use, and it sets a filter of warnings
before = switches()
import vsrealbasicvsr
imported = switches()
model = vsrealbasicvsr.load_model()
model.super_resolve(vsrealbasicvsr.refine(model, lr)[0])
from vsrealbasicvsr.engine import choose_device
device = choose_device("cpu", "auto")
device.prepare(model)
device.run(lambda: model(lr))
used = switches()
for after in (imported, used):
    print(json.dumps({name: [str(before[name]), str(after[name])] for name in before if before[name] != after[name]}))
"""


@pytest.mark.long
def test_no_switch_of_torch_or_of_the_process_is_changed_by_importing_or_by_computing():
    assert run(SWITCHES) == [{}, {}]
