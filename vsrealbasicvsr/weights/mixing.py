"""Two sets of weights of one architecture, and interpolation between them.

A file with two sets holds the faithful set under the published names and, for every tensor that differs in the sharp
set, which was trained from it, a tensor of the same shape with the prefix `sharp.`. All other tensors are shared. A
mixture of the weights is again one network, so it costs no more than either (network interpolation: Wang et al.,
"ESRGAN", ECCVW 2018, section 3.4).
"""

import math
from collections.abc import Mapping
from dataclasses import fields

from torch import Tensor

from vsrealbasicvsr.model import Architecture, StateDictError, check_state_dict

SHARP = "sharp."
"""Prefix of the names of the sharp set's tensors."""

DEFAULT_DETAIL = "default_detail"
"""Metadata key of the mixture used where none is requested: a number from 0 to 1, as text."""


def split_sets(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the faithful set, and the tensors that differ in the sharp one, by their names there (empty: one set)."""
    faithful = {key: tensor for key, tensor in tensors.items() if not key.startswith(SHARP)}
    sharp = {key.removeprefix(SHARP): tensor for key, tensor in tensors.items() if key.startswith(SHARP)}
    return faithful, sharp


def check_sets(faithful: Mapping[str, Tensor], sharp: Mapping[str, Tensor]) -> None:
    """Raise StateDictError unless the sharp tensors match the faithful ones and both sets give one architecture.

    The text names keys as they are in the file. The faithful set itself is not checked.
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
    """Interpolate between the two sets: faithful + detail * (sharp - faithful), in float32.

    Args:
        faithful: The faithful set; both have passed `check_sets`.
        sharp: The tensors that differ in the sharp set.
        detail: Share of the sharp set, in [0, 1]. 0 and 1 give the stored tensors.
    """
    if detail == 0:
        return dict(faithful)
    if detail == 1:
        return {**faithful, **sharp}
    wide = {key: (faithful[key].float(), tensor.float()) for key, tensor in sharp.items()}
    return {**faithful, **{key: begin + detail * (end - begin) for key, (begin, end) in wide.items()}}


def parse_default_detail(metadata: Mapping[str, str]) -> float:
    """Return the default mixture that a file of two sets names.

    Raises:
        ValueError: It names none in [0, 1]; the text says what was found.
    """
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
    """Return the sizes in which two architectures differ, as "mid_channels is 64 and 48"; empty if they are equal."""
    names = [size.name for size in fields(Architecture) if getattr(one, size.name) != getattr(other, size.name)]
    return ", ".join(f"{name} is {getattr(one, name)} and {getattr(other, name)}" for name in names)
