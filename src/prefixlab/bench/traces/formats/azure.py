"""Azure's LLM inference traces of 2023 and 2024: times and lengths, no blocks.

    TIMESTAMP,ContextTokens,GeneratedTokens
    2023-11-16 18:17:03.9799600,4808,10

Times are of one zone: 2023 says none, 2024 says +00:00.

Invariant: times are exact to the nanosecond.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prefixlab.bench.traces.formats.csv_lines import CsvColumns, read_csv
from prefixlab.bench.traces.formats.format import Asked, Format
from prefixlab.bench.traces.formats.source import Source
from prefixlab.bench.traces.trace import Trace
from prefixlab.bench.workloads.sketch import IntArray

LENGTH_OF_DATE = len("2023-11-16")


def read(source: Source, asked: Asked) -> Trace:
    return read_csv(source, FORMAT, COLUMNS, asked)


def date_times(cells: Sequence[str]) -> IntArray:
    """Nanoseconds since 1970 of `2023-11-16 18:17:03.9799600`, with or without `+00:00`."""
    texts = [cell.strip().removesuffix("+00:00").removesuffix("Z") for cell in cells]
    if not all(text[:1].isdigit() and len(text) > LENGTH_OF_DATE and "+" not in text for text in texts):
        raise ValueError("it is no date and time, in UTC or without a zone")
    times_ns: IntArray = np.array(texts, "datetime64[ns]").astype(np.int64)
    return times_ns


COLUMNS = CsvColumns("ContextTokens", "GeneratedTokens", "TIMESTAMP", date_times)

FORMAT = Format(
    name="azure",
    title="Azure's format",
    is_csv=True,
    required=("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
    read=read,
)
