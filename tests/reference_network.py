"""The reference network a second time, in numpy and float64, frame by frame and pixel by pixel; and its numeric cases.

Written from the description of the network and not from the package: slow, obvious, and of another make.

    python -m tests.reference_network REFERENCE_CASES.safetensors

writes fixtures/reference_cases.npz: inputs whole, results on every KEPT_STRIDE-th row and column.
"""

import functools
import json
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open

from vsrealbasicvsr.model import Architecture, RealBasicVSR

Array = NDArray[np.float64]
Weights = Mapping[str, Array]

FIXTURES = Path(__file__).parent / "fixtures"
FULL_CASES = Path(__file__).parents[2] / "shared" / "reference" / "reference_cases.safetensors"
KEPT_STRIDE = {"cleaned": 3, "flow_backward": 3, "flow_forward": 3, "output": 5}


def formula_weights(shapes: Mapping[str, tuple[int, ...]], salt: str = "") -> dict[str, NDArray[np.float32]]:
    """Weights that depend on (salt, key, shape) alone, at which the network is as alive as a trained one."""
    weights = {}
    for key, shape in shapes.items():
        if key.endswith(("spynet.mean", "spynet.std")):
            continue
        u = np.random.RandomState(zlib.crc32((salt + key).encode())).uniform(-1, 1, size=shape)
        if key.endswith("bias"):
            w = 0.02 * u
        else:
            w = u * np.sqrt(3 / np.prod(shape[1:]))
            if ".conv1." in key:
                w = w * 1.2
            if ".conv2." in key:
                w = w * 0.25
            if key.startswith("image_cleaning.1"):
                w = w * 0.05
            if "conv_last" in key:
                w = w * 0.6
            if "spynet" in key:
                w = w * (0.9 if ".4.conv" in key else 1.4)
        weights[key] = w.astype(np.float32)
    return weights


@functools.cache
def formula_tensors(sizes: Architecture, salt: str) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        shapes = {key: tuple(tensor.shape) for key, tensor in RealBasicVSR(sizes).state_dict().items()}
    numbers = {
        "basicvsr.spynet.stride": sizes.flow_stride,
        "basicvsr.start_passes": sizes.start_passes,
        "image_cleaning.levels": sizes.num_cleaning_levels,
    }
    told = {key: torch.tensor(float(number)) for key, number in numbers.items() if shapes.pop(key, None) is not None}
    return {key: torch.from_numpy(weight) for key, weight in formula_weights(shapes, salt).items()} | told


def formula_network(sizes: Architecture, salt: str = "") -> RealBasicVSR:
    """The package's network of these sizes with the formula's weights; each call makes a new one."""
    return RealBasicVSR.from_state_dict(formula_tensors(sizes, salt)).eval().requires_grad_(False)


def reference_sizes(mid_channels: int, num_blocks: int) -> Architecture:
    """The reference cases differ in two numbers; the widths at high resolution are fixed."""
    return Architecture(
        cleaning_channels=mid_channels,
        num_cleaning_blocks=num_blocks,
        mid_channels=mid_channels,
        num_backward_blocks=num_blocks,
        num_forward_blocks=num_blocks,
        fusion_channels=mid_channels,
        quarter_channels=mid_channels,
    )


def weights_of(network: RealBasicVSR) -> dict[str, Array]:
    return {key: tensor.double().numpy() for key, tensor in network.state_dict().items()}


# ---- layers, on one picture (C, H, W) -------------------------------------------------------------------------------


def convolve(x: Array, weights: Weights, name: str) -> Array:
    weight, bias = weights[name + ".weight"], weights[name + ".bias"]
    side = weight.shape[-1]
    _, height, width = x.shape
    padded = np.pad(x, ((0, 0), (side // 2, side // 2), (side // 2, side // 2)))
    out = np.repeat(bias[:, None], height * width, axis=1).reshape(-1, height, width)
    for dy in range(side):
        for dx in range(side):
            out = out + np.tensordot(weight[:, :, dy, dx], padded[:, dy : dy + height, dx : dx + width], axes=1)
    return out


def lrelu(x: Array) -> Array:
    return np.where(x > 0, x, 0.1 * x)


def trunk(x: Array, weights: Weights, name: str) -> Array:
    x = lrelu(convolve(x, weights, f"{name}.main.0"))
    block = 0
    while f"{name}.main.2.{block}.conv1.weight" in weights:
        inner = np.maximum(convolve(x, weights, f"{name}.main.2.{block}.conv1"), 0)
        x = x + convolve(inner, weights, f"{name}.main.2.{block}.conv2")
        block += 1
    return x


def shuffle(x: Array) -> Array:
    """Pixel shuffle by 2: channel 4c + 2i + j goes to row 2y + i, column 2x + j of channel c."""
    channels, height, width = x.shape
    out = np.zeros((channels // 4, 2 * height, 2 * width))
    for i in range(2):
        for j in range(2):
            out[:, i::2, j::2] = x[2 * i + j :: 4]
    return out


def axis_matrix(old: int, new: int, align_corners: bool) -> Array:
    """Linear interpolation along one axis, as a matrix (new, old)."""
    matrix = np.zeros((new, old))
    for i in range(new):
        if align_corners:
            place = i * (old - 1) / (new - 1) if new > 1 else 0.0
        else:
            place = max((i + 0.5) * old / new - 0.5, 0.0)
        low = min(int(place), old - 1)
        high = min(low + 1, old - 1)
        matrix[i, low] += 1 - (place - low)
        matrix[i, high] += place - low
    return matrix


def resize(x: Array, height: int, width: int, *, align_corners: bool = False) -> Array:
    rows = axis_matrix(x.shape[1], height, align_corners)
    columns = axis_matrix(x.shape[2], width, align_corners)
    return np.stack([rows @ channel @ columns.T for channel in x])


def warp(x: Array, flow: Array, *, border: bool = False) -> Array:
    """out(p) = x(p + flow(p)), one pixel after the other. An axis of one pixel has one place to sample: 0."""
    _, height, width = x.shape
    out = np.zeros_like(x)
    for row in range(height):
        for column in range(width):
            to_x = column + flow[0, row, column] if width > 1 else 0.0
            to_y = row + flow[1, row, column] if height > 1 else 0.0
            if border:
                to_x, to_y = min(max(to_x, 0.0), width - 1.0), min(max(to_y, 0.0), height - 1.0)
            left, top = int(np.floor(to_x)), int(np.floor(to_y))
            for y, share_y in ((top, top + 1 - to_y), (top + 1, to_y - top)):
                for x_, share_x in ((left, left + 1 - to_x), (left + 1, to_x - left)):
                    if 0 <= y < height and 0 <= x_ < width:
                        out[:, row, column] += share_y * share_x * x[:, y, x_]
    return out


# ---- the network, on one clip (T, C, H, W) --------------------------------------------------------------------------


def cleaning_residue(frame: Array, weights: Weights) -> Array:
    """From the smallest size to the frame's own: what a size gets is added before the next one is cleaned."""
    frames = [frame]
    for _ in range(int(weights.get("image_cleaning.levels", 1)) - 1):
        fine = frames[-1]
        fine = np.pad(fine, ((0, 0), (0, fine.shape[1] % 2), (0, fine.shape[2] % 2)), mode="edge")
        frames.append((fine[:, ::2, ::2] + fine[:, 1::2, ::2] + fine[:, ::2, 1::2] + fine[:, 1::2, 1::2]) / 4)
    residue = np.zeros_like(frames[-1])
    for seen in frames[::-1]:
        if residue.shape != seen.shape:
            larger = resize(residue, 2 * residue.shape[1], 2 * residue.shape[2])
            residue = larger[:, : seen.shape[1], : seen.shape[2]]
        features = trunk(seen + residue, weights, "image_cleaning.0")
        residue = residue + convolve(features, weights, "image_cleaning.1")
    return residue


def flow_between(ref: Array, supp: Array, weights: Weights) -> Array:
    """Where in `supp` each pixel of `ref` is found."""
    name = "basicvsr.spynet.basic_module"
    num_levels = len({key.split(".")[3] for key in weights if key.startswith(name)})
    stride = int(weights.get("basicvsr.spynet.stride", 1))
    step = stride * 2 ** (num_levels - 1)
    _, height, width = ref.shape
    up_h, up_w = -(-height // step) * step, -(-width // step) * step
    mean, std = np.array([[[0.485]], [[0.456]], [[0.406]]]), np.array([[[0.229]], [[0.224]], [[0.225]]])
    pyramids = []
    for image in (ref, supp):
        image = resize(image, up_h, up_w).reshape(3, up_h // stride, stride, up_w // stride, stride).mean(axis=(2, 4))
        levels = [(image - mean) / std]
        for _ in range(num_levels - 1):
            fine = levels[-1]
            levels.append((fine[:, ::2, ::2] + fine[:, 1::2, ::2] + fine[:, ::2, 1::2] + fine[:, 1::2, 1::2]) / 4)
        pyramids.append(levels[::-1])
    flow = np.zeros((2, up_h // step, up_w // step))
    for level, (a, b) in enumerate(zip(*pyramids, strict=True)):
        if level > 0:
            flow = 2 * resize(flow, a.shape[1], a.shape[2], align_corners=True)
        x = np.concatenate([a, warp(b, flow, border=True), flow])
        for layer in range(5):
            x = convolve(x, weights, f"{name}.{level}.basic_module.{layer}.conv")
            x = np.maximum(x, 0) if layer < 4 else x
        flow = flow + x
    _, flow_h, flow_w = flow.shape
    flow = resize(flow, height, width)
    return np.stack([flow[0] * width / flow_w, flow[1] * height / flow_h])


def reconstruct(cleaned: Array, backward: Array, forward: Array, weights: Weights) -> Array:
    x = lrelu(convolve(np.concatenate([backward, forward]), weights, "basicvsr.fusion"))
    x = lrelu(shuffle(convolve(x, weights, "basicvsr.upsample1.upsample_conv")))
    x = lrelu(shuffle(convolve(x, weights, "basicvsr.upsample2.upsample_conv")))
    x = lrelu(convolve(x, weights, "basicvsr.conv_hr"))
    return convolve(x, weights, "basicvsr.conv_last") + resize(cleaned, 4 * cleaned.shape[1], 4 * cleaned.shape[2])


def super_resolve(cleaned: Array, weights: Weights) -> Array:
    """(T, 3, H, W) to (T, 3, 4H, 4W): backward in time, then forward."""
    num_frames, _, height, width = cleaned.shape
    num_channels = len(weights["basicvsr.fusion.weight"][0]) // 2
    backward: dict[int, Array] = {}

    def started(frame: Array, name: str) -> Array:
        state = np.zeros((num_channels, height, width))
        for _ in range(int(weights.get("basicvsr.start_passes", 0))):
            state = trunk(np.concatenate([frame, state]), weights, name)
        return state

    state = started(cleaned[-1], "basicvsr.backward_resblocks")
    for i in range(num_frames - 1, -1, -1):
        if i < num_frames - 1:
            state = warp(state, flow_between(cleaned[i], cleaned[i + 1], weights))
        state = trunk(np.concatenate([cleaned[i], state]), weights, "basicvsr.backward_resblocks")
        backward[i] = state
    frames = []
    state = started(cleaned[0], "basicvsr.forward_resblocks")
    for i in range(num_frames):
        if i > 0:
            state = warp(state, flow_between(cleaned[i], cleaned[i - 1], weights))
        state = trunk(np.concatenate([cleaned[i], state]), weights, "basicvsr.forward_resblocks")
        frames.append(reconstruct(cleaned[i], backward[i], state, weights))
    return np.stack(frames)


def clean(lr: Array, weights: Weights) -> Array:
    """One cleaning pass over (T, 3, H, W)."""
    return np.stack([frame + cleaning_residue(frame, weights) for frame in lr])


# ---- the numeric cases ----------------------------------------------------------------------------------------------

Case = dict[str, NDArray[np.float32]]


def load_cases() -> dict[str, tuple[dict[str, object], Case]]:
    """The cases of the fixture: for each name its settings and its tensors."""
    with np.load(FIXTURES / "reference_cases.npz", allow_pickle=False) as archive:
        settings = json.loads(str(archive["settings"]))
        return {
            name: (
                settings[name],
                {key.partition(".")[2]: archive[key] for key in archive.files if key.partition(".")[0] == name},
            )
            for name in settings
        }


def load_full_cases(path: Path = FULL_CASES) -> dict[str, tuple[dict[str, object], Case]]:
    """The same cases, whole, from the reference's file."""
    with safe_open(path, framework="numpy") as file:
        settings = {name: json.loads(text) for name, text in file.metadata().items()}
        return {
            name: (
                settings[name],
                {key.partition(".")[2]: file.get_tensor(key) for key in file.keys() if key.startswith(name + ".")},  # noqa: SIM118
            )
            for name in settings
        }


def main() -> None:
    cases = load_full_cases(Path(sys.argv[1]))
    arrays = {"settings": np.array(json.dumps({name: settings for name, (settings, _) in cases.items()}))}
    for name, (_, tensors) in cases.items():
        for kind in ("input", "cleaned", "flow_backward", "flow_forward", "output", "cycles", "mean_abs_residue"):
            if kind in tensors:
                step = KEPT_STRIDE.get(kind, 1)
                arrays[f"{name}.{kind}"] = tensors[kind] if step == 1 else tensors[kind][..., ::step, ::step]
    np.savez_compressed(FIXTURES / "reference_cases.npz", **arrays)


if __name__ == "__main__":
    main()
