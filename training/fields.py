"""Dataclasses of settings: ranges beside their fields, conversion to plain data and back, lists of their fields.

A range is written where the field is: `batch: AtLeast1 = 16`.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from vsrealbasicvsr.errors import UserError


class SettingsError(UserError):
    """A setting is unknown or out of its range. The text names it and the permitted values."""


@dataclass(frozen=True, slots=True)
class Range:
    """Smallest and largest value of a field, both included. Infinite values are never permitted."""

    low: float
    high: float = math.inf

    def __str__(self) -> str:
        return f"at least {self.low:g}" if self.high == math.inf else f"from {self.low:g} to {self.high:g}"


AtLeast1 = Annotated[int, Range(1)]
Count = Annotated[int, Range(0)]
NotNegative = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, 1)]


def check_fields(settings: Any) -> None:
    """Raise SettingsError for the first field of a dataclass that is outside its Range or no choice of its Literal."""
    for name, hint in typing.get_type_hints(type(settings), include_extras=True).items():
        value, kind = getattr(settings, name), hint
        if typing.get_origin(hint) is Annotated:
            kind, *notes = typing.get_args(hint)
            for allowed in (note for note in notes if isinstance(note, Range)):
                if not allowed.low <= value <= allowed.high or not math.isfinite(value):
                    finite = " and finite" if value == math.inf else ""
                    raise SettingsError(f"{name} must be {allowed}{finite}, got {value}")
        kind = without_alias(kind)
        if typing.get_origin(kind) is Literal and value not in typing.get_args(kind):
            choices = ", ".join(map(str, typing.get_args(kind)))
            raise SettingsError(f"{name} must be one of {choices}, got {value!r}")


def leaf_fields(settings: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield (name with dots, type, value) of every field that is not itself a dataclass, in order of declaration."""
    hints = typing.get_type_hints(type(settings))
    for entry in dataclasses.fields(settings):
        value, name = getattr(settings, entry.name), f"{prefix}{entry.name}"
        if dataclasses.is_dataclass(value):
            yield from leaf_fields(value, name + ".")
        else:
            yield name, without_alias(hints[entry.name]), value


def from_plain[T](kind: type[T], plain: Any, prefix: str = "") -> T:
    """Build a dataclass from plain data: lists become tuples, dictionaries dataclasses.

    Args:
        kind: The dataclass.
        plain: A dictionary of its fields.
        prefix: Put before the names of fields in errors.

    Raises:
        SettingsError: A field is unknown or its value has another type; the text names it.
    """
    if not isinstance(plain, Mapping):
        raise SettingsError(f"{prefix.rstrip('.') or 'settings'} must be an object with fields, got {plain!r}")
    hints = typing.get_type_hints(kind)
    names = {entry.name for entry in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(set(plain) - names):
        raise SettingsError(f"unknown setting {prefix}{unknown[0]}; known are {', '.join(sorted(names))}")
    values: dict[str, Any] = {}
    for name, value in plain.items():
        hint = hints[name]
        if dataclasses.is_dataclass(hint):
            values[name] = from_plain(typing.cast(type, hint), value, f"{prefix}{name}.")
        else:
            values[name] = _checked(hint, value, f"{prefix}{name}")
    try:
        return kind(**values)
    except SettingsError:
        raise
    except UserError as error:
        raise SettingsError(str(error)) from None


def without_alias(kind: Any) -> Any:
    """Return the type that a `type` alias stands for; other types unchanged."""
    return kind.__value__ if isinstance(kind, typing.TypeAliasType) else kind


def written(value: Any) -> str:
    """Return a value as it is written on the command line: the entries of a tuple with commas between them."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _checked(kind: Any, value: Any, name: str) -> Any:
    """Return plain data as the field's type. Raise SettingsError if it is of another one."""
    kind = without_alias(kind)
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        return _checked(next(o for o in typing.get_args(kind) if o is not type(None)), value, name)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise SettingsError(f"{name} must be a list, got {value!r}")
        inner = typing.get_args(kind)
        kinds = [inner[0]] * len(value) if inner[-1] is Ellipsis else list(inner)
        if len(kinds) != len(value):
            raise SettingsError(f"{name} must have {len(kinds)} entries, got {value!r}")
        return tuple(_checked(part_kind, part, name) for part_kind, part in zip(kinds, value, strict=True))
    if origin is Literal:
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is float and isinstance(value, float) and not math.isfinite(value):
        raise SettingsError(f"{name} must be a finite number, got {value}")
    if isinstance(kind, type) and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
        raise SettingsError(f"{name} must be of type {kind.__name__}, got {value!r}")
    return value
