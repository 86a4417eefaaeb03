"""The network: the reference's numbers, a second implementation's numbers, and properties that hold for any weights."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import tests.reference_network as reference
from tests.reference_network import formula_network, reference_sizes
from tests.tolerances import FLOAT64, REFERENCE, REGROUPED, SAMPLING
from vsrealbasicvsr.model import Architecture, RealBasicVSR, SPyNet, StateDictError, flow_warp, refine
from vsrealbasicvsr.model.flow import sampling_gradients

SMALL = replace(reference_sizes(8, 2), hr_channels=10, hr_out_channels=12, flow_channels=(8, 12, 8, 6))
ALL_DIFFERENT = Architecture(
    cleaning_channels=5,
    num_cleaning_blocks=1,
    mid_channels=7,
    num_backward_blocks=2,
    num_forward_blocks=3,
    fusion_channels=6,
    quarter_channels=4,
    hr_channels=3,
    hr_out_channels=9,
    num_flow_levels=3,
    flow_channels=(5, 6, 7, 4),
)
CASES = reference.load_cases()


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.inference_mode():
        yield


def random_clip(*shape: int, seed: int = 0) -> Tensor:
    """Noise over a slow pattern, so that there is something for the flow to find."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(shape, generator=generator)
    rows, columns = torch.arange(shape[-2]).view(-1, 1), torch.arange(shape[-1])
    return 0.5 * noise + 0.25 + 0.25 * torch.sin(rows / 3.0 + columns / 4.0)


def assert_near(actual: Tensor, expected: Tensor | np.ndarray, atol: float) -> None:
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), atol=atol, rtol=0)


# ---- the reference's numbers ----------------------------------------------------------------------------------------


def check_case(settings: dict, case: reference.Case, stride: dict[str, int]) -> None:
    network = formula_network(reference_sizes(settings["mid_channels"], settings["num_blocks"]), settings["salt"])

    def assert_case(actual: Tensor, kind: str) -> None:
        step = stride.get(kind, 1)
        assert_near(actual[..., ::step, ::step], case[kind], REFERENCE)

    lr = torch.from_numpy(case["input"])
    cleaned, num_passes = refine(network, lr, theta=settings["theta"], decide_per="sequence")
    assert_case(cleaned, "cleaned")
    assert num_passes.unique().tolist() == case["cycles"].tolist()
    hr = network.super_resolve(cleaned)
    step = settings["output_stride"]
    assert_case(hr[..., ::step, ::step], "output")
    if cleaned.shape[1] > 1:
        flow_forward, flow_backward = network.flows(cleaned[0, :-1], cleaned[0, 1:])
        assert_case(flow_backward[None], "flow_backward")
        if "flow_forward" in case:
            assert_case(flow_forward[None], "flow_forward")
    frames = lr[0]
    for expected in case["mean_abs_residue"]:
        residue = network.cleaning_residue(frames)
        assert residue.abs().mean().item() == pytest.approx(float(expected), abs=REFERENCE)
        frames = frames + residue


@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
def test_output_cleaned_frames_flows_and_passes_are_the_references(name):
    check_case(*CASES[name], reference.KEPT_STRIDE)


@pytest.mark.slow
@pytest.mark.skipif(not reference.FULL_CASES.exists(), reason=f"there is no {reference.FULL_CASES}")
def test_every_pixel_of_the_reference_cases():
    for settings, case in reference.load_full_cases().values():
        check_case(settings, case, {})


def test_keys_shapes_and_number_of_parameters_are_the_published_ones():
    lines = (reference.FIXTURES / "keys_generator.txt").read_text().splitlines()
    published = {key: shape for key, shape, _ in (line.split("\t") for line in lines if "\t" in line)}
    network = RealBasicVSR.from_state_dict(
        {key: torch.zeros(eval(shape)) for key, shape in published.items()}  # our own file
    )
    assert {key: str(tuple(tensor.shape)) for key, tensor in network.state_dict().items()} == published
    assert network.sizes == Architecture()

    def count(module: torch.nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    parts = network.basicvsr
    assert count(network) == 6_294_834
    assert count(network.image_cleaning) == 1_480_643
    assert count(parts.spynet) == 1_440_300
    assert count(parts.backward_resblocks) == count(parts.forward_resblocks) == 1_515_776


def test_a_network_of_another_scale_is_refused_where_pixels_are_shuffled():
    with pytest.raises(ValueError, match="enlarge by 4, got a scale of 2"):
        RealBasicVSR(Architecture(scale=2))


# ---- a second implementation, in float64 ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "sizes", "salt"),
    [
        ((1, 1, 3, 1, 1), SMALL, "one pixel "),
        ((2, 2, 3, 1, 1), SMALL, "two frames of one pixel "),
        ((1, 2, 3, 1, 7), SMALL, "one row "),
        ((1, 2, 3, 6, 1), SMALL, "one column "),
        ((2, 5, 3, 5, 3), SMALL, "two clips "),
        ((1, 2, 3, 33, 31), SMALL, "just over and under a multiple of 32 "),
        ((1, 3, 3, 9, 14), ALL_DIFFERENT, "every size another "),
        ((1, 3, 3, 9, 14), replace(ALL_DIFFERENT, flow_stride=2), "flow at half the size "),
        ((1, 3, 3, 9, 14), replace(ALL_DIFFERENT, start_passes=2), "ends as if they had been seen before "),
        ((1, 2, 3, 13, 10), replace(ALL_DIFFERENT, num_cleaning_levels=4), "cleaned at four sizes "),
        ((2, 1, 3, 8, 4), replace(ALL_DIFFERENT, num_flow_levels=1, num_forward_blocks=0), "shallow "),
    ],
    ids=lambda value: value.strip() if isinstance(value, str) else None,
)
@pytest.mark.long
def test_a_second_implementation_in_float64_agrees(shape, sizes, salt):
    network = formula_network(sizes, salt)
    weights = reference.weights_of(network)
    lr = random_clip(*shape, seed=len(salt))
    cleaned = network.clean(lr)
    hr = network.super_resolve(cleaned)
    assert hr.shape == (*shape[:3], 4 * shape[3], 4 * shape[4])
    for clip, clip_cleaned, clip_hr in zip(lr.double().numpy(), cleaned, hr, strict=True):
        expected = reference.clean(clip, weights)
        assert_near(clip_cleaned, expected, FLOAT64)
        assert_near(clip_hr, reference.super_resolve(expected, weights), FLOAT64)


@pytest.mark.parametrize("stride", [1, 2, 4, 8])
def test_flows_point_the_way_that_the_second_implementation_says(stride):
    network = formula_network(replace(SMALL, num_flow_levels=3, flow_stride=stride), "flows")
    weights = reference.weights_of(network)
    first, second = random_clip(2, 3, 12, 37, seed=3)
    forward, backward = network.flows(first[None], second[None])
    a, b = first.double().numpy(), second.double().numpy()
    assert_near(forward[0], reference.flow_between(b, a, weights), FLOAT64)
    assert_near(backward[0], reference.flow_between(a, b, weights), FLOAT64)


def test_nothing_is_clamped():
    network = formula_network(SMALL, "clamp")
    weights = reference.weights_of(network)
    lr = 800 * random_clip(1, 2, 3, 6, 5) - 400
    hr = network(lr)
    assert hr.min() < -100
    assert hr.max() > 100
    expected = reference.super_resolve(reference.clean(lr[0].double().numpy(), weights), weights)
    assert_near(hr[0] / 800, expected / 800, FLOAT64)


# ---- properties -----------------------------------------------------------------------------------------------------


def test_forward_is_one_cleaning_pass_and_super_resolution():
    network = formula_network(SMALL)
    lr = random_clip(1, 3, 3, 10, 12)
    assert torch.equal(network(lr), network.super_resolve(network.clean(lr)))


def test_a_clip_in_a_batch_is_what_it_is_alone():
    network = formula_network(SMALL)
    lr = random_clip(2, 3, 3, 11, 13)
    together = network(lr)
    for i in range(2):
        assert_near(network(lr[i : i + 1])[0], together[i], REGROUPED)


def test_a_clip_backwards_through_the_mirrored_network_gives_the_output_backwards():
    network = formula_network(SMALL)
    mirrored = formula_network(SMALL)
    forward, backward = network.basicvsr.forward_resblocks, network.basicvsr.backward_resblocks
    mirrored.basicvsr.forward_resblocks.load_state_dict(backward.state_dict())
    mirrored.basicvsr.backward_resblocks.load_state_dict(forward.state_dict())
    fusion = network.basicvsr.fusion.weight
    mirrored.basicvsr.fusion.weight.copy_(torch.cat(fusion.chunk(2, dim=1)[::-1], dim=1))
    lr = random_clip(1, 4, 3, 9, 10)
    assert_near(mirrored(lr.flip(1)).flip(1), network(lr), REGROUPED)


def test_every_frame_depends_on_every_other():
    network = formula_network(SMALL)
    lr = random_clip(1, 4, 3, 8, 8)
    hr = network(lr)
    for changed in range(4):
        other = lr.clone()
        other[:, changed] += 0.1
        assert ((network(other) - hr).abs().amax(dim=(0, 2, 3, 4)) > 1e-4).all()


@pytest.mark.parametrize("layout", ["contiguous", "channels last", "a view of more"])
def test_the_input_may_lie_in_memory_in_any_way_and_is_not_changed(layout):
    network = formula_network(SMALL)
    lr = random_clip(1, 3, 3, 8, 6)
    expected = network(lr)
    if layout == "channels last":
        lr = lr.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    elif layout == "a view of more":
        lr = random_clip(2, 6, 4, 9, 7)[:1, ::2, :3, 1:, 1:].copy_(lr)
    before = lr.clone()
    assert_near(network(lr), expected, REGROUPED)
    assert torch.equal(lr, before)


@pytest.mark.parametrize("shape", [(3, 3, 8, 8), (1, 2, 4, 8, 8), (1, 0, 3, 8, 8), (1, 2, 3, 0, 8), (0, 1, 3, 8, 8)])
def test_a_clip_of_another_shape_is_refused_with_the_shape_that_was_given(shape):
    network = formula_network(SMALL)
    for function in (network, network.clean, network.super_resolve):
        with pytest.raises(
            ValueError, match=r"RealBasicVSR\.\w+: expected .*\(N, T, 3, H, W\), got \(" + str(shape)[1:6]
        ):
            function(torch.zeros(shape))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_flow_is_float32_when_the_convolutions_are_not(dtype):
    network = formula_network(ALL_DIFFERENT)
    exact = network.basicvsr.spynet.state_dict()
    network = network.to(dtype)
    network.basicvsr.spynet.float().load_state_dict(exact)
    lr = random_clip(1, 2, 3, 8, 20).to(dtype)
    forward, backward = network.flows(lr[:, 0], lr[:, 1])
    forward_32, backward_32 = formula_network(ALL_DIFFERENT).flows(lr[:, 0].float(), lr[:, 1].float())
    assert torch.equal(forward, forward_32)
    assert torch.equal(backward, backward_32)
    assert network(lr).dtype == dtype


@pytest.mark.parametrize("height", [1, 5, 13])
@pytest.mark.parametrize("rows", [1, 2, 3, 7, 100])
def test_a_frame_reconstructed_in_tiles_is_the_frame_reconstructed_whole(height, rows):
    model = formula_network(SMALL)
    maps = (
        random_clip(2, 3, height, 9),
        *(random_clip(2, SMALL.mid_channels, height, 9, seed=i) - 0.5 for i in (1, 2)),
    )
    tiles = list(model.reconstruct_in_tiles(*maps, rows=rows))
    assert [first for first, _ in tiles] == list(range(0, 4 * maps[0].shape[2], 4 * rows))
    assert_near(torch.cat([tile for _, tile in tiles], dim=2), model.reconstruct(*maps), REGROUPED)


def test_a_frame_cannot_be_reconstructed_in_tiles_of_no_rows():
    maps = (random_clip(1, 3, 4, 4), *[random_clip(1, SMALL.mid_channels, 4, 4)] * 2)
    with pytest.raises(ValueError, match="rows must be at least 1, got 0"):
        next(formula_network(SMALL).reconstruct_in_tiles(*maps, rows=0))


# ---- sampling along the flow ----------------------------------------------------------------------------------------


def constant_flow(dx: float, dy: float, height: int, width: int) -> Tensor:
    return torch.tensor([dx, dy]).view(1, 2, 1, 1).expand(1, 2, height, width)


@pytest.mark.parametrize(("dx", "dy"), [(0, 0), (3, 0), (0, -2), (-4, 5), (20, 0)])
def test_an_integer_flow_shifts_and_zeros_come_in_from_outside(dx, dy):
    x = random_clip(1, 4, 12, 15)
    expected = torch.zeros_like(x)
    for row in range(12):
        for column in range(15):
            if 0 <= row + dy < 12 and 0 <= column + dx < 15:
                expected[..., row, column] = x[..., row + dy, column + dx]
    assert_near(flow_warp(x, constant_flow(dx, dy, 12, 15)), expected, SAMPLING)


@pytest.mark.parametrize(("dx", "dy"), [(3, 0), (-4, 5), (20, -30)])
def test_with_border_padding_the_outermost_pixels_go_on(dx, dy):
    x = random_clip(1, 4, 12, 15)
    rows = (torch.arange(12) + dy).clamp(0, 11)
    columns = (torch.arange(15) + dx).clamp(0, 14)
    warped = flow_warp(x, constant_flow(dx, dy, 12, 15), padding="border")
    assert_near(warped, x[..., rows, :][..., columns], SAMPLING)


def test_fractional_flows_are_bilinear_also_across_the_edge():
    x = random_clip(2, 3, 6, 7)
    flow = 6 * random_clip(2, 2, 6, 7, seed=1) - 3
    for padding in ("zeros", "border"):
        warped = flow_warp(x, flow, padding=padding)
        for i in range(2):
            expected = reference.warp(x[i].double().numpy(), flow[i].double().numpy(), border=padding == "border")
            assert_near(warped[i], expected, SAMPLING)


def test_half_precision_features_are_sampled_at_float32_places():
    x = torch.arange(4096.0).remainder(97).view(1, 1, 1, 4096).expand(1, 1, 2, 4096).half()
    flow = constant_flow(0.5, 0.0, 2, 4096)
    warped = flow_warp(x, flow)
    assert warped.dtype == torch.float16
    assert torch.equal(warped, flow_warp(x.float(), flow).half())
    assert_near(warped[0, 0, 0, 2920:3000].float(), x[0, 0, 0, 2920:3000].float() + 0.5, 0.01)


class Called(TorchFunctionMode):
    """Notes the functions of torch that are called."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.seen.append(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("padding", ["zeros", "border"])
def test_states_are_sampled_by_torch_itself_whatever_the_switches_of_cudnn_say(padding):
    x, flow = random_clip(1, 4, 12, 15), 6 * random_clip(1, 2, 12, 15) - 3
    with Called() as called:
        warped = flow_warp(x, flow, padding=padding)
    assert not {F.grid_sample, torch.grid_sampler, torch.cudnn_grid_sampler} & set(called.seen)
    grid = torch.stack(((torch.arange(15) + flow[:, 0]) / 7 - 1, (torch.arange(12)[:, None] + flow[:, 1]) / 5.5 - 1), 3)
    assert_near(warped, F.grid_sample(x, grid, padding_mode=padding, align_corners=True), SAMPLING)


@pytest.mark.parametrize("padding", ["zeros", "border"])
@pytest.mark.parametrize("size", [(5, 7), (1, 6), (1, 1)])
@torch.inference_mode(False)
def test_the_gradients_of_sampling_on_a_gpu_are_torchs_in_a_fixed_order(padding, size):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, *size, generator=generator, dtype=torch.float64).requires_grad_()
    flow = (3 * torch.randn(2, *size, 2, generator=generator, dtype=torch.float64)).requires_grad_()
    sampled = F.grid_sample(x, flow, padding_mode=padding, align_corners=True)
    gradient = torch.randn(sampled.shape, generator=generator, dtype=torch.float64)
    expected = torch.autograd.grad(sampled, (x, flow), gradient)
    is_border = padding == "border"
    for ours, theirs in zip(sampling_gradients(gradient, x, flow, is_border=is_border), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@torch.inference_mode(False)
def test_no_gradient_of_sampling_on_a_gpu_is_added_in_the_order_of_its_threads():
    """On the meta device, which goes the way of every device but the CPU."""
    x = torch.empty(1, 4, 12, 15, device="meta", requires_grad=True)
    flow = torch.empty(1, 2, 12, 15, device="meta", requires_grad=True)
    with Dispatched() as dispatched:
        flow_warp(x, flow).sum().backward()
    assert x.grad.shape == x.shape
    assert flow.grad.shape == flow.shape
    assert "_index_put_impl_" in dispatched.names
    assert not {"grid_sampler_2d_backward", "index_add", "index_add_", "scatter_add", "scatter_add_"} & dispatched.names


class Dispatched(TorchDispatchMode):
    """Notes the names of the operations that run, those of the backward pass included."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("shape", [(1, 2, 5, 8), (1, 2, 6, 9), (1, 3, 6, 8), (2, 2, 6, 8), (2, 6, 8)])
def test_a_flow_of_another_size_is_refused(shape):
    with pytest.raises(ValueError, match=r"flow_warp: flow \(.*does not fit x \(1, 4, 6, 8\)"):
        flow_warp(torch.zeros(1, 4, 6, 8), torch.zeros(shape))


def test_equal_frames_of_a_network_without_biases_have_no_flow():
    spynet = SPyNet(4, (4, 4, 4, 4))
    for name, parameter in spynet.named_parameters():
        parameter.zero_() if name.endswith("bias") else None
    spynet.mean.zero_()
    black = torch.zeros(1, 3, 9, 11)
    assert torch.equal(spynet(black, black), torch.zeros(1, 2, 9, 11))


# ---- state dicts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("stride", "start_passes", "num_cleaning_levels"), [(1, 0, 1), (2, 3, 2), (8, 0, 4)])
def test_sizes_are_read_from_shapes_and_the_tensors_come_back(dtype, stride, start_passes, num_cleaning_levels):
    sizes = replace(
        ALL_DIFFERENT, flow_stride=stride, start_passes=start_passes, num_cleaning_levels=num_cleaning_levels
    )
    state_dict = {key: tensor.to(dtype) for key, tensor in formula_network(sizes).state_dict().items()}
    network = RealBasicVSR.from_state_dict(state_dict)
    assert network.sizes == sizes
    for key, tensor in network.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, state_dict[key].float())


@pytest.mark.parametrize(("own", "given"), [(2, 3), (3, 2)])
def test_tensors_for_another_number_of_sizes_to_clean_at_are_refused(own, given):
    network, other = (formula_network(replace(SMALL, num_cleaning_levels=number)) for number in (own, given))
    with pytest.raises(RuntimeError, match=rf"image_cleaning\.levels is {given}, and this network's is {own}"):
        network.load_state_dict(other.state_dict())


def test_a_network_shares_no_memory_with_the_state_dict_it_came_from():
    state_dict = formula_network(SMALL).state_dict()
    network = RealBasicVSR.from_state_dict(state_dict)
    lr = random_clip(1, 1, 3, 5, 5)
    before = network(lr)
    for tensor in state_dict.values():
        tensor.zero_()
    assert torch.equal(network(lr), before)


def test_a_network_of_a_state_dict_can_be_trained():
    with torch.inference_mode(False):
        network = RealBasicVSR.from_state_dict(formula_network(SMALL).state_dict())
        network(random_clip(1, 2, 3, 5, 5).clone()).mean().backward()
        assert all(parameter.grad is not None for parameter in network.parameters())


def test_the_constants_of_the_flow_network_may_be_absent():
    state_dict = formula_network(SMALL).state_dict()
    lr = random_clip(1, 2, 3, 8, 8)
    expected = RealBasicVSR.from_state_dict(state_dict)(lr)
    for name in ("mean", "std"):
        del state_dict[f"basicvsr.spynet.{name}"]
    assert torch.equal(RealBasicVSR.from_state_dict(state_dict)(lr), expected)


def without(state_dict: dict[str, Tensor], *keys: str) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in state_dict.items() if key not in keys}


FIRST = "basicvsr.backward_resblocks.main.0"
BROKEN_STATE_DICTS = {
    "nothing": (lambda s: {}, r"no '.*' among 0 keys"),
    "another network's": (lambda s: {"conv.weight": torch.zeros(3)}, r"no '.*' among 1 keys .*'conv\.weight'"),
    "one missing": (lambda s: without(s, f"{FIRST}.bias"), rf"1 missing \({FIRST}\.bias\)"),
    "the one that tells a size missing": (lambda s: without(s, f"{FIRST}.weight"), rf"no '{FIRST}\.weight' among"),
    "a gap in the blocks": (
        lambda s: {key: tensor for key, tensor in s.items() if "image_cleaning.0.main.2.0" not in key},
        r"4 missing \(image_cleaning\.0\.main\.2\.0\.conv1\.bias, .*, \.\.\.\)",
    ),
    "a stride of the flow that no network has": (
        lambda s: s | {"basicvsr.spynet.stride": torch.tensor(3.0)},
        r"'basicvsr\.spynet\.stride' must be one number of \(2, 4, 8\), got 3",
    ),
    "a stride of the flow that is no number": (
        lambda s: s | {"basicvsr.spynet.stride": torch.zeros(2, 2)},
        r"must be one number of \(2, 4, 8\), got a tensor of shape \(2, 2\)",
    ),
    "more passes at the start than may be": (
        lambda s: s | {"basicvsr.start_passes": torch.tensor(9.0)},
        r"'basicvsr\.start_passes' must be one number of \(1, 2, 3, .*, 8\), got 9",
    ),
    "more sizes to clean at than may be": (
        lambda s: s | {"image_cleaning.levels": torch.tensor(5.0)},
        r"'image_cleaning\.levels' must be one number of \(2, 3, 4\), got 5",
    ),
    "one extra": (lambda s: s | {"basicvsr.more": torch.zeros(2)}, r"1 extra \(basicvsr\.more\)"),
    "misshapen": (
        lambda s: s | {"basicvsr.conv_last.weight": torch.zeros(3, 12, 5, 5)},
        r"1 misshapen \(basicvsr\.conv_last\.weight \(3, 12, 5, 5\) instead of \(3, 12, 3, 3\)\)",
    ),
    "an axis too few": (lambda s: s | {f"{FIRST}.weight": torch.zeros(8, 11)}, r"has shape \(8, 11\), expected 4 axes"),
    "channels that cannot be shuffled": (
        lambda s: s | {"basicvsr.upsample1.upsample_conv.weight": torch.zeros(30, 8, 3, 3)},
        r"30 output channels; .* multiple of 4",
    ),
    "integers": (
        lambda s: s | {"basicvsr.conv_hr.bias": torch.zeros(12, dtype=torch.int64)},
        r"1 not of a floating type \(basicvsr\.conv_hr\.bias\)",
    ),
    "no number": (
        lambda s: s | {"basicvsr.conv_hr.bias": torch.full((12,), torch.nan)},
        r"keys 1 with NaN or infinite values \(basicvsr\.conv_hr\.bias\)",
    ),
    "a block with a giant number": (
        lambda s: s | {"image_cleaning.0.main.2.70000.conv1.bias": torch.zeros(8)},
        r"numbers its part 70000",
    ),
    "a block with a number of 5000 digits": (
        lambda s: s | {f"image_cleaning.0.main.2.{'9' * 5000}.conv1.bias": torch.zeros(8)},
        r"1 extra",
    ),
    "a width that no memory holds": (
        lambda s: s | {"image_cleaning.0.main.0.weight": torch.zeros(1, 3, 3, 3).expand(10**9, 3, 3, 3)},
        r"has 1000000000 output channels; networks have 4096 at most",
    ),
    "a shape that is not this network's and has more values than could be looked at": (
        lambda s: s | {"image_cleaning.0.main.0.bias": torch.zeros(1).expand(10**12)},
        r"1 misshapen",
    ),
}


@pytest.mark.parametrize("kind", BROKEN_STATE_DICTS)
def test_what_is_no_state_dict_of_the_network_is_refused_with_what_was_found(kind):
    broken, found = BROKEN_STATE_DICTS[kind]
    with pytest.raises(StateDictError, match=found):
        RealBasicVSR.from_state_dict(broken(dict(formula_network(SMALL).state_dict())))
