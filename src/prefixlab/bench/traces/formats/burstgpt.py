"""BurstGPT's format: times in seconds and lengths of requests to ChatGPT and GPT-4, no blocks.

    Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
    5,ChatGPT,472,18,490,Conversation log

A line of 0 response tokens is a request that failed. Later releases add a session id and an elapsed time,
which are not used: whether a prompt holds what its session said before is not recorded.

Invariant: requests that failed are left out, and counted in the notes.
"""

from __future__ import annotations

from prefixlab.bench.traces.formats.csv_lines import CsvColumns, read_csv, seconds
from prefixlab.bench.traces.formats.format import Asked, Format
from prefixlab.bench.traces.formats.source import Source
from prefixlab.bench.traces.trace import Trace


def read(source: Source, asked: Asked) -> Trace:
    return read_csv(source, FORMAT, COLUMNS, asked)


COLUMNS = CsvColumns(
    "Request tokens",
    "Response tokens",
    "Timestamp",
    seconds,
    failures_are="requests that failed, recorded with 0 tokens",
)

FORMAT = Format(
    name="burstgpt",
    title="BurstGPT's format",
    is_csv=True,
    required=("Timestamp", "Request tokens", "Response tokens"),
    optional=("Model", "Total tokens", "Log Type", "Session ID", "Elapsed time"),
    read=read,
)
