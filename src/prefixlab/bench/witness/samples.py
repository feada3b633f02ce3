"""A server's metrics over a run, as they are kept: `metrics.parquet`, one row per change of a series.

    time_s      seconds on the time axis of the run's records (of a stretch, as theirs are)
    server      its URL
    name        of the sample, as the server spells it: `vllm:num_requests_running`, `…_bucket`, `…_total`
    labels      a JSON object of text: `labels->>'tier'` in SQL
    value       DOUBLE

and in the file of a whole run `segment` before them, the number of the stretch, as in `requests.parquet`.
Three series are the scrape's own, as Prometheus has them, with a row at every beat: `up` (1 where the server
answered), `scrape_duration_seconds`, and `scrape_cpu_seconds_total`, what looking cost this client.

Owns that form, and collecting samples within bounds. Fetches nothing.

Invariants: a series has a row at its first beat, at every change and where the server was last heard, so that
a value holds until the next row; what is held does not grow beyond MAX_ROWS, for beats are thinned out then.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import msgspec
import numpy as np
import numpy.typing as npt

from prefixlab.bench.records.run_dir import SEGMENTS
from prefixlab.core.errors import ConfigError

METRICS = "metrics.parquet"
UP, DURATION, CPU = "up", "scrape_duration_seconds", "scrape_cpu_seconds_total"
MAX_ROWS = 1 << 20
"""16 bytes each. A server whose 5,000 series all change with every beat comes to it after 200 beats."""
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')
_ESCAPED = {r"\\": "\\", r"\"": '"', r"\n": "\n"}
COLUMNS = {
    "time_s": "DOUBLE",
    "server": "VARCHAR",
    "name": "VARCHAR",
    "labels": "VARCHAR",
    "value": "DOUBLE",
}


@dataclass(frozen=True, slots=True)
class Samples:
    """Rows as columns, shape (n,), in the order of their times.

    Attributes:
        series: index into `names`.
        names: series as the server spells them: `name{label="value"}`.
    """

    times_s: npt.NDArray[np.float64]
    series: npt.NDArray[np.uint32]
    values: npt.NDArray[np.float64]
    names: Sequence[str]


class SampleLog:
    """What one server told, beat by beat."""

    def __init__(self, max_rows: int = MAX_ROWS) -> None:
        self._max_rows = max_rows
        self._numbers: dict[str, int] = {}
        self._lines: set[str] = set()
        self._answered = 0
        self._times_s = array("d")
        self._beats = array("I")
        self._series = array("I")
        self._values = array("d")
        self.thinned = 1
        """Of so many beats one is kept."""

    @property
    def num_series(self) -> int:
        """Of the server's own, so far."""
        return len(self._numbers.keys() - {UP, DURATION, CPU})

    @property
    def num_rows(self) -> int:
        return len(self._values)

    def add(self, time_s: float, text: str | None, own: Mapping[str, float]) -> None:
        """One beat: what the server said (None: no answer), and the scrape's own series."""
        beat = len(self._times_s)
        self._times_s.append(time_s)
        for name, value in own.items():
            self._row(beat, name, value)
        if text is not None:
            # A set of lines says what changed at a fifth of the cost of reading them all.
            lines = {line for line in text.split("\n") if line and line[0] != "#"}
            self._take(beat, lines - self._lines)
            self._lines, self._answered = lines, beat
        if self.num_rows > self._max_rows and len(self._times_s) > 2:
            self._thin()

    def samples(self) -> Samples:
        """All of it, with the last value of every series at the last beat that was answered."""
        if self._times_s:
            self._take(self._answered, self._lines)
            self._keep_last_of_each()
        beats = np.array(self._beats, np.int64)
        return Samples(
            np.array(self._times_s, np.float64)[beats],
            np.array(self._series, np.uint32),
            np.array(self._values, np.float64),
            list(self._numbers),
        )

    def _take(self, beat: int, lines: set[str]) -> None:
        for line in lines:
            series, brace, rest = line.rpartition("}")
            if not brace:
                series, _, rest = line.partition(" ")
            try:
                value = float(rest.split(None, 1)[0])
            except (ValueError, IndexError):
                continue  # a torn line says nothing
            self._row(beat, series + brace, value)

    def _row(self, beat: int, series: str, value: float) -> None:
        self._beats.append(beat)
        self._series.append(self._numbers.setdefault(series, len(self._numbers)))
        self._values.append(value)

    def _thin(self) -> None:
        """Leave out every other beat. What changed at one that goes is told at the next that stays."""
        last = len(self._times_s) - 1
        kept = np.union1d(np.arange(0, last + 1, 2), [last])
        self._answered = int(np.searchsorted(kept, self._answered))
        self._beats = array("I", np.searchsorted(kept, np.array(self._beats)).astype(np.uint32).tobytes())
        self._times_s = array("d", np.array(self._times_s)[kept].tobytes())
        self._keep_last_of_each()
        self.thinned *= 2

    def _keep_last_of_each(self) -> None:
        """Of several rows of a series at one beat."""
        place = np.array(self._beats, np.int64) * len(self._numbers) + np.array(self._series, np.int64)
        _, from_end = np.unique(place[::-1], return_index=True)
        rows = len(place) - 1 - from_end
        for name, kind in (("_beats", np.uint32), ("_series", np.uint32), ("_values", np.float64)):
            column = getattr(self, name)
            setattr(self, name, array(column.typecode, np.array(column, kind)[rows].tobytes()))


def write_metrics(path: Path, by_server: Mapping[str, Samples]) -> None:
    """Of one stretch of a run; times as they are given. ConfigError if the file cannot be written."""
    with duckdb.connect() as database:
        database.execute("SET enable_progress_bar = false")
        fields = ", ".join(f"{name} {kind}" for name, kind in COLUMNS.items())
        database.execute(f"CREATE TABLE metrics ({fields})")
        for server, samples in by_server.items():
            parts = [_parts(series) for series in samples.names]
            database.register(
                "series",
                {
                    "series": np.arange(len(parts), dtype=np.uint32),
                    "name": np.array([name for name, _ in parts], dtype=object),
                    "labels": np.array([labels for _, labels in parts], dtype=object),
                },
            )
            rows = {"time_s": samples.times_s, "series": samples.series, "value": samples.values}
            database.register("rows", rows)
            database.execute(
                "INSERT INTO metrics SELECT time_s, ?, name, labels, value"
                " FROM rows JOIN series USING (series) ORDER BY name, labels, time_s",
                [server],
            )
        try:
            database.execute(f"COPY metrics TO {quoted(path)} (FORMAT parquet, COMPRESSION zstd)")
        except duckdb.Error as error:
            raise ConfigError(f"{path} cannot be written: {str(error).splitlines()[0]}") from None


def join_metrics(run: Path) -> None:
    """The run's own file, out of those of its stretches; none where nothing was scraped.

    Raises:
        ConfigError: a file cannot be read or written; it says which.
    """
    parts = sorted((run / SEGMENTS).glob(f"[0-9]*/{METRICS}"))
    if not parts:
        return
    rows = " UNION ALL ".join(
        f"SELECT {int(part.parent.name)}::BIGINT AS segment, * FROM read_parquet({quoted(part)})"
        for part in parts
    )
    with duckdb.connect() as database:
        database.execute("SET enable_progress_bar = false")
        try:
            database.execute(f"COPY ({rows}) TO {quoted(run / METRICS)} (FORMAT parquet, COMPRESSION zstd)")
        except duckdb.Error as error:
            raise ConfigError(f"{run / METRICS}: {str(error).splitlines()[0]}") from None


def quoted(path: Path) -> str:
    """As a text in SQL."""
    return "'" + str(path).replace("'", "''") + "'"


def _parts(series: str) -> tuple[str, str]:
    """`name{a="b"}` → `name`, `{"a":"b"}`."""
    name, _, labels = series.partition("{")
    return name, msgspec.json.encode(dict(_labels(labels))).decode()


def _labels(text: str) -> Iterator[tuple[str, str]]:
    for name, value in _LABEL.findall(text):
        yield name, re.sub(r"\\.", lambda found: _ESCAPED.get(found[0], found[0]), value)
