"""What came back: did every request succeed, as long as asked, token by token? Pure.

Owns these checks. Invariant: they are of what the records hold, request by request; nothing is made of means.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from prefixlab.bench.doctor.diagnosis import Check, Status, by_limits
from prefixlab.bench.doctor.evidence import Evidence
from prefixlab.bench.metrics.summary import Metrics
from prefixlab.bench.records.table import FloatArray, RecordTable

MAX_FAILED_SHARE = 0.01
MAX_PROMPT_ERROR, BAD_PROMPT_ERROR = 0.001, 0.05
MAX_BUNDLED_SHARE = 0.05
STALL_S, STALL_GAPS = 1.0, 20
"""A stream has stalled in a gap longer than either: a second, and so many median gaps."""


def answer_checks(evidence: Evidence) -> list[Check]:
    table, metrics = evidence.result.table, evidence.result.metrics
    return [
        _failures(metrics),
        _completeness(metrics),
        _prompt_lengths(table),
        _output_lengths(table, evidence.ignores_eos),
        _token_counts(table),
        _bundled(table, _stall_limit_s(metrics)),
        _stalls(table, metrics),
    ]


def _failures(metrics: Metrics) -> Check:
    ended = metrics.ok + metrics.failed
    share = metrics.failed / ended if ended else 0.0
    kinds = ", ".join(f"{kind.replace('_', ' ')} {number:,}" for kind, number in metrics.failures.items())
    retried = f", {metrics.num_retries:,} attempts repeated" if metrics.num_retries else ""
    status = Status.CAUTION if metrics.num_retries else Status.FINE
    if metrics.failed or not metrics.ok:
        status = by_limits(share, 0.0, MAX_FAILED_SHARE) if metrics.ok else Status.BAD
    return Check(
        name="failures",
        status=status,
        figure=f"{metrics.failed:,} of {ended:,} failed{f' ({kinds})' if kinds else ''}{retried}",
        limit=f"0; bad above {MAX_FAILED_SHARE:.0%}",
        distorts="latencies are of those that succeeded, often the easier ones; throughput lacks the others",
        remedy="the server's log; less load",
        voids=not metrics.ok,
    )


def _completeness(metrics: Metrics) -> Check:
    missing = metrics.unsent + metrics.cancelled
    empty = f", {metrics.num_empty:,} answers without a token" if metrics.num_empty else ""
    return Check(
        name="completeness",
        status=by_limits(missing + metrics.num_empty, 0),
        figure=f"{missing:,} of {metrics.planned:,} not sent or cut off{empty}",
        limit="0",
        distorts="the figures are of another workload than was planned",
        remedy="--resume the run, or plan what it has time for",
    )


def _prompt_lengths(table: RecordTable) -> Check:
    counted = table.ok & (table.num_prompt_tokens >= 0) & (table.planned_prompt_tokens > 0)
    check = Check(
        name="prompt lengths",
        status=Status.UNKNOWN,
        figure="the server counted none",
        limit=f"{MAX_PROMPT_ERROR:.1%} off on average; bad above {BAD_PROMPT_ERROR:.0%}",
        distorts="input throughput, TTFT, and which pages can hit",
        remedy="prompts as token ids; the server's own tokenizer (--tokenizer) where it takes text alone",
    )
    if not counted.any():
        return check
    planned, actual = table.planned_prompt_tokens[counted], table.num_prompt_tokens[counted]
    off = np.abs(actual - planned)
    error = float(off.sum() / planned.sum())
    return _found(
        check,
        by_limits(error, MAX_PROMPT_ERROR, BAD_PROMPT_ERROR),
        f"{int((off > 0).sum()):,} of {int(counted.sum()):,} differ from the plan, by {error:.2%} on average "
        f"and {int(off.max()):,} tokens at most",
    )


def _output_lengths(table: RecordTable, ignores_eos: bool | None) -> Check:
    ok = table.ok
    asked, got = table.planned_output_tokens[ok], table.num_output_tokens[ok]
    num_shorter, num_longer = int((got < asked).sum()), int((got > asked).sum())
    means = f"{got.mean():,.1f} of {asked.mean():,.1f} tokens on average" if len(got) else "none"
    if num_longer or not ignores_eos:
        ends = "unknown whether they may end early" if ignores_eos is None else "they may end early"
        return Check(
            name="output lengths",
            status=Status.BAD if num_longer else Status.FINE if ignores_eos is not None else Status.UNKNOWN,
            figure=f"{means}; {f'{num_longer:,} are longer than asked' if num_longer else ends}",
            limit="0 longer than asked",
            distorts="another load than planned: TPOT, E2E and throughput",
            remedy="the name by which this server knows max_tokens, by --extra-request-body",
        )
    return Check(
        name="ignore_eos",
        status=by_limits(num_shorter / len(got), 0.0, MAX_FAILED_SHARE) if len(got) else Status.UNKNOWN,
        figure=f"{num_shorter:,} of {len(got):,} outputs ended early: {means}",
        limit=f"0; bad above {MAX_FAILED_SHARE:.0%}",
        distorts="less was generated than asked for: E2E and throughput do not compare with other runs",
        remedy="a server that honours ignore_eos, or min_tokens by --extra-request-body",
    )


def _token_counts(table: RecordTable) -> Check:
    estimated = table.ok & table.counts_estimated
    num_untold = int((estimated & (table.num_prompt_tokens < 0)).sum())
    num_estimated = int(estimated.sum())
    figure = f"{num_estimated:,} of {int(table.ok.sum()):,} answers told only a total"
    if num_untold:
        figure = f"{num_untold:,} of {int(table.ok.sum()):,} answers told none"
    return Check(
        name="token counts",
        status=Status.BAD if num_untold else by_limits(num_estimated, 0),
        figure=figure,
        limit="0",
        distorts="all rates of tokens are guesses" if num_untold else "ITL is an estimate",
        remedy="usage in every event (continuous_usage_stats), or the server's native API",
    )


def _bundled(table: RecordTable, stall_s: float) -> Check:
    """Of what came in reads of its own: what one read merged is the client's or the network's. Behind a stall
    all that piled up comes at once, whatever the server does else."""
    check = Check(
        name="bundled chunks",
        status=Status.UNKNOWN,
        figure="no answer whose events came apart",
        limit=f"{MAX_BUNDLED_SHARE:.0%} of tokens",
        distorts="ITL is blurred: the tokens of an event share one gap; TTFT waits for all of the first",
        remedy="the server's stream interval; expected where it speculates, or is short of CPU (does the "
        "client run beside it?); what the client itself read late is merged reads, not this",
    )
    rows = table.ok & ~table.counts_estimated & (table.num_merged_reads <= 0) & (table.num_output_tokens > 1)
    rows &= longest_gap_s(table) <= stall_s
    if not rows.any():
        return check
    counts = table.counts[np.repeat(rows, table.num_arrivals)]
    share = float(counts[counts > 1].sum() / counts.sum())
    return _found(
        check,
        by_limits(share, MAX_BUNDLED_SHARE),
        f"{share:.1%} of tokens came several to an event, {counts.mean():.2f} tokens an event",
    )


def _stalls(table: RecordTable, metrics: Metrics) -> Check:
    limit_s = _stall_limit_s(metrics)
    gaps_s = longest_gap_s(table)[table.ok]
    num = int((gaps_s > limit_s).sum())
    longest = f"; the longest gap took {gaps_s.max() * 1e3:,.0f} ms" if len(gaps_s) else ""
    return Check(
        name="stalls",
        status=by_limits(num, 0),
        figure=f"{num:,} of {len(gaps_s):,} streams fell silent in their middle{longest}",
        limit=f"{limit_s * 1e3:,.0f} ms",
        distorts="the tails of ITL and E2E, and all of both where many did",
        remedy="the server's log at that time: preempted requests, a paused process; the network",
    )


def _stall_limit_s(metrics: Metrics) -> float:
    return max(STALL_S, STALL_GAPS * (metrics.itl_s.median or 0.0))


def longest_gap_s(table: RecordTable) -> FloatArray:
    """Between two arrivals of each row; 0 where there are none. Shape (n,)."""
    longest = np.zeros(len(table))
    several = table.num_arrivals > 1
    if several.any():
        gaps = np.diff(table.arrivals_s, append=np.nan)
        gaps[table.arrival_start[1:][table.num_arrivals > 0] - 1] = 0.0  # to the next row's first
        longest[several] = np.maximum.reduceat(gaps, table.arrival_start[:-1][table.num_arrivals > 0])[
            several[table.num_arrivals > 0]
        ]
    return longest


def _found(check: Check, status: Status, figure: str) -> Check:
    return replace(check, status=status, figure=figure)
