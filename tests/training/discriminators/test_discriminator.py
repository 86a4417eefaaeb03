"""The discriminator: published names and answers, spectral norms that move only when told, and files that hold one."""

import collections
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.networks import FOUR_CHANNELS as SIZES
from tests.reference_training import GRADIENT, clips, discriminate, discriminator_tensors, gradients, unit
from training.discriminator_gradients import discriminator_step
from training.discriminators.unet import SpectralConv, UNetDiscriminator
from training.losses.adversarial import discriminator_loss
from vsrealbasicvsr.model import RealBasicVSR, StateDictError
from vsrealbasicvsr.weights import WeightsError, read_discriminator, read_network, write_weights

WIDTH = 4


def tiny() -> UNetDiscriminator:
    return UNetDiscriminator.from_state_dict(discriminator_tensors(WIDTH))


def frames(num: int, height: int, width: int) -> Tensor:
    return clips(1, num, height // 4, width // 4)[1][0]


# ---- names and answers ----------------------------------------------------------------------------------------------


def test_it_has_the_published_keys_shapes_and_size():
    network = UNetDiscriminator()
    assert sum(parameter.numel() for parameter in network.parameters()) == 4_376_897
    widths = {1: (128, 64, 4), 2: (256, 128, 4), 3: (512, 256, 4), 4: (256, 512, 3), 5: (128, 256, 3)}
    widths |= {6: (64, 128, 3), 7: (64, 64, 3), 8: (64, 64, 3)}
    expected = {"conv_0.weight": (64, 3, 3, 3), "conv_0.bias": (64,)}
    for number, (rows, columns, side) in widths.items():
        expected[f"conv_{number}.weight_orig"] = (rows, columns, side, side)
        expected[f"conv_{number}.weight_u"] = (rows,)
        expected[f"conv_{number}.weight_v"] = (columns * side * side,)
    expected |= {"conv_9.weight": (1, 64, 3, 3), "conv_9.bias": (1,)}
    found = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    assert list(found.items()) == list(expected.items())


@pytest.mark.parametrize(("width", "height_px", "width_px"), [(64, 16, 24), (WIDTH, 24, 8), (WIDTH, 8, 8)])
def test_outputs_agree_with_an_independent_computation(width, height_px, width_px):
    tensors = discriminator_tensors(width)
    network = UNetDiscriminator.from_state_dict(tensors)
    pictures = frames(2, height_px, width_px)
    logits = network(pictures).detach()
    expected = discriminate(pictures, tensors)
    assert logits.shape == (2, 1, height_px, width_px)
    assert expected.std() > 0.01  # alive: the answers differ from pixel to pixel
    assert (logits - expected).abs().max() / expected.abs().max() < GRADIENT


def test_a_step_has_the_gradients_of_finite_differences():
    """In float64, where rounding does not hide them."""
    network = tiny().double()
    real, fake = (clip[0].double() for clip in (clips(1, 2, 4, 4, 1)[1], clips(1, 2, 4, 4, 2)[1]))

    def loss() -> Tensor:
        return sum(discriminator_loss(network(real), network(fake)), torch.zeros(()))

    loss().backward()
    for parameter in network.parameters():
        place = int(parameter.grad.abs().argmax())
        values, ends = parameter.data.view(-1), []
        value, step = values[place].item(), 1e-6
        for sign in (1, -1):
            values[place] = value + sign * step
            with torch.no_grad():
                ends.append(loss().item())
        values[place] = value
        assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(parameter.grad.view(-1)[place].item(), rel=1e-4)


@pytest.mark.long
def test_real_pictures_get_larger_answers_after_some_steps():
    network = tiny()
    real = clips(1, 4, 4, 4)[1]
    fake = real.flatten(2).mean(dim=2)[..., None, None, None].expand_as(real)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        losses.append(discriminator_step(network, fake, real))
        optimizer.step()
    assert sum(losses[-1].values()) < 0.5 * sum(losses[0].values())
    assert network(real[0]).mean() > network(fake[0]).mean()


# ---- spectral norms -------------------------------------------------------------------------------------------------


def test_a_layer_computes_what_torchs_own_spectral_norm_computes():
    theirs = nn.utils.spectral_norm(nn.Conv2d(3, 5, 4, stride=2, padding=1, bias=False))
    ours = SpectralConv(3, 5, 4, stride=2)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = frames(2, 16, 16)
    for training in (False, True, True):  # in training mode torch's makes a power iteration before each answer
        theirs.train(training)
        if training:
            ours.advance()
        a, b = ours(x), theirs(x)
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)
        for layer, answer in ((ours, a), (theirs, b)):
            layer.zero_grad()
            (answer**2).mean().backward()
        torch.testing.assert_close(ours.weight_orig.grad, theirs.weight_orig.grad, atol=1e-6, rtol=0)
        for key, tensor in theirs.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[key], tensor, atol=1e-6, rtol=0)


def test_a_new_network_has_weights_of_largest_singular_value_one():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = UNetDiscriminator(8)
    for layer in network.children():
        if isinstance(layer, SpectralConv):
            matrix = layer.weight_orig.detach().flatten(1).double().numpy()
            sigma = layer.weight_u.double().numpy() @ matrix @ layer.weight_v.double().numpy()
            largest = np.linalg.svd(matrix, compute_uv=False)[0]
            assert 0.9 * largest < sigma <= largest * (1 + 1e-6)


def test_the_same_picture_gets_the_same_answer_whatever_the_mode():
    network = tiny()
    picture = frames(1, 16, 16)
    before = network(picture)
    assert torch.equal(network.train()(picture), before)
    assert torch.equal(network.eval()(picture), before)


def test_a_step_makes_one_power_iteration_however_many_frames_there_are():
    network, tensors = tiny(), discriminator_tensors(WIDTH)
    clip = clips(1, 5, 4, 4)[1]
    discriminator_step(network, clip, clip, frames_at_once=2)
    for number in range(1, 9):
        matrix = tensors[f"conv_{number}.weight_orig"].double().flatten(1).numpy()
        v = unit(matrix.T @ tensors[f"conv_{number}.weight_u"].double().numpy())
        after = network.state_dict()
        np.testing.assert_allclose(after[f"conv_{number}.weight_v"].numpy(), v, atol=1e-6)
        np.testing.assert_allclose(after[f"conv_{number}.weight_u"].numpy(), unit(matrix @ v), atol=1e-6)


def test_under_autocast_the_norm_stays_float32():
    layer = SpectralConv(3, 5, 3)
    with torch.autocast("cpu", torch.bfloat16):
        answer = layer(frames(1, 8, 8))
    answer.float().sum().backward()
    assert answer.dtype == torch.bfloat16
    sigma = layer.weight_u @ layer.weight_orig.detach().flatten(1) @ layer.weight_v
    expected = nn.functional.conv2d(
        frames(1, 8, 8).bfloat16(), (layer.weight_orig.detach() / sigma).bfloat16(), padding=1
    )
    assert torch.equal(answer, expected)
    assert {gradient.dtype for gradient in gradients(layer).values()} == {torch.float32}


# ---- pictures that do not fit ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(8, 8), (16, 24), (40, 8)])
def test_every_multiple_of_8_works(height, width):
    assert tiny()(torch.rand(1, 3, height, width)).shape == (1, 1, height, width)


@pytest.mark.parametrize(("height", "width"), [(12, 16), (16, 20), (9, 8), (4, 4)])
def test_other_sizes_are_refused_with_what_to_do(height, width):
    expected = f"UNetDiscriminator: height and width must be multiples of 8, got {width}x{height}. Crop the frames."
    with pytest.raises(ValueError, match=re.escape(expected)):
        tiny()(torch.rand(1, 3, height, width))


@pytest.mark.parametrize("shape", [(1, 2, 3, 8, 8), (1, 4, 8, 8), (0, 3, 8, 8), (1, 3, 8, 0)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"expected frames of shape \(B, 3, H, W\), got"):
        tiny()(torch.rand(shape))


# ---- tensors and files ----------------------------------------------------------------------------------------------


def test_a_state_dict_comes_back():
    tensors = discriminator_tensors(WIDTH)
    network = UNetDiscriminator.from_state_dict(tensors)
    assert network.state_dict().keys() == tensors.keys()
    for key, tensor in network.state_dict().items():
        assert torch.equal(tensor, tensors[key])
        assert tensor.data_ptr() != tensors[key].data_ptr()
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_half_precision_files_become_float32():
    network = UNetDiscriminator.from_state_dict({k: v.half() for k, v in discriminator_tensors(WIDTH).items()})
    assert {tensor.dtype for tensor in network.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda t: t.pop("conv_0.weight"), "'conv_0.weight' tells the width, and it is absent from 27 keys"),
        (lambda t: t.update({"conv_0.weight": torch.zeros(4)}), "it is shape (4,)"),
        (lambda t: t.pop("conv_3.weight_u"), "keys 1 missing (conv_3.weight_u)"),
        (lambda t: t.update({"conv_10.weight": torch.zeros(4)}), "keys 1 extra (conv_10.weight)"),
        (lambda t: t.update({"conv_9.bias": torch.zeros(2)}), "keys 1 misshapen (conv_9.bias (2,) instead of (1,))"),
        (lambda t: t["conv_5.weight_orig"].fill_(torch.nan), "1 with NaN or infinite values (conv_5.weight_orig)"),
        (lambda t: t.update({"conv_9.bias": torch.ones(1).int()}), "1 not of a floating type (conv_9.bias)"),
    ],
)
def test_other_tensors_are_refused_by_name(change, found):
    tensors = discriminator_tensors(WIDTH)
    change(tensors)
    with pytest.raises(StateDictError, match=re.escape(found)):
        UNetDiscriminator.from_state_dict(tensors)


def below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: tensor for key, tensor in tensors.items()}


def published(path: Path, *, prefix: str = "discriminator.", new_format: bool = False) -> Path:
    """A checkpoint laid out as the published one of stage 2: three networks, the perceptual one, logs, optimisers."""
    tensors = collections.OrderedDict(
        {"step_counter": torch.tensor([150000])}
        | below("generator.", RealBasicVSR(SIZES).state_dict())
        | below("generator_ema.", RealBasicVSR(SIZES).state_dict())
        | below(prefix, discriminator_tensors(WIDTH))
        | {"perceptual_loss.vgg.mean": torch.rand(1, 3, 1, 1)}
    )
    content = {
        "meta": {"iter": 150000, "mmedit_version": "0.11.0", "loss": np.float64(0.5)},
        "state_dict": tensors,
        "optimizer": {"discriminator": {"state": {0: {"step": 1, "exp_avg": torch.rand(3)}}, "param_groups": []}},
    }
    torch.save(content, path, _use_new_zipfile_serialization=new_format)
    return path


@pytest.mark.parametrize("new_format", [False, True])
@pytest.mark.parametrize("prefix", ["discriminator.", "discriminator.module."])
def test_a_published_checkpoint_gives_generator_and_discriminator(tmp_path, prefix, new_format):
    path = published(tmp_path / "published.pth", prefix=prefix, new_format=new_format)
    network = UNetDiscriminator.from_state_dict(read_discriminator(path))
    for key, tensor in discriminator_tensors(WIDTH).items():
        assert torch.equal(network.state_dict()[key], tensor)
    stored = read_network(path)
    assert stored.prefix == "generator_ema."
    assert RealBasicVSR.from_state_dict(stored.tensors).sizes == SIZES


def test_a_file_without_a_discriminator_is_refused(tmp_path):
    path = tmp_path / "mine.safetensors"
    write_weights(RealBasicVSR(SIZES), path, metadata={}, dtype=torch.float32)
    with pytest.raises(
        WeightsError, match=r"mine.safetensors holds no discriminator: none of its \d+ keys begins with"
    ):
        read_discriminator(path)


def test_a_discriminator_that_holds_something_else_is_refused(tmp_path):
    path = tmp_path / "w.pth"
    torch.save(below("discriminator.", {**discriminator_tensors(WIDTH), "conv_9.bias": 3}), path)
    with pytest.raises(WeightsError, match=r"holds a int instead of a tensor at 'conv_9.bias'"):
        read_discriminator(path)


def test_a_file_that_would_run_code_is_refused(tmp_path):
    class Runs:
        def __reduce__(self):
            return (print, ("run",))

    path = tmp_path / "w.pth"
    torch.save({"state_dict": {"discriminator.conv_0.weight": Runs()}}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(WeightsError, match=r"would run code when unpickled, so it was not loaded"):
        read_discriminator(path)
    with pytest.raises(WeightsError, match=r"absent.pth does not exist"):
        read_discriminator(tmp_path / "absent.pth")
