"""All records of a run in one file of lines, `requests.jsonl`. (Parquet and CSV are `store.py`'s.)

Owns how it is put together: byte for byte where a run was one stretch, else one line per request.

Invariant: the file holds each request once.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from prefixlab.bench.records.line import encode
from prefixlab.bench.records.table import RecordTable

ROWS_AT_ONCE = 65_536


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
            stop = min(start + ROWS_AT_ONCE, len(table))
            file.writelines(map(encode, table.slice(start, stop).to_records()))
