"""Runs of requests that wait for one another: when sessions arrive, how a stopped run goes on, and what their
later turns should have found cached.

Owns what is different where a plan has sessions. Sending them is the driver's, their order the workload's.

Invariant: a session that had not ended when a run stopped is begun anew as a whole, and none of its earlier
records counts.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import compress
from typing import Any

import numpy as np

from prefixlab.bench.loadgen.job import roots_of
from prefixlab.bench.records.record import Failure, Outcome
from prefixlab.bench.records.run_dir import done_ids
from prefixlab.bench.records.table import CODE, BoolArray, RecordTable
from prefixlab.bench.workloads.sketch import NOBODY, FloatArray, Sketches
from prefixlab.bench.workloads.workload import Workload

ExpectedCached = Callable[[int, int], int | None]
"""From shared and prompt tokens to what the cache serves: the hit oracle, as far as the server is known."""


def has_sessions(sketches: Sketches | None) -> bool:
    """Whether requests wait for one another."""
    return sketches is not None and sketches.after is not None


def num_arriving(workload: Workload) -> int:
    """Requests whose time somebody else decides: all but later turns."""
    sketches = workload.sketches
    if sketches is None or sketches.after is None:
        return len(workload)
    return int((sketches.after == NOBODY).sum())


def spread(offsets_s: FloatArray, workload: Workload) -> FloatArray:
    """From times at which sessions begin, shape (num_arriving or more,), to times of requests, shape (n,): a
    later turn's is that of its first, before which it cannot go."""
    sketches = workload.sketches
    if sketches is None or sketches.after is None:
        return offsets_s[: len(workload)]
    begins = np.cumsum(sketches.after == NOBODY) - 1
    of_rows: FloatArray = offsets_s[begins[roots_of(sketches.after)]]
    return of_rows


def is_continuing(sketches: Sketches) -> BoolArray:
    """Shape (n,)."""
    return np.zeros(len(sketches), np.bool_) if sketches.continues is None else sketches.continues


def places_in_sessions(sketches: Sketches | None) -> Iterator[dict[str, Any]]:
    """What a plan says of each request's session, as fields of Planned; nothing where there is none."""
    if sketches is None or (sketches.session_ids is None and sketches.after is None):
        return itertools.repeat({})
    columns: dict[str, Iterable[Any]] = {}
    if sketches.after is not None:
        delays = np.zeros(len(sketches)) if sketches.delays_s is None else sketches.delays_s
        columns |= {
            "after": [None if row == NOBODY else row for row in sketches.after.tolist()],
            "delay_s": delays.tolist(),
            "continues": is_continuing(sketches).tolist(),
        }
    if sketches.session_ids is not None:
        columns["session_id"] = sketches.session_ids
    if sketches.turns is not None:
        columns["turn"] = sketches.turns.tolist()
    return (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))


def settled_sessions(tables: Sequence[RecordTable]) -> RecordTable:
    """As `run_dir.settled`, by whole sessions: the rows of the last stretch in which a session was begun."""
    table = RecordTable.concat(tables)
    session, unsent = table.session_id.codes, np.equal(table.outcome, CODE[Outcome.UNSENT])
    begun_in = np.full(len(table.session_id.names) + 1, -1, np.int64)
    np.maximum.at(begun_in, session[~unsent], table.segment[~unsent])
    begun_in[-1] = -1  # requests of no session, whose code is -1
    begun_in = begun_in[session]
    candidates = np.flatnonzero(table.segment >= begun_in)
    # Of a request's rows the last counts; those of the stretch that counts come last, none was before it.
    candidates = candidates[np.argsort(table.segment[candidates] == begun_in[candidates], kind="stable")]
    last = {table.request_id[row]: row for row in candidates.tolist()}
    keep = np.zeros(len(table), dtype=np.bool_)
    keep[list(last.values())] = True
    return table.select(keep)


def ended_ids(table: RecordTable, request_ids: Sequence[str], sketches: Sketches) -> set[str]:
    """Requests of sessions that are not to be sent again: every turn has ended, or can go no further, for
    what it continues has failed.

    Args:
        request_ids: of the whole plan, shape (n,).
    """
    assert sketches.after is not None
    done, failed = done_ids(table), _failed_ids(table)
    whole = np.ones(len(sketches), np.bool_)
    firsts = roots_of(sketches.after)
    stuck = np.zeros(len(sketches), np.bool_)  # failed, or behind what did
    columns = zip(request_ids, sketches.after.tolist(), is_continuing(sketches).tolist(), strict=True)
    for row, (name, before, continues) in enumerate(columns):
        stuck[row] = name in failed or (continues and stuck[before])
        if name not in done and not stuck[row]:
            whole[firsts[row]] = False
    return set(compress(request_ids, whole[firsts].tolist()))


def _failed_ids(table: RecordTable) -> set[str]:
    """What the server failed; what the client lost is asked again."""
    failed = np.equal(table.outcome, CODE[Outcome.FAILED]).tolist()
    rows = zip(table.request_id, failed, table.failure.to_list(), strict=True)
    return {name for name, has_failed, failure in rows if has_failed and failure != Failure.CLIENT}


def corrected(
    table: RecordTable, sketches: Sketches, request_ids: Sequence[str], expected: ExpectedCached
) -> RecordTable:
    """`table`, with what later turns of live sessions were and should have found, now that it is known what
    was answered: an answer may end early, and all behind it is shorter then.

    Rows without an expectation (after a resume, say) stay without.
    """
    if sketches.after is None or sketches.continues is None:
        return table
    row_of = dict(zip(table.request_id, range(len(table)), strict=True))
    prompt_tokens = table.planned_prompt_tokens.copy()
    cached = table.num_expected_cached_tokens.copy()
    longer = np.zeros(len(sketches), np.int64)  # than planned; less than 0 where answers ended early
    for number in np.flatnonzero(sketches.continues).tolist():
        before = int(sketches.after[number])
        row, row_before = row_of[request_ids[number]], row_of[request_ids[before]]
        if not table.ok[row]:
            continue
        answered = int(table.num_output_tokens[row_before] - sketches.output_tokens[before])
        longer[number] = longer[before] + answered
        if not longer[number]:
            continue
        prompt_tokens[row] += longer[number]
        if cached[row] >= 0:
            shared = int(sketches.shared_tokens[number] + longer[number])
            found = expected(shared, int(prompt_tokens[row]))
            cached[row] = -1 if found is None else found
    return replace(table, planned_prompt_tokens=prompt_tokens, num_expected_cached_tokens=cached)
