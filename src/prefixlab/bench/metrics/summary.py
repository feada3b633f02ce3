"""What a run amounts to: a pure fold over records. The formulas are in docs/measuring.md.

Owns the fold that every report starts from. Reads no clock and no socket; the same records give the same
numbers.

Invariants: planned = ok + failed + cancelled + unsent; percentiles are pooled over requests (or tokens),
never averaged over repeats; a value that was not measured is None, never 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from prefixlab.bench.metrics import latencies, windows
from prefixlab.bench.metrics.distribution import Distribution, FloatArray, percentile_name
from prefixlab.bench.metrics.goodput import Goodput, Objectives, goodput
from prefixlab.bench.metrics.windows import SteadyState
from prefixlab.bench.records.record import Outcome, Record
from prefixlab.bench.records.table import OUTCOMES, RecordTable, as_table


@dataclass(frozen=True, slots=True)
class Metrics:
    """What a run, or a point of it, amounts to. Latencies and token counts are of ok requests only."""

    planned: int
    ok: int
    failed: int
    cancelled: int
    unsent: int
    num_empty: int
    """Ok, and not one token came: counted as a request, without any latency."""
    failures: Mapping[str, int]
    """Failed requests by what they ran into, most frequent first."""
    num_retries: int

    duration_s: float
    """From the first intended start to the end of the last stream, summed over segments."""
    num_segments: int
    num_input_tokens: int
    num_output_tokens: int
    num_reasoning_tokens: int | None
    """Of the output tokens; None where no answer told."""
    request_throughput: float | None
    input_throughput: float | None
    output_throughput: float | None
    total_throughput: float | None
    concurrency: float | None
    """Σ E2E / duration: requests in flight on average."""
    peak_concurrency: int
    peak_queued: int
    """Most requests due and not yet sent at once."""
    peak_output_throughput: float | None
    """Most output tokens within one second."""
    steady: SteadyState | None
    goodput: Goodput | None

    ttft_s: Distribution
    tpot_s: Distribution
    itl_s: Distribution
    e2e_s: Distribution
    ttft_from_intent_s: Distribution
    e2e_from_intent_s: Distribution
    content_ttft_s: Distribution
    """To the first token that is not reasoning."""
    connect_s: Distribution
    """Opening a connection, of the requests for which one was opened, whatever became of them."""
    send_lag_s: Distribution
    """Sent minus intended: waiting for a slot and a connection included."""


def summarise(
    records: Sequence[Record] | RecordTable,
    planned: int,
    duration_s: float | None = None,
    *,
    open_loop: bool = False,
    percentiles: Iterable[float] = (),
    objectives: Objectives | None = None,
) -> Metrics:
    """Fold `records` into numbers. AssertionError unless they account for all `planned` requests.

    Args:
        duration_s: of records pooled over repeats: the sum of the repeats' durations, not the time from the
            first to the last, in which other things were measured.
        open_loop: how requests were paced; decides what is steady, and from when goodput counts.
        percentiles: in percent, beside those always taken.
        objectives: what a good request meets.
    """
    table = as_table(records)
    check_complete(table, planned)
    return fold(table, duration_s, open_loop=open_loop, percentiles=tuple(percentiles), objectives=objectives)


def check_complete(table: RecordTable, planned: int) -> None:
    """AssertionError unless every planned request has one row: anything else is a bug of ours."""
    assert len(table) == planned, f"{planned} requests planned, {len(table)} recorded"
    assert len(set(table.request_id)) == planned, "a request was recorded twice"


def fold(
    table: RecordTable,
    duration_s: float | None = None,
    *,
    open_loop: bool,
    percentiles: Sequence[float],
    objectives: Objectives | None,
) -> Metrics:
    """`summarise` without its check: of repeats pooled, in which an id may come again."""
    ok = table.ok
    timed = ok & (table.num_arrivals > 0)
    outcomes = dict(zip(OUTCOMES, np.bincount(table.outcome, minlength=len(OUTCOMES)).tolist(), strict=True))
    if duration_s is None:
        duration_s = windows.duration_s(table)
    e2e_s = latencies.e2e_s(table)[timed]
    reasoning = table.num_reasoning_tokens[ok]
    told = reasoning >= 0
    num_input = int(table.prompt_tokens[ok].sum())
    num_output = int(table.num_output_tokens[ok].sum())

    def rate(amount: float) -> float | None:
        return amount / duration_s if duration_s else None

    def pool(values: FloatArray) -> Distribution:
        return Distribution.of(values, percentiles, scratch=True)

    return Metrics(
        planned=len(table),
        ok=outcomes[Outcome.OK],
        failed=outcomes[Outcome.FAILED],
        cancelled=outcomes[Outcome.CANCELLED],
        unsent=outcomes[Outcome.UNSENT],
        num_empty=int(np.sum(ok & (table.num_arrivals == 0))),
        failures=_failures(table),
        num_retries=int(table.num_retries.sum()),
        duration_s=duration_s,
        num_segments=len(np.unique(table.segment)),
        num_input_tokens=num_input,
        num_output_tokens=num_output,
        num_reasoning_tokens=int(reasoning[told].sum()) if told.any() else None,
        request_throughput=rate(outcomes[Outcome.OK]),
        input_throughput=rate(num_input),
        output_throughput=rate(num_output),
        total_throughput=rate(num_input + num_output),
        concurrency=rate(float(e2e_s.sum())),
        peak_concurrency=windows.peak_concurrency(table),
        peak_queued=windows.peak_queued(table),
        peak_output_throughput=windows.busiest_second(table),
        steady=windows.steady_state(table, windows.steady_windows(table, open_loop=open_loop)),
        goodput=None
        if objectives is None
        else goodput(table, objectives, duration_s=duration_s, open_loop=open_loop),
        ttft_s=pool(latencies.ttft_s(table)[timed]),
        tpot_s=pool(latencies.tpot_s(table)[timed]),
        itl_s=pool(latencies.itl_s(table, timed)),
        e2e_s=pool(e2e_s),
        ttft_from_intent_s=pool(latencies.ttft_from_intent_s(table)[timed]),
        e2e_from_intent_s=pool(latencies.e2e_from_intent_s(table)[timed]),
        content_ttft_s=pool(latencies.content_ttft_s(table)[timed]),
        connect_s=pool(latencies.connect_s(table)),
        send_lag_s=pool(latencies.send_lag_s(table)),
    )


def _failures(table: RecordTable) -> dict[str, int]:
    kinds = Counter(kind for kind in table.failure.to_list() if kind is not None)
    return dict(kinds.most_common())


# Spellings that vLLM's and SGLang's readers know. One measured quantity, every name it is known by.
_SCALARS: dict[str, tuple[str, ...]] = {
    "ok": ("completed",),
    "failed": ("failed",),
    "cancelled": ("cancelled",),
    "unsent": ("unsent",),
    "num_empty": ("completed_empty",),
    "duration_s": ("duration", "benchmark_duration"),
    "num_input_tokens": ("total_input_tokens", "total_input"),
    "num_output_tokens": ("total_output_tokens", "total_output"),
    "request_throughput": ("request_throughput",),
    "input_throughput": ("input_throughput",),
    "output_throughput": ("output_throughput",),
    "total_throughput": ("total_throughput", "total_token_throughput"),
    "concurrency": ("concurrency",),
    "peak_concurrency": ("max_concurrent_requests",),
    "peak_queued": ("max_queued_requests",),
    "peak_output_throughput": ("max_output_tokens_per_s",),
    "num_reasoning_tokens": ("total_reasoning_tokens",),
    "num_retries": ("retries",),
}
LATENCY_KEYS: dict[str, tuple[str, ...]] = {
    "ttft_s": ("ttft",),
    "tpot_s": ("tpot",),
    "itl_s": ("itl",),
    "e2e_s": ("e2e_latency", "e2el"),
    "ttft_from_intent_s": ("ttft_from_intent",),
    "e2e_from_intent_s": ("e2e_latency_from_intent", "e2el_from_intent"),
    "content_ttft_s": ("content_ttft",),
    "connect_s": ("connect",),
    "send_lag_s": ("send_lag",),
}
_STATISTICS = ("mean", "median", "std", "min", "max")


def as_result_keys(metrics: Metrics) -> dict[str, float | int | None]:
    """Flat result, milliseconds for latencies, under the names of vLLM's and SGLang's result files."""
    flat: dict[str, float | int | None] = {}
    for field, names in _SCALARS.items():
        flat.update(dict.fromkeys(names, getattr(metrics, field)))
    asked = sorted({percent for field in LATENCY_KEYS for percent in getattr(metrics, field).percentiles})
    for field, names in LATENCY_KEYS.items():
        distribution: Distribution = getattr(metrics, field)
        values = {statistic: getattr(distribution, statistic) for statistic in _STATISTICS}
        values |= {percentile_name(percent): distribution.at(percent) for percent in asked}
        for statistic, seconds in values.items():
            value = None if seconds is None else seconds * 1e3
            flat.update({f"{statistic}_{name}_ms": value for name in names})
    return flat
