"""Records in the forms others read: JSON lines, and made of those Parquet and CSV (without lists).

Owns the columns of those files. Every run has the same ones, so any number of runs are read at once:
`SELECT … FROM 'runs/*/requests.parquet'`. Times are those of `line.py`; `ttft_ns` and `e2e_ns` are added.

Invariant: one row per record, in the order of the lines.
"""

from __future__ import annotations

import shutil
import types
import typing
from collections.abc import Sequence
from pathlib import Path

import duckdb
import numpy as np

from prefixlab.bench.records.line import Line, encode
from prefixlab.bench.records.table import RecordTable

ROWS_AT_ONCE = 65_536
_TYPES = {int: "BIGINT", str: "VARCHAR", bool: "BOOLEAN", list[int]: "BIGINT[]"}
_ADDED = (
    "arrivals_ns[1] - sent_ns AS ttft_ns",
    "CAST(list_sum(arrivals_ns) AS BIGINT) - sent_ns AS e2e_ns",
)
# A line leaves out what is at its default, and some defaults are not "nothing".
_DEFAULTS = {"counts_estimated": "false", "kernel_stamps": "false"} | dict.fromkeys(
    (
        "planned_prompt_tokens",
        "planned_output_tokens",
        "output_tokens",
        "merged_reads",
        "retries",
        "client",
        "segment",
    ),
    "0",
)


def join_lines(path: Path, parts: Sequence[Path]) -> None:
    """Files of whole lines as one, byte for byte."""
    with path.open("wb") as joined:
        for part in parts:
            with part.open("rb") as file:
                shutil.copyfileobj(file, joined)


def write_lines(path: Path, table: RecordTable) -> None:
    """A table as lines, a stretch at a time."""
    with path.open("wb") as file:
        for start in range(0, len(table), ROWS_AT_ONCE):
            rows = np.zeros(len(table), dtype=np.bool_)
            rows[start : start + ROWS_AT_ONCE] = True
            file.writelines(map(encode, table.select(rows).to_records()))


def convert_lines(lines: Path, *, parquet: Path, csv: Path) -> None:
    """Make the other two forms of a file of lines."""
    columns = _columns()
    schema = ", ".join(f"'{name}': '{kind}'" for name, kind in columns.items())
    shown = [
        f"coalesce({name}, {_DEFAULTS[name]}) AS {name}" if name in _DEFAULTS else name
        for name in columns
        if name != "v"
    ]
    with duckdb.connect() as database:
        database.execute("SET enable_progress_bar = false")
        database.execute("SET preserve_insertion_order = true")
        database.execute(
            f"CREATE VIEW lines AS SELECT {', '.join([*shown, *_ADDED])} FROM read_json("
            f"{_quoted(lines)}, format = 'newline_delimited', columns = {{{schema}}}, "
            "maximum_object_size = 1073741824)"
        )
        database.execute(f"COPY lines TO {_quoted(parquet)} (FORMAT parquet, COMPRESSION zstd)")
        database.execute(
            f"COPY (SELECT * EXCLUDE (arrivals_ns, counts) FROM lines) TO {_quoted(csv)} (FORMAT csv, HEADER)"
        )


def _columns() -> dict[str, str]:
    """Name → type, from the fields of a line."""
    return {name: _TYPES[_base(hint)] for name, hint in typing.get_type_hints(Line).items()}


def _base(hint: typing.Any) -> typing.Any:
    if isinstance(hint, types.UnionType):
        return next(arg for arg in typing.get_args(hint) if arg is not type(None))
    return hint


def _quoted(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"
