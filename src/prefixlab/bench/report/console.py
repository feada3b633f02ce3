"""The 50-column result block that users of `bench_serving` know: its layout, and the one of a cache sweep.

Owns the layout (label left, value from column 42, sections between rules) and the block of `bench warm-cache`
with SGLang's labels; `points/block.py` has that of all other verbs.

Invariant: a value that was not measured is printed as n/a, never as 0.
"""

from __future__ import annotations

from collections.abc import Iterable

from prefixlab.bench.ledger.check import CacheCheck
from prefixlab.bench.metrics.distribution import Distribution
from prefixlab.bench.metrics.summary import Metrics

WIDTH = 50
LABEL_WIDTH = 40
NOT_MEASURED = "n/a"

Row = tuple[str, str | int | float | None]

_LATENCY_SECTIONS = (
    ("End-to-End Latency", "E2E Latency", "e2e_s"),
    ("Time to First Token", "TTFT", "ttft_s"),
    ("Time per Output Token (excl. 1st token)", "TPOT", "tpot_s"),
    ("Inter-Token Latency", "ITL", "itl_s"),
)


def result_block(
    heading: Iterable[Row],
    metrics: Metrics,
    check: CacheCheck,
    *,
    verdict: str | None = None,
    sides: Iterable[str] = (),
    notes: Iterable[str] = (),
) -> str:
    """The block, and below it the notes.

    Args:
        verdict: on the hits (default: the check's).
        sides: lines of the ledger.
    """
    lines = [" Serving Benchmark Result ".center(WIDTH, "=")]
    lines += map(line, heading)
    lines += map(line, _throughput_rows(metrics))
    lines += section(" Prefix Cache ", _cache_rows(check, verdict or check.words))
    lines += sides
    for title, name, field in _LATENCY_SECTIONS:
        lines += section(title, _latency_rows(name, getattr(metrics, field)))
    lines.append("=" * WIDTH)
    lines += [f"note: {note}" for note in notes]
    return "\n".join(lines)


def counted(number: int, noun: str) -> str:
    """`1 request`, `1,200 requests`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _throughput_rows(metrics: Metrics) -> list[Row]:
    return [
        ("Planned requests:", metrics.planned),
        ("Successful requests:", metrics.ok),
        ("Failed requests:", metrics.failed),
        ("Cancelled or unsent requests:", metrics.cancelled + metrics.unsent),
        ("Benchmark duration (s):", metrics.duration_s),
        ("Total input tokens:", metrics.num_input_tokens),
        ("Total generated tokens:", metrics.num_output_tokens),
        ("Request throughput (req/s):", metrics.request_throughput),
        ("Input token throughput (tok/s):", metrics.input_throughput),
        ("Output token throughput (tok/s):", metrics.output_throughput),
        ("Total token throughput (tok/s):", metrics.total_throughput),
        ("Concurrency:", metrics.concurrency),
    ]


def _cache_rows(check: CacheCheck, verdict: str) -> list[Row]:
    def percent(rate: float | None) -> float | None:
        return None if rate is None else 100 * rate

    return [
        ("Expected cached tokens:", check.expected_cached_tokens),
        ("Measured cached tokens:", check.cached_tokens),
        ("Expected hit rate (%):", percent(check.expected_hit_rate)),
        ("Measured hit rate (%):", percent(check.hit_rate)),
        ("Verdict:", verdict),
    ]


def _latency_rows(name: str, seconds: Distribution) -> list[Row]:
    values = {
        "Mean": seconds.mean,
        "Median": seconds.median,
        "Std": seconds.std,
        "P90": seconds.p90,
        "P95": seconds.p95,
        "P99": seconds.p99,
    }
    return [
        (f"{statistic} {name} (ms):", None if value is None else value * 1e3)
        for statistic, value in values.items()
    ]


def section(title: str, rows: Iterable[Row]) -> list[str]:
    return [title.center(WIDTH, "-"), *map(line, rows)]


def line(row: Row) -> str:
    label, value = row
    if value is None:
        shown = NOT_MEASURED
    elif isinstance(value, float):
        shown = f"{value:.2f}"
    else:
        shown = str(value)
    return f"{label:<{LABEL_WIDTH}} {shown}"
