"""Sessions turn by turn: what the first turn cost, what the later ones, and how long a session took.

Owns these folds. Percentiles are of all requests of a turn pooled, never averaged. What a server did not
report of a request is not counted as a miss: hit rates are over the requests that told their cached tokens.

Invariant: every request that has a turn is in exactly one row.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from prefixlab.bench.metrics import latencies
from prefixlab.bench.metrics.distribution import Distribution
from prefixlab.bench.records.record import Outcome
from prefixlab.bench.records.table import CODE, BoolArray, IntArray, RecordTable

NUM_SINGLE_TURNS = 12
"""Beyond these, people are shown several turns in one row."""


@dataclass(frozen=True, slots=True)
class TurnFigures:
    """The requests of one turn of all sessions, or of a few turns.

    Attributes:
        first, last: turns, from 0, both included.
        planned, ok: requests.
        ttft_s: of those that are ok, from sent.
        mean_prompt_tokens: of those that are ok; None where none is.
        hit_rate: cached over prompt tokens as the server reports them, 0 … 1; None where it does not.
        expected_hit_rate: the same of what was to be expected; None where nobody knows.
    """

    first: int
    last: int
    planned: int
    ok: int
    ttft_s: Distribution
    mean_prompt_tokens: float | None
    hit_rate: float | None
    expected_hit_rate: float | None


@dataclass(frozen=True, slots=True)
class SessionFigures:
    """All sessions.

    Attributes:
        planned: sessions of the plan.
        begun: a turn of it was sent.
        completed: every turn is ok.
        duration_s: of completed ones, from the first turn sent to the end of the last, think time included.
        mean_turns: ok turns of those begun; None where none is.
    """

    planned: int
    begun: int
    completed: int
    duration_s: Distribution
    mean_turns: float | None


def has_turns(table: RecordTable) -> bool:
    """Some request follows another of its session."""
    return bool((table.turn > 0).any())


def by_turn(table: RecordTable, *, grouped: bool = False) -> list[TurnFigures]:
    """One entry per turn that is there. `grouped`: of many turns the later ones together, each group twice as
    wide as the one before."""
    last = int(table.turn.max(initial=-1))
    edges = list(range(last + 2))
    if grouped and last >= NUM_SINGLE_TURNS:
        edges, width = list(range(9)), 8
        while edges[-1] <= last:
            edges.append(min(edges[-1] + width, last + 1))
            width *= 2
    ttft_s = latencies.ttft_s(table)
    found = []
    for first, end in pairwise(edges):
        rows = (table.turn >= first) & (table.turn < end)
        if rows.any():
            found.append(_figures(table, rows, ttft_s, first, end - 1))
    return found


def _figures(
    table: RecordTable, rows: BoolArray, ttft_s: latencies.FloatArray, first: int, last: int
) -> TurnFigures:
    ok = rows & table.ok
    return TurnFigures(
        first=first,
        last=last,
        planned=int(rows.sum()),
        ok=int(ok.sum()),
        ttft_s=Distribution.of(ttft_s[ok]),
        mean_prompt_tokens=float(table.prompt_tokens[ok].mean()) if ok.any() else None,
        hit_rate=_rate(table, ok, table.num_cached_tokens),
        expected_hit_rate=_rate(table, ok, table.num_expected_cached_tokens),
    )


def _rate(table: RecordTable, rows: BoolArray, cached: IntArray) -> float | None:
    rows = rows & (cached >= 0)
    prompt_tokens = int(table.prompt_tokens[rows].sum())
    return int(cached[rows].sum()) / prompt_tokens if prompt_tokens else None


def of_sessions(table: RecordTable) -> SessionFigures:
    session = table.session_id.codes
    named = session >= 0
    number = session[named]
    size = len(table.session_id.names)
    sent = ~np.isnan(table.sent_s[named])
    planned = np.bincount(number, minlength=size)
    ok = np.bincount(number, weights=table.ok[named], minlength=size)
    begun = np.bincount(number, weights=sent, minlength=size) > 0
    complete = (planned > 0) & (ok == planned)
    first_s, last_s = np.full(size, np.inf), np.full(size, -np.inf)
    np.fmin.at(first_s, number, table.sent_s[named])
    np.fmax.at(last_s, number, table.last_s[named])
    return SessionFigures(
        planned=int((planned > 0).sum()),
        begun=int(begun.sum()),
        completed=int(complete.sum()),
        duration_s=Distribution.of((last_s - first_s)[complete]),
        mean_turns=float(ok[begun].mean()) if begun.any() else None,
    )


def num_behind_failures(table: RecordTable) -> int:
    """Turns that were not sent because one before them in their session had failed."""
    session = table.session_id.codes
    broken = np.zeros(len(table.session_id.names) + 1, np.bool_)
    broken[session[np.equal(table.outcome, CODE[Outcome.FAILED])]] = True
    broken[-1] = False  # requests of no session
    return int((np.equal(table.outcome, CODE[Outcome.UNSENT]) & broken[session]).sum())
