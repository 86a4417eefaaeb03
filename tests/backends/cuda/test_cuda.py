"""On a GPU: the same picture as on the CPU, repeatable to the bit. Skipped without one, see conftest."""

import copy
import hashlib
import itertools
import random
import threading

import numpy as np
import pytest
import torch
import vapoursynth as vs

from vsrealbasicvsr import load_model, refine
from vsrealbasicvsr.backends.cuda import backend as cuda
from vsrealbasicvsr.backends.cuda import streams
from vsrealbasicvsr.backends.cuda.backend import CudaBackend
from vsrealbasicvsr.backends.cuda.epilogue import by_triton, unsupported_reason
from vsrealbasicvsr.backends.cuda.fused import BY_TRITON, FusedBackend
from vsrealbasicvsr.backends.cuda.steps import kernels_unsupported_reason
from vsrealbasicvsr.backends.torch import TorchBackend
from vsrealbasicvsr.engine import DeviceConfig, choose_device
from vsrealbasicvsr.filter import entry
from vsrealbasicvsr.model import RealBasicVSR

pytestmark = pytest.mark.needs_cuda


def moving(core, num_frames=8, width=96, height=64):
    blank = core.std.BlankClip(format=vs.RGBS, width=width, height=height, length=num_frames)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)

    def fill(n, f):
        frame = f.copy()
        for plane in range(3):
            np.copyto(np.asarray(frame[plane]), 0.5 + 0.4 * np.sin((x + 2 * n) / (3 + plane)) * np.cos(y / 5))
        return frame

    return core.std.ModifyFrame(blank, blank, fill)


def pixels(clip) -> np.ndarray:
    return np.stack([[np.asarray(frame[plane]) for plane in range(3)] for frame in clip.frames(close=True)])


def psnr_db(a, b) -> float:
    return -10 * np.log10(np.square(a - b).mean())


# ---- pictures --------------------------------------------------------------------------------------------------------


# 64 is a multiple of what the flow network halves, 60 is not.
@pytest.mark.parametrize("height", [64, 60])
@pytest.mark.parametrize(("precision", "least_db"), [("fp32", 80), ("fp16", 50), ("bf16", 35)])
def test_the_gpu_gives_the_picture_of_the_cpu(core, precision, least_db, height):
    clip = moving(core, height=height)
    cpu = pixels(clip.rbvsr.Upscale(device="cpu", precision="fp32"))
    gpu = pixels(clip.rbvsr.Upscale(device="cuda", precision=precision))
    assert psnr_db(cpu, gpu) >= least_db


@pytest.mark.parametrize("format_id", [vs.YUV420P8, vs.YUV422P10, vs.YUV444P16, vs.RGB24, vs.GRAY16, vs.YUV420PS])
def test_frames_are_converted_on_the_gpu_as_core_resize_does_it(core, monkeypatch, format_id):
    matrix = {} if format_id == vs.RGB24 else {"matrix": 1}
    clip = moving(core).resize.Bicubic(format=format_id, **matrix)
    made = []
    for converts in (False, True):
        monkeypatch.setattr(entry, "_converts", lambda computes, converts=converts: converts)
        frames = clip.rbvsr.Upscale(device="cuda").frames(close=False)
        made.append([[np.asarray(plane).astype(np.float64) for plane in frame] for frame in frames])
    step = 1e-5 if clip.format.sample_type == vs.FLOAT else 1
    for theirs, ours in zip(*made, strict=True):
        for a, b in zip(theirs, ours, strict=True):
            assert np.abs(a - b).max() <= step


def test_half_precision_comes_close_to_single_precision(core):
    clip = moving(core, num_frames=16)
    single, half = (pixels(clip.rbvsr.Upscale(device="cuda", precision=name)) for name in ("fp32", "fp16"))
    assert psnr_db(single, half) >= 50


def test_a_gpu_is_chosen_by_itself_and_computes_in_half_precision(core):
    compute = choose_device("auto", "auto")
    assert (compute.device.type, compute.dtype) == ("cuda", torch.float16)
    assert any(name.startswith("cuda:0") for name in np.atleast_1d(core.rbvsr.Version()["devices"]))


def hashes(clip, order, **arguments) -> dict[int, str]:
    out = clip.rbvsr.Upscale(length=4, overlap=2, **arguments)
    return {n: hashlib.md5(np.asarray(out.get_frame(n)[0]).tobytes()).hexdigest() for n in order}


# 600x500 is larger than what is captured, and is reconstructed in tiles.
@pytest.mark.parametrize(("width", "height"), [(96, 64), (90, 61), (600, 500)])
def test_the_gpu_gives_the_same_bytes_every_time_and_in_any_order(core, width, height):
    num_frames = 12 if width < 600 else 6
    clip = moving(core, num_frames, width, height)
    numbers = list(range(num_frames))
    forwards = hashes(clip, numbers, device="cuda")
    assert hashes(clip, numbers, device="cuda") == forwards
    assert hashes(clip, reversed(numbers), device="cuda") == forwards
    assert hashes(clip, random.Random(0).sample(numbers, num_frames), device="cuda") == forwards


def test_captured_or_not_the_pictures_have_the_same_bytes(core, monkeypatch):
    clip = moving(core, num_frames=12)
    captured = hashes(clip, range(12), device="cuda")
    monkeypatch.setattr(cuda, "GRAPH_SHARE", 0)
    assert hashes(clip, range(12), device="cuda") == captured


def test_two_gpus_of_a_kind_give_the_bytes_of_one(core):
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    if len(names) < 2 or names[0] != names[1]:
        pytest.skip("needs two GPUs of a kind")
    clip = moving(core, num_frames=24)
    alone = hashes(clip, range(24), device="cuda:0")
    assert hashes(clip, range(24), device="cuda:1") == alone
    for seed in range(3):
        order = random.Random(seed).sample(range(24), 24)
        assert hashes(clip, order, device="cuda:0,cuda:1") == alone


def test_the_model_refines_and_resolves_on_the_gpu():
    model, lr = load_model(device="cuda"), torch.rand(2, 3, 3, 33, 31, device="cuda")
    with torch.inference_mode():
        cleaned, num_passes = refine(model, lr, theta=1.5)
        assert model.super_resolve(cleaned).shape == (2, 3, 3, 132, 124)
    assert num_passes.shape == (2, 3)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_the_epilogues_work_here_and_change_last_bits_only(precision):
    compute = choose_device("cuda", precision)
    assert compute.run(lambda: unsupported_reason(by_triton, compute.device, compute.dtype)) is None

    def fails(*_, **__):
        raise NotImplementedError

    frames = pictures(3, 90, 160)
    model = load_model("default").to(compute.device, compute.dtype).to(memory_format=torch.channels_last)
    networks = [CudaBackend(copy.deepcopy(model), kernels=None, epilogue=epilogue) for epilogue in (by_triton, fails)]
    made = [steps(compute, network, frames) for network in networks]
    assert networks[0].notes == []
    assert len(networks[1].notes) == 1
    for fused, unfused in zip(*made, strict=True):
        apart = (fused - unfused).norm() / unfused.norm()
        assert apart <= {"fp32": 1e-4, "fp16": 1e-2, "bf16": 5e-2}[precision]


@pytest.mark.parametrize("weights", ["tiny", "default", "published"])
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_the_fused_kernels_work_here_and_change_last_bits_only(precision, weights, tiny_model):
    compute = choose_device("cuda", precision)
    if torch.cuda.get_device_capability(compute.device) < (8, 0):
        pytest.skip("they are for compute capability 8.0 and above")
    network = RealBasicVSR() if weights == "published" else load_model(tiny_model if weights == "tiny" else "default")
    model = network.to(compute.device, compute.dtype).to(memory_format=torch.channels_last)
    assert compute.run(lambda: kernels_unsupported_reason(BY_TRITON, model)) is None
    frames = pictures(3, 90, 160)
    networks = [CudaBackend(copy.deepcopy(model), kernels=kernels) for kernels in (BY_TRITON, None)]
    fused, again, unfused = (steps(compute, one, frames) for one in (networks[0], networks[0], networks[1]))
    assert networks[0].notes == []
    assert isinstance(networks[0]._eager, FusedBackend)
    assert_same_bits(fused, again)
    for one, other in zip(fused, unfused, strict=True):
        assert (one - other).norm() / other.norm() <= {"fp16": 1e-2, "bf16": 5e-2}[precision]


# ---- graphs ----------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["fp32", "fp16", "bf16"])
def compute(request) -> DeviceConfig:
    return choose_device("cuda", request.param)


@pytest.fixture(params=["tiny", "default"])
def model(request, tiny_model):
    return load_model(tiny_model if request.param == "tiny" else "default")


def prepared(compute: DeviceConfig, model) -> CudaBackend:
    network = compute.prepare(model)
    assert isinstance(network, CudaBackend)
    return network


def plain(network: CudaBackend) -> TorchBackend:
    """The same steps with the same weights, none of them captured."""
    return network._eager


def pictures(num: int, height: int, width: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(height * 1000 + width)
    coarse = torch.rand(num, 3, height // 3 + 2, width // 3 + 2, generator=generator)
    return list(torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic").split(1))


def steps(compute: DeviceConfig, network, frames: list[torch.Tensor]) -> list[torch.Tensor]:
    """All that is made of frames, both directions at once, states carried on; on the CPU."""

    def job() -> list[torch.Tensor]:
        made = []
        backward = forward = None
        on_device = [compute.to_device(frame) for frame in frames]
        for this, after in itertools.pairwise(on_device):
            residue = network.cleaning_residue(this)
            cleaned = this + residue
            there, back = network.flow(cleaned, after), network.flow(after, cleaned)
            backward = network.propagate_backward(cleaned, backward, there)
            forward = network.propagate_forward(cleaned, forward, back)
            hr = torch.cat([rows for _, rows in network.reconstruct(cleaned, backward, forward)], dim=1)
            made += [residue, there, back, backward, forward, hr]
        return made

    made = compute.run(job)
    return [one.float() for one in compute.on_host(made)]


def assert_same_bits(ours: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for index, (a, b) in enumerate(zip(ours, expected, strict=True)):
        assert torch.equal(a.view(torch.int32), b.view(torch.int32)), index


@pytest.mark.parametrize("size", [(64, 96), (45, 67), (180, 320), (7, 5)])
def test_graphs_give_the_bits_of_the_plain_steps(compute, model, size):
    network = prepared(compute, model)
    for seed in range(3):  # with and without what ran before
        frames = random.Random(seed).sample(pictures(6, *size), 6)
        assert_same_bits(steps(compute, network, frames), steps(compute, plain(network), frames))
    assert network.notes == []
    assert len(network._graphs._graphs) == 4


@pytest.mark.parametrize("size", [(64, 96), (45, 67), (7, 5)])
def test_concurrently_every_frame_has_the_bits_that_it_has_alone(compute, model, size):
    network, frames, num = prepared(compute, model), pictures(19, *size), 4
    single = plain(network)
    network._busy_px = num * size[0] * size[1]  # on a GPU of any size
    assert network.num_concurrent_frames(*size) == num

    def job() -> list[bool]:
        on_device = [compute.to_device(frame) for frame in frames]
        same = []
        for _ in range(2):  # captured, then replayed
            residues = network.cleaning_residue(torch.cat(on_device)).split(1)
            same += [torch.equal(a, single.cleaning_residue(b)) for a, b in zip(residues, on_device, strict=True)]
            flows = network.flow(torch.cat(on_device[1:]), torch.cat(on_device[:-1])).split(1)
            same += [
                torch.equal(flow, single.flow(*pair))
                for flow, pair in zip(flows, zip(on_device[1:], on_device[:-1], strict=True), strict=True)
            ]
            behind = ahead = None
            for frame, other, flow in zip(on_device, reversed(on_device), [None, *flows], strict=True):
                expected = single.propagate_both((frame, behind, flow), (other, ahead, flow))
                behind, ahead = network.propagate_both((frame, behind, flow), (other, ahead, flow))
                same += [torch.equal(behind, expected[0]), torch.equal(ahead, expected[1])]
        return same

    assert all(compute.run(job))
    assert network.notes == []
    assert {len(key) for key in network._graphs._graphs} == {1, 2, num}


def test_what_a_graph_made_is_not_overwritten_by_what_it_makes_next(compute, model):
    network = prepared(compute, model)
    first, second = pictures(2, 64, 96)

    def job():
        kept = []
        for frame in (first, second) * 3:
            x = frame.to(compute.device)
            kept.append((network.cleaning_residue(x), plain(network).cleaning_residue(x)))
        return [torch.equal(a, b) for a, b in kept]

    assert compute.run(job) == [True] * 6


def test_a_frame_whose_graphs_have_no_memory_is_computed_all_the_same(compute, model):
    network = prepared(compute, model)
    network._free_bytes = 2**20
    frames = pictures(3, 64, 96)
    assert_same_bits(steps(compute, network, frames), steps(compute, plain(network), frames))
    assert len(network._graphs._graphs) == 0


def test_frames_of_a_disc_are_captured_and_their_graphs_take_no_more_memory_than_was_counted(compute):
    """720x480, which had no graph once."""
    network, frames = prepared(compute, load_model()), pictures(3, 480, 720)
    single = plain(network)
    expected = steps(compute, single, frames)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    assert_same_bits(steps(compute, network, frames), expected)
    assert network.notes == []
    assert len(network._graphs._graphs) == 4
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() - before <= 480 * 720 * cuda.graph_bytes_px(network._eager._model) + 2**27


def out_of_memory():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def wait_for_the_device():
    """No capture survives it: the driver refuses to end it."""
    torch.ones(1, device="cuda").item()


@pytest.mark.parametrize("mishap", [out_of_memory, wait_for_the_device])
def test_a_capture_that_fails_leaves_the_step_plain_and_all_else_as_it_was(compute, model, mishap):
    network = prepared(compute, model)
    inner = plain(network)
    frames = pictures(4, 64, 96)
    expected = steps(compute, inner, frames)
    step = inner.cleaning_residue

    def failing(x):
        if torch.cuda.is_current_stream_capturing():
            mishap()
        return step(x)

    inner.cleaning_residue = failing
    for _ in range(3):
        assert_same_bits(steps(compute, network, frames), expected)
    (note,) = (note for note in network.notes if "CUDA graph" in note)
    assert note.startswith("cleaning runs without a CUDA graph")
    assert len(network._graphs._graphs) == 3  # the other steps were captured after it
    assert compute.run(lambda: torch.cuda.current_stream() == torch.cuda.default_stream())
    assert torch.rand(4, device="cuda").isfinite().all()  # the generator is not left capturing
    compute.run(network.release)
    assert_same_bits(steps(compute, network, frames), expected)
    assert len(network._graphs._graphs) == 0


@pytest.mark.parametrize("mishap", [out_of_memory, wait_for_the_device])
def test_a_branch_that_fails_leaves_its_steps_one_by_one_and_all_else_as_it_was(compute, model, mishap):
    network = prepared(compute, model)
    network._busy_px = 4 * 64 * 96
    inner, frames = plain(network), pictures(4, 64, 96)
    expected = steps(compute, inner, frames)
    step, num_captured = inner.cleaning_residue, 0

    def failing(x):
        nonlocal num_captured
        if torch.cuda.is_current_stream_capturing():
            num_captured += 1
            if num_captured == 3:  # the first is captured alone, then two concurrently
                mishap()
        return step(x)

    inner.cleaning_residue = failing

    def job() -> list[bool]:
        batch = torch.cat([compute.to_device(frame) for frame in frames])
        alone = torch.cat([step(x) for x in batch.split(1)])
        return [torch.equal(network.cleaning_residue(batch), alone) for _ in range(2)]

    assert compute.run(job) == [True, True]
    assert_same_bits(steps(compute, network, frames), expected)
    (note,) = network.notes
    assert " x cleaning runs without a CUDA graph" in note


def test_released_memory_comes_back(compute):
    network = prepared(compute, load_model())
    frames = pictures(3, 180, 320)
    compute.run(network.release)
    before = torch.cuda.memory_reserved()
    network = prepared(compute, load_model())
    with_weights = torch.cuda.memory_reserved()
    steps(compute, network, frames)
    assert torch.cuda.memory_reserved() > with_weights
    compute.run(network.release)
    assert torch.cuda.memory_reserved() <= with_weights + 2**25
    assert before <= with_weights


def test_the_convolutions_do_not_depend_on_torchs_switches(compute, model):
    frames = pictures(3, 64, 96)
    expected = steps(compute, plain(prepared(compute, model)), frames)
    network = prepared(compute, model)
    with torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=False, allow_tf32=True):
        assert_same_bits(steps(compute, plain(network), frames), expected)
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        assert_same_bits(steps(compute, plain(network), frames), expected)


def switches() -> dict[str, object]:
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    return {
        "cudnn": (cudnn.enabled, cudnn.benchmark, cudnn.benchmark_limit, cudnn.deterministic, cudnn.allow_tf32),
        "products": (matmul.allow_tf32, matmul.allow_fp16_reduced_precision_reduction),
        "precision": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "device": torch.cuda.current_device(),
        "stream": torch.cuda.current_stream(),
        "random numbers": bytes(torch.cuda.get_rng_state()),
        "threads": torch.get_num_threads(),
        "inference": torch.is_inference_mode_enabled(),
    }


def test_no_switch_of_torch_is_changed_not_even_meanwhile(compute, model):
    before = switches()
    network = prepared(compute, model)
    step, seen = plain(network).cleaning_residue, []

    def watched(x):
        if not torch.cuda.is_current_stream_capturing():
            seen.append(switches())
        return step(x)

    plain(network).cleaning_residue = watched
    steps(compute, network, pictures(3, 64, 96))
    compute.run(network.release)
    assert switches() == before
    assert network.notes == []
    assert len(seen) > 3
    of_a_thread = {"device", "stream", "inference"}
    assert all(one[name] == before[name] for one in seen for name in before.keys() - of_a_thread)


# ---- threads and copies ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_what_arrives_on_the_host_is_what_the_job_made_under_many_threads(dtype):
    compute = choose_device("cuda", "fp16")
    big = torch.rand(2048, 2048, device="cuda")
    wrong = []

    def job(seed):
        x = compute.to_device(torch.arange(300_000).remainder(1000 + seed).float())
        for _ in range(4):  # so that the copy has something to wait for
            x = x + 0 * (big @ big)[0, 0]
        return x.to(dtype).view(3, 100_000)[:, : 99_000 + seed]

    def work(first):
        for seed in range(first, first + 20):
            planes = compute.on_host(compute.run(lambda seed=seed: list(job(seed))))
            expected = torch.arange(300_000).remainder(1000 + seed).view(3, 100_000)[:, : 99_000 + seed].to(dtype)
            for made, plane in zip(planes, expected, strict=True):
                if (made.device.type, made.dtype) != ("cpu", dtype) or not torch.equal(made, plane):
                    wrong.append(seed)

    threads = [threading.Thread(target=work, args=(100 * i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_on_host_is_cpu():
    compute = choose_device("cuda", "fp16")
    made = compute.run(lambda: torch.rand(3, 64, 96, device=compute.device).half())
    assert torch.equal(compute.on_host([made])[0], made.cpu())


def test_copies_to_the_host_go_through_memory_that_is_page_locked():
    compute = choose_device("cuda", "fp16")
    for _ in range(3):
        (host,) = compute.run_to_host(lambda: [torch.ones(3, 640, 960, device=compute.device)])
        assert host.is_pinned()
        assert (host == 1).all()


def test_without_pinned_memory_copies_are_made_all_the_same(monkeypatch):
    compute = choose_device("cuda", "fp16")
    monkeypatch.setattr(streams, "_pinned_like", lambda *_: None)
    monkeypatch.setattr(streams.PageLocked, "like", lambda *_: None)
    x = torch.rand(3, 64, 96)
    assert torch.equal(compute.on_host([compute.run(lambda: compute.to_device(x) * 2)])[0], x * 2)


def test_several_clips_at_once_share_the_gpu(core):
    """Their steps are captured and replayed in turns on the one thread of the device."""
    clips = [moving(core, 12, width, 64) for width in (96, 90, 64)]
    alone = [hashes(clip, range(12), device="cuda") for clip in clips]
    found = [{} for _ in clips]

    def work(i):
        found[i] = hashes(clips[i], range(12), device="cuda")

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(clips))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == alone
