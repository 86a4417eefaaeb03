"""The sizes of a network, read from the shapes of its tensors."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import Tensor

from .state_dict import StateDictError

STRIDE_KEY = "basicvsr.spynet.stride"
STRIDES = (2, 4, 8)
MAX_CHANNELS = 4096
"""Far above any network's; a file can claim more at no cost, and the tensors that would follow cannot be made."""
START_PASSES_KEY = "basicvsr.start_passes"
CLEANING_LEVELS_KEY = "image_cleaning.levels"
MAX_CLEANING_LEVELS = 4
"""Maximum number of sizes at which the cleaning module sees a frame; the smallest is then an eighth of the frame."""
MAX_START_PASSES = 8
MAX_BLOCKS = 200
"""Maximum blocks of a trunk or of the cleaning module; the published network has 20."""
MAX_FLOW_LEVELS = 12
"""Maximum levels of the flow network: the coarsest of so many sees a frame of 2048 pixels as one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """Every size that the layout leaves open. The defaults are the published network (6,294,834 parameters).

    Attributes:
        cleaning_channels: Channels of the cleaning module.
        num_cleaning_blocks: Residual blocks of the cleaning module.
        mid_channels: Channels of a hidden state.
        num_backward_blocks: Residual blocks of the backward propagation.
        num_forward_blocks: Residual blocks of the forward propagation.
        fusion_channels: Output channels of the fusion of both states.
        quarter_channels: Channels at twice the size of the frame.
        hr_channels: Channels at four times the size of the frame.
        hr_out_channels: Input channels of the last convolution.
        num_flow_levels: Levels of SPyNet.
        flow_channels: The four hidden widths of each SPyNet level, whose input has 3 + 3 + 2 channels and whose output
            has 2.
        flow_stride: Frame pixels per pixel of the finest flow level: 1, 2, 4 or 8. 1 is published; 2 omits the level of
            the frame's own size, which costs three quarters of the flow's time. No shape tells it: it is a tensor of
            its own, `basicvsr.spynet.stride`, which only networks with another stride than 1 have.
        start_passes: How often a propagation trunk processes the first frame of a sequence before the pass that counts,
            each time from the hidden state of the pass before, so that the sequence begins as if the camera had rested
            on that frame. 0 is published: the first frame starts from a hidden state of zeros. It is a tensor too,
            `basicvsr.start_passes`.
        num_cleaning_levels: At how many sizes the cleaning module sees a frame, with the same weights: its own, half, a
            quarter, an eighth. 1 is published. It is a tensor too, `image_cleaning.levels`, which only networks with
            more than one have.
        scale: Output pixels per input pixel, on each axis. Only 4 is implemented: two pixel shuffles by 2.
    """

    cleaning_channels: int = 64
    num_cleaning_blocks: int = 20
    mid_channels: int = 64
    num_backward_blocks: int = 20
    num_forward_blocks: int = 20
    fusion_channels: int = 64
    quarter_channels: int = 64
    hr_channels: int = 64
    hr_out_channels: int = 64
    num_flow_levels: int = 6
    flow_channels: tuple[int, int, int, int] = (32, 64, 32, 16)
    flow_stride: int = 1
    start_passes: int = 0
    num_cleaning_levels: int = 1
    scale: int = 4

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, Tensor]) -> "Architecture":
        """Read the sizes from a network's tensors.

        Raises StateDictError if a tensor that tells a size is missing or cannot tell it. Shapes that contradict each
        other are found afterwards, when the tensors are loaded into the network of these sizes.
        """

        def rows(key: str, rank: int = 4) -> int:
            tensor = state_dict.get(key)
            if tensor is None:
                raise StateDictError(
                    f"not the tensors of a RealBasicVSR network: no {key!r} among {len(state_dict)} keys"
                    f"{_some(state_dict)}"
                )
            if tensor.ndim != rank or tensor.shape[0] < 1:
                raise StateDictError(f"{key!r} has shape {tuple(tensor.shape)}, expected {rank} axes")
            if tensor.shape[0] > MAX_CHANNELS:
                raise StateDictError(
                    f"{key!r} has {tensor.shape[0]} output channels; networks have {MAX_CHANNELS} at most"
                )
            return int(tensor.shape[0])

        def shuffled_channels(key: str) -> int:
            num_rows = rows(key)
            if num_rows % 4:
                raise StateDictError(
                    f"{key!r} has {num_rows} output channels; a pixel shuffle by 2 needs a multiple of 4"
                )
            return num_rows // 4

        flow = "basicvsr.spynet.basic_module.0.basic_module"
        widths = [rows(f"{flow}.{layer}.conv.weight") for layer in range(4)]
        return cls(
            cleaning_channels=rows("image_cleaning.0.main.0.weight"),
            num_cleaning_blocks=_count(state_dict, r"image_cleaning\.0\.main\.2\.(\d{1,6})\."),
            mid_channels=rows("basicvsr.backward_resblocks.main.0.weight"),
            num_backward_blocks=_count(state_dict, r"basicvsr\.backward_resblocks\.main\.2\.(\d{1,6})\."),
            num_forward_blocks=_count(state_dict, r"basicvsr\.forward_resblocks\.main\.2\.(\d{1,6})\."),
            fusion_channels=rows("basicvsr.fusion.weight"),
            quarter_channels=shuffled_channels("basicvsr.upsample1.upsample_conv.weight"),
            hr_channels=shuffled_channels("basicvsr.upsample2.upsample_conv.weight"),
            hr_out_channels=rows("basicvsr.conv_hr.weight"),
            num_flow_levels=_count(state_dict, r"basicvsr\.spynet\.basic_module\.(\d{1,6})\.", MAX_FLOW_LEVELS),
            flow_channels=(widths[0], widths[1], widths[2], widths[3]),
            flow_stride=_stride(state_dict.get(STRIDE_KEY)),
            start_passes=_start_passes(state_dict.get(START_PASSES_KEY)),
            num_cleaning_levels=_cleaning_levels(state_dict.get(CLEANING_LEVELS_KEY)),
        )


def _count(keys: Collection[str], pattern: str, most: int = MAX_BLOCKS) -> int:
    """Count numbered parts: one more than the highest number (a gap shows later as missing keys).

    Raises StateDictError beyond `most`: whoever asks builds so many.
    """
    numbers = [int(match.group(1)) for key in keys if (match := re.match(pattern, key))]
    highest = max(numbers, default=-1)
    if highest >= most:
        raise StateDictError(f"a key numbers its part {highest}; networks have {most} at most")
    return highest + 1


def _stride(tensor: Tensor | None) -> int:
    return 1 if tensor is None else _number(STRIDE_KEY, tensor, STRIDES)


def _start_passes(tensor: Tensor | None) -> int:
    return 0 if tensor is None else _number(START_PASSES_KEY, tensor, tuple(range(1, MAX_START_PASSES + 1)))


def _cleaning_levels(tensor: Tensor | None) -> int:
    return 1 if tensor is None else _number(CLEANING_LEVELS_KEY, tensor, tuple(range(2, MAX_CLEANING_LEVELS + 1)))


def _number(key: str, tensor: Tensor, allowed: tuple[int, ...]) -> int:
    """Return the size that a tensor of one number tells. Raises StateDictError if it is not one of those allowed."""
    is_number = tensor.ndim == 0 and tensor.is_floating_point()
    if not is_number or float(tensor) not in allowed:
        found = f"{float(tensor):g}" if is_number else f"a tensor of shape {tuple(tensor.shape)}, {tensor.dtype}"
        raise StateDictError(f"{key!r} must be one number of {allowed}, got {found}")
    return int(tensor)


def _some(keys: Collection[str]) -> str:
    names = sorted(keys)[:3]
    return f" (they begin with {', '.join(repr(name) for name in names)})" if names else ""
