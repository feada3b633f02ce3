"""Sessions of coding agents, one per line, with their blocks in run-length form (kv-cache-tester's traces).

    {"id": "trace_0001", "block_size": 64, "tool_tokens": 12974, "system_tokens": 4243, "requests":
     [{"t": 0.0, "isl": 71175, "osl": 169, "runs": [[1, 1112]], "api_time": 7.34, "think_time": 0.0}]}

Times count from the session's start and ids are the session's own, so sessions are laid beside each other:
one begins `session_interval_s` after the one before, and shares nothing with it. `runs` are (first id, how
many).

Invariant: runs are spread out at the very end, once, in the order of time: a trace of 36 million ids needs
little more memory than the ids themselves.
"""

from __future__ import annotations

import math
from array import array

import msgspec
import numpy as np

from prefixlab.bench.traces.formats.columns import Columns, check_block_counts, check_lengths
from prefixlab.bench.traces.formats.format import Asked, Format
from prefixlab.bench.traces.formats.jsonl import rows
from prefixlab.bench.traces.formats.source import Source
from prefixlab.bench.traces.trace import Trace
from prefixlab.bench.workloads.sketch import IntArray
from prefixlab.core.errors import ConfigError


class AgenticRequest(msgspec.Struct, forbid_unknown_fields=True):
    """A turn. Times in seconds; `think_time` lies between the answer before and this."""

    t: float
    isl: int
    osl: int
    runs: list[tuple[int, int]]
    api_time: float | None = None
    think_time: float | None = None


class AgenticSession(msgspec.Struct, forbid_unknown_fields=True):
    """A line. The lengths of tools and system prompt say what the first blocks were, nothing more."""

    id: str
    block_size: int
    requests: list[AgenticRequest]
    tool_tokens: int | None = None
    system_tokens: int | None = None


def read(source: Source, asked: Asked) -> Trace:
    columns, runs = Columns(), _Runs()
    block_size, is_empty = 0, array("b")
    for index, (number, session) in enumerate(rows(source, FORMAT, AgenticSession, asked)):
        if session.block_size < 1 or (index and session.block_size != block_size):
            expected = f"{block_size} as in the lines before" if index else "at least 1"
            raise ConfigError(f"{source.at(number)}: block_size must be {expected}, not {session.block_size}")
        block_size = session.block_size
        begin_s = index * asked.session_interval_s
        before_s = 0.0
        for turn, request in enumerate(session.requests):
            place = f"{source.at(number)}: request {turn + 1} of session {session.id}"
            if not before_s <= request.t < math.inf:
                raise ConfigError(f"{place}: time goes back, from {before_s:g} s to {request.t:g} s")
            if request.osl < 0:
                raise ConfigError(f"{place}: osl must not be negative, not {request.osl}")
            before_s = request.t
            is_empty.append(request.osl == 0)
            columns.add(source, number, begin_s + request.t, request.isl, max(1, request.osl), ())
            columns.id_counts[-1] = runs.add(place, request.runs)
            known = turn > 0 and request.think_time is not None
            columns.add_turn(session.id, turn, float(request.think_time or 0) if known else math.nan)
        runs.end_session()
    if not len(columns):
        raise ConfigError(f"{source.path} holds no request")
    return _trace(source, asked, columns, runs, asked.block_size or block_size, is_empty)


class _Runs:
    """The runs of all requests; ids of a session begin where those of the one before ended."""

    def __init__(self) -> None:
        self.firsts, self.lengths, self.per_request = array("q"), array("q"), array("q")
        self._base = self._highest = 0

    def add(self, place: str, runs: list[tuple[int, int]]) -> int:
        """Returns how many ids they are."""
        total = 0
        for first, length in runs:
            if first < 0 or length < 1 or first + length >= 1 << 40:
                raise ConfigError(f"{place}: a run is (first id, at least one id), not [{first}, {length}]")
            self.firsts.append(self._base + first)
            self.lengths.append(length)
            self._highest = max(self._highest, first + length)
            total += length
        self.per_request.append(len(runs))
        return total

    def end_session(self) -> None:
        self._base += self._highest
        self._highest = 0


def _trace(
    source: Source, asked: Asked, columns: Columns, runs: _Runs, block_size: int, is_empty: array[int]
) -> Trace:
    lines, counts = np.array(columns.lines), np.array(columns.id_counts)
    prompt, output = np.array(columns.prompt_tokens), np.array(columns.output_tokens)
    check_lengths(source, lines, prompt, output)
    check_block_counts(source, lines, prompt, counts, block_size)
    times_s = np.array(columns.times_s)
    order = np.argsort(times_s, kind="stable")
    if asked.num_requests:
        order = order[: asked.num_requests]
    hash_ids = _spread(runs, order)
    notes = []
    if num_empty := int(np.array(is_empty)[order].sum()):
        notes.append(f"{num_empty:,} of {len(order):,} answers, recorded with 0 tokens, are taken to have 1")
    return Trace(
        name=source.name,
        block_size=block_size,
        offsets_s=times_s[order] - times_s[order[0]],
        prompt_tokens=prompt[order],
        output_tokens=output[order],
        starts=np.concatenate(([0], np.cumsum(counts[order]))),
        hash_ids=hash_ids,
        session_ids=[columns.session_ids[row] for row in order.tolist()],
        turns=np.array(columns.turns)[order],
        think_s=np.array(columns.think_s)[order],
        notes=tuple(notes),
    )


def _spread(runs: _Runs, order: IntArray) -> IntArray:
    """The ids of requests in that order."""
    per_request = np.array(runs.per_request)
    starts = np.concatenate(([0], np.cumsum(per_request)))
    counts = per_request[order]
    ends = np.cumsum(counts)
    picked = np.repeat(starts[order] - (ends - counts), counts) + np.arange(counts.sum())
    firsts, lengths = np.array(runs.firsts)[picked], np.array(runs.lengths)[picked]
    run_starts = np.cumsum(lengths) - lengths
    ids: IntArray = np.arange(lengths.sum(), dtype=np.int64)
    ids += np.repeat(firsts - run_starts, lengths)
    return ids


FORMAT = Format(
    name="agentic",
    title="the agentic sessions' format",
    is_csv=False,
    required=("id", "block_size", "requests"),
    optional=("tool_tokens", "system_tokens"),
    known_within=AgenticRequest.__struct_fields__,
    lays_out_sessions=True,
    read=read,
)
