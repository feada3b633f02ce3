"""Columns under a header: the formats that have lengths and no blocks.

Owns the splitting of lines, reading a stretch of them at once, and what all these formats have in common: no
hash ids, and lines without tokens (a request that failed) left out and counted.

Invariant: no line is left out in silence; one that cannot be read is named.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from prefixlab.bench.traces.formats.columns import check_lengths, time_goes_back
from prefixlab.bench.traces.formats.format import Asked, Format
from prefixlab.bench.traces.formats.source import Source
from prefixlab.bench.traces.trace import Trace
from prefixlab.bench.workloads.sketch import FloatArray, IntArray
from prefixlab.core.errors import ConfigError

CHUNK_LINES = 1 << 16
NANOSECONDS = 1_000_000_000

Parse = Callable[[Sequence[str]], npt.NDArray[Any]]
"""Of a stretch of one column; ValueError where one of it cannot be read."""


@dataclass(frozen=True)
class CsvColumns:
    """Which columns are what. Times are whole nanoseconds, since whenever: exact over months."""

    prompt: str
    output: str
    time: str
    parse_times: Parse
    failures_are: str = "requests without prompt or answer tokens"


def read_csv(source: Source, form: Format, wanted: CsvColumns, asked: Asked) -> Trace:
    """A trace of lengths and, where the header has the column, times."""
    number, text = source.head()
    lines = islice(source.lines(), 1, None)
    header = [name.strip() for name in _split(text.decode())]
    if problem := form.problem_with(header, asked.ignore_fields):
        raise ConfigError(f"{source.at(number)}: {problem}")
    has_times = wanted.time in header
    when = header.index(wanted.time) if has_times else 0
    parts: list[tuple[IntArray, IntArray, IntArray, IntArray]] = []
    num_kept = num_failed = 0
    last: list[tuple[str, int]] = []  # the time of the line before a stretch
    for numbers, cells in _stretches(source, lines, len(header), asked):
        prompt = _parse(source, numbers, cells[header.index(wanted.prompt)], wanted.prompt, whole_numbers)
        output = _parse(source, numbers, cells[header.index(wanted.output)], wanted.output, whole_numbers)
        times_ns = np.zeros(len(numbers), np.int64)
        if has_times:
            times_ns = _parse(source, numbers, cells[when], wanted.time, wanted.parse_times)
        kept = (prompt != 0) & (output != 0)
        check_lengths(source, numbers[kept], prompt[kept], output[kept])
        if has_times and not asked.sort:
            last = _check_times(source, numbers, cells[when], times_ns, last)
        num_failed += len(kept) - int(kept.sum())
        num_kept += int(kept.sum())
        parts.append((numbers, times_ns, prompt, output))
        if not asked.sort and asked.num_requests and num_kept >= asked.num_requests:
            break
    if not num_kept:
        failed = f": all {num_failed:,} rows are {wanted.failures_are}" if num_failed else ""
        raise ConfigError(f"{source.path} holds no request{failed}")
    numbers, times_ns, prompt, output = (np.concatenate(column) for column in zip(*parts, strict=True))
    rows = np.flatnonzero((prompt != 0) & (output != 0))
    rows = rows[np.argsort(times_ns[rows], kind="stable")]
    if asked.num_requests:
        rows = rows[: asked.num_requests]
    failures = f"{num_failed:,} of {len(numbers):,} lines left out: {wanted.failures_are}"
    return Trace(
        name=source.name,
        block_size=1,
        offsets_s=(times_ns[rows] - times_ns[rows[0]]) / NANOSECONDS,
        prompt_tokens=prompt[rows],
        output_tokens=output[rows],
        starts=np.zeros(len(rows) + 1, np.int64),
        hash_ids=np.zeros(0, np.int64),
        has_times=has_times,
        notes=(failures,) if num_failed else (),
    )


def _check_times(
    source: Source, numbers: IntArray, cells: Sequence[str], times_ns: IntArray, last: list[tuple[str, int]]
) -> list[tuple[str, int]]:
    """That none goes back, to the nanosecond, from the last of the stretch before on. Returns this one's."""
    before_ns = np.concatenate(([time_ns for _, time_ns in last] or times_ns[:1], times_ns[:-1]))
    back = np.flatnonzero(times_ns < before_ns)
    if len(back):
        at = int(back[0])
        before = cells[at - 1] if at else last[0][0]
        raise time_goes_back(source, int(numbers[at]), cells[at].strip(), before.strip())
    return [(cells[-1], int(times_ns[-1]))]


def whole_numbers(cells: Sequence[str]) -> IntArray:
    try:
        return np.fromiter(map(int, cells), np.int64, len(cells))
    except OverflowError:
        raise ValueError("it is too large") from None


def seconds(cells: Sequence[str]) -> IntArray:
    """Nanoseconds of a column of seconds."""
    values: FloatArray = np.fromiter(map(float, cells), np.float64, len(cells))
    if not (np.abs(values) < 2**63 / NANOSECONDS).all():
        raise ValueError("it is no time")
    return np.rint(values * NANOSECONDS).astype(np.int64)


def _stretches(
    source: Source, lines: Iterator[tuple[int, bytes]], width: int, asked: Asked
) -> Iterator[tuple[IntArray, list[Sequence[str]]]]:
    """Line numbers and columns, so many lines at once; no more than are asked for."""
    size = CHUNK_LINES
    if asked.num_requests and not asked.sort:
        size = min(size, asked.num_requests)
    while stretch := list(islice(lines, size)):
        table = [_split(text.decode()) for _, text in stretch]
        for (number, _), row in zip(stretch, table, strict=True):
            if len(row) != width:
                raise ConfigError(f"{source.at(number)}: {len(row)} columns, where the header has {width}")
        yield np.array([number for number, _ in stretch], np.int64), list(zip(*table, strict=True))


def _split(line: str) -> list[str]:
    if '"' in line:
        return next(csv.reader([line]))
    return line.rstrip("\r\n").split(",")


def _parse(
    source: Source, numbers: IntArray, cells: Sequence[str], name: str, parse: Parse
) -> npt.NDArray[Any]:
    try:
        return parse(cells)
    except ValueError:
        for number, cell in zip(numbers.tolist(), cells, strict=True):
            try:
                parse([cell])
            except ValueError as error:
                raise ConfigError(f"{source.at(number)}: {name} cannot be {cell!r}: {error}") from None
        raise
