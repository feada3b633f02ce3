"""Settings: frozen dataclasses, from which flags and environment variables are made; each default once.

    @dataclass(frozen=True)
    class CacheConfig:
        page_size: int = setting(16, "tokens per page")

gives `--page-size` (add_flags) and `PREFIXLAB_PAGE_SIZE`; a flag wins over the environment, the environment
over the default. Anything that cannot be read is a ConfigError naming the flag or variable.

Invariant: a config object never changes after `resolve`; derived values go into a new object.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import types
import typing
from collections.abc import Container, Iterable, Mapping
from typing import Any, TypeVar

from prefixlab.core.errors import ConfigError

ENV_PREFIX = "PREFIXLAB_"
MASK = "***"
"""What is shown of a secret."""

T = TypeVar("T")


def setting(
    default: Any,
    help: str,  # noqa: A002 - the word argparse users know
    *,
    choices: tuple[str, ...] | None = None,
    metavar: str | None = None,
    aliases: tuple[str, ...] = (),
    secret: bool = False,
) -> Any:
    """A dataclass field with what its flag needs. `secret` values are masked wherever a config is shown."""
    metadata = {"help": help, "choices": choices, "metavar": metavar, "aliases": aliases, "secret": secret}
    return dataclasses.field(default=default, metadata=metadata)


def add_flags(
    parser: argparse.ArgumentParser,
    config_class: type,
    title: str | None = None,
    *,
    skip: Container[str] = (),
    listed: Container[str] = (),
) -> None:
    """Add one flag per field of `config_class` (a dataclass of `setting` fields) to `parser`, but for `skip`:
    fields that another config composed into the same verb speaks for.

    Booleans become `--flag` / `--no-flag`; a flag for a tuple of texts takes several words, and adds to what
    it was given before. A flag not given stays out of the namespace, so that `resolve` can tell it from one
    given at its default.

    Flags of the fields in `listed` take several values with commas between; their value is a Values.
    """
    group = parser.add_argument_group(title) if title else parser
    hints = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        if field.name in skip:
            continue
        meta = field.metadata
        names = ["--" + field.name.replace("_", "-"), *meta.get("aliases", ())]
        kind = _base_type(hints[field.name])
        silent = field.default in (None, (), "") or meta.get("secret")
        default: Any = field.default
        if _is_list(kind) and not silent:
            default = " ".join(default)
        shown = "" if silent else f" (default: {default})"
        options: dict[str, Any] = {
            "dest": field.name,
            "default": argparse.SUPPRESS,
            "help": f"{meta['help']}{shown}".replace("%", "%%"),
        }
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif _is_list(kind):
            options |= {"action": "extend", "nargs": "+", "metavar": meta.get("metavar")}
        elif field.name in listed:
            options["type"] = _list_type(kind, meta.get("choices"))
            options["metavar"] = meta.get("metavar") or f"{kind.__name__.upper()},…"
        else:
            options["type"] = _argparse_type(kind)
            options["choices"] = meta.get("choices")
            options["metavar"] = meta.get("metavar") or (
                None if meta.get("choices") else kind.__name__.upper()
            )
        group.add_argument(*names, **options)


def resolve(config_class: type[T], given: Mapping[str, Any], environ: Mapping[str, str] | None = None) -> T:
    """Build a config from flags (`given`, as `vars(args)`; other configs' keys are ignored) and environment.

    Raises:
        ConfigError: an environment variable cannot be read, or the config's own checks refuse the values.
    """
    environ = os.environ if environ is None else environ
    hints = typing.get_type_hints(config_class)
    values: dict[str, Any] = {}
    for field in dataclasses.fields(config_class):  # type: ignore[arg-type]
        variable = ENV_PREFIX + field.name.upper()
        if field.name in given:
            value = given[field.name]
            values[field.name] = tuple(value) if isinstance(value, list) else value
        elif variable in environ:
            values[field.name] = _read(variable, environ[variable], hints[field.name], field.metadata)
    return config_class(**values)


def check_environment(
    config_classes: Iterable[type], environ: Mapping[str, str], also: Iterable[str] = ()
) -> None:
    """Refuse a misspelt variable: one of ours that no config reads, and that is not among `also`.

    Raises:
        ConfigError: it names the variable, and the nearest known one.
    """
    fields = [field for config in config_classes for field in dataclasses.fields(config)]
    known = {ENV_PREFIX + field.name.upper() for field in fields} | set(also)
    for variable in sorted(environ):
        if variable.startswith(ENV_PREFIX) and variable not in known:
            raise ConfigError(f"unknown environment variable {variable}{did_you_mean(variable, known)}")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'warm-cache'?`, or nothing where nothing is near.

    Near is a slip of the fingers (one edit in four letters at most), or the beginning or end of just one
    known name. Neither case nor dashes in front count.
    """

    def stem(name: str) -> str:
        return name.lower().removeprefix(ENV_PREFIX.lower()).lstrip("-").replace("_", "-")

    meant, names = stem(word), list(known)
    limit = max(1, len(meant) // 4)
    near = [(distance, name) for name in names if (distance := _edits(meant, stem(name))) <= limit]
    longer = [
        name
        for name in names
        if (len(meant) >= 4 and stem(name).startswith(meant)) or (meant and stem(name).endswith(f"-{meant}"))
    ]
    if near:
        return f"; did you mean {min(near, key=lambda found: found[0])[1]!r}?"
    return f"; did you mean {longer[0]!r}?" if len(longer) == 1 else ""


def _edits(one: str, other: str) -> int:
    """Letters to insert, drop, replace or swap with their neighbour to make one word of the other."""
    rows = [list(range(len(other) + 1))]
    for i, letter in enumerate(one, 1):
        row = [i]
        for j, wanted in enumerate(other, 1):
            best = min(rows[-1][j] + 1, row[-1] + 1, rows[-1][j - 1] + (letter != wanted))
            if i > 1 and j > 1 and letter == other[j - 2] and one[i - 2] == wanted:
                best = min(best, rows[-2][j - 2] + 1)
            row.append(best)
        rows.append(row)
    return rows[-1][-1]


def as_public_dict(config: Any) -> dict[str, Any]:
    """The config as plain data, secrets masked: for `/server_info` and run directories."""
    shown = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        hidden = field.metadata.get("secret") and value not in (None, ())
        shown[field.name] = MASK if hidden else value
    return shown


def _base_type(hint: Any) -> type:
    """`int | None` → int."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        hint = next(arg for arg in typing.get_args(hint) if arg is not type(None))
    return typing.cast(type, hint)


def _is_list(kind: type) -> bool:
    return typing.get_origin(kind) is tuple


def _argparse_type(kind: type) -> Any:
    def read(text: str) -> Any:
        try:
            return kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {_name(kind)}") from None

    return read


class Values(tuple[Any, ...]):
    """What a flag was given that takes several values: one or more of them."""

    __slots__ = ()


def _list_type(kind: type, choices: tuple[str, ...] | None) -> Any:
    read = _argparse_type(kind)

    def read_all(text: str) -> Values:
        # A JSON object is one value, commas and all.
        words = [text] if text.startswith("{") else text.split(",")
        values = Values(read(word.strip()) for word in words)
        for value in values:
            if choices and value not in choices:
                raise argparse.ArgumentTypeError(f"{value!r} is not one of {', '.join(choices)}")
        return values

    return read_all


def _name(kind: type) -> str:
    return {int: "a whole number", float: "a number", bool: "true or false (1 or 0)"}.get(kind, kind.__name__)


_BOOLEANS = {
    "1": True,
    "true": True,
    "yes": True,
    "on": True,
    "0": False,
    "false": False,
    "no": False,
    "off": False,
}


def _read(variable: str, text: str, hint: Any, meta: Mapping[str, Any]) -> Any:
    kind = _base_type(hint)
    if _is_list(kind):
        return tuple(text.split())
    try:
        value = _BOOLEANS[text.strip().lower()] if kind is bool else kind(text)
    except (KeyError, ValueError):
        raise ConfigError(f"{variable}={text!r} is not {_name(kind)}") from None
    if meta.get("choices") and value not in meta["choices"]:
        raise ConfigError(f"{variable}={text!r} is not one of {', '.join(meta['choices'])}")
    return value
