"""Two sets of weights of one architecture, and the networks between them. Knows names and tensors; reads no files.

A file with two sets holds the faithful one under the published names, and for every tensor that differs in the sharp
one, which was trained from it, a tensor of the same shape, `sharp.` before its name. Tensors without such a partner are
shared. A mixture of the weights is one network again, so it costs no more than either (network interpolation: Wang et
al., "ESRGAN", ECCVW 2018, section 3.4).
"""

import math
from collections.abc import Mapping
from dataclasses import fields

from torch import Tensor

from vsrealbasicvsr.model import Architecture, StateDictError, check_state_dict

SHARP = "sharp."
"""Before the name of a tensor: that of the sharp set."""

DEFAULT_DETAIL = "default_detail"
"""In a file's metadata: the mixture to use where none is asked for, a number from 0 to 1 as text."""


def split_sets(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The faithful set; and what differs in the sharp one, under the names that it has there (nothing: one set)."""
    faithful = {key: tensor for key, tensor in tensors.items() if not key.startswith(SHARP)}
    sharp = {key.removeprefix(SHARP): tensor for key, tensor in tensors.items() if key.startswith(SHARP)}
    return faithful, sharp


def check_sets(faithful: Mapping[str, Tensor], sharp: Mapping[str, Tensor]) -> None:
    """Raise StateDictError unless the sharp tensors go with the faithful ones, as values of one architecture.

    The text names the keys as a file has them. The faithful set is not checked by itself.
    """
    check_state_dict(
        "the sharp set does not go with the faithful one",
        faithful,
        sharp,
        optional=faithful,
        prefix=SHARP,
        extra="without a partner",
    )
    if different := differences(
        Architecture.from_state_dict(faithful), Architecture.from_state_dict({**faithful, **sharp})
    ):
        raise StateDictError(f"its two sets of weights are not of one architecture ({different})")


def mix(faithful: Mapping[str, Tensor], sharp: Mapping[str, Tensor], detail: float) -> dict[str, Tensor]:
    """The set between the two: faithful + detail * (sharp - faithful), in float32; for 0 and for 1 the stored ones.

    detail in [0, 1]. The sets have passed `check_sets`.
    """
    if detail == 0:
        return dict(faithful)
    if detail == 1:
        return {**faithful, **sharp}
    wide = {key: (faithful[key].float(), tensor.float()) for key, tensor in sharp.items()}
    return {**faithful, **{key: begin + detail * (end - begin) for key, (begin, end) in wide.items()}}


def parse_default_detail(metadata: Mapping[str, str]) -> float:
    """The mixture that a file of two sets chooses itself. Raises ValueError, which says what was found."""
    if DEFAULT_DETAIL not in metadata:
        raise ValueError(f"names no {DEFAULT_DETAIL}")
    try:
        detail = float(metadata[DEFAULT_DETAIL])
    except ValueError:
        detail = math.nan
    if not 0 <= detail <= 1:
        raise ValueError(f"names the {DEFAULT_DETAIL} {metadata[DEFAULT_DETAIL]!r}, which is no number from 0 to 1")
    return detail


def differences(one: Architecture, other: Architecture) -> str:
    """The sizes in which two architectures differ, "mid_channels is 64 and 48"; nothing if they are one."""
    names = [size.name for size in fields(Architecture) if getattr(one, size.name) != getattr(other, size.name)]
    return ", ".join(f"{name} is {getattr(one, name)} and {getattr(other, name)}" for name in names)
