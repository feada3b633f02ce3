"""Rows of a catalogue, and answers to queries, on paper: tables, JSON, CSV.

Owns how a figure looks, and that the points of a sweep are one line. Reads nothing.

Invariant: in JSON and CSV every run is an entry of its own, and a figure is whole; tables round.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from io import StringIO
from typing import Any

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table

from prefixlab.bench.saved.catalogue import FINISHED, Catalogue, Row

SHOWN = (
    "name",
    "verb",
    "date",
    "backend",
    "model",
    "dataset",
    "rate",
    "concurrency",
    "ok",
    "failed",
    "ttft_p50_ms",
    "ttft_p99_ms",
    "output_tokens_s",
    "hit_rate",
    "verdict",
    "grade",
    "state",
)
"""Columns of JSON and CSV, unless others are asked for."""
IN_TABLES = tuple(name for name in SHOWN if name not in ("verb", "backend", "model", "dataset"))
"""Of a table, likewise: what a terminal has room for."""
FIRST_TO_GO = ("ttft_p99_ms", "rate", "date", "concurrency", "state", "failed")
"""Of them, where the terminal has not."""
SUMS = ("ok", "failed")
EMPTY = ""
WIDEST = 1000


def sweeps_folded(catalogue: Catalogue, rows: Iterable[Row]) -> list[Row]:
    """Points of one sweep as one row, at the place of the first: what they share as it is, numbers from the
    lowest to the highest, requests added up."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["sweep"] or row["run"], []).append(row)
    return [_folded(catalogue, name, group) for name, group in groups.items()]


def as_table(names: Sequence[str], rows: Iterable[Sequence[Any]], width: int) -> str:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    shown = [[_cell(name, value) for name, value in zip(names, row, strict=True)] for row in rows]
    for place, name in enumerate(names):
        is_text = any(_is_word(row[place]) for row in shown)
        table.add_column(
            name.replace("_", "\n", 1) if len(name) > 8 else name,
            justify="left" if is_text else "right",
            overflow="fold",
        )
    for row in shown:
        table.add_row(*row)
    text = StringIO()
    Console(file=text, width=width, highlight=False, markup=False).print(table)
    return text.getvalue()


def that_fit(names: Sequence[str], rows: Sequence[Row], width: int) -> list[str]:
    """Columns of a table that is no wider, as far as leaving out FIRST_TO_GO can make it so."""
    kept = list(names)
    for name in FIRST_TO_GO:
        lines = as_table(kept, picked(rows, kept), WIDEST).splitlines()
        if max((len(line.rstrip()) for line in lines), default=0) <= width:
            break
        kept = [other for other in kept if other != name]
    return kept


def as_json(names: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A list of objects. What is no number is null, and an infinite one the word "inf"."""
    entries = [dict(zip(names, map(_plain, row), strict=True)) for row in rows]
    return msgspec.json.format(msgspec.json.encode(entries, enc_hook=str)).decode() + "\n"


def as_csv(names: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows(
        [_csv_cell(name, _plain(value)) for name, value in zip(names, row, strict=True)] for row in rows
    )
    return text.getvalue()


def _csv_cell(name: str, value: Any) -> Any:
    return EMPTY if value is None else _day(str(value)) if name == "date" else value


def picked(rows: Iterable[Row], names: Sequence[str]) -> list[list[Any]]:
    return [[row.get(name) for name in names] for row in rows]


def _folded(catalogue: Catalogue, name: str, group: Sequence[Row]) -> Row:
    sweep = catalogue.sweeps.get(name)
    if sweep is None:
        return group[0]
    columns = dict.fromkeys(column for row in group for column in row)
    folded = {column: _of_all(column, [row.get(column) for row in group]) for column in columns}
    finished = sum(row["state"] == FINISHED for row in group)
    all_there = sweep.finished or finished == max(len(group), sweep.num_points or 0)
    state = FINISHED if all_there else f"{finished} of {sweep.num_points or len(group)}"
    points = f"{len(group)} point{'' if len(group) == 1 else 's'}"
    return folded | {"name": f"{sweep.name}: {points}", "verb": sweep.verb, "state": state}


def _of_all(column: str, values: Sequence[Any]) -> Any:
    known = [value for value in values if value is not None]
    if column == "date":
        return min(known, default=None)
    numbers = [value for value in known if isinstance(value, int | float) and not isinstance(value, bool)]
    if column in SUMS:
        return sum(numbers) if numbers else None
    if numbers and len(numbers) == len(known) and min(numbers) != max(numbers):
        return f"{_number(column, min(numbers))} … {_number(column, max(numbers))}"
    several = list(dict.fromkeys(map(str, known)))
    return known[0] if len(several) == 1 else ", ".join(several[:3]) + (", …" if len(several) > 3 else "")


def _cell(name: str, value: Any) -> str:
    if value is None:
        return EMPTY
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return _number(name, value)
    if name == "date":
        return _printable(_day(str(value)))
    if name == "model":
        return _printable(str(value).rstrip("/").rpartition("/")[2])
    return _printable(str(value))


def _day(label: str) -> str:
    """20260131-140500 as people write it; anything else as it is."""
    if len(label) != len("20260101-000000"):
        return label
    day, _, at = label.partition("-")
    return f"{day[:4]}-{day[4:6]}-{day[6:]} {at[:2]}:{at[2:4]}"


def _number(name: str, value: float) -> str:
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 and "seed" not in name else str(value)
    if not math.isfinite(value):
        return "inf" if value > 0 else str(value)
    if "hit_rate" in name:
        return f"{value:.1%}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _is_word(text: str) -> bool:
    return bool(text) and not text[0].isdigit() and text[0] not in "-+." and text != "inf"


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def _printable(text: str) -> str:
    """What a terminal would take for a command is shown as a mark."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)
