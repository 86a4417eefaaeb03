"""Convolutions, warps and the flow network by kernels of our own: torch's values, or torch itself."""

import copy
import dataclasses
import gc
import importlib.util
import itertools
import sys
import weakref

import pytest
import torch

from scripts import compile_triton, measure_half_flow
from tests.backends.cuda.stepping import steps
from tests.fake_capture import FakeCapture
from tests.networks import smooth_frames
from tests.programs import run_program
from vsrealbasicvsr import load_model
from vsrealbasicvsr.backends.cuda import convolution, join
from vsrealbasicvsr.backends.cuda import steps as choosing
from vsrealbasicvsr.backends.cuda.backend import CudaBackend
from vsrealbasicvsr.backends.cuda.convolution import pack
from vsrealbasicvsr.backends.cuda.convolution_task import Task
from vsrealbasicvsr.backends.cuda.epilogue import by_torch
from vsrealbasicvsr.backends.cuda.fused import BY_TORCH, BY_TRITON, FusedBackend, Kernels, flow_kinds_of, kinds_of
from vsrealbasicvsr.backends.cuda.half_flow import HalfSPyNet, can_be_half, prepare_by_torch
from vsrealbasicvsr.backends.cuda.steps import choose_steps, kernels_unsupported_reason
from vsrealbasicvsr.backends.torch import TorchBackend
from vsrealbasicvsr.errors import UserError
from vsrealbasicvsr.model import CLEANING_LEVELS_KEY, Architecture, RealBasicVSR, SPyNet, flow_warp

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="torch came without Triton")


@pytest.fixture(params=["tiny", "tiny, cleaned at one size", "default"])
def model(request, tiny_model):
    if request.param == "default":
        return load_model("default")
    model, num_levels = load_model(tiny_model), 1 if "one" in request.param else 3
    levels = {CLEANING_LEVELS_KEY: torch.tensor(float(num_levels))} if num_levels > 1 else {}
    return RealBasicVSR.from_state_dict(model.state_dict() | levels).eval().requires_grad_(False)


def half(model, dtype=torch.float16):
    return copy.deepcopy(model).to(dtype).to(memory_format=torch.channels_last)


def fused(model, dtype=torch.float16, **given) -> CudaBackend:
    given = {"kernels": BY_TORCH, "epilogue": by_torch, "capture": FakeCapture(), **given}
    return CudaBackend(half(model, dtype), **given)


def apart(made, expected) -> float:
    return float((made.float() - expected.float()).norm() / expected.float().norm())


# ---- the steps -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "most"), [(torch.float16, 4e-3), (torch.bfloat16, 3e-2)])
def test_fused_steps_make_the_pictures_of_the_plain_ones_in_float32(model, dtype, most):
    frames = smooth_frames(4, 23, 37)
    network = fused(model, dtype)
    assert isinstance(network._eager, FusedBackend)
    with torch.inference_mode():
        made, expected = steps(network, frames), steps(TorchBackend(model), frames)
    assert network.notes == []
    for ours, theirs in zip(made, expected, strict=True):
        assert ours.shape == theirs.shape
        assert apart(ours, theirs) <= most


@pytest.mark.long
def test_fused_steps_give_the_same_bits_twice_captured_or_not_and_concurrently(model):
    frames = smooth_frames(4, 23, 37)
    with torch.inference_mode():
        once, again = (steps(fused(model, capture=capture), frames) for capture in (FakeCapture(), FakeCapture()))
        plain = steps(fused(model, capture=FakeCapture(lambda made, _: made + 1)), frames)  # every graph is refused
        concurrent = fused(model, busy_px=4 * 23 * 37)
        flows = concurrent.flow(torch.cat(frames[1:]), torch.cat(frames[:-1]))
        alone = fused(model)
        one_by_one = [alone.flow(b, a) for a, b in itertools.pairwise(frames)]
    for a, b, c in zip(once, again, plain, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
    assert torch.equal(flows, torch.cat(one_by_one))


def test_tiles_give_the_frame_as_a_whole(model):
    frames = smooth_frames(3, 96, 21)
    with torch.inference_mode():
        whole, tiled = (steps(fused(model, max_tile_rows=rows), frames) for rows in (None, 40))
    for a, b in zip(whole, tiled, strict=True):
        assert apart(b, a) <= 2e-3  # torch's convolutions round otherwise in other sizes


def test_weights_are_freed_with_the_backend_that_uses_them(model):
    """At once, not when Python collects garbage: a GPU's memory is short until then."""
    network = fused(model)
    weights = weakref.ref(network._eager._model.basicvsr)
    gc.disable()
    try:
        del network
        assert weights() is None
    finally:
        gc.enable()


def test_states_stay_in_half_precision_and_channels_last(model):
    (first, second), network = smooth_frames(2, 17, 19), fused(model)
    with torch.inference_mode():
        state = network.propagate_backward(first, None, None)
        state = network.propagate_backward(second, state, network.flow(second, first))
    assert state.dtype == torch.float16
    assert state.is_contiguous(memory_format=torch.channels_last)


def test_flow_that_no_float16_holds_is_limited_and_never_infinite():
    torch.manual_seed(0)
    spynet = SPyNet(2, (8, 8, 8, 8))
    with torch.no_grad():
        spynet.basic_module[0].basic_module[1].conv.weight.mul_(1e5)
    with torch.inference_mode():
        flow = HalfSPyNet(spynet, convolution.by_torch, prepare_by_torch)(
            torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8)
        )
    assert flow.isfinite().all()


def test_weights_that_no_float16_holds_leave_the_flow_in_float32():
    spynet = SPyNet(2, (8, 8, 8, 8))
    assert can_be_half(spynet)
    with torch.no_grad():
        spynet.basic_module[0].basic_module[1].conv.weight[0, 0, 0, 0] = 1e5
    assert not can_be_half(spynet)


@pytest.mark.long
def test_half_precision_moves_no_flow_of_real_motion_by_a_fiftieth_of_a_pixel(capsys):
    assert measure_half_flow.main(["--clips", "3", "--size", "160x96"]) == 0
    table = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [row[1].strip() for row in table[1:]] == ["all levels", *(f"level {i}" for i in range(5))]
    assert all(float(row[2].split()[0]) < 0.005 for row in table[1:])


# ---- what is chosen --------------------------------------------------------------------------------------------------


def plain_steps(model, frames):
    with torch.inference_mode():
        return steps(fused(model, kernels=None), frames)


def wrong(task):
    convolution.by_torch(task)
    task.out.add_(0.05)


def never_twice_the_same(task):
    convolution.by_torch(task)
    task.out.view(-1)[0].mul_(1 + torch.rand(()).item() * 1e-3) if task.planar else None


def raises(task):
    raise RuntimeError("no\ncompiler")


@pytest.mark.parametrize(
    ("convolve", "reason"),
    [(wrong, "differed from torch's results"), (never_twice_the_same, "differed"), (raises, "RuntimeError: no compil")],
)
@pytest.mark.long
def test_kernels_that_are_not_right_here_leave_the_convolutions_to_torch_with_one_note(model, convolve, reason):
    frames = smooth_frames(3, 23, 37)
    network = fused(model, kernels=Kernels(convolve, BY_TORCH.join, BY_TORCH.prepare))
    (note,) = network.notes
    assert note.startswith("convolutions are cuDNN's, and the flow is in float32 (")
    assert reason in note
    with torch.inference_mode():
        made = steps(network, frames)
    for ours, theirs in zip(made, plain_steps(model, frames), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("part", ["join", "prepare"])
def test_a_wrong_warp_is_found_too(model, part):
    def off(*given):
        made = getattr(BY_TORCH, part)(*given)
        return made + 0.1 if part == "join" else (made[0], made[1] + 0.1)

    given = {"convolve": BY_TORCH.convolve, "join": BY_TORCH.join, "prepare": BY_TORCH.prepare, part: off}
    assert len(fused(model, kernels=Kernels(**given)).notes) == 1


def test_whether_kernels_are_right_is_found_out_once(model):
    tries = []

    def counted(task):
        tries.append(task)
        convolution.by_torch(task)

    kernels = Kernels(counted, BY_TORCH.join, BY_TORCH.prepare)
    for _ in range(3):
        assert kernels_unsupported_reason(kernels, half(model)) is None
    assert len(tries) == 2 * (len(kinds_of(model)) + len(flow_kinds_of(model)))


def test_memory_that_is_short_decides_nothing(model):
    def has_none(task):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        kernels_unsupported_reason(Kernels(has_none, BY_TORCH.join, BY_TORCH.prepare), half(model))


def test_in_float32_and_before_tensor_cores_nothing_is_tried(model, monkeypatch):
    asked = Kernels(raises, BY_TORCH.join, BY_TORCH.prepare)
    assert fused(model, torch.float32, kernels=asked).notes == []
    monkeypatch.setattr(choosing, "capability_of", lambda device: 75)
    assert fused(model, kernels=asked).notes == []


def test_off_leaves_everything_to_torch(model, monkeypatch):
    monkeypatch.setenv("RBVSR_KERNELS", "off")
    network = fused(model)
    assert type(network._eager) is TorchBackend
    assert network.notes == []


def test_channels_that_a_thread_cannot_copy_at_once_are_left_to_torch():
    network = fused(RealBasicVSR(Architecture(mid_channels=20, num_cleaning_blocks=1, num_backward_blocks=1)))
    assert "a layer's channels are no multiple of 8" in network.notes[0]


def test_a_flow_network_of_odd_widths_stays_in_float32_and_the_rest_is_fused():
    sizes = Architecture(
        num_cleaning_blocks=1, num_backward_blocks=1, num_forward_blocks=1, flow_channels=(12, 8, 8, 8)
    )
    steps_, notes = choose_steps(half(RealBasicVSR(sizes)), kernels=BY_TORCH, epilogue=by_torch, max_tile_rows=None)
    assert isinstance(steps_, FusedBackend)
    assert isinstance(steps_._model.basicvsr.spynet, SPyNet)
    assert notes == []


@needs_triton
def test_on_the_cpu_the_kernels_cannot_run_and_that_is_no_error(model):
    assert len(fused(model, kernels=BY_TRITON).notes) == 1


def test_without_triton_nothing_of_it_is_asked_for(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    for name in ("convolution_triton", "join_triton", "flow_triton"):
        monkeypatch.delitem(sys.modules, f"vsrealbasicvsr.backends.cuda.{name}", raising=False)
    monkeypatch.setattr(choosing, "_verdicts", {})
    assert "(Triton is not installed)" in fused(model, kernels=BY_TRITON).notes[0]


def test_without_triton_the_user_hears_of_it_once(model):
    def missing(*_, **__):
        raise ModuleNotFoundError("No module named 'triton'", name="triton")

    (note,) = fused(model, kernels=Kernels(missing, BY_TORCH.join, BY_TORCH.prepare), epilogue=missing).notes
    assert note.endswith("(Triton is not installed)")


def test_a_kernel_that_breaks_the_device_is_an_error_that_says_what_to_do(model, monkeypatch):
    def illegal(task):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(choosing, "_responds", lambda device: False)
    with pytest.raises(UserError, match=r"illegal memory access .*RBVSR_KERNELS=off"):
        fused(model, kernels=Kernels(illegal, BY_TORCH.join, BY_TORCH.prepare))


def test_amds_capabilities_are_not_taken_for_nvidias(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert convolution.capability_of(torch.device("cuda:0")) < choosing.MIN_CAPABILITY


# ---- the reference operations ----------------------------------------------------------------------------------------


def test_a_packed_convolution_is_the_convolution():
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(67, 64, 3, padding=1)
    frame, state = torch.rand(1, 3, 9, 11), torch.rand(1, 64, 9, 11)
    flow = torch.randn(1, 2, 9, 11) * 3
    x = join.by_torch(frame, state, flow, torch.float32)
    assert x.shape[1] == 72
    packed = pack(conv.weight, conv.bias, torch.float32, order=join.order_of(64))
    out = torch.empty(1, 64, 9, 11)
    convolution.by_torch(Task(x=x, packed=packed, slope=0.1, out=out))
    expected = conv(torch.cat((frame, flow_warp(state, flow)), dim=1))
    torch.testing.assert_close(out, torch.nn.functional.leaky_relu(expected, 0.1), atol=1e-5, rtol=0)


# ---- the kernels -----------------------------------------------------------------------------------------------------

IN_THE_INTERPRETER = """
import random, sys, torch
from vsrealbasicvsr.backends.cuda import convolution, half_flow, join
from vsrealbasicvsr.backends.cuda.convolution import pack
from vsrealbasicvsr.backends.cuda.convolution_task import Task, plan_for

def like(x, planar):
    return x.contiguous(memory_format=torch.contiguous_format if planar else torch.channels_last)

def compare(made, expected, dtype):
    # Coordinates are torch's but for the last bits: it takes them through a range of -1 to 1.
    step = max(torch.finfo(dtype).eps, 2.5e-4)
    torch.testing.assert_close(made.float(), expected.float(), rtol=2 * step, atol=2 * step)

LAYERS = [
    (64, 64, 3, {}), (64, 64, 3, {"residual": "map"}), (72, 64, 3, {}), (8, 64, 3, {}), (64, 256, 3, {"shuffle": True}),
    (128, 64, 1, {}), (64, 3, 3, {"residual": "small", "planar": True}), (32, 16, 3, {"residual": "map"}),
    (16, 48, 3, {"shuffle": True}), (8, 32, 7, {"limit": True}), (16, 2, 7, {"residual": "map", "planar": True}),
    (256, 256, 1, {}), (24, 128, 3, {}),
]
SIZES = [(1, 1), (4, 4), (8, 16), (12, 20), (1, 300), (4, 1000), (9, 17), (20, 3), (3, 31)]

def convolutions(seed):
    from vsrealbasicvsr.backends.cuda.convolution_triton import launch
    draw, columns = random.Random(seed), []
    torch.manual_seed(seed)
    for dtype in (torch.bfloat16 if seed % 2 else torch.float16,):
        for channels, channels_out, side, given in LAYERS:
            height, width = draw.choice(SIZES)
            residual = given.get("residual")
            if residual == "small":
                height, width = 4 * -(-height // 4), 4 * -(-width // 4)
            num, slope = draw.choice((1, 2)), draw.choice((0.0, 0.1, 1.0))
            if channels * channels_out * side**2 * height * width > 8e6:
                height, width = draw.choice(((4, 4), (4, 20), (12, 4)))
            weight = torch.randn(channels_out, channels, side, side) * (2 / (channels * side**2)) ** 0.5
            packed = pack(weight, torch.randn(channels_out), dtype, shuffle="shuffle" in given)
            planar = "planar" in given
            x = like(torch.randn(num, channels, height, width).to(dtype), False)
            shape = (num, channels_out, height, width)
            if "shuffle" in given:
                shape = (num, channels_out // 4, 2 * height, 2 * width)
            out = torch.full(shape, torch.nan, dtype=torch.float32 if planar else dtype)
            added = None
            if residual == "map":
                added = like(torch.randn(shape).to(out.dtype), planar)
            elif residual == "small":
                added = torch.randn(num, channels_out, height // 4, width // 4)
            outs = [like(out.clone(), planar) for _ in range(3)]
            hopper = plan_for(packed, 90)
            columns.append(hopper.pixels_are_columns)
            ways = (convolution.by_torch, convolution.by_triton, lambda task: launch(task, hopper))
            for convolve, one in zip(ways, outs):
                convolve(Task(x=x, packed=packed, slope=slope, out=one, residual=added,
                    residual_is_small=residual == "small", shuffle="shuffle" in given, planar=planar,
                    limit="limit" in given))
            compare(outs[1], outs[0], dtype)
            compare(outs[2], outs[0], dtype)
            assert outs[1].stride() == outs[0].stride()
    assert any(columns)

def joins(seed):
    torch.manual_seed(seed)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for num, channels, height, width in (
            (1, 64, 1, 1), (2, 24, 8, 6), (1, 64, 2, 40), (1, 16, 1, 500), (1, 8, 5, 1)
        ):
            frame, state = torch.randn(num, 3, height, width), like(torch.randn(num, channels, height, width), False)
            flow = torch.randn(num, 2, height, width) * 4
            flow[0, :, 0, 0] = torch.tensor((-1e6, 3e9))
            for given in ((frame, None, None), (frame, state.to(dtype), None), (frame, state.to(dtype), flow)):
                made, expected = (one(*given, dtype) for one in (join.by_triton, join.by_torch))
                compare(made, expected, dtype)
                assert made.is_contiguous(memory_format=torch.channels_last)
                assert (made.shape, made.dtype) == (expected.shape, expected.dtype)

def levels(seed):
    torch.manual_seed(seed)
    for num, height, width in ((1, 1, 1), (2, 8, 6), (1, 2, 400), (1, 18, 34)):
        frames = torch.randn(2 * num, 3, height, width)
        for coarse in (None, torch.randn(num, 2, max(height // 2, 1), max(width // 2, 1)) * 4):
            ours, theirs = (one(frames, coarse) for one in (half_flow.prepare_by_triton, half_flow.prepare_by_torch))
            for made, expected in zip(ours, theirs):
                compare(made, expected, torch.float16)
                assert (made.shape, made.dtype) == (expected.shape, expected.dtype)

def network(path):
    from vsrealbasicvsr import load_model
    from vsrealbasicvsr.backends.cuda.fused import BY_TORCH, BY_TRITON
    from vsrealbasicvsr.backends.cuda.steps import choose_steps
    from vsrealbasicvsr.backends.cuda.epilogue import by_torch
    made = []
    for kernels in (BY_TRITON, BY_TORCH):
        model = load_model(path).half().to(memory_format=torch.channels_last)
        steps, notes = choose_steps(model, kernels=kernels, epilogue=by_torch, max_tile_rows=None)
        assert notes == [], notes
        torch.manual_seed(0)
        one, other = torch.rand(2, 1, 3, 3, 17)
        state = torch.randn(1, 8, 3, 17).half().contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            state = steps.propagate_backward(one, state, steps.flow(one, other))
            frame = torch.cat([rows for _, rows in steps.reconstruct(one, state, state)], dim=1)
        made.append((steps.cleaning_residue(one), state, frame))
    for ours, theirs in zip(*made):
        compare(ours, theirs, torch.float16)

{"convolutions": convolutions, "joins": joins, "levels": levels, "network": network}[sys.argv[1]](
    sys.argv[2] if sys.argv[1] == "network" else int(sys.argv[2]))
print("right")
"""


@needs_triton
@pytest.mark.long
@pytest.mark.parametrize(
    ("part", "seed"),
    [
        ("convolutions", 0),
        *(pytest.param("convolutions", seed, marks=pytest.mark.slow) for seed in range(1, 4)),
        ("joins", 0),
        ("levels", 0),
        ("network", 0),
    ],
)
def test_the_kernels_give_torchs_values_in_tritons_interpreter(part, seed, tiny_model):
    given = tiny_model if part == "network" else seed
    done = run_program(IN_THE_INTERPRETER, part, given, environment={"TRITON_INTERPRET": "1"})
    assert done.stdout == "right\n"


ON_A_GPU_THAT_ONLY_COMPILES = """
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

class Driver:
    def get_current_target(self):
        return GPUTarget("cuda", 80, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device=None):
        return 0

run, made = JITFunction.run, {}

def compile_only(self, *given, grid, warmup, **others):
    kernel = run(self, *given, grid=grid, warmup=True, **others)
    made.setdefault(self.__name__, {})[id(kernel)] = kernel

driver.set_active(Driver())
JITFunction.run = compile_only

from vsrealbasicvsr.backends.cuda import convolution, half_flow, join
from vsrealbasicvsr.backends.cuda.convolution_task import Task

half = torch.float16
packed = convolution.pack(torch.zeros(64, 8, 3, 3), torch.zeros(64), half)
for height, width in ((1, 1), (16, 16), (45, 67), (480, 720)):
    x, out = (torch.zeros(1, height, width, channels, dtype=half).permute(0, 3, 1, 2) for channels in (8, 64))
    for slope in (0.0, 0.1, 1.0):
        convolution.by_triton(Task(x=x, packed=packed, slope=slope, out=out))
    frame, flow = torch.zeros(1, 3, height, width), torch.zeros(1, 2, height, width)
    join.by_triton(frame, x, flow, half)
    half_flow.prepare_by_triton(torch.cat((frame, frame)), torch.zeros(1, 2, max(height // 2, 1), max(width // 2, 1)))
print({name: len(kernels) for name, kernels in made.items()})
"""


@needs_triton
@pytest.mark.long
def test_launched_for_frames_of_any_size_a_kernel_is_compiled_once(tmp_path):
    """In the middle of a clip nobody waits for a compiler; a size of 1, or of a multiple of 16, is no other kernel."""
    done = run_program(ON_A_GPU_THAT_ONLY_COMPILES, environment={"TRITON_CACHE_DIR": str(tmp_path)})
    assert done.stdout == "{'_convolution': 1, '_join': 1, '_prepare': 1}\n"


@needs_triton
@pytest.mark.long
def test_compiled_for_a_gpu_that_is_not_here_no_kernel_spills(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    assert compile_triton.main(["--targets", "90", "--models", "published"]) == 0
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if "sm_90" in line]
    assert {"3x3 64 to 64 + map", "3x3 64 to 256 shuffle", "7x7 64 to 32", "join 64 along a flow", "flow level"} <= {
        row[1].strip() for row in rows
    }


@needs_triton
def test_a_kernel_that_spills_or_waits_is_a_fault():
    kernel = next(kernel for kernel in compile_triton.kernels(["published"], 86) if kernel.multiplies)
    good = compile_triton.Found(168, 0, 48, "mma", is_asynchronous=True)
    assert compile_triton.faults(kernel, 86, good) == []
    for worse in ({"spilled_bytes": 8}, {"shared_kib": 100}, {"product": ""}, {"is_asynchronous": False}):
        assert len(compile_triton.faults(kernel, 86, dataclasses.replace(good, **worse))) == 1
