"""Records as columns: the form in which a million of them are read and summed up in seconds.

Owns the columns. A row is a record; arrivals of all rows lie in one flat column, row i's at
`arrivals_s[arrival_start[i] : arrival_start[i + 1]]` (and `counts` beside them). Text that repeats is kept as
a code per row and the names once; errors, which are few, by row.

Invariant: `RecordTable.of(records).to_records() == records`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import compress, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from prefixlab.bench.records.record import Failure, Outcome, Record

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
CountArray = npt.NDArray[np.int32]
BoolArray = npt.NDArray[np.bool_]

OUTCOMES = tuple(Outcome)
"""What the codes of the column `outcome` mean."""
CODE: Mapping[Outcome, int] = {outcome: code for code, outcome in enumerate(OUTCOMES)}


@dataclass(frozen=True, eq=False)
class Labels:
    """A column of text that repeats.

    Attributes:
        codes: shape (n,), int32, index into `names`; -1 is None.
    """

    codes: CountArray
    names: tuple[str, ...]

    @classmethod
    def of(cls, values: Sequence[str | None]) -> Labels:
        names = tuple(name for name in dict.fromkeys(values) if name is not None)
        codes: dict[str | None, int] = {name: code for code, name in enumerate(names)} | {None: -1}
        return cls(np.fromiter(map(codes.__getitem__, values), np.int32, len(values)), names)

    def to_list(self) -> list[str | None]:
        names = (*self.names, None)
        return [names[code] for code in self.codes.tolist()]

    def select(self, rows: BoolArray) -> Labels:
        return Labels(self.codes[rows], self.names)

    @classmethod
    def concat(cls, columns: Sequence[Labels]) -> Labels:
        seen: dict[str, int] = {}
        pieces = []
        for column in columns:
            known = [seen.setdefault(name, len(seen)) for name in column.names]
            pieces.append(np.array([*known, -1], dtype=np.int32)[column.codes])
        return cls(np.concatenate(pieces), tuple(seen))


@dataclass(frozen=True, eq=False)
class RecordTable:
    """See the module. Shape (n,) unless said otherwise. A time that was not is NaN, a count nobody named -1.

    Attributes:
        outcome: shape (n,), uint8, index into OUTCOMES.
        arrival_start: shape (n + 1,), int64.
        arrivals_s, counts: shape (arrival_start[-1],), float64 and int32.
        errors: row → what the failed request ran into, in the server's words.
    """

    request_id: Sequence[str]
    outcome: npt.NDArray[np.uint8]
    segment: IntArray
    client: IntArray
    intended_s: FloatArray
    sent_s: FloatArray
    connect_started_s: FloatArray
    connected_s: FloatArray
    first_byte_s: FloatArray
    first_content_s: FloatArray
    last_s: FloatArray
    arrival_start: IntArray
    arrivals_s: FloatArray
    counts: CountArray
    planned_prompt_tokens: IntArray
    planned_output_tokens: IntArray
    num_prompt_tokens: IntArray
    num_expected_cached_tokens: IntArray
    num_cached_tokens: IntArray
    num_reasoning_tokens: IntArray
    num_merged_reads: IntArray
    num_retries: IntArray
    http_status: IntArray
    turn: IntArray
    counts_estimated: BoolArray
    kernel_stamps: BoolArray
    finish_reason: Labels
    failure: Labels
    session_id: Labels
    worker: Labels
    errors: Mapping[int, str]

    @classmethod
    def of(cls, records: Iterable[Record]) -> RecordTable:
        rows = list(records)
        lengths = [len(row.arrivals_s) for row in rows]
        starts = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum(lengths, out=starts[1:])

        def column(name: str) -> list[Any]:
            return [getattr(row, name) for row in rows]

        columns: dict[str, Any] = {
            "request_id": column("request_id"),
            "outcome": np.array([CODE[row.outcome] for row in rows], dtype=np.uint8),
            "arrival_start": starts,
            "arrivals_s": np.fromiter((t for row in rows for t in row.arrivals_s), np.float64, starts[-1]),
            "counts": np.fromiter((c for row in rows for c in row.arrival_counts), np.int32, starts[-1]),
            "errors": {number: row.error for number, row in enumerate(rows) if row.error is not None},
        }
        columns |= {name: np.array(column(name), dtype=np.float64) for name in TIMES}
        columns |= {name: numbers(column(name)) for name in NUMBERS}
        columns |= {name: np.array(column(name), dtype=np.bool_) for name in FLAGS}
        columns |= {name: Labels.of(column(name)) for name in LABELS}
        return cls(**columns)

    @classmethod
    def read(cls, paths: Sequence[Path]) -> RecordTable:
        """From files of lines; a torn last line of a file is left out, as of a request that did not end.

        Raises:
            ConfigError: a file cannot be read, or a line is not a record; it names file and line.
        """
        from prefixlab.bench.records.reading import read_lines

        return read_lines(paths)

    @classmethod
    def concat(cls, tables: Sequence[RecordTable]) -> RecordTable:
        """All rows of all tables, in that order."""
        if not tables:
            return cls.of(())
        if len(tables) == 1:
            return tables[0]
        rows_before = np.cumsum([0, *map(len, tables)]).tolist()
        arrivals_before = np.cumsum([0, *(len(table.arrivals_s) for table in tables)])
        starts = [
            table.arrival_start[:-1] + before
            for table, before in zip(tables, arrivals_before[:-1], strict=True)
        ]
        columns: dict[str, Any] = {
            "request_id": [request_id for table in tables for request_id in table.request_id],
            "arrival_start": np.concatenate([*starts, arrivals_before[-1:]]),
            "errors": {
                row + before: error
                for table, before in zip(tables, rows_before[:-1], strict=True)
                for row, error in table.errors.items()
            },
        }
        for name in LABELS:
            columns[name] = Labels.concat([getattr(table, name) for table in tables])
        for field in fields(cls):
            if field.name not in columns:
                columns[field.name] = np.concatenate([getattr(table, field.name) for table in tables])
        return cls(**columns)

    @classmethod
    def pool(cls, tables: Sequence[RecordTable]) -> RecordTable:
        """All rows of several runs (repeats, say), whose times do not compare: their segments stay apart."""
        apart, before = [], 0
        for table in tables:
            apart.append(replace(table, segment=table.segment + before))
            before += int(table.segment.max(initial=0)) + 1
        return cls.concat(apart)

    def select(self, rows: BoolArray) -> RecordTable:
        """The rows where `rows`, shape (n,), is true, in their order."""
        if rows.all():
            return self
        lengths = self.num_arrivals
        kept = np.repeat(rows, lengths)
        starts = np.zeros(int(rows.sum()) + 1, dtype=np.int64)
        np.cumsum(lengths[rows], out=starts[1:])
        place = np.cumsum(rows) - 1
        columns: dict[str, Any] = {
            "request_id": list(compress(self.request_id, rows.tolist())),
            "arrival_start": starts,
            "arrivals_s": self.arrivals_s[kept],
            "counts": self.counts[kept],
            "errors": {int(place[row]): error for row, error in self.errors.items() if rows[row]},
        }
        for name in LABELS:
            columns[name] = getattr(self, name).select(rows)
        for field in fields(self):
            if field.name not in columns:
                columns[field.name] = getattr(self, field.name)[rows]
        return RecordTable(**columns)

    def slice(self, start: int, stop: int) -> RecordTable:
        """Rows `start` to `stop`, without copying their columns."""
        low, high = int(self.arrival_start[start]), int(self.arrival_start[stop])
        columns: dict[str, Any] = {
            "arrival_start": self.arrival_start[start : stop + 1] - low,
            "arrivals_s": self.arrivals_s[low:high],
            "counts": self.counts[low:high],
            "errors": {row - start: e for row, e in self.errors.items() if start <= row < stop},
        }
        for name in LABELS:
            label: Labels = getattr(self, name)
            columns[name] = Labels(label.codes[start:stop], label.names)
        for field in fields(self):
            if field.name not in columns:
                columns[field.name] = getattr(self, field.name)[start:stop]
        return RecordTable(**columns)

    def to_records(self) -> list[Record]:
        """The rows as objects: for runs of thousands, not of millions."""
        columns: dict[str, Sequence[Any]] = {
            "request_id": self.request_id,
            "outcome": [OUTCOMES[code] for code in self.outcome.tolist()],
            "arrivals_s": self._split(self.arrivals_s),
            "arrival_counts": self._split(self.counts),
            "error": [self.errors.get(row) for row in range(len(self))],
        }
        for name in TIMES:
            columns[name] = [None if t != t else t for t in getattr(self, name).tolist()]
        for name in NUMBERS:
            columns[name] = [None if n < 0 else n for n in getattr(self, name).tolist()]
        for name in FLAGS:
            columns[name] = getattr(self, name).tolist()
        for name in LABELS:
            columns[name] = getattr(self, name).to_list()
        columns["failure"] = [None if f is None else Failure(f) for f in columns["failure"]]
        return [Record(**dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]

    def __len__(self) -> int:
        return len(self.outcome)

    @cached_property
    def ok(self) -> BoolArray:
        """Shape (n,): the requests whose latencies and tokens count."""
        return np.equal(self.outcome, CODE[Outcome.OK])

    @cached_property
    def num_arrivals(self) -> IntArray:
        """Shape (n,): entries of `arrivals_s` of each row."""
        return np.diff(self.arrival_start)

    @cached_property
    def num_output_tokens(self) -> IntArray:
        """Shape (n,): the counts of each row, summed."""
        totals = np.zeros(len(self), dtype=np.int64)
        some = self.num_arrivals > 0
        if some.any():  # rows without arrivals take no room, so the others' starts cut the flat column
            totals[some] = np.add.reduceat(self.counts, self.arrival_start[:-1][some], dtype=np.int64)
        return totals

    @cached_property
    def prompt_tokens(self) -> IntArray:
        """Shape (n,): as the server counted, or as planned where it did not say."""
        return np.where(self.num_prompt_tokens < 0, self.planned_prompt_tokens, self.num_prompt_tokens)

    @cached_property
    def first_arrival_s(self) -> FloatArray:
        """Shape (n,): NaN where no token came."""
        return self._arrival_at(self.arrival_start[:-1])

    @cached_property
    def last_arrival_s(self) -> FloatArray:
        """Shape (n,): NaN where no token came."""
        return self._arrival_at(self.arrival_start[1:] - 1)

    def _arrival_at(self, places: IntArray) -> FloatArray:
        times = np.full(len(self), np.nan)
        some = self.num_arrivals > 0
        times[some] = self.arrivals_s[places[some]]
        return times

    def _split(self, flat: npt.NDArray[Any]) -> list[tuple[Any, ...]]:
        values = flat.tolist()
        return [tuple(values[start:end]) for start, end in pairwise(self.arrival_start.tolist())]


TIMES = (
    "intended_s",
    "sent_s",
    "connect_started_s",
    "connected_s",
    "first_byte_s",
    "first_content_s",
    "last_s",
)
NUMBERS = (
    "segment",
    "client",
    "planned_prompt_tokens",
    "planned_output_tokens",
    "num_prompt_tokens",
    "num_expected_cached_tokens",
    "num_cached_tokens",
    "num_reasoning_tokens",
    "num_merged_reads",
    "num_retries",
    "http_status",
    "turn",
)
FLAGS = ("counts_estimated", "kernel_stamps")
LABELS = ("finish_reason", "failure", "session_id", "worker")


def as_table(records: Sequence[Record] | RecordTable) -> RecordTable:
    return records if isinstance(records, RecordTable) else RecordTable.of(records)


def numbers(values: Sequence[int | None]) -> IntArray:
    """A column of counts: -1 where nobody named one."""
    if None in values:
        values = [-1 if value is None else value for value in values]
    return np.array(values, dtype=np.int64)
