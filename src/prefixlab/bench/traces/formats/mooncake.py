"""Mooncake's format, which nearly everybody reads and writes: one request per line, times in milliseconds.

    {"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47, 2353, 2354]}

Its block size is not in the file: 512 in Mooncake's own, anything in others'; it is inferred. The last,
partial block has an id in Mooncake's files and none in some others (full blocks only); both are read.

Rows with `session_id` are turns of a conversation, `delay` the milliseconds between the end of the turn
before and this one. A row holds its whole prompt, what was said before included. A later turn without a
timestamp came no earlier than the turn before and its delay, and that is taken for its time.

Invariant: within a session no turn is before the one before it; without sessions lines are in order of time.
"""

from __future__ import annotations

import math

import msgspec

from prefixlab.bench.traces.formats.columns import Columns, time_goes_back
from prefixlab.bench.traces.formats.format import Asked, Format
from prefixlab.bench.traces.formats.jsonl import rows
from prefixlab.bench.traces.formats.source import Source
from prefixlab.bench.traces.trace import Trace
from prefixlab.core.errors import ConfigError


class MooncakeLine(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """A request. `hash_ids` and `timestamp` are in all lines of a file or in none (later turns apart)."""

    timestamp: float | int | None = None
    input_length: int
    output_length: int
    hash_ids: list[int] | None = None
    session_id: str | int | None = None
    delay: float | int | None = None


def read(source: Source, asked: Asked) -> Trace:
    columns, sessions = Columns(), _Sessions()
    first: MooncakeLine | None = None
    for number, line in rows(source, FORMAT, MooncakeLine, asked):
        if first is None:
            first = line
        if (line.hash_ids is None) != (first.hash_ids is None):
            raise ConfigError(f"{source.at(number)}: some lines have hash_ids and some have none")
        before_s = columns.times_s[-1] if columns else -math.inf
        if line.delay is not None and line.delay < 0:
            raise ConfigError(f"{source.at(number)}: delay must not be negative, not {line.delay}")
        time_s = _time_s(line) if line.session_id is None else sessions.time_of(source, number, line)
        if math.isnan(time_s) != (first.timestamp is None):
            raise ConfigError(f"{source.at(number)}: some lines have a timestamp and some have none")
        if time_s < before_s and not (sessions.found or asked.sort):
            raise time_goes_back(source, number, time_s, before_s)
        columns.add(source, number, time_s, line.input_length, line.output_length, line.hash_ids or ())
        sessions.add(columns, number, line, time_s)
        # Lines of sessions may be in any order: which requests are the first is known at the end.
        if not sessions.found and not asked.sort and len(columns) == asked.num_requests:
            break
    return columns.trace(source, asked)


def _time_s(line: MooncakeLine) -> float:
    return math.nan if line.timestamp is None else line.timestamp / 1e3


class _Sessions:
    """Of each conversation its last turn so far: number and time."""

    def __init__(self) -> None:
        self.found = False
        self._last: dict[str, tuple[int, float]] = {}

    def time_of(self, source: Source, number: int, line: MooncakeLine) -> float:
        """Also where only the delay is given."""
        last = self._last.get(str(line.session_id))
        time_s = _time_s(line)
        if last is None:
            return time_s
        if line.timestamp is None:
            if line.delay is None and not math.isnan(last[1]):
                raise ConfigError(f"{source.at(number)}: a later turn needs a timestamp or a delay")
            return last[1] + (line.delay or 0) / 1e3
        if time_s < last[1]:
            raise ConfigError(
                f"{source.at(number)}: time goes back within session {line.session_id}, from {last[1]:.9g} s "
                f"to {time_s:.9g} s"
            )
        return time_s

    def add(self, columns: Columns, number: int, line: MooncakeLine, time_s: float) -> None:
        if line.session_id is not None and not self.found:
            self.found = True
            for earlier in columns.lines[:-1]:  # each a conversation of one turn
                columns.add_turn(f"line-{earlier}", 0, math.nan)
        if not self.found:
            return
        session_id = f"line-{number}" if line.session_id is None else str(line.session_id)
        turn = self._last[session_id][0] + 1 if session_id in self._last else 0
        think_s = math.nan if line.delay is None or turn == 0 else line.delay / 1e3
        columns.add_turn(session_id, turn, think_s)
        self._last[session_id] = (turn, time_s)


FORMAT = Format(
    name="mooncake",
    title="Mooncake's format",
    is_csv=False,
    required=("input_length", "output_length"),
    optional=("timestamp", "hash_ids", "session_id", "delay"),
    read=read,
    added_by={
        "context_len": "Dynamo's datagen",
        "unique_user_prompt_len": "Dynamo's datagen",
        "nvext": "Dynamo's tools",
        "extra": "aiperf",
        "priority": "Dynamo's tools",
    },
)
