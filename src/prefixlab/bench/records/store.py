"""Records in the forms other tools read: Parquet with everything, CSV with one line of scalars per request.

Owns their columns: those of a Record under its names (times in seconds from the run's start, what was not is
NULL), the latencies of docs/measuring.md in milliseconds behind them, and in Parquet two lists per request,
`arrivals_s` and `arrival_counts`. So `SELECT median(ttft_ms) FROM 'runs/**/requests.parquet'` reads any
number of runs at once. DuckDB does the writing: pandas and Arrow are not needed.

Invariant: `read_parquet([path])` is the table that was written, row by row.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt

from prefixlab.bench.metrics import latencies
from prefixlab.bench.records.table import CODE, FLAGS, LABELS, NUMBERS, OUTCOMES, TIMES, Labels, RecordTable
from prefixlab.core.errors import ConfigError

ARRIVALS_AT_ONCE = 1 << 21
"""Of a stretch of rows on its way into a file: bounds memory."""

_MILLISECONDS = {
    "ttft_ms": latencies.ttft_s,
    "tpot_ms": latencies.tpot_s,
    "e2el_ms": latencies.e2e_s,
    "ttft_from_intent_ms": latencies.ttft_from_intent_s,
    "e2el_from_intent_ms": latencies.e2e_from_intent_s,
    "content_ttft_ms": latencies.content_ttft_s,
    "connect_ms": latencies.connect_s,
    "send_lag_ms": latencies.send_lag_s,
}
_CODES = {outcome.value: code for outcome, code in CODE.items()}


def write_parquet(path: Path, table: RecordTable) -> None:
    """ConfigError if the file cannot be written."""
    _write(path, table, "FORMAT parquet, COMPRESSION zstd", lists=True)


def write_csv(path: Path, table: RecordTable) -> None:
    """Without the lists of arrivals. ConfigError if the file cannot be written."""
    _write(path, table, "FORMAT csv, HEADER", lists=False)


def read_parquet(paths: Sequence[Path]) -> RecordTable:
    """ConfigError for a file that cannot be read, or was not written by `write_parquet`."""
    tables = []
    for path in paths:
        with _database() as database:
            try:
                database.execute(f"CREATE VIEW records AS SELECT * FROM read_parquet({_quoted(path)})")
                tables.append(_read(database))
            except duckdb.Error as error:
                said = str(error).splitlines()[0]
                raise ConfigError(f"{path} cannot be read as a run's records: {said}") from None
    return RecordTable.concat(tables)


def _write(path: Path, table: RecordTable, form: str, *, lists: bool) -> None:
    # Rows wait in a database on disk, written out in one go: nothing can be appended to a Parquet file.
    with (
        tempfile.TemporaryDirectory(prefix="prefixlab-") as folder,
        _database(Path(folder) / "rows.duckdb") as database,
    ):
        types = SCALARS | (LISTS if lists else {})
        database.execute(f"CREATE TABLE records ({', '.join(f'{n} {t}' for n, t in types.items())})")
        for stretch in _stretches(table):
            _insert(database, stretch, lists=lists)
        try:
            database.execute(f"COPY records TO {_quoted(path)} ({form})")
        except duckdb.Error as error:
            raise ConfigError(f"{path} cannot be written: {str(error).splitlines()[0]}") from None


def _database(path: Path | None = None) -> duckdb.DuckDBPyConnection:
    database = duckdb.connect(":memory:" if path is None else str(path))
    # One thread and insertion order: lists are put together in the order of the flat columns.
    database.execute("SET threads = 1; SET preserve_insertion_order = true; SET enable_progress_bar = false")
    database.execute(
        "SET pandas_analyze_sample = 0"
    )  # columns of objects are text: no guess is made from a few
    return database


def _stretches(table: RecordTable) -> Iterator[RecordTable]:
    """Whole rows, ARRIVALS_AT_ONCE of arrivals or of rows at a time."""
    start = 0
    while start < len(table):
        full = int(
            np.searchsorted(table.arrival_start, table.arrival_start[start] + ARRIVALS_AT_ONCE, "right")
        )
        stop = max(start + 1, min(full - 1, start + ARRIVALS_AT_ONCE, len(table)))
        yield table.slice(start, stop)
        start = stop


def _insert(database: duckdb.DuckDBPyConnection, table: RecordTable, *, lists: bool) -> None:
    columns: dict[str, npt.NDArray[Any]] = {
        "place": np.arange(len(table)),
        "request_id": np.array(table.request_id, dtype=object),
        "outcome": np.array([outcome.value for outcome in OUTCOMES], dtype=object)[table.outcome],
        "error": np.array([table.errors.get(row) for row in range(len(table))], dtype=object),
        "prompt_tokens": table.prompt_tokens,
        "output_tokens": table.num_output_tokens,
    }
    columns |= {name: getattr(table, name) for name in (*TIMES, *NUMBERS, *FLAGS)}
    columns |= {name: np.array(getattr(table, name).to_list(), dtype=object) for name in LABELS}
    columns |= {name: latency(table) * 1e3 for name, latency in _MILLISECONDS.items()}
    database.register("scalars", columns)
    picked = [_picked(name, kind) for name, kind in SCALARS.items()]
    source = "scalars"
    if lists:
        owners = np.repeat(columns["place"], table.num_arrivals)
        flat = {"place": owners, "arrival_s": table.arrivals_s, "arrival_count": table.counts}
        database.register("flat", flat)
        picked += [f"coalesce({name}, []) AS {name}" for name in LISTS]
        source += (
            " LEFT JOIN (SELECT place, list(arrival_s) AS arrivals_s, list(arrival_count) AS arrival_counts"
            " FROM flat GROUP BY place) USING (place)"
        )
    database.execute(f"INSERT INTO records SELECT {', '.join(picked)} FROM {source} ORDER BY place")


def _picked(name: str, kind: str) -> str:
    """A column of a table as SQL knows "nothing": NULL for NaN and -1."""
    if kind == "DOUBLE":
        return f"CASE WHEN isnan({name}) THEN NULL ELSE {name} END"
    return f"nullif({name}, -1)" if kind == "BIGINT" else name


def _read(database: duckdb.DuckDBPyConnection) -> RecordTable:
    def column(expression: str) -> npt.NDArray[Any]:
        """Without NULLs, so that it is no masked array."""
        found = database.execute(f"SELECT {expression} AS c FROM records").fetchnumpy()["c"]
        assert not np.ma.isMaskedArray(found), f"NULL in {expression}"
        return found

    def labels(name: str) -> Labels:
        rows = database.execute(f"SELECT {name} FROM records").fetchall()
        return Labels.of([value for (value,) in rows])

    outcomes = labels("outcome")
    starts = np.zeros(len(outcomes.codes) + 1, dtype=np.int64)
    np.cumsum(column("len(arrivals_s)"), out=starts[1:])
    failed = database.execute(
        "SELECT place, error FROM (SELECT row_number() OVER () - 1 AS place, error FROM records)"
        " WHERE error IS NOT NULL"
    ).fetchall()
    columns: dict[str, Any] = {
        "request_id": column("request_id").tolist(),
        "outcome": np.array([_CODES[name] for name in outcomes.names], dtype=np.uint8)[outcomes.codes],
        "arrival_start": starts,
        "arrivals_s": column("unnest(arrivals_s)"),
        "counts": column("unnest(arrival_counts)"),
        "errors": dict(failed),
    }
    columns |= {name: column(f"coalesce({name}, 'nan'::DOUBLE)") for name in TIMES}
    columns |= {name: column(f"coalesce({name}, -1)") for name in NUMBERS}
    columns |= {name: column(name) for name in FLAGS}
    columns |= {name: labels(name) for name in LABELS}
    return RecordTable(**columns)


def _quoted(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"


SCALARS = (
    {"request_id": "VARCHAR", "outcome": "VARCHAR"}
    | dict.fromkeys(NUMBERS, "BIGINT")
    | {"prompt_tokens": "BIGINT", "output_tokens": "BIGINT"}
    | dict.fromkeys(TIMES, "DOUBLE")
    | dict.fromkeys(FLAGS, "BOOLEAN")
    | dict.fromkeys(LABELS, "VARCHAR")
    | {"error": "VARCHAR"}
    | dict.fromkeys(_MILLISECONDS, "DOUBLE")
)
LISTS = {"arrivals_s": "DOUBLE[]", "arrival_counts": "INTEGER[]"}
"""Column → type; what both files have, and what only Parquet has."""
