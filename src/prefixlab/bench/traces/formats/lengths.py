"""Lengths alone: the processed traces of Vidur. No blocks, and mostly no times.

    num_prefill_tokens,num_decode_tokens,num_total_tokens,pd_ratio
    3772,54,3826,69.85185185185185

`arrived_at` is in seconds where it is there. A trace without times can be asked at a rate, not replayed.

Invariant: without `arrived_at` no times are made up.
"""

from __future__ import annotations

from prefixlab.bench.traces.formats.csv_lines import CsvColumns, read_csv, seconds
from prefixlab.bench.traces.formats.format import Asked, Format
from prefixlab.bench.traces.formats.source import Source
from prefixlab.bench.traces.trace import Trace


def read(source: Source, asked: Asked) -> Trace:
    return read_csv(source, FORMAT, COLUMNS, asked)


COLUMNS = CsvColumns("num_prefill_tokens", "num_decode_tokens", "arrived_at", seconds)

FORMAT = Format(
    name="lengths",
    title="a table of lengths",
    is_csv=True,
    required=("num_prefill_tokens", "num_decode_tokens"),
    optional=("arrived_at", "num_total_tokens", "pd_ratio"),
    read=read,
)
