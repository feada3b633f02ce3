"""Which rows of a catalogue, and in which order, as words of a command line say.

Owns the words: `key=value`, `!=`, `<`, `<=`, `>`, `>=`, and `~` for "contains". A column may be named without
its unit: `ttft_p99` is `ttft_p99_ms`. Shares may be given in percent, and dates as lists show them, as far as
one likes: `date>2026-11-22` is what began on a later day.

Invariants: a column that no run has is refused, and so is a comparison of numbers with words; a run that does
not say what is asked about passes no filter but `!=`, and comes last in every order.
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
_PERCENT = re.compile(r"([\d.+-]+)\s*%")
_DATE = re.compile(r"\d{4}(-?\d\d(-?\d\d([ T-]\d\d(:?\d\d(:?\d\d)?)?)?)?)?")
SHARES = ("hit_rate", "share")
"""In the names of columns that are 0 to 1."""
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
        passes = _test(column, [row.get(column) for row in rows], found[2], found[3].strip())
        kept = [row for row in kept if passes(row.get(column))]
    return kept


def ordered(rows: Sequence[Row], word: str, *, falling: bool) -> list[Row]:
    """By a column, from low to high: numbers before text. Equal ones stay as they were."""
    column = column_of(word, rows, "--sort")
    said = [row for row in rows if row.get(column) is not None]
    said.sort(key=lambda row: _key(row[column]), reverse=falling)
    return said + [row for row in rows if row.get(column) is None]


def _test(column: str, values: Iterable[Any], how: str, wanted: str) -> Callable[[Any], bool]:
    """Whether a value of this column passes. ConfigError if it cannot be compared with what is wanted."""
    is_date = column == "date"
    if how == "~":
        return lambda value: value is not None and wanted.lower() in _shown(value, is_date)
    compare = _COMPARE[how]
    if wanted == "" and how in ("=", "!="):
        return lambda value: value is not None and compare(_text(value), "")
    if is_date:
        if not _DATE.fullmatch(wanted):
            raise ConfigError(
                f"--filter {column}{how}{wanted}: no date such as 2026-11-22 or 2026-11-22 07:42"
            )
        day = _digits(wanted)
        return lambda value: how == "!=" if value is None else compare(_digits(value)[: len(day)], day)
    limit = _limit(column, wanted)
    known = [value for value in values if value is not None]
    num_numbers = sum(_number(value) is not None for value in known)
    alike = num_numbers == 0 if limit is None else num_numbers > 0
    if known and not alike and (how not in ("=", "!=") or num_numbers == len(known)):
        what = "numbers" if num_numbers else "words"
        raise ConfigError(f"--filter {column}{how}{wanted}: {column} holds {what}, and {wanted!r} is not one")

    def passes(value: Any) -> bool:
        if value is None:
            return how == "!="
        number = _number(value)
        if number is not None and limit is not None:
            return compare(number, limit)
        if how in ("=", "!=") or (number is None and limit is None):
            return compare(_text(value), wanted.lower())
        return False  # a word among numbers is neither more nor less

    return passes


def _limit(column: str, wanted: str) -> float | None:
    """As a number; None for a word."""
    percent = _PERCENT.fullmatch(wanted)
    if percent is None:
        return _number(wanted)
    number = _number(percent[1])
    if number is None or not any(share in column for share in SHARES):
        raise ConfigError(f"--filter: {column} is not told in percent, so {wanted} says nothing of it")
    return number / 100


def _digits(date: Any) -> str:
    return re.sub(r"\D", "", str(date))


def _shown(value: Any, is_date: bool) -> str:
    """As files say it; of dates as lists show it, too."""
    text = _text(value)
    if not is_date or len(digits := _digits(text)) != len("YYYYmmddHHMMSS"):
        return text
    return f"{text} {digits[:4]}-{digits[4:6]}-{digits[6:8]} {digits[8:10]}:{digits[10:12]}:{digits[12:]}"


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
