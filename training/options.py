"""The command line of the settings: an option for every field, parsed by cyclopts.

Fields of `data` and `losses` have short names as well: --crop-px is --data.crop-px, --flicker-weight is
--losses.flicker-weight, --degradations.codecs is --data.degradations.codecs. Lists are written a,b.
"""

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import docstring_parser
from cyclopts import App, CycloptsError, Group, Parameter, Token, convert

from training.fields import SettingsError, leaf_fields, written
from training.presets import PRESETS
from training.settings import full_name

EXTRA_NAMES = {"data.num_frames": ("--length",)}
"""Options of other names that earlier versions had."""


def parse[T](kind: type[T], words: Sequence[str], *, program: str, description: str) -> tuple[T, dict[str, Any]]:
    """Parse a command line: a command's own options, and the settings that the user wrote.

    For --help, prints it and raises SystemExit(0).

    Args:
        kind: A dataclass of the command's own options: a field is an option, its docstring the help.
        words: The command line.
        program: Name of the program, for the help.
        description: First paragraph of the help.

    Returns:
        The own options, and the settings that were given, by their names with dots.

    Raises:
        SettingsError: An option is unknown or its value has another type. One line.
    """
    changes = dataclasses.make_dataclass("Changes", _setting_options(), kw_only=True)

    def command(*, own: Any = kind(), settings: Any = changes()) -> tuple[Any, Any]:  # noqa: B008
        return own, settings

    command.__annotations__ |= {
        "own": Annotated[kind, Parameter(name="*")],
        "settings": Annotated[changes, Parameter(name="*")],
    }
    app = App(
        name=program,
        help=description,
        version_flags=[],
        default_parameter=Parameter(negative=(), show_default=False, allow_repeating=True),
    )
    app.default(command)
    if {"--help", "-h"} & set(words):
        app(["--help"], result_action="return_value")
        raise SystemExit(0)
    try:
        own, settings = app(list(words), exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        raise SettingsError(" ".join(str(error).split())) from None
    given = {name: getattr(settings, _identifier(name)) for name, _, _ in leaf_fields(PRESETS["stage1"])}
    return own, {name: value for name, value in given.items() if value is not None}


def option_names(name: str) -> tuple[str, ...]:
    """Return the options of a field: the short name, the full one, and those of earlier versions."""
    short = name
    for group in ("data", "losses"):
        if name.startswith(group + ".") and full_name(name.removeprefix(group + ".")) == name:
            short = name.removeprefix(group + ".")
    names = dict.fromkeys("--" + one.replace("_", "-") for one in (short, name))
    return (*names, *EXTRA_NAMES.get(name, ()))


def _setting_options() -> list[tuple[str, Any, Any]]:
    """Return (attribute, annotated type, default) for every field of the settings. A default of None: not given."""
    stage1 = PRESETS["stage1"]
    return [
        (
            _identifier(name),
            Annotated[
                kind | None,
                Parameter(
                    name=option_names(name),
                    negative=_negatives(name) if kind is bool else (),
                    help=f"{_documentation(stage1, name)} [stage1: {written(value)}]".strip(),
                    group=Group(f"Settings: {name.rpartition('.')[0] or 'training'}"),
                    n_tokens=None if kind is bool else 1,
                    converter=None if kind is bool else functools.partial(_converted, kind),
                ),
            ],
            dataclasses.field(default=None),
        )
        for name, kind, value in leaf_fields(stage1)
    ]


def _identifier(name: str) -> str:
    return name.replace(".", "__")


def _negatives(name: str) -> tuple[str, ...]:
    """Return the negative options of a field, such as --no-stochastic and --data.no-stochastic.

    --no-data.stochastic is how earlier versions wrote it.
    """
    names = []
    for option in option_names(name):
        path, dot, last = option.removeprefix("--").rpartition(".")
        names += [f"--{path}{dot}no-{last}", f"--no-{path}{dot}{last}"]
    return tuple(dict.fromkeys(names))


def _converted(kind: Any, _type: Any, tokens: Sequence[Token]) -> Any:
    """Convert the value of an option, by cyclopts but for lists, whose entries are separated by commas."""
    token = tokens[-1]  # the last one counts if an option is given twice
    if typing.get_origin(kind) in (typing.Union, types.UnionType) and token.value.lower() == "none":
        return None
    if typing.get_origin(kind) is typing.Literal:
        return token.value  # the settings check it, and their error names the choices
    if typing.get_origin(kind) is not tuple:
        return _number(kind, token.value)
    parts, inner = [part for part in token.value.split(",") if part], typing.get_args(kind)
    kinds = [inner[0]] * len(parts) if inner[-1] is Ellipsis else list(inner)
    if len(parts) != len(kinds):
        raise ValueError(f"takes {len(kinds)} values with commas between them, got {token.value!r}")
    return tuple(_number(part_kind, part) for part_kind, part in zip(kinds, parts, strict=True))


def _number(kind: Any, text: str) -> Any:
    """Return the text as a value of a plain type."""
    try:
        return convert(kind, [text])
    except CycloptsError:
        raise ValueError(f"must be of type {kind.__name__}, got {text!r}") from None


@functools.cache
def _documentation_of(kind: Any) -> Mapping[str, str]:
    """Return the docstrings of a dataclass's fields."""
    return {
        entry.arg_name: " ".join((entry.description or "").split())
        for entry in docstring_parser.parse_from_object(kind).params
    }


def _documentation(settings: Any, name: str) -> str:
    *path, last = name.split(".")
    for part in path:
        settings = getattr(settings, part)
    return _documentation_of(settings.__class__).get(last, "")
