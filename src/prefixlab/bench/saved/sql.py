"""SQL over all runs below a folder, by DuckDB.

Owns the views. `runs` has a row per run, with the columns of the catalogue; `requests`, `metrics` and
`timeline` have those of `requests.parquet`, `metrics.parquet` and `saved/timeline.py`, with `run` before
them, the folder, by which they are joined.

Invariants: only what a query names is read: a view that is not in it is not made, and of files that are, only
the columns and rows that are asked for. Nothing is written: what is no question is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from prefixlab.bench.records.store import LISTS, SCALARS
from prefixlab.bench.saved import timeline as timelines
from prefixlab.bench.saved.catalogue import COLUMNS, Catalogue, Row
from prefixlab.bench.saved.filters import UNITS
from prefixlab.bench.saved.saved_run import PARQUET
from prefixlab.bench.saved.server_metrics import metrics_files, metrics_source, parquet_files
from prefixlab.bench.witness.samples import COLUMNS as METRIC_COLUMNS
from prefixlab.core.errors import ConfigError

NUMBERS = ("rate", "concurrency", "ok", "failed", "hit_rate", "measured_hit_rate")
"""Columns of `runs` that are so also where no run says anything; those with a unit are, too."""
VIEWS = ("runs", "requests", "metrics", "timeline")
ONE_QUESTION = (
    "--sql: one question, and no more (SELECT, WITH, DESCRIBE, SUMMARIZE, SHOW) that changes nothing"
)
EXAMPLES = (
    "SELECT name, ttft_p50_ms, hit_rate FROM runs ORDER BY date DESC LIMIT 10",
    "SELECT name, quantile_cont(r.ttft_ms, 0.99) AS p99 FROM requests r JOIN runs USING (run) "
    "WHERE outcome = 'ok' GROUP BY name",
    "SELECT run, labels->>'tier' AS tier, max(value) - min(value) AS tokens FROM metrics "
    "WHERE name = 'prefixlab:cached_tokens_total' GROUP BY ALL",
    "SELECT time_s, client_in_flight, server_running, server_hit_rate FROM timeline "
    "WHERE run LIKE '%my-run%' ORDER BY segment, time_s",
)


class RunsDatabase:
    """See the module. Use as a context manager."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._database = duckdb.connect()
        self._database.execute("SET enable_progress_bar = false; SET pandas_analyze_sample = 0")
        self._made: set[str] = set()

    def __enter__(self) -> RunsDatabase:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def ask(self, query: str) -> tuple[list[str], list[tuple[Any, ...]]]:
        """Names of columns, and rows.

        Raises:
            ConfigError: the query cannot be answered; it says why in one line.
        """
        try:
            kinds = [statement.type for statement in duckdb.extract_statements(query)]
            if kinds != [duckdb.StatementType.SELECT]:
                raise ConfigError(ONE_QUESTION)
            for view in VIEWS:
                if re.search(rf"\b{view}\b", query, re.IGNORECASE) and view not in self._made:
                    self._make(view)
            self._database.execute(query)
            rows = self._database.fetchall()
            return [name for name, *_ in self._database.description or ()], rows
        except duckdb.Error as error:
            raise ConfigError(f"--sql: {_first_line(str(error))}") from None

    def columns(self, view: str) -> list[tuple[str, str]]:
        """Names and types."""
        _, rows = self.ask(f"SELECT column_name, column_type FROM (DESCRIBE {view})")
        return [(str(name), str(kind)) for name, kind in rows]

    def _make(self, view: str) -> None:
        self._made.add(view)
        if view == "runs":
            self._make_runs()
        elif view == "requests":
            files = [path for run in self._catalogue.runs if (path := Path(run) / PARQUET).is_file()]
            whose = f"left(filename, length(filename) - {len(PARQUET) + 1}) AS run"
            source = f"SELECT {whose}, * EXCLUDE (filename) FROM {parquet_files(files)}"
            self._view(view, source if files else None, SCALARS | LISTS)
        elif view == "metrics":
            files = [path for run in self._catalogue.runs for path in metrics_files(Path(run))]
            self._view(view, metrics_source(files), {"segment": "BIGINT"} | METRIC_COLUMNS)
        else:
            self._make_timeline()

    def _view(self, name: str, source: str | None, columns: dict[str, str]) -> None:
        """Of `source`; where there is none, without a row."""
        none = ", ".join(f"NULL::{kind} AS {column}" for column, kind in columns.items())
        nothing = f"SELECT NULL::VARCHAR AS run, {none} WHERE false"
        more = f" UNION ALL BY NAME FROM ({source})" if source is not None else ""
        self._database.execute(f"CREATE VIEW {name} AS {nothing}{more}")

    def _make_runs(self) -> None:
        rows = self._catalogue.rows
        columns = list(dict.fromkeys([*COLUMNS, *(name for row in rows for name in row)]))
        texts = {f"c{number}": _texts(rows, name) for number, name in enumerate(columns)}
        self._database.register("run_rows", texts)
        picked = ", ".join(
            f"CAST(c{number} AS {_type(name, [row.get(name) for row in rows])}) AS {_identifier(shown)}"
            for number, (name, shown) in enumerate(zip(columns, _apart(columns), strict=True))
        )
        self._database.execute(f"CREATE TABLE runs AS SELECT {picked} FROM run_rows")
        self._database.unregister("run_rows")

    def _make_timeline(self) -> None:
        names = timelines.COLUMNS
        fields = ", ".join(f"{name} {'BIGINT' if name == 'segment' else 'DOUBLE'}" for name in names)
        self._database.execute(f"CREATE TABLE timeline (run VARCHAR, {fields})")
        for path, run in self._catalogue.runs.items():
            self._database.register("steps", timelines.timeline(run))
            picked = ", ".join(f"CASE WHEN isnan({name}) THEN NULL ELSE {name} END" for name in names)
            self._database.execute(f"INSERT INTO timeline SELECT ?, {picked} FROM steps", [path])
            self._database.unregister("steps")


def _apart(columns: Sequence[str]) -> list[str]:
    """SQL knows no capitals in names: of two that differ in nothing else, both keep their place."""
    seen: dict[str, int] = {}
    named = []
    for column in columns:
        number = seen[column.lower()] = seen.get(column.lower(), 0) + 1
        named.append(column if number == 1 else f"{column}_{number}")
    return named


def _texts(rows: Sequence[Row], name: str) -> np.ndarray[Any, np.dtype[np.object_]]:
    values = [row.get(name) for row in rows]
    return np.array([None if value is None else str(value) for value in values], dtype=object)


def _type(name: str, values: Iterable[Any]) -> str:
    """The narrowest that takes all of them; "inf" is a number among numbers, as JSON has no other."""
    known = [value for value in values if value is not None]
    if not known and (name in NUMBERS or name.endswith(UNITS)):
        return "DOUBLE"
    if known and all(isinstance(value, bool) for value in known):
        return "BOOLEAN"
    numbers = [value for value in known if isinstance(value, int | float) and not isinstance(value, bool)]
    if numbers and len(numbers) + known.count("inf") == len(known):
        whole = all(isinstance(value, int) and abs(value) < 1 << 63 for value in known)
        return "BIGINT" if whole else "DOUBLE"
    return "VARCHAR"


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _first_line(message: str) -> str:
    """DuckDB draws the place below its message, and names what is near in another line."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    near = [line for line in lines[1:] if line.startswith(("Candidate", "Did you mean"))]
    return " ".join([lines[0], *near[:1]]) if lines else "the query failed"
