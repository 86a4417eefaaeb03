"""core.rbvsr on a real VapourSynth core: what the native plugin promises, whatever the model behind it.

The package must be installed (`pip install -e .`), for only then does VapourSynth find the plugin. Where the plugin
calls into Python, a fake vsrealbasicvsr on PYTHONPATH answers. What could hang or grow runs in a process of its own.
"""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import vapoursynth as vs

import vsrealbasicvsr
from scripts.build_hook import load_build_hook
from tests import ROOT

PLUGIN_FOLDER = ROOT / "vsrealbasicvsr" / "plugin"
SOURCE = PLUGIN_FOLDER / "rbvsr.c"
STUB = PLUGIN_FOLDER / "rbvsr.pyi"

# A deadlock is a test that fails, not a test that hangs: the slowest of these takes seconds.
TIMEOUT_SECONDS = 120
# What allocators and VapourSynth's own per-core caches may keep. A leak of one frame in each round of the tests below
# would be more than ten times as much.
MAX_GROWTH_MIB = 24
MAX_GROWTH_MIB_UNDER_STRESS = 300  # up to 16 requests under way, each holding some of 32 frames of up to 2.6 MiB
# -P: the working folder is not searched, for the package itself may lie there, before the fake one on PYTHONPATH.
ISOLATED = ["-P", "-X", "faulthandler"]

FAKE_ENTRY = """
    import vapoursynth as vs

    def upscale(clip, **arguments):
        theta = arguments.get("theta")
        if theta == 2:
            raise vs.Error("rbvsr.Upscale: theta must be at most 1, got 2. Leave it out.")
        if theta == 3:
            raise ValueError("a bug")
        if theta == 4:
            raise KeyboardInterrupt
        if theta == 5:  # recursive: the plugin calls Python calls the plugin
            return clip.rbvsr.Upscale(theta=1).rbvsr.Upscale(theta=1)
        core = vs.core.core
        target = core.std.BlankClip(clip, width=4 * clip.width, height=4 * clip.height, keep=True)

        def step(n, frames=None, failed=None):
            return [0, n, 1, n] if frames is None else frames[1]

        return core.rbvsr.Serve([clip, target], target, step, name="Upscale")

    FUNCTIONS = {"Upscale": upscale, "Version": lambda: {"package": "0.0", "number": 1}}
"""


def run(command: list[str], *, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        env={**os.environ, **(environment or {})},
        check=False,
    )


def run_program(program: str, *, python_path: Path | None = None) -> str:
    """Standard output of a Python program in a process of its own; the process must end well."""
    environment = {"PYTHONPATH": str(python_path)} if python_path else {}
    result = run([sys.executable, *ISOLATED, "-c", textwrap.dedent(program)], environment=environment)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def core() -> vs.Core:
    assert hasattr(vs.core, "rbvsr"), "the plugin is not installed: pip install -e . --no-deps"
    return vs.core.core


@pytest.fixture
def clip(core: vs.Core) -> vs.VideoNode:
    """Ten frames that say which they are."""
    blank = core.std.BlankClip(format=vs.GRAYS, width=32, height=16, length=10)
    return core.std.FrameEval(blank, lambda n: core.std.BlankClip(blank, color=n))


@pytest.fixture(scope="module")
def fake_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH with a vsrealbasicvsr that has nothing but filter.entry."""
    folder = tmp_path_factory.mktemp("fake")
    package = folder / "vsrealbasicvsr" / "filter"
    package.mkdir(parents=True)
    (folder / "vsrealbasicvsr" / "__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "entry.py").write_text(textwrap.dedent(FAKE_ENTRY))
    return folder


@pytest.fixture(scope="module")
def vspipe(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The variables under which vspipe finds this Python, with nothing written into the user's configuration."""
    environment = {"XDG_CONFIG_HOME": str(tmp_path_factory.mktemp("config"))}
    assert run([sys.executable, "-m", "vapoursynth", "config"], environment=environment).returncode == 0
    return environment


def pipe(script: Path, environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    executable = str(Path(vs.__file__).parent / "vspipe")
    output = "-" if "--info" in arguments else "--"
    return run([executable, *arguments, str(script), output], environment=environment)


# ---- what is registered ----------------------------------------------------------------------------------------------


def test_the_plugin_is_there_with_no_import_of_the_package() -> None:
    output = run_program("""
        import sys, vapoursynth as vs
        assert vs.core.rbvsr.Upscale
        print([name for name in sys.modules if name.startswith(("vsrealbasicvsr", "torch"))])
    """)
    assert output.strip() == "[]"


def test_the_signatures_are_the_documented_ones(core: vs.Core) -> None:
    signatures = {function.name: function.signature for function in core.rbvsr.functions()}
    assert signatures == {
        "Upscale": "clip:vnode;theta:float:opt;model:data:opt;length:int:opt;overlap:int:opt;scene_cuts:data:opt;"
        "device:data:opt;precision:data:opt;tile:int:opt;detail:float:opt;cleaning:float:opt;",
        "Version": "",
        "Register": "function:func;",
        "Serve": "clips:vnode[];format:vnode;step:func;name:data:opt;cache:int:opt;",
    }
    assert core.rbvsr.Upscale.return_signature == "clip:vnode;"
    assert core.rbvsr.identifier == "com.vsrealbasicvsr.rbvsr"


@pytest.mark.long
def test_mypy_knows_upscale_and_refuses_a_misspelt_argument(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    snippet = tmp_path / "snippet.py"
    snippet.write_text(
        "from vsrealbasicvsr.plugin.rbvsr import CorePlugin\n"
        "def use(rbvsr: CorePlugin, clip: object) -> None:\n"
        "    reveal_type(rbvsr.Upscale)\n"
        "    rbvsr.Upscale(clip, theta=1.0, model='x')\n"
        "    rbvsr.Upscale(clip, thta=1.0)\n"
        "    rbvsr.Upscale(clip, length='x')\n"
    )
    # Only the stub and the snippet: following the package's imports would have mypy read torch.
    options = ["--config-file=", "--follow-imports=skip", "--ignore-missing-imports", f"--cache-dir={tmp_path}"]
    result = run([sys.executable, "-m", "mypy", *options, str(snippet), str(STUB)])
    assert "snippet.py:3: note: Revealed type is" in result.stdout
    assert "theta: float | None" in result.stdout
    assert 'snippet.py:5: error: Unexpected keyword argument "thta"' in result.stdout
    assert 'snippet.py:6: error: Argument "length"' in result.stdout
    assert "Found 2 errors" in result.stdout


# ---- the call into Python --------------------------------------------------------------------------------------------


def test_upscale_hands_over_the_arguments_and_returns_the_node(fake_package: Path) -> None:
    output = run_program(
        """
        import vapoursynth as vs
        clip = vs.core.std.BlankClip(format=vs.RGBS, width=32, height=16, length=3)
        for upscaled in (clip.rbvsr.Upscale(theta=1), vs.core.rbvsr.Upscale(clip), clip.rbvsr.Upscale(theta=5)):
            frame = upscaled.get_frame(2)
            print(type(upscaled).__name__, upscaled.node_name, frame.width, frame.height)
        print(vs.core.rbvsr.Version())
        print([name for name in globals() if not name.startswith("__")])
        """,
        python_path=fake_package,
    )
    assert output.splitlines() == [
        "VideoNode Upscale 128 64",
        "VideoNode Upscale 128 64",
        "VideoNode Upscale 512 256",
        "{'number': 1, 'package': '0.0'}",  # VapourSynth sorts the keys
        "['vs', 'clip', 'upscaled', 'frame']",
    ]


def test_a_vapoursynth_error_reaches_the_user_as_its_one_line_and_a_bug_with_its_traceback(fake_package: Path) -> None:
    output = run_program(
        """
        import vapoursynth as vs
        clip = vs.core.std.BlankClip(format=vs.RGBS)
        for theta in (2, 3, 4):
            try:
                clip.rbvsr.Upscale(theta=theta)
            except BaseException as error:
                print(type(error).__name__, repr(str(error)))
        """,
        python_path=fake_package,
    )
    expected, bug, interrupt = output.splitlines()
    assert expected == "Error 'rbvsr.Upscale: theta must be at most 1, got 2. Leave it out.'"
    assert bug.startswith("Error '\\nTraceback")
    assert bug.endswith("ValueError: a bug\\n'")
    assert interrupt == "KeyboardInterrupt ''"


INSTALL = f"Install it into the Python that runs this script ({sys.executable}): pip install vapoursynth-rbvsr"


@pytest.mark.parametrize(
    ("raised", "cure"),
    [
        (ImportError("blocked\nby the test"), INSTALL),
        (  # what torch raises without Microsoft's runtime libraries
            OSError('[WinError 126] The specified module could not be found. Error loading "shm.dll"'),
            "Install the Visual C++ Redistributable: https://aka.ms/vs/17/release/vc_redist.x64.exe",
        ),
    ],
)
def test_a_package_that_cannot_be_imported_is_reported_in_one_line_with_the_way_out(raised, cure) -> None:
    output = run_program(f"""
        import sys, vapoursynth as vs

        class Blocker:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] == "vsrealbasicvsr":
                    raise {raised!r}

        sys.meta_path.insert(0, Blocker())
        try:
            vs.core.std.BlankClip().rbvsr.Upscale()
        except vs.Error as error:
            print(error)
    """)
    reason = f"{type(raised).__name__}: {' '.join(str(raised).split())}"
    assert output == f"rbvsr.Upscale: cannot import vsrealbasicvsr: {reason}. {cure}\n"


def test_the_version_stands_in_one_place_and_everything_tells_it(core: vs.Core) -> None:
    expected = vsrealbasicvsr.__version__
    assert importlib.metadata.version("vapoursynth-rbvsr") == expected
    assert list(core.rbvsr.version) == [int(number) for number in expected.split(".")[:2]]
    copies = [
        path
        for path in (ROOT / "pyproject.toml", *(ROOT / "vsrealbasicvsr").rglob("*.[ch]"))
        if f'"{expected}"' in path.read_text(encoding="utf-8")
    ]
    assert copies == []


def test_register_refuses_a_callable_that_no_call_waits_for(core: vs.Core) -> None:
    with pytest.raises(vs.Error, match=r"^rbvsr\.Register: internal"):
        core.rbvsr.Register(lambda: 0)


def test_vspipe_runs_a_script_that_imports_nothing(fake_package: Path, vspipe: dict[str, str], tmp_path: Path) -> None:
    script = tmp_path / "script.vpy"
    script.write_text(
        "import vapoursynth as vs\n"
        "vs.core.std.BlankClip(format=vs.RGBS, width=32, height=16, length=30).rbvsr.Upscale().set_output()\n"
    )
    environment = {**vspipe, "PYTHONPATH": str(fake_package)}
    info = pipe(script, environment, "--info")
    assert info.returncode == 0, info.stderr
    assert "Width: 128" in info.stdout
    frames = pipe(script, environment, "--requests", "8")
    assert frames.returncode == 0, frames.stderr
    assert "Output 30 frames" in frames.stderr


def test_vspipe_shows_the_error_line(fake_package: Path, vspipe: dict[str, str], tmp_path: Path) -> None:
    script = tmp_path / "script.vpy"
    script.write_text("import vapoursynth as vs\nvs.core.std.BlankClip().rbvsr.Upscale(theta=2).set_output()\n")
    result = pipe(script, {**vspipe, "PYTHONPATH": str(fake_package)}, "--info")
    assert result.returncode != 0
    line = "Python exception: rbvsr.Upscale: theta must be at most 1, got 2. Leave it out."
    assert line in (result.stdout + result.stderr).splitlines()


@pytest.mark.long
def test_fifty_environments_in_one_process_leave_nothing_behind(fake_package: Path) -> None:
    output = run_program(
        """
        import gc, resource, threading, weakref
        import vapoursynth as vs

        class Policy(vs.EnvironmentPolicy):
            def on_policy_registered(self, api):
                self.api, self.of_thread = api, threading.local()
            def on_policy_cleared(self):
                pass
            def get_current_environment(self):
                return getattr(self.of_thread, "environment", None)
            def set_environment(self, environment):
                previous, self.of_thread.environment = self.get_current_environment(), environment
                return previous

        def resident_mib():
            with open("/proc/self/statm") as file:
                return int(file.read().split()[1]) * resource.getpagesize() / 2**20

        policy = Policy()
        vs.register_policy(policy)
        alive = []
        for round in range(60):
            environment = policy.api.create_environment()
            alive.append(weakref.ref(environment))
            with policy.api.wrap_environment(environment).use():
                clip = vs.core.std.BlankClip(format=vs.RGBS, width=160, height=90, length=4)
                for n in range(4):
                    clip.rbvsr.Upscale(theta=1).get_frame(n).close()
                try:
                    clip.rbvsr.Upscale(theta=2)
                except vs.Error:
                    pass
            policy.api.destroy_environment(environment)
            del environment, clip
            if round == 9:
                gc.collect()
                start = resident_mib()
        gc.collect()
        print(sum(reference() is not None for reference in alive), resident_mib() - start)
        """,
        python_path=fake_package,
    )
    num_alive, growth_mib = output.split()
    assert int(num_alive) == 0
    assert float(growth_mib) < MAX_GROWTH_MIB


# ---- Serve -----------------------------------------------------------------------------------------------------------


def test_serve_asks_in_rounds_and_hands_over_the_frames_in_the_order_asked(core: vs.Core, clip: vs.VideoNode) -> None:
    other = core.std.Expr(clip, "x 100 +")
    calls = []

    def step(n: int, frames: object = None, failed: object = None) -> object:
        assert failed is None
        if frames is None:
            calls.append((n, None))
            return [1, 9, 0, 3, 1, 9, 0, n]  # a frame twice, both clips, backwards
        values = [frame[0][0, 0] for frame in frames] if isinstance(frames, list) else [frames[0][0, 0]]
        calls.append((n, values))
        return (1, int(values[0]) - 104) if len(values) > 1 else frames  # the last frame comes alone, and bare

    served = core.rbvsr.Serve([clip, other], clip, step)
    assert served.get_frame(4)[0][0, 0] == 105
    assert calls == [(4, None), (4, [109, 3, 109, 4]), (4, [105])]
    assert served.node_name == "Serve"
    assert served.mode == vs.PARALLEL
    assert [node.node_name for node in served.dependencies] == [clip.node_name, other.node_name]


@pytest.mark.long
def test_serve_takes_its_video_info_from_format_and_may_answer_at_once(core: vs.Core, clip: vs.VideoNode) -> None:
    wanted = core.std.BlankClip(format=vs.RGB24, width=64, height=48, length=7, fpsnum=30000, fpsden=1001)
    frame = wanted.get_frame(0)
    served = core.rbvsr.Serve(clip, wanted, lambda n: frame, name="Upscale", cache=0)
    assert (served.format.id, served.width, served.height, served.num_frames) == (vs.RGB24, 64, 48, 7)
    assert served.fps == wanted.fps
    assert served.node_name == "Upscale"
    assert len(list(served.frames())) == 7


def test_serve_caches_unless_told_not_to(core: vs.Core, clip: vs.VideoNode) -> None:
    for cache, num_calls in ((0, 3), (None, 1)):
        calls = []
        frame = clip.get_frame(0)
        # Appends and answers with the frame.
        served = core.rbvsr.Serve(clip, clip, lambda n, c=calls, f=frame: c.append(n) or f, cache=cache)
        output = core.std.Interleave([served, served, served])  # two who ask: only then does VapourSynth cache
        for n in range(3):
            output.get_frame(n)
        assert len(calls) == num_calls


def test_an_error_that_the_step_returns_arrives_word_for_word(core: vs.Core, clip: vs.VideoNode) -> None:
    served = core.rbvsr.Serve(clip, clip, lambda n: {"error": f"rbvsr.Upscale: frame {n} is blue. Paint it."})
    with pytest.raises(vs.Error) as raised:
        served.get_frame(3)
    assert str(raised.value) == "rbvsr.Upscale: frame 3 is blue. Paint it."


def test_an_exception_in_the_step_fails_the_frame_and_no_other(core: vs.Core, clip: vs.VideoNode) -> None:
    def step(n: int, frames: object = None, failed: object = None) -> object:
        assert failed is None
        if n == 3 and frames is not None:
            raise ValueError("a bug")
        return [0, n] if frames is None else frames

    served = core.rbvsr.Serve(clip, clip, step)
    with pytest.raises(vs.Error, match="ValueError: a bug"):
        served.get_frame(3)
    assert served.get_frame(4)[0][0, 0] == 4


def test_a_source_that_fails_is_told_to_the_step_once_and_to_the_user(core: vs.Core, clip: vs.VideoNode) -> None:
    def broken(n: int) -> vs.VideoNode:
        if n == 5:
            raise ValueError("cannot read frame 5")
        return clip

    calls = []

    def step(n: int, **arguments: object) -> object:
        calls.append((n, sorted(arguments)))
        if "failed" in arguments:
            told.append((arguments["lost"], arguments["frames"][0][0, 0]))
        return arguments["frames"][0] if "frames" in arguments else [0, n, 0, 0]

    told: list[object] = []
    served = core.rbvsr.Serve(core.std.FrameEval(clip, broken), clip, step)
    with pytest.raises(vs.Error, match="cannot read frame 5"):
        served.get_frame(5)
    assert calls == [(5, []), (5, ["failed", "frames", "lost"])]
    assert told == [(0, 0)]  # the first that was asked for is lost; the second, frame 0, came
    assert served.get_frame(6)[0][0, 0] == 6


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        ([], "neither one video frame nor pairs"),
        (None, "neither one video frame nor pairs"),
        ([0, 1, 0], "neither one video frame nor pairs"),
        ("text", "neither one video frame nor pairs"),
        ([0.5, 1.0], "neither one video frame nor pairs"),
        ({"other": 1}, "neither one video frame nor pairs"),
        ([1, 0], "asked for frame 0 of clip 1, which does not exist"),
        ([-1, 0], "asked for frame 0 of clip -1, which does not exist"),
        ([0, 0, 0, 10], "asked for frame 10 of clip 0, which does not exist"),
        ([0, 2**40], "asked for frame 1099511627776 of clip 0, which does not exist"),
        ("two frames", "neither one video frame nor pairs"),
        ("wrong size", "format or size is not that of the output clip"),
        ("wrong format", "format or size is not that of the output clip"),
        ("audio", "neither one video frame nor pairs"),
    ],
)
def test_a_wrong_answer_of_the_step_is_an_internal_error(
    core: vs.Core, clip: vs.VideoNode, answer: object, complaint: str
) -> None:
    frames = {
        "two frames": lambda: [clip.get_frame(0), clip.get_frame(1)],
        "wrong size": lambda: core.create_video_frame(vs.GRAYS, 32, 18),
        "wrong format": lambda: core.create_video_frame(vs.GRAY8, 32, 16),
        "audio": lambda: core.std.BlankAudio().get_frame(0),
    }
    value = frames[answer]() if isinstance(answer, str) and answer in frames else answer
    with pytest.raises(vs.Error, match=rf"^rbvsr.Upscale: internal error at frame 2: the step .*({complaint})"):
        core.rbvsr.Serve(clip, clip, lambda n: value).get_frame(2)


def test_serve_refuses_a_format_that_varies(core: vs.Core, clip: vs.VideoNode) -> None:
    other = core.std.BlankClip(clip, width=64)
    varying = core.std.Splice([clip, other], mismatch=True)
    with pytest.raises(vs.Error, match=r"^rbvsr\.Serve: format must be a clip of one format and one size"):
        core.rbvsr.Serve(clip, varying, lambda n: 0)


STRESS = """
    import random, resource, sys
    import vapoursynth as vs

    core = vs.core.core
    core.num_threads = 8
    num_frames, cache_mib = int(sys.argv[1]), int(sys.argv[2])
    core.max_cache_size = cache_mib
    blank = core.std.BlankClip(format=vs.RGBS, width=640, height=360, length=200, keep=True)

    def mark(n, f):
        frame = f.copy()
        frame.props["Number"] = n
        return frame

    source = core.std.ModifyFrame(blank, blank, mark)
    small = core.std.BlankClip(source, width=320, height=180)

    def step(n, frames=None, failed=None):
        if frames is None:
            return [clip for k in range(8) for clip in (0, min(n + k, 199), 1, max(n - k, 0))]
        if isinstance(frames, list):
            assert [frame.props["Number"] for frame in frames[::2]] == [min(n + k, 199) for k in range(8)]
            return [0, n]
        return frames

    served = core.rbvsr.Serve([source, small], source, step, cache=0)
    chained = core.rbvsr.Serve([served, small], source, step)

    def resident_mib():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize() / 2**20

    order = random.Random(0)
    numbers = [order.randrange(200) for _ in range(num_frames)]
    pending = []
    for i, n in enumerate(numbers):
        pending.append((n, chained.get_frame_async(n)))
        if len(pending) > 16:
            n, future = pending.pop(0)
            with future.result() as frame:
                assert frame.props["Number"] == n
        if i == num_frames // 4:
            start = resident_mib()
    for n, future in pending:
        future.result().close()
    print(resident_mib() - start)
"""


def stress(num_frames: int, cache_mib: int) -> float:
    """Growth of the process in MiB over the last three quarters of a run with 8 threads in random order."""
    command = [sys.executable, *ISOLATED, "-c", textwrap.dedent(STRESS), str(num_frames), str(cache_mib)]
    result = run(command)
    assert result.returncode == 0, result.stderr
    return float(result.stdout)


@pytest.mark.long
@pytest.mark.parametrize("cache_mib", [1, 8, 32])
def test_serve_does_not_deadlock_with_eight_threads_in_random_order_and_a_tiny_cache(cache_mib: int) -> None:
    stress(60, cache_mib)


@pytest.mark.slow
def test_thousands_of_frames_in_random_order_do_not_grow_the_process() -> None:
    assert stress(2000, 64) < MAX_GROWTH_MIB_UNDER_STRESS


@pytest.mark.long
def test_thousands_of_frames_do_not_grow_the_process() -> None:
    output = run_program("""
        import resource
        import vapoursynth as vs

        core = vs.core.core
        core.max_cache_size = 64
        source = core.std.BlankClip(format=vs.RGBS, width=320, height=180, length=6000)

        def step(n, frames=None, failed=None):
            return frames[0] if frames else [0, n, 0, max(n - 1, 0)]

        def resident_mib():
            with open("/proc/self/statm") as file:
                return int(file.read().split()[1]) * resource.getpagesize() / 2**20

        for n, frame in enumerate(core.rbvsr.Serve(source, source, step, cache=0).frames(close=True)):
            if n == 1500:
                start = resident_mib()
        print(resident_mib() - start)
    """)
    assert float(output) < MAX_GROWTH_MIB


@pytest.mark.long
def test_a_process_ends_with_served_frames_still_under_way() -> None:
    run_program("""
        import time
        import vapoursynth as vs

        clip = vs.core.std.BlankClip(format=vs.RGBS, length=100)

        def step(n, frames=None, failed=None):
            time.sleep(0.01)
            return frames or [0, n]

        served = clip.rbvsr.Serve(clip, step)
        for n in range(20):
            served.get_frame_async(n)
    """)


# ---- the binary ------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="reads ELF")
def test_the_installed_library_needs_libc_and_nothing_else(core: vs.Core) -> None:
    elffile = pytest.importorskip("elftools.elf.elffile")
    with Path(core.rbvsr.plugin_path).open("rb") as file:
        elf = elffile.ELFFile(file)
        tags = list(elf.get_section_by_name(".dynamic").iter_tags())
        exported = [
            symbol.name
            for symbol in elf.get_section_by_name(".dynsym").iter_symbols()
            if symbol["st_shndx"] != "SHN_UNDEF" and symbol["st_info"]["bind"] == "STB_GLOBAL"
        ]
    assert [tag.needed for tag in tags if tag.entry.d_tag == "DT_NEEDED"] == ["libc.so.6"]
    assert exported == ["VapourSynthPluginInit2"]


WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"]


@pytest.mark.long
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_the_source_compiles_without_a_warning(compiler: str, tmp_path: Path) -> None:
    if not shutil.which(compiler):
        pytest.skip(f"{compiler} is not installed")
    result = run(load_build_hook().unix_command([compiler, *WARNINGS], SOURCE, tmp_path / "librbvsr.so"))
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.long
def test_the_source_compiles_for_windows_and_needs_nothing_but_system_dlls(tmp_path: Path) -> None:
    compiler = "x86_64-w64-mingw32-gcc"
    if not shutil.which(compiler):
        pytest.skip(f"{compiler} is not installed: apt-get install gcc-mingw-w64-x86-64")
    library = tmp_path / "rbvsr.dll"
    result = run(load_build_hook().unix_command([compiler, *WARNINGS], SOURCE, library))
    assert (result.returncode, result.stderr) == (0, "")
    listing = run(["x86_64-w64-mingw32-objdump", "-p", str(library)]).stdout
    assert {name.lower() for name in re.findall(r"DLL Name: (\S+)", listing)} == {"kernel32.dll", "msvcrt.dll"}
    assert "VapourSynthPluginInit2" in listing


def test_a_missing_compiler_is_an_error_that_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(RuntimeError, match=r"no C compiler found.*apt install gcc"):
        load_build_hook().compile_plugin(SOURCE, tmp_path / "librbvsr.so")


HOST = r"""
#include <dlfcn.h>
#include <stdio.h>
#include "VapourSynth4.h"
int main(int argc, char **argv)
{
    (void)argc;
    void *library = dlopen(argv[1], RTLD_NOW);
    const VSAPI *(*get_api)(int) = (const VSAPI *(*)(int))(intptr_t)dlsym(library, "getVapourSynthAPI");
    const VSAPI *vsapi = get_api(VAPOURSYNTH_API_VERSION);
    VSCore *core = vsapi->createCore(0);
    VSPlugin *std = vsapi->getPluginByNamespace("std", core);
    VSMap *path = vsapi->createMap();
    vsapi->mapSetData(path, "path", argv[2], -1, dtUtf8, maReplace);
    if (!vsapi->getPluginByNamespace("rbvsr", core))
        vsapi->freeMap(vsapi->invoke(std, "LoadPlugin", path));
    vsapi->clearMap(path);
    VSMap *clip = vsapi->invoke(std, "BlankClip", path);
    VSMap *result = vsapi->invoke(vsapi->getPluginByNamespace("rbvsr", core), "Upscale", clip);
    puts(vsapi->mapGetError(result));
    vsapi->freeMap(result);
    vsapi->freeMap(clip);
    vsapi->freeMap(path);
    vsapi->freeCore(core);
    return 0;
}
"""


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("gcc"), reason="compiles a host with gcc")
def test_a_host_without_python_is_told_so(core: vs.Core, tmp_path: Path) -> None:
    source, host = tmp_path / "host.c", tmp_path / "host"
    source.write_text(HOST)
    compiled = run(["gcc", "-isystem", vs.get_include(), "-o", str(host), str(source)])
    assert compiled.returncode == 0, compiled.stderr
    library = Path(vs.__file__).parent / "libvapoursynth.so.4"
    result = run([str(host), str(library), core.rbvsr.plugin_path])
    assert result.stdout == (
        "rbvsr.Upscale: no Python interpreter in this process. Run the script through vspipe, VSScript or python.\n"
    )
    assert result.returncode == 0
