"""The cache: did anything hit that should not have, or the other way round? Pure.

Owns these checks. Why hits are not as expected is the ledger's to say; here it is whether figures may be
called those of a cold cache, or of so many hits, of a server that nobody else used.

Invariants: "did not say" is unknown, never a miss; of what the ledger explains the cause counts, and not its
effect beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from prefixlab.bench.doctor.diagnosis import Check, Status, by_limits
from prefixlab.bench.doctor.evidence import Alone, Evidence
from prefixlab.bench.ledger.account import TOLERANCE
from prefixlab.bench.ledger.causes import Cause
from prefixlab.bench.ledger.seen import Seen
from prefixlab.bench.metrics import latencies
from prefixlab.bench.metrics.windows import each_segment
from prefixlab.bench.records.table import BoolArray, IntArray, RecordTable

MAX_WARM_SHARE = 0.001
"""Of the prompt tokens of requests that should have found nothing."""
MAX_WRONG_SHARE, BAD_WRONG_SHARE = 0.001, 0.05
"""Of the prompt tokens of requests that should have found some."""
BAD_FOREIGN_SHARE = 0.05
"""Of the prompt tokens that we sent."""
EXPLAINS = (Cause.FOREIGN.value, Cause.MISREPORTED.value, Cause.LYING_RESET.value)
"""Causes that are no matter of hits alone: the check of the ledger tells of them."""
NOT_FINE = (Status.CAUTION, Status.BAD)
MIN_SPEED_RATIO = 0.5
FEWEST_COMPARED = 5
SIMILAR = 0.2
"""Prompts of which as many tokens are computed, give or take such a part."""


def cache_checks(evidence: Evidence) -> list[Check]:
    table, ledger = evidence.result.table, _ledger(evidence.ledger)
    hits = [_warm(table), _hits(table)]
    if (evidence.ledger or {}).get("cause") in EXPLAINS and ledger.status in NOT_FINE:
        worst = Status.BAD if any(check.status is Status.BAD for check in (ledger, *hits)) else ledger.status
        ledger, hits = replace(ledger, status=worst), [_explained(check, ledger) for check in hits]
    return [ledger, *hits, _faster_under_load(table, evidence.alone)]


def _ledger(keys: Mapping[str, Any] | None) -> Check:
    """Of what the answers alone do not show, or show as something else."""
    seen, cause = Seen.of_keys(_seen_of(keys)), None if keys is None else keys.get("cause")
    counts, sent = seen.counts, seen.sent_tokens
    status, figure = Status.UNKNOWN, "the server's own counters were not seen"
    if counts is not None and counts.prompt_tokens is not None and sent and not counts.num_restarts:
        share = max(0, counts.prompt_tokens - sent) / sent
        status = by_limits(share, TOLERANCE, BAD_FOREIGN_SHARE)
        figure = f"others' prompts came to {share:.1%} of ours"
    if keys is not None and cause in (Cause.MISREPORTED.value, Cause.LYING_RESET.value):
        status = Status.BAD if cause == Cause.MISREPORTED.value or status is Status.BAD else Status.CAUTION
        figure = "; ".join([f"{cause}: {' and '.join(keys.get('evidence') or ())}", figure])
    return Check(
        name="ledger",
        status=status,
        figure=figure,
        limit=f"others' prompts {TOLERANCE:.0%} of ours, bad above {BAD_FOREIGN_SHARE:.0%}; answers that "
        "agree with counters; a flush that flushes",
        distorts="latency, throughput and hits are of a load, or of a cache, that is not the workload's own",
        remedy="a server that nobody else uses; what the ledger advises, below the run's figures",
    )


def _seen_of(keys: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: keys.get(name) for name in ("counts", "sent_tokens")} if keys is not None else {}


def _explained(check: Check, ledger: Check) -> Check:
    """One trouble counts once: what is off in hits has its cause in the ledger."""
    if check.status not in NOT_FINE:
        return check
    return replace(check, status=Status.UNKNOWN, figure=f"{check.figure}; see {ledger.name}")


def _warm(table: RecordTable) -> Check:
    """Of requests that are the first to bring their prefix."""
    expected, cached = table.num_expected_cached_tokens, table.num_cached_tokens
    first = table.ok & (expected == 0)
    told = first & (cached >= 0)
    status, figure = Status.UNKNOWN, "no request of which a miss is expected"
    if first.any() and not told.any():
        figure = "the server reports no cached tokens"
    if told.any():
        hit = told & (cached > 0)
        share = float(cached[hit].sum() / max(1, table.prompt_tokens[told].sum()))
        status = by_limits(share, 0.0, MAX_WARM_SHARE)
        figure = f"{int(hit.sum()):,} of {int(told.sum()):,} prompts that nobody had sent before hit"
        if hit.any():
            row = int(hit.argmax())
            figure += f", e.g. {table.request_id[row]} by {cached[row]:,} tokens"
    return Check(
        name="warm contamination",
        status=status,
        figure=figure,
        limit=f"0; bad above {MAX_WARM_SHARE:.1%} of their tokens",
        distorts="TTFT and throughput are better than a cold cache gives",
        remedy="an empty cache before (--flush-cache), another --seed; who else uses this server? "
        "does it count right?",
    )


def _hits(table: RecordTable) -> Check:
    expected, cached = table.num_expected_cached_tokens, table.num_cached_tokens
    due = table.ok & (expected > 0)
    told = due & (cached >= 0)
    status, figure = Status.UNKNOWN, "it is not known what to expect"
    if (table.ok & (expected == 0)).any():
        status, figure = Status.FINE, "no request was to hit"
    if due.any():
        status = Status.UNKNOWN
        figure = f"{int((due & ~told).sum()):,} of {int(due.sum()):,} answers named no cached tokens"
    if told.any() and (told == due).all():
        off = cached[told] - expected[told]
        share = float(np.abs(off).sum() / table.prompt_tokens[told].sum())
        status = by_limits(share, MAX_WRONG_SHARE, BAD_WRONG_SHARE)
        figure = (
            f"{int((off < 0).sum()):,} of {int(told.sum()):,} hit less than expected, "
            f"{int((off > 0).sum()):,} more: {share:.1%} of their prompt tokens"
        )
    return Check(
        name="expected hits",
        status=status,
        figure=figure,
        limit=f"{MAX_WRONG_SHARE:.1%} of prompt tokens; bad above {BAD_WRONG_SHARE:.0%}",
        distorts="the figures are of another hit rate than the workload's",
        remedy="the cache's verdict names what can be known of the cause",
    )


def _faster_under_load(table: RecordTable, alone: Alone | None) -> Check:
    """A prompt is never quicker among others than alone, unless part of it is there already."""
    in_flight, ttft_s, computed = others_in_flight(table), latencies.ttft_s(table), computed_tokens(table)
    known = table.ok & ~np.isnan(ttft_s)
    alone = alone or alone_of(table)
    status, figure = Status.UNKNOWN, "too few requests alone to compare with: a run at concurrency 1 tells"
    if alone is not None:
        near = np.abs(computed - alone.num_computed) <= SIMILAR * alone.num_computed
        loaded = known & (in_flight > 0) & near
        status, figure = Status.FINE, "no prompt of that length under load"
        if loaded.sum() >= FEWEST_COMPARED:
            ratio = float(np.median(ttft_s[loaded])) / alone.ttft_s
            status = Status.CAUTION if ratio < MIN_SPEED_RATIO else Status.FINE
            figure = f"TTFT under load is {ratio:.2f} of TTFT alone, with as many tokens that no hit saved"
    return Check(
        name="faster under load",
        status=status,
        figure=figure,
        limit=f"at least {MIN_SPEED_RATIO:g}",
        distorts="the cache was warm, whatever is reported: TTFT and throughput are too good",
        remedy="an empty cache before each point (--flush-cache), another --seed",
    )


def alone_of(table: RecordTable) -> Alone | None:
    """Of the requests that were sent when no other was in flight; None if they are too few."""
    ttft_s, computed = latencies.ttft_s(table), computed_tokens(table)
    rows = table.ok & ~np.isnan(ttft_s) & (others_in_flight(table) == 0)
    if rows.sum() < FEWEST_COMPARED:
        return None
    median = float(np.median(computed[rows]))
    near = rows & (np.abs(computed - median) <= SIMILAR * median)
    return Alone(float(np.median(ttft_s[near])), median) if near.sum() >= FEWEST_COMPARED else None


def computed_tokens(table: RecordTable) -> IntArray:
    """Of each prompt, what neither an expected nor a reported hit saved. Shape (n,)."""
    hits = np.maximum(np.maximum(table.num_cached_tokens, table.num_expected_cached_tokens), 0)
    computed: IntArray = np.maximum(table.prompt_tokens - hits, 1)
    return computed


def others_in_flight(table: RecordTable) -> IntArray:
    """Of each request as it was sent. Shape (n,); 0 for those never sent."""
    others = np.zeros(len(table), dtype=np.int64)
    sent: BoolArray = ~np.isnan(table.sent_s)
    for _, segment in each_segment(table):
        rows = segment & sent
        sent_s, ended_s = table.sent_s[rows], table.last_s[rows]
        begun = np.searchsorted(np.sort(sent_s), sent_s, side="right")
        ended = np.searchsorted(np.sort(ended_s[~np.isnan(ended_s)]), sent_s, side="right")
        others[rows] = np.maximum(begun - ended - 1, 0)
    return others
