"""Our own kernels against torch: any size, any number of channels, every instruction set that this processor has."""

import ctypes
import gc
import random
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from scripts.build_hook import load_build_hook
from tests import ROOT, TIMEOUT_SECONDS
from tests.networks import random_network, smooth_frames
from tests.tolerances import WINOGRAD
from vsrealbasicvsr.backends.cpu import ENVIRONMENT, CpuBackend, Kernels, available, library, load_kernels, pages
from vsrealbasicvsr.backends.cpu import backend as kernel_network
from vsrealbasicvsr.backends.cpu.library import find_library
from vsrealbasicvsr.backends.torch import TorchBackend
from vsrealbasicvsr.engine import choose_device
from vsrealbasicvsr.model import Architecture, RealBasicVSR, refine

HERE = list(available())

pytestmark = pytest.mark.skipif(not HERE, reason="no kernels for this processor: torch computes")


@pytest.fixture(scope="module", params=HERE or ["none"])
def kernels(request) -> Kernels:
    return load_kernels(request.param)


def sizes(seed: int) -> Architecture:
    """Widths that are no multiple of anything."""
    draw = random.Random(seed)
    widths = [draw.randint(1, 40) for _ in range(7)]
    return Architecture(
        cleaning_channels=widths[0],
        num_cleaning_blocks=draw.randint(1, 2),
        mid_channels=widths[1],
        num_backward_blocks=draw.randint(1, 2),
        num_forward_blocks=draw.randint(1, 2),
        fusion_channels=widths[2],
        quarter_channels=widths[3],
        hr_channels=widths[4],
        hr_out_channels=widths[5],
        num_flow_levels=draw.randint(1, 5),
        flow_channels=tuple(draw.randint(1, 20) for _ in range(4)),
        flow_stride=draw.choice((1, 2, 4)),
        num_cleaning_levels=draw.choice((1, 2, 3)),
    )


def whole(parts) -> torch.Tensor:
    """The frame, from its rows."""
    return torch.cat([rows for _, rows in parts], dim=1)


def steps(network, frames: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Everything that the network makes of two frames."""
    with torch.inference_mode():
        first, second = (refine(network, frame[None], theta=1.5)[0][0] for frame in frames)
        forward_flow, backward_flow = network.flow(second, first), network.flow(first, second)
        later = network.propagate_backward(second, None, None)
        earlier = network.propagate_forward(first, None, None)
        made = {"cleaned": first, "forward flow": forward_flow, "backward flow": backward_flow}
        made["first"] = whole(
            network.reconstruct(first, network.propagate_backward(first, later, backward_flow), earlier)
        )
        made["second"] = whole(
            network.reconstruct(second, later, network.propagate_forward(second, earlier, forward_flow))
        )
        return made


SIZES = [(1, 1), (1, 37), (5, 4), (33, 2), (24, 32), (45, 67), (65, 31)]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_any_network_on_any_frame_gives_what_torch_gives(kernels, height, width):
    model = random_network(sizes(seed=height))
    frames = smooth_frames(2, height, width)
    expected = steps(TorchBackend(model), frames)
    for name, ours in steps(CpuBackend(model, kernels), frames).items():
        largest = max(expected[name].abs().max().item(), 1.0)
        assert (ours - expected[name]).abs().max() <= WINOGRAD * largest, name


@pytest.mark.long
def test_the_published_network_comes_within_100_db(kernels):
    model = RealBasicVSR().eval()
    frames = smooth_frames(2, 40, 52)
    expected = steps(TorchBackend(model), frames)
    for name, ours in steps(CpuBackend(model, kernels), frames).items():
        if "flow" not in name:
            assert -10 * (ours - expected[name]).square().mean().log10() >= 100, name


def test_flows_that_point_outside_or_nowhere_are_sampled_as_torch_does(kernels):
    model = random_network(sizes(seed=3))
    ours, torchs = CpuBackend(model, kernels), TorchBackend(model)
    frame = smooth_frames(1, 20, 30)[0]
    generator = torch.Generator().manual_seed(5)
    flow = torch.randn(1, 2, 20, 30, generator=generator) * 15
    flow[0, :, 3, 4] = torch.tensor([1e9, -1e9])
    with torch.inference_mode():
        a, b = (one.propagate_forward(frame, one.propagate_forward(frame, None, None), flow) for one in (ours, torchs))
        hr_a, hr_b = whole(ours.reconstruct(frame, a, a)), whole(torchs.reconstruct(frame, b, b))
        assert (hr_a - hr_b).abs().max() <= WINOGRAD * max(hr_b.abs().max().item(), 1.0)
        flow[0, 0, 5, 6] = torch.nan
        hr = whole(
            ours.reconstruct(frame, a, ours.propagate_forward(frame, a, flow))
        )  # no crash, no memory read outside
    assert hr.shape == hr_a.shape


def test_the_number_of_threads_and_what_ran_before_change_no_bit(kernels):
    model = random_network(sizes(seed=9))
    frames = smooth_frames(2, 37, 41)
    expected = steps(CpuBackend(model, kernels), frames)
    library = find_library(kernels.name)
    for num_threads in (1, 2, 3, 8):
        other = CpuBackend(model, Kernels(library, num_threads))
        steps(other, smooth_frames(2, 50, 60))
        for name, made in steps(other, frames).items():
            assert torch.equal(made, expected[name]), (name, num_threads)


def test_tiles_change_nothing_but_rounding(kernels, monkeypatch):
    model = random_network(sizes(seed=4))
    frames = smooth_frames(2, 37, 20)
    expected = steps(CpuBackend(model, kernels), frames)
    monkeypatch.setattr(kernel_network, "MAX_RECONSTRUCTION_PX", 1)
    for rows in (1, 2, 3, 7, 36, 100):
        monkeypatch.setattr(kernel_network, "MIN_TILE_ROWS", rows)
        made = steps(CpuBackend(model, kernels), frames)
        largest = max(expected["first"].abs().max().item(), 1.0)
        assert (made["first"] - expected["first"]).abs().max() <= WINOGRAD * largest, rows


def test_the_environment_chooses_the_kernels(monkeypatch):
    compute = choose_device("cpu", "fp32")
    model = random_network(sizes(seed=1))
    for name in HERE:
        monkeypatch.setenv(ENVIRONMENT, name)
        assert compute.kernels().name == name
        assert isinstance(compute.prepare(model), CpuBackend)
    monkeypatch.setenv(ENVIRONMENT, "off")
    assert compute.kernels() is None
    assert isinstance(compute.prepare(model), TorchBackend)
    monkeypatch.delenv(ENVIRONMENT)
    assert compute.kernels().name == HERE[0]
    assert choose_device("cpu", "bf16").kernels() is None


def test_a_setting_that_names_no_kernels_is_an_error(monkeypatch):
    monkeypatch.setenv(ENVIRONMENT, "sse9")
    with pytest.raises(ValueError, match=r'RBVSR_KERNELS must be one of off, avx512, avx2, neon, got "sse9"'):
        choose_device("cpu", "fp32").kernels()


SANITIZED = """
import sys
from pathlib import Path
from tests.backends.cpu import test_kernels as t
from tests.networks import random_network, smooth_frames
from vsrealbasicvsr.backends.cpu import CpuBackend, Kernels
for library in sys.argv[1:]:
    for height, width in [(1, 1), (5, 4), (24, 33), (45, 19)]:
        model = random_network(t.sizes(seed=height))
        t.steps(CpuBackend(model, Kernels(Path(library), 3)), smooth_frames(2, height, width))
    print(library)
"""


@pytest.mark.long
def test_no_memory_is_read_or_written_outside_of_the_maps(tmp_path):
    compiler = shutil.which("gcc")
    runtime = subprocess.run(
        [compiler or "false", "-print-file-name=libasan.so"], capture_output=True, text=True, check=False
    )
    if not Path(runtime.stdout.strip()).is_absolute():
        pytest.skip("needs gcc with its address sanitizer")
    libraries = {name: tmp_path / f"{name}.so" for name in HERE}
    for name, path in libraries.items():
        command = load_build_hook().kernel_command(
            [compiler], ROOT / "vsrealbasicvsr/backends/cpu/kernels.c", path, name
        )
        subprocess.run([*command, "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-O1"], check=True)
    done = subprocess.run(
        [sys.executable, "-c", SANITIZED, *map(str, libraries.values())],
        env={
            "LD_PRELOAD": runtime.stdout.strip(),
            "ASAN_OPTIONS": "detect_leaks=0:verify_asan_link_order=0",
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        timeout=2 * TIMEOUT_SECONDS,
        check=False,
    )
    assert done.stdout.split() == [*map(str, libraries.values())], done.stderr[-3000:]


# ---- memory ----------------------------------------------------------------------------------------------------------


def test_pages_become_spare_when_no_tensor_looks_at_them_any_more():
    pages.drop_spare_pages()
    size = (512, 1024)
    first = pages.empty_pages(size, torch.float32, recycles=True).fill_(1)
    place, view = first.data_ptr(), first[2:4]
    del first
    second = pages.empty_pages(size, torch.float32, recycles=True).fill_(2)
    assert second.data_ptr() != place
    assert view.sum() == 2048
    del view
    other_size = pages.empty_pages((512, 1025), torch.float32, recycles=True)  # which the spare is not used for
    assert other_size.data_ptr() != place
    del second
    third = pages.empty_pages(size, torch.float32, recycles=True)
    assert third.sum() == 2 * third.numel()  # as it was left
    del third
    assert len(pages._spare) == 1
    pages.drop_spare_pages()
    assert not pages._spare


def test_only_a_few_pages_are_kept_and_none_that_should_not_be():
    pages.drop_spare_pages()
    held = [pages.empty_pages((512, 1024), torch.float32, recycles=True) for _ in range(5)]
    held.clear()
    assert len(pages._spare) == pages.NUM_SPARE
    pages.drop_spare_pages()
    pages.empty_pages((512, 1024), torch.float32)
    assert not pages._spare


def test_no_value_of_pages_that_are_used_again_shows(kernels, monkeypatch):
    """All memory that the network asks for is full of NaN."""
    architecture, frames = sizes(5), smooth_frames(2, 37, 51)
    expected = steps(CpuBackend(random_network(architecture), kernels), frames)

    def not_a_number(shape, dtype, **_):
        return torch.full(shape, torch.nan, dtype=dtype)

    monkeypatch.setattr(kernel_network, "empty_pages", not_a_number)
    for max_tile_rows in (None, 16):
        found = steps(CpuBackend(random_network(architecture), kernels, max_tile_rows=max_tile_rows), frames)
        for name, made in found.items():
            assert made.isfinite().all(), name
            if max_tile_rows is None:
                assert torch.equal(made, expected[name]), name


def test_the_last_pages_go_with_the_network(kernels):
    pages.drop_spare_pages()
    one = CpuBackend(random_network(sizes(5)), kernels)
    pages.empty_pages((512, 1024), torch.float32, recycles=True)
    assert len(pages._spare) == 1
    del one
    gc.collect()
    assert not pages._spare


# ---- what a picture seldom asks of them ------------------------------------------------------------------------------

MORE = """
#include <stdlib.h>
#include <string.h>
static int left, held;
static void *short_calloc(size_t num, size_t size) {{
    void *made = left-- > 0 ? calloc(num, size) : NULL;
    held += made != NULL;
    return made;
}}
static void counted_free(void *memory) {{
    held -= memory != NULL;
    free(memory);
}}
#define calloc short_calloc
#define free counted_free
#include "{kernels}"
EXPORT int held_after(int num_allocations) {{
    left = num_allocations, held = 0;
    return rbvsr_open(1) ? -1 : held;
}}
EXPORT void try_activate(const float *from, float *to, long lanes, float slope) {{
    for (long i = 0; i < lanes; i += LANES) {{
        vec x;
        memcpy(&x, from + i, sizeof x);
        x = activate(x, slope);
        memcpy(to + i, &x, sizeof x);
    }}
}}
"""


@pytest.fixture(scope="module", params=HERE)
def more(request, tmp_path_factory) -> ctypes.CDLL:
    """kernels.c with more around it."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    folder = tmp_path_factory.mktemp("more")
    source, library = folder / "more.c", folder / "more.so"
    source.write_text(MORE.format(kernels=ROOT / "vsrealbasicvsr/backends/cpu/kernels.c"))
    subprocess.run(load_build_hook().kernel_command([compiler], source, library, request.param), check=True)
    return ctypes.CDLL(str(library))


@pytest.mark.long
def test_what_has_no_end_is_rectified_as_torch_does_it(more):
    values = torch.tensor([torch.inf, -torch.inf, torch.nan, 0, -0.0, 1, -1, 3e38, -3e38, 1e-45, -1e-45, 2, 3, 4, 5, 6])
    for slope in (0.0, 0.1, 1.0):
        made = torch.empty_like(values)
        more.try_activate(
            ctypes.c_void_p(values.data_ptr()),
            ctypes.c_void_p(made.data_ptr()),
            ctypes.c_long(16),
            ctypes.c_float(slope),
        )
        expected = values.relu() if slope == 0 else torch.nn.functional.leaky_relu(values, slope)
        assert torch.equal(made.nan_to_num(7, posinf=8, neginf=9), expected.nan_to_num(7, posinf=8, neginf=9)), slope


@pytest.mark.long
def test_threads_that_cannot_be_made_for_want_of_memory_leave_nothing_behind(more):
    assert [more.held_after(number) for number in range(4)] == [0, 0, 0, -1]


def test_callers_at_once_get_one_pool_of_threads(monkeypatch):
    made = []

    class Slow(Kernels):
        def __init__(self, *arguments) -> None:
            made.append(arguments)
            time.sleep(0.1)
            super().__init__(*arguments)

    monkeypatch.setattr(library, "Kernels", Slow)
    monkeypatch.setattr(library, "_loaded", {}, raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)  # a number that nothing else has loaded for
    with ThreadPoolExecutor(4) as pool:
        given = list(pool.map(lambda _: load_kernels(HERE[0]), range(4)))
    assert len(made) == len(set(map(id, given))) == 1
