"""JSON objects, one per line, as typed rows.

Owns decoding and naming what is wrong with a line.

Invariant: a line that decodes as it should costs one pass; only one that does not is looked at again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec

from prefixlab.bench.traces.formats.format import Asked, Format
from prefixlab.bench.traces.formats.source import Source
from prefixlab.core.errors import ConfigError

Row = TypeVar("Row", bound=msgspec.Struct)


def rows(source: Source, form: Format, kind: type[Row], asked: Asked) -> Iterator[tuple[int, Row]]:
    """Each line with its number. `kind` forbids unknown fields."""
    decoder = msgspec.json.Decoder(kind)
    for number, text in source.lines():
        try:
            yield number, decoder.decode(text)
        except msgspec.DecodeError as error:
            yield number, _look_again(source, number, text, form, kind, asked, str(error))


def as_object(source: Source, number: int, text: bytes) -> dict[str, Any]:
    """The line as it is. Raises ConfigError if it is no JSON object."""
    try:
        line = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise ConfigError(f"{source.at(number)}: {error}") from None
    if not isinstance(line, dict):
        kind = {list: "array", str: "string", bool: "boolean"}.get(type(line), "number or null")
        raise ConfigError(f"{source.at(number)}: a JSON {kind}, where one object per line is wanted")
    return line


def _look_again(
    source: Source, number: int, text: bytes, form: Format, kind: type[Row], asked: Asked, why: str
) -> Row:
    line = as_object(source, number, text)
    if problem := form.problem_with(line, asked.ignore_fields):
        raise ConfigError(f"{source.at(number)}: {problem}")
    within = asked.ignore_fields.difference(form.known_within)
    kept = {name: _without(value, within) for name, value in line.items() if name in form.known}
    if kept == line:
        passed_over = "; --ignore-fields NAME passes it over" if "unknown field" in why else ""
        raise ConfigError(f"{source.at(number)}: not a line of {form.title}: {why}{passed_over}")
    try:
        return msgspec.convert(kept, kind)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{source.at(number)}: not a line of {form.title}: {error}") from None


def _without(value: Any, names: frozenset[str]) -> Any:
    """A JSON value less these fields of the objects in it, however deep."""
    if isinstance(value, dict):
        return {name: _without(inner, names) for name, inner in value.items() if name not in names}
    if isinstance(value, list):
        return [_without(inner, names) for inner in value]
    return value
