"""Report of what is wrong with a state dict's keys and tensors. Knows no network."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from vsrealbasicvsr.errors import UserError


class StateDictError(UserError):
    """A state dict is not that of one network; the text says what was found."""


def check_state_dict(
    network: str,
    expected: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
    *,
    optional: Collection[str] = (),
    prefix: str = "",
    extra: str = "extra",
) -> None:
    """Check the keys, the shapes and the values of a state dict, all of them before anything is said.

    Args:
        network: Begin of the message, such as "not the tensors of one RealBasicVSR network".
        expected: Tensors of the right shapes, on any device.
        found: Tensors to check.
        optional: Keys of `expected` that may be absent.
        prefix: Text before each key in the message, as in the file that the tensors are from.
        extra: Word for keys that are not expected.

    Raises:
        StateDictError: Keys are missing, extra or misshapen, or tensors not of a floating type or not finite. It counts
            each kind and names the first three.
    """
    common = sorted(expected.keys() & found.keys())
    misshapen = [key for key in common if found[key].shape != expected[key].shape]
    kinds = {
        "missing": sorted(expected.keys() - found.keys() - set(optional)),
        extra: sorted(found.keys() - expected.keys()),
        "misshapen": [f"{key} {tuple(found[key].shape)} instead of {tuple(expected[key].shape)}" for key in misshapen],
        "not of a floating type": sorted(key for key, tensor in found.items() if not tensor.is_floating_point()),
        "with NaN or infinite values": [  # a shape that few values are repeated to costs a file nothing, and us all
            key for key in common if key not in misshapen and not torch.isfinite(found[key].float()).all()
        ],
    }
    problems = [f"{len(names)} {kind} ({first_names(names, prefix)})" for kind, names in kinds.items() if names]
    if problems:
        raise StateDictError(f"{network}: keys {', '.join(problems)}")


def first_names(names: Collection[str], prefix: str = "") -> str:
    """Return the first three names with commas between them, and an ellipsis if there are more."""
    return ", ".join(prefix + name for name in list(names)[:3]) + (", ..." if len(names) > 3 else "")
