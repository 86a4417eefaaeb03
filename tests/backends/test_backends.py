"""What every backend promises, whichever computes: the values of the eager model, on any size, in tiles or whole."""

import copy
from dataclasses import replace

import pytest
import torch

from tests.fake_capture import FakeCapture
from tests.networks import random_network, smooth_frames
from tests.tolerances import WINOGRAD
from vsrealbasicvsr.backends import FACTORIES, Backend, create_backend
from vsrealbasicvsr.backends.cpu import CpuBackend, available, load_kernels
from vsrealbasicvsr.backends.cuda import CudaBackend
from vsrealbasicvsr.backends.torch import TorchBackend, create_torch_backend
from vsrealbasicvsr.model import Architecture, RealBasicVSR, refine

CPU = torch.device("cpu")

SMALL = Architecture(
    cleaning_channels=9,
    num_cleaning_blocks=2,
    mid_channels=12,
    num_backward_blocks=2,
    num_forward_blocks=1,
    fusion_channels=10,
    quarter_channels=8,
    hr_channels=7,
    hr_out_channels=6,
    num_flow_levels=4,
    flow_channels=(8, 12, 8, 4),
    num_cleaning_levels=3,
)

SIZES = [(1, 1), (1, 37), (37, 1), (24, 32), (31, 33), (45, 67), (64, 96)]
"""The smallest; narrow ones; multiples of 32 and of 8; one less and one more than such multiples; odd ones."""


def by_our_kernels(name):
    return lambda model, rows: CpuBackend(model, load_kernels(name), max_tile_rows=rows)


def as_on_cuda(model, rows):
    """The CUDA backend's way to run the steps, three small frames concurrently, with torch on the CPU."""
    return CudaBackend(copy.deepcopy(model), max_tile_rows=rows, capture=FakeCapture(), busy_px=3 * 24 * 32)


def on(device):
    return lambda model, rows: create_backend(model, torch.device(device), torch.float32, max_tile_rows=rows)


BACKENDS = {
    "torch": (CPU, lambda model, rows: create_torch_backend(model, CPU, torch.float32, max_tile_rows=rows)),
    **{f"cpu, {name}": (CPU, by_our_kernels(name)) for name in available()},
    "cuda without a GPU": (CPU, as_on_cuda),
    **{
        device: (torch.device(device), on(device))
        for device in FACTORIES
        if device != "cpu" and getattr(torch, device).is_available()
    },
}
"""All that can compute here, with the device of their tensors. A new backend's device type joins by itself once torch
finds such a device, or is added beside the others."""


@pytest.fixture(params=BACKENDS)
def create(request):
    """Creates a backend; called with a model and the maximum height of a tile."""
    return BACKENDS[request.param][1]


@pytest.fixture
def device(request):
    return BACKENDS[request.node.callspec.params["create"]][0]


@pytest.fixture(autouse=True)
def inference():
    with torch.inference_mode():
        yield


def whole(parts) -> torch.Tensor:
    """The frame, from its tiles, which must follow each other from top to bottom."""
    tiles, stop = [], 0
    for first, rows in parts:
        assert first == stop
        stop += rows.shape[1]
        tiles.append(rows)
    return torch.cat(tiles, dim=1)[None]


def every_step(backend: Backend | RealBasicVSR, frames: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """What a backend, or the eager model, computes of three frames: each step from what the steps before it gave."""
    eager = isinstance(backend, RealBasicVSR)
    flow = backend.basicvsr.spynet if eager else backend.flow
    results = {}
    backward = forward = None
    for i, frame in enumerate(frames):
        results[f"residue {i}"] = backend.cleaning_residue(frame)
        towards = flow(frame, frames[i - 1]) if i else None
        if towards is not None:
            results[f"flow {i}"] = towards
        backward = backend.propagate_backward(frame, backward, towards)
        forward = backend.propagate_forward(frame, forward, towards)
        hr = backend.reconstruct(frame, backward, forward)
        results[f"frame {i}"] = hr if eager else whole(hr)
    return results


def assert_near(results: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert results.keys() == expected.keys()
    for name, tensor in results.items():
        assert tensor.dtype == torch.float32, name
        assert tensor.shape == expected[name].shape, name
        largest = max(expected[name].abs().max().item(), 1.0)
        assert (tensor.cpu() - expected[name]).abs().max() <= WINOGRAD * largest, name


@pytest.mark.parametrize("num_cleaning_levels", [1, SMALL.num_cleaning_levels])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_every_step_gives_the_eager_models_values(create, device, height, width, num_cleaning_levels):
    model = random_network(replace(SMALL, num_cleaning_levels=num_cleaning_levels))
    frames = smooth_frames(3, height, width)
    backend = create(model, None)
    assert_near(every_step(backend, [frame.to(device) for frame in frames]), every_step(model, frames))


@pytest.mark.parametrize("rows", [1, 7, 44, 45, 1000])
def test_tiles_of_any_height_give_the_same_frames(create, device, rows):
    model, frames = random_network(SMALL), smooth_frames(3, 45, 33)
    expected = every_step(model, frames)
    frames = [frame.to(device) for frame in frames]
    assert_near(every_step(create(model, rows), frames), expected)
    backend = create(model, None)
    backend.max_tile_rows = rows  # as when memory becomes short
    assert_near(every_step(backend, frames), expected)


@pytest.mark.parametrize("rows", [None, 6])
def test_a_state_without_a_flow_stays_where_it_is(create, device, rows):
    model, (frame,) = random_network(SMALL), smooth_frames(1, 20, 33)
    backend = create(model, rows)
    for name in ("propagate_backward", "propagate_forward"):
        expected, propagate = getattr(model, name), getattr(backend, name)
        first = propagate(frame.to(device), None, None)
        hr = whole(backend.reconstruct(frame.to(device), first, propagate(frame.to(device), first, None)))
        twice = expected(frame, expected(frame, None, None), None)
        assert_near({"hr": hr}, {"hr": model.reconstruct(frame, expected(frame, None, None), twice)})


@pytest.mark.parametrize(("theta", "cleaning"), [(255, 1), (0, 1), (0.5, 0.5), (5, 0)])
def test_refinement_cleans_as_often_and_as_much(create, device, theta, cleaning):
    model, frames = random_network(SMALL), torch.cat(smooth_frames(3, 31, 33))[None]
    expected, num_passes = refine(model, frames, theta=theta, cleaning=cleaning)
    for rows in (None, 6):
        backend = create(model, rows)
        cleaned, num = zip(
            *(refine(backend, frames[:, i : i + 1].to(device), theta=theta, cleaning=cleaning) for i in range(3)),
            strict=True,
        )
        assert torch.equal(torch.cat(num, dim=1).cpu(), num_passes)
        assert_near({"cleaned": torch.cat(cleaned, dim=1)}, {"cleaned": expected})


def test_the_flow_leads_from_one_frame_to_the_other(create, device):
    """The direction, not only the values: exchanged frames have another flow."""
    model, (first, second) = random_network(SMALL), smooth_frames(2, 31, 33)
    backend = create(model, None)
    there, back = backend.flow(first.to(device), second.to(device)), backend.flow(second.to(device), first.to(device))
    expected = model.basicvsr.spynet(torch.cat((first, second)), torch.cat((second, first)))
    assert_near({"flow": torch.cat((there, back))}, {"flow": expected})
    assert (there - back).abs().max() > 0.1


def test_the_same_arguments_give_the_same_bits_whatever_ran_before(create, device):
    model, frames = random_network(SMALL), [frame.to(device) for frame in smooth_frames(3, 24, 32)]
    expected = every_step(create(model, None), frames)
    backend = create(model, None)
    every_step(backend, [frame.to(device) for frame in smooth_frames(2, 45, 67)])
    for _ in range(2):
        results = every_step(backend, frames)
        assert all(torch.equal(results[name], expected[name]) for name in expected)
        backend.release()  # as when memory is short


def test_both_directions_at_once_are_each_direction_alone(create, device):
    backend, frames = create(random_network(SMALL), None), [frame.to(device) for frame in smooth_frames(3, 24, 32)]
    first, second, third = frames
    backward, forward = backend.propagate_both((third, None, None), (first, None, None))
    assert torch.equal(backward, backend.propagate_backward(third, None, None))
    assert torch.equal(forward, backend.propagate_forward(first, None, None))
    inputs = (second, backward, backend.flow(second, third)), (second, forward, backend.flow(second, first))
    both = backend.propagate_both(*inputs)
    assert torch.equal(both[0], backend.propagate_backward(*inputs[0]))
    assert torch.equal(both[1], backend.propagate_forward(*inputs[1]))


def test_frames_processed_concurrently_have_the_bits_that_they_have_alone(create, device):
    backend, frames = create(random_network(SMALL), None), [frame.to(device) for frame in smooth_frames(4, 24, 32)]
    num = backend.num_concurrent_frames(24, 32)
    assert num >= 1
    if num == 1:
        pytest.skip("this backend processes one frame at a time")
    alone = torch.cat([backend.cleaning_residue(frame) for frame in frames])
    assert torch.equal(backend.cleaning_residue(torch.cat(frames)), alone)
    alone = torch.cat([backend.flow(frame, frames[0]) for frame in frames])
    assert torch.equal(backend.flow(torch.cat(frames), torch.cat([frames[0]] * 4)), alone)


def test_the_model_is_not_changed_and_may_be_changed(create, device):
    model, frames = random_network(SMALL), [frame.to(device) for frame in smooth_frames(2, 24, 32)]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    backend = create(model, None)
    expected = every_step(backend, frames)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    for tensor in model.state_dict().values():
        tensor.zero_()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in every_step(backend, frames).items())


def test_a_device_without_an_entry_is_served_by_torch():
    assert {"cpu", "cuda"} == FACTORIES.keys()
    assert isinstance(create_backend(random_network(SMALL), torch.device("meta"), torch.float32), TorchBackend)
    assert isinstance(create_backend(random_network(SMALL), CPU, torch.bfloat16), TorchBackend)
