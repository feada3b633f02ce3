"""From files of lines to a table, a stretch at a time, so that memory holds columns and not objects.

Owns what becomes of a line that is none: a torn last one is left out, any other is an error that names it.

Invariant: `read_lines([path]).to_records()` is `[decode(line) for line in path]`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from prefixlab.bench.records.line import VERSION, Line, decode_line, decode_lines
from prefixlab.bench.records.record import Failure
from prefixlab.bench.records.table import CODE, FLAGS, LABELS, Labels, RecordTable, numbers
from prefixlab.core.errors import ConfigError

BYTES_AT_ONCE = 1 << 22
_CODE_OF_WORD = {outcome.value: code for outcome, code in CODE.items()}
_FAILURES = frozenset(failure.value for failure in Failure)

# Columns of a table that are times since `intended_ns` in a line, and plain numbers; by their names there.
_TIMES = {
    "sent_s": "sent_ns",
    "connect_started_s": "connect_started_ns",
    "connected_s": "connected_ns",
    "first_byte_s": "first_byte_ns",
    "first_content_s": "first_content_ns",
    "last_s": "last_ns",
}
_NUMBERS = {
    "segment": "segment",
    "client": "client",
    "planned_prompt_tokens": "planned_prompt_tokens",
    "planned_output_tokens": "planned_output_tokens",
    "num_prompt_tokens": "prompt_tokens",
    "num_expected_cached_tokens": "expected_cached_tokens",
    "num_cached_tokens": "cached_tokens",
    "num_reasoning_tokens": "reasoning_tokens",
    "num_merged_reads": "merged_reads",
    "num_retries": "retries",
    "http_status": "http_status",
    "turn": "turn",
}


def read_lines(paths: Sequence[Path]) -> RecordTable:
    """See `RecordTable.read`."""
    stretches = []
    for path in paths:
        try:
            stretches += [_table(lines) for lines in _stretches(path) if lines]
        except OSError as error:
            raise ConfigError(f"records {path} cannot be read: {error.strerror}") from None
    return RecordTable.concat(stretches)


def _stretches(path: Path) -> Iterator[list[Line]]:
    """The lines of a file, decoded, about BYTES_AT_ONCE at a time."""
    num_before = 0
    with path.open("rb") as file:
        while data := file.readlines(BYTES_AT_ONCE):
            try:
                lines = decode_lines(b"".join(data))
                fine = len(lines) == len(data) and not any(map(_fault, lines))
            except msgspec.DecodeError:
                fine = False
            yield lines if fine else _decode_carefully(data, path, num_before)
            num_before += len(data)


def _decode_carefully(data: Sequence[bytes], path: Path, num_before: int) -> list[Line]:
    """One by one, to name the line that is none; a torn last one is left out."""
    lines = []
    for number, text in enumerate(data, start=num_before + 1):
        try:
            line = decode_line(text)
        except msgspec.DecodeError as error:
            if not text.endswith(b"\n"):
                break  # torn: whoever wrote it was stopped inside it, so its request did not end
            raise ConfigError(f"{path}:{number} is not a record: {error}") from None
        if fault := _fault(line):
            raise ConfigError(f"{path}:{number} {fault}")
        lines.append(line)
    return lines


def _fault(line: Line) -> str | None:
    """What the decoder cannot know to be wrong: our words, and the version."""
    if line.v > VERSION:
        return f"is of version {line.v}; this prefixlab reads up to {VERSION}"
    if line.outcome not in _CODE_OF_WORD or (line.failure is not None and line.failure not in _FAILURES):
        return f"has an outcome or failure that is none: {line.outcome}, {line.failure}"
    if line.counts is not None and len(line.counts) != len(line.arrivals_ns):
        return f"has {len(line.arrivals_ns)} arrivals and {len(line.counts)} counts"
    return None


def _table(lines: Sequence[Line]) -> RecordTable:
    by_field = zip(*map(msgspec.structs.astuple, lines), strict=True)
    field: dict[str, Sequence[Any]] = dict(zip(Line.__struct_fields__, by_field, strict=True))
    intended_ns = np.array(field["intended_ns"], dtype=np.int64)
    starts = np.zeros(len(lines) + 1, dtype=np.int64)
    np.cumsum([len(gaps) for gaps in field["arrivals_ns"]], out=starts[1:])
    columns: dict[str, Any] = {
        "request_id": list(field["id"]),
        "outcome": np.array([_CODE_OF_WORD[word] for word in field["outcome"]], dtype=np.uint8),
        "intended_s": intended_ns / 1e9,
        "arrival_start": starts,
        "arrivals_s": _arrivals_s(field["arrivals_ns"], starts, intended_ns),
        "counts": _counts(field["counts"], starts),
        "errors": {row: error for row, error in enumerate(field["error"]) if error is not None},
    }
    for column, name in _TIMES.items():
        # None becomes NaN; whole nanoseconds are exact in a float64 for the first 104 days of a run
        columns[column] = (np.array(field[name], dtype=np.float64) + intended_ns) / 1e9
    columns |= {column: numbers(field[name]) for column, name in _NUMBERS.items()}
    columns |= {name: np.array(field[name], dtype=np.bool_) for name in FLAGS}
    columns |= {name: Labels.of(field[name]) for name in LABELS}
    return RecordTable(**columns)


def _arrivals_s(
    gaps_ns: Sequence[list[int]], starts: npt.NDArray[np.int64], intended_ns: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Gaps of all rows, one after another, as times: a running sum that begins anew at every row."""
    gaps = np.fromiter(chain.from_iterable(gaps_ns), dtype=np.int64, count=int(starts[-1]))
    sums = np.cumsum(gaps)
    before = np.concatenate([np.zeros(1, dtype=np.int64), sums])[starts[:-1]]
    sums += np.repeat(intended_ns - before, np.diff(starts))
    return sums / 1e9


def _counts(counts: Sequence[list[int] | None], starts: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
    flat = np.ones(int(starts[-1]), dtype=np.int32)
    for start, named in zip(starts.tolist()[:-1], counts, strict=True):
        if named is not None:
            flat[start : start + len(named)] = named
    return flat
