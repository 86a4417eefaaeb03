"""Which device and precision names mean, on machines that this one is not: what torch says of its GPUs is replaced."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from training.processes import start_processes
from vsrealbasicvsr.backends import create_backend, cuda, half_precision
from vsrealbasicvsr.backends.half_precision import bfloat16_flaw, float16_flaw
from vsrealbasicvsr.devices import available_devices
from vsrealbasicvsr.engine import DeviceError, Grid, PlaneFormat, WindowUpscaler, choose_device, to_planes
from vsrealbasicvsr.model import RealBasicVSR
from vsrealbasicvsr.weights import load_model

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")

UNSUPPORTED = "CUDA error: no kernel image is available for execution on the device\nCUDA kernel errors might be"
FULL = "CUDA error: out of memory\nCUDA kernel errors might be"


@pytest.fixture
def gpu(monkeypatch):
    """Puts a GPU into this machine: gpu(name, capability, error), where error is what its first kernel raises."""

    def put(name="NVIDIA GeForce RTX 4090", capability=(8, 9), error=None, hip=None):
        zeros = torch.zeros

        def first_kernel(*size, device=None, **more):
            if torch.device(device or "cpu").type != "cuda":
                return zeros(*size, device=device, **more)
            if error:
                raise RuntimeError(error)
            return zeros(*size, **more)

        monkeypatch.setattr(torch, "zeros", first_kernel)
        monkeypatch.setattr(torch.version, "hip", hip)
        monkeypatch.setattr(half_precision, "_flaws", {})
        for query, answer in {
            "is_available": True,
            "current_device": 0,
            "device_count": 1,
            "get_device_name": name,
            "get_device_capability": capability,
            "get_arch_list": ["sm_75", "sm_80", "sm_90"],
            "get_device_properties": SimpleNamespace(name=name, total_memory=24 * 2**30),
        }.items():
            monkeypatch.setattr(torch.cuda, query, lambda *_, answer=answer: answer)

    return put


# ---- devices ---------------------------------------------------------------------------------------------------------


def test_auto_is_the_cpu_where_torch_has_no_kernels_for_the_gpu_and_one_note_says_so(gpu, tiny_model):
    gpu("NVIDIA GeForce GTX 750", (5, 0), UNSUPPORTED)
    config = choose_device("auto", "auto")
    assert (config.device, config.dtype) == (CPU, torch.float32)
    engine = WindowUpscaler(load_model(tiny_model), config, Grid(num_frames=2, length=2, overlap=0), theta=5.0)
    assert len(list(engine.upscale_frames(torch.rand(2, 3, 8, 8)))) == 2
    (note,) = engine.messages.take_notes()
    assert note.startswith('device="auto" is the CPU: "cuda" cannot be used (CUDA error: no kernel image is available')
    assert "sm_50" in note
    assert "sm_75, sm_80, sm_90" in note


def test_a_gpu_that_is_named_and_has_no_kernels_is_an_error_with_its_cure(gpu):
    gpu("NVIDIA GeForce GTX 750", (5, 0), UNSUPPORTED)
    with pytest.raises(DeviceError, match=r"the GPU is sm_50, torch .* was built for sm_75, .*; install a build for"):
        choose_device("cuda", "auto")


def test_auto_does_not_leave_a_gpu_whose_memory_is_taken(gpu):
    gpu(error=FULL)
    with pytest.raises(DeviceError, match="out of memory"):
        choose_device("auto", "auto")


def test_training_falls_back_likewise(gpu, capsys):
    gpu("NVIDIA GeForce GTX 750", (5, 0), UNSUPPORTED)
    assert start_processes("auto").device == CPU
    assert capsys.readouterr().err.startswith('device="auto" is the CPU: "cuda" cannot be used')


def test_every_kind_of_gpu_is_listed(gpu, monkeypatch):
    gpu()
    arc = SimpleNamespace(name="Intel Arc B580", total_memory=12 * 2**30)
    monkeypatch.setattr(torch.xpu, "is_available", lambda: True)
    monkeypatch.setattr(torch.xpu, "device_count", lambda: 1)
    monkeypatch.setattr(torch.xpu, "get_device_properties", lambda _: arc)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert available_devices() == [
        "cpu",
        "cuda:0 (NVIDIA GeForce RTX 4090, 24 GiB)",
        "xpu:0 (Intel Arc B580, 12 GiB)",
        "mps",
    ]


# ---- precisions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "capability", "has_tensor_cores"),
    [
        ("NVIDIA GeForce GTX 1080 Ti", (6, 1), False),
        ("Tesla V100-SXM2-16GB", (7, 0), True),
        ("NVIDIA GeForce GTX 1650", (7, 5), False),
        ("NVIDIA GeForce GTX 1660 Ti", (7, 5), False),
        ("NVIDIA T1000", (7, 5), False),
        ("Quadro T2000 with Max-Q Design", (7, 5), False),
        ("Tesla T4", (7, 5), True),
        ("NVIDIA GeForce RTX 2060", (7, 5), True),
        ("Quadro RTX 4000", (7, 5), True),
        ("NVIDIA GeForce RTX 4090", (8, 9), True),
    ],
)
def test_auto_is_fp16_where_there_are_tensor_cores(gpu, monkeypatch, name, capability, has_tensor_cores):
    gpu(name, capability)
    monkeypatch.setattr(torch.Tensor, "to", lambda x, *given, to=torch.Tensor.to: to(x, *(CPU, *given[1:])))
    monkeypatch.setattr(half_precision, "place_of", lambda _: torch.no_grad())
    config = choose_device("cuda", "auto")
    assert config.dtype == (torch.float16 if has_tensor_cores else torch.float32)
    expected = [] if has_tensor_cores else [f'cuda:0: precision="auto" is fp32 ({name} has no tensor cores)']
    assert list(config.notes) == expected


def nothing_but_nan(x, weight, padding):
    return torch.full((1, 64, 16, 16), torch.nan, dtype=x.dtype)


def sums_in_half_precision(x, weight, padding):
    total = torch.zeros(1, 64, 16, 16, dtype=x.dtype)
    padded = F.pad(x, (1, 1, 1, 1))
    for row in range(3):
        for column in range(3):
            for channel in range(64):
                part = padded[:, channel : channel + 1, row : row + 16, column : column + 16]
                total += part * weight[:, channel, row, column].view(1, -1, 1, 1)
    return total


@pytest.mark.parametrize("wrong", [nothing_but_nan, sums_in_half_precision])
def test_a_gpu_whose_convolutions_in_half_precision_are_wrong_computes_in_fp32(monkeypatch, wrong):
    monkeypatch.setattr(half_precision, "_flaws", {})
    assert float16_flaw(CPU) is None
    conv2d = F.conv2d

    def convolution(x, weight, padding):
        return (wrong if x.dtype == torch.float16 else conv2d)(x, weight, padding=padding)

    monkeypatch.setattr(F, "conv2d", convolution)
    assert float16_flaw(CPU) is None  # looked at once
    half_precision._flaws.clear()
    assert float16_flaw(CPU) == "a convolution in float16 is wrong there"


def test_no_memory_for_the_check_says_nothing_about_the_gpu(monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB")

    monkeypatch.setattr(half_precision, "_flaws", {})
    monkeypatch.setattr(F, "conv2d", full)
    with pytest.raises(torch.OutOfMemoryError):
        float16_flaw(CPU)
    monkeypatch.undo()
    half_precision._flaws.clear()
    assert float16_flaw(CPU) is None


def test_bf16_below_capability_8_is_refused_with_the_way_out(gpu):
    gpu("NVIDIA GeForce RTX 2060", (7, 5))
    with pytest.raises(
        DeviceError, match=r'bf16" cannot be used \(.*below capability 8.0, and .*2060 has 7.5\). Use "au'
    ):
        choose_device("cuda", "bf16")
    gpu("NVIDIA GeForce RTX 4090", (8, 9))
    assert choose_device("cuda", "bf16").dtype == torch.bfloat16
    gpu("AMD Radeon RX 7900 XTX", (7, 0), hip="6.4")  # a number of another meaning
    assert bfloat16_flaw(CUDA) is None
    assert bfloat16_flaw(CPU) is None


# ---- other devices than CPUs and CUDA's ------------------------------------------------------------------------------


class Types(TorchDispatchMode):
    """Notes the types of all tensors that are made."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        self.seen |= {x.dtype for x in tree_leaves(made) if isinstance(x, torch.Tensor)}
        return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_plain_path_asks_nothing_of_a_device_that_mps_lacks_and_says_what_is_not_in_use(dtype):
    """On the meta device, which stands for any that only torch knows. MPS has no float64."""
    with torch.device("meta"):
        model = RealBasicVSR()
    network = create_backend(model, torch.device("meta"), dtype)
    assert list(network.notes) == ["torch's own operations, without graphs and kernels of ours, are in use"]
    frame = torch.empty(1, 3, 45, 67, device="meta")
    video = PlaneFormat(family="yuv", bits=10, is_float=False, is_full_range=False, subsampling=(1, 1))
    with torch.inference_mode(), Types() as types:
        cleaned = frame + network.cleaning_residue(frame)
        flow = network.flow(cleaned, frame)
        state = network.propagate_backward(cleaned, network.propagate_backward(cleaned, None, None), flow)
        assert (state.dtype, flow.dtype) == (dtype, torch.float32)
        hr = torch.cat([rows for _, rows in network.reconstruct(cleaned, state, state)], dim=1)
        assert [plane.shape for plane in to_planes(hr, video)] == [(180, 268), (90, 134), (90, 134)]
    assert torch.float64 not in types.seen
    network.release()


@pytest.mark.parametrize("distribution", ["triton-windows", "pytorch-triton-rocm", "pytorch-triton-xpu"])
def test_triton_is_found_whatever_its_distribution_is_called(monkeypatch, distribution):
    def version(name):
        if name != distribution:
            raise cuda.importlib.metadata.PackageNotFoundError
        return "3.6.0"

    monkeypatch.setattr(cuda.importlib.metadata, "version", version)
    assert cuda.triton_version() == "3.6.0"
