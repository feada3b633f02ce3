"""Pure folds over records: latencies, throughput, concurrency, counts. The formulas are in docs/measuring.md.

Owns every number a report shows. Reads no clock and no socket; the same records give the same numbers.

Invariants: planned = ok + failed + cancelled + unsent; percentiles are pooled over requests (or tokens),
never averaged over repeats; a value that was not measured is None, never 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from prefixlab.bench.records.record import Outcome, Record, check_complete

QUANTILES = {"median": 50, "p90": 90, "p95": 95, "p99": 99}

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Distribution:
    """A pool of values in seconds, summarised. All None where the pool is empty.

    Percentiles interpolate linearly between the two nearest of the sorted values (NumPy's default, type 7 of
    Hyndman and Fan), which is what vLLM's and SGLang's clients do; std is the population's.
    """

    count: int
    mean: float | None
    std: float | None
    median: float | None
    p90: float | None
    p95: float | None
    p99: float | None

    @classmethod
    def of(cls, values: Sequence[float] | FloatArray) -> Distribution:
        pool = np.asarray(values, dtype=np.float64)
        if not len(pool):
            return cls(0, None, None, None, None, None, None)
        quantiles = (float(value) for value in np.percentile(pool, list(QUANTILES.values())))
        return cls(len(pool), float(pool.mean()), float(pool.std()), *quantiles)


@dataclass(frozen=True, slots=True)
class Metrics:
    """What a run, or a point of it, amounts to. Latencies and token counts are of ok requests only."""

    planned: int
    ok: int
    failed: int
    cancelled: int
    unsent: int

    duration_s: float
    """From the first intended start to the end of the last stream."""
    num_input_tokens: int
    num_output_tokens: int
    request_throughput: float | None
    input_throughput: float | None
    output_throughput: float | None
    total_throughput: float | None
    concurrency: float | None
    """Σ E2E / duration: requests in flight on average."""

    ttft_s: Distribution
    tpot_s: Distribution
    itl_s: Distribution
    e2e_s: Distribution
    ttft_from_intent_s: Distribution
    e2e_from_intent_s: Distribution
    send_lag_s: Distribution
    """Sent minus intended: how late this client was, waiting for a connection included."""


def summarise(records: Sequence[Record], planned: int, duration_s: float | None = None) -> Metrics:
    """Fold `records` into numbers. AssertionError unless they account for all `planned` requests.

    `duration_s` is for records pooled over repeats: the sum of the repeats' durations, not the time from the
    first to the last, in which other things were measured.
    """
    check_complete(records, planned)
    outcomes = Counter(record.outcome for record in records)
    ok = [record for record in records if record.outcome is Outcome.OK]
    timed = [record for record in ok if record.arrivals_s]
    ends = [record.last_s for record in records if record.last_s is not None]
    if duration_s is None:
        duration_s = max(ends) - min(record.intended_s for record in records) if ends else 0.0
    e2e_s = [value for record in timed if (value := e2e(record)) is not None]
    num_input = sum(record.prompt_tokens for record in ok)
    num_output = sum(record.num_output_tokens for record in ok)

    def rate(amount: float) -> float | None:
        return amount / duration_s if duration_s else None

    return Metrics(
        planned=planned,
        ok=outcomes[Outcome.OK],
        failed=outcomes[Outcome.FAILED],
        cancelled=outcomes[Outcome.CANCELLED],
        unsent=outcomes[Outcome.UNSENT],
        duration_s=duration_s,
        num_input_tokens=num_input,
        num_output_tokens=num_output,
        request_throughput=rate(len(ok)),
        input_throughput=rate(num_input),
        output_throughput=rate(num_output),
        total_throughput=rate(num_input + num_output),
        concurrency=rate(sum(e2e_s)),
        ttft_s=Distribution.of(_known(ttft(record) for record in timed)),
        tpot_s=Distribution.of(_known(tpot(record) for record in timed)),
        itl_s=Distribution.of(np.concatenate([itl(record) for record in timed] or [np.empty(0)])),
        e2e_s=Distribution.of(e2e_s),
        ttft_from_intent_s=Distribution.of([record.arrivals_s[0] - record.intended_s for record in timed]),
        e2e_from_intent_s=Distribution.of([record.arrivals_s[-1] - record.intended_s for record in timed]),
        send_lag_s=Distribution.of([r.sent_s - r.intended_s for r in records if r.sent_s is not None]),
    )


def ttft(record: Record) -> float | None:
    """Time to first token: first arrival − sent. Opening a connection is before `sent`, so never inside."""
    if record.sent_s is None or not record.arrivals_s:
        return None
    return record.arrivals_s[0] - record.sent_s


def e2e(record: Record) -> float | None:
    """End to end: last token's arrival − sent."""
    if record.sent_s is None or not record.arrivals_s:
        return None
    return record.arrivals_s[-1] - record.sent_s


def tpot(record: Record) -> float | None:
    """Time per output token after the first: (E2E − TTFT) / (output tokens − 1). None for a single token."""
    if record.num_output_tokens < 2:
        return None
    return (record.arrivals_s[-1] - record.arrivals_s[0]) / (record.num_output_tokens - 1)


def itl(record: Record) -> FloatArray:
    """Inter-token latencies: the gap before each later chunk, shared among the tokens it brought."""
    gaps = np.diff(np.asarray(record.arrivals_s, dtype=np.float64))
    counts = np.asarray(record.arrival_counts[1:], dtype=np.int64)
    return np.repeat(gaps / counts, counts) if len(gaps) else np.empty(0)


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


# Spellings that vLLM's and SGLang's readers know. One measured quantity, every name it is known by.
_SCALARS: dict[str, tuple[str, ...]] = {
    "ok": ("completed",),
    "failed": ("failed",),
    "cancelled": ("cancelled",),
    "unsent": ("unsent",),
    "duration_s": ("duration", "benchmark_duration"),
    "num_input_tokens": ("total_input_tokens", "total_input"),
    "num_output_tokens": ("total_output_tokens", "total_output"),
    "request_throughput": ("request_throughput",),
    "input_throughput": ("input_throughput",),
    "output_throughput": ("output_throughput",),
    "total_throughput": ("total_throughput", "total_token_throughput"),
    "concurrency": ("concurrency",),
}
_LATENCIES: dict[str, tuple[str, ...]] = {
    "ttft_s": ("ttft",),
    "tpot_s": ("tpot",),
    "itl_s": ("itl",),
    "e2e_s": ("e2e_latency", "e2el"),
    "ttft_from_intent_s": ("ttft_from_intent",),
    "e2e_from_intent_s": ("e2e_latency_from_intent",),
    "send_lag_s": ("send_lag",),
}


def as_result_keys(metrics: Metrics) -> dict[str, float | int | None]:
    """Flat result, milliseconds for latencies, under the names of vLLM's and SGLang's result files."""
    flat: dict[str, float | int | None] = {}
    for field, names in _SCALARS.items():
        flat.update(dict.fromkeys(names, getattr(metrics, field)))
    for field, names in _LATENCIES.items():
        distribution: Distribution = getattr(metrics, field)
        for statistic in ("mean", *QUANTILES, "std"):
            seconds = getattr(distribution, statistic)
            value = None if seconds is None else seconds * 1e3
            flat.update({f"{statistic}_{name}_ms": value for name in names})
    return flat
