"""Which rows of a catalogue, and in which order, as words of a command line say.

Owns the words: `key=value`, `!=`, `<`, `<=`, `>`, `>=`, and `~` for "contains". A column may be named without
its unit: `ttft_p99` is `ttft_p99_ms`.

Invariant: a column that no run has is refused; a run that does not say what is asked about passes no filter
but `!=`, and comes last in every order.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from prefixlab.bench.saved.catalogue import COLUMNS, Row
from prefixlab.core.config import did_you_mean
from prefixlab.core.errors import ConfigError

UNITS = ("_ms", "_s")
_WORD = re.compile(r"\s*([\w.-]+)\s*(!=|<=|>=|=|<|>|~)\s*(.*)", re.DOTALL)
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def column_of(word: str, rows: Iterable[Row], flag: str) -> str:
    """The column that is meant. ConfigError if there is none."""
    known = {*COLUMNS, *(name for row in rows for name in row)}
    plain = word.lstrip("-").replace("-", "_")
    for name in (word, plain, *(plain + unit for unit in UNITS)):
        if name in known:
            return name
    short = {name.removesuffix("_ms").removesuffix("_s") for name in known}
    raise ConfigError(f"{flag} {word}: no run has that{did_you_mean(word, [*known, *short])}")


def filtered(rows: Sequence[Row], words: Iterable[str]) -> list[Row]:
    """The rows that pass all of them. ConfigError for a word that is no filter."""
    kept = list(rows)
    for word in words:
        found = _WORD.fullmatch(word)
        if found is None:
            raise ConfigError(f"--filter takes key=value, or !=, <, <=, >, >=, ~ (contains), not {word!r}")
        column = column_of(found[1], rows, "--filter")
        kept = [row for row in kept if _passes(row.get(column), found[2], found[3].strip())]
    return kept


def ordered(rows: Sequence[Row], word: str, *, falling: bool) -> list[Row]:
    """By a column, from low to high: numbers before text. Equal ones stay as they were."""
    column = column_of(word, rows, "--sort")
    said = [row for row in rows if row.get(column) is not None]
    said.sort(key=lambda row: _key(row[column]), reverse=falling)
    return said + [row for row in rows if row.get(column) is None]


def _passes(value: Any, how: str, wanted: str) -> bool:
    if value is None:
        return how == "!=" and wanted != ""
    if how == "~":
        return wanted.lower() in _text(value)
    number, limit = _number(value), _number(wanted)
    if number is not None and limit is not None:
        return _COMPARE[how](number, limit)
    return _COMPARE[how](_text(value), wanted.lower())


def _text(value: Any) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value).lower()


def _number(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _key(value: Any) -> tuple[int, float, str]:
    number = _number(value)
    return (1, 0.0, _text(value)) if number is None else (0, number, "")
