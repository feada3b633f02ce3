"""One point as a table for people: each latency with its spread, each rate with its interval.

Owns that layout. Judges nothing.
"""

from __future__ import annotations

from rich import box
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from prefixlab.bench.metrics.distribution import Distribution, percentile_name
from prefixlab.bench.metrics.point import PointResult
from prefixlab.bench.report.figures import milliseconds, number
from prefixlab.bench.report.points.block import pacing, saturated_word

_LATENCIES = {
    "ttft": ("TTFT (ms)", "ttft_s"),
    "tpot": ("TPOT (ms)", "tpot_s"),
    "itl": ("ITL (ms)", "itl_s"),
    "e2el": ("E2EL (ms)", "e2e_s"),
}
_FROM_SCHEDULE = (
    ("TTFT from schedule (ms)", "ttft_from_intent_s"),
    ("E2EL from schedule (ms)", "e2e_from_intent_s"),
)


def point_table(result: PointResult) -> Group:
    """Latencies, then rates, then what became of the requests, then notes."""
    said = [Text(f"note: {note}") for note in result.notes]
    return Group(_latencies(result), _rates(result), Text(_accounting(result)), *said)


def _latencies(result: PointResult) -> Table:
    settings = result.settings
    percents = sorted({50.0, 90.0, 99.0, *settings.percentiles}, reverse=True)
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("metric", no_wrap=True)
    for name in ("mean", "± 95 %", "min", "max", *map(percentile_name, percents), "std"):
        table.add_column(name, justify="right", no_wrap=True)
    rows = list(_FROM_SCHEDULE) if settings.open_loop else []
    rows += [_LATENCIES[name] for name in _LATENCIES if name in settings.selected]
    if result.metrics.num_reasoning_tokens:
        rows.append(("TTFT of content (ms)", "content_ttft_s"))
    for label, field in rows:
        seconds: Distribution = getattr(result.metrics, field)
        interval = result.intervals.get((field, "mean"))
        values = (
            seconds.mean,
            interval.half_width if interval else None,
            seconds.min,
            seconds.max,
            *(seconds.at(percent) for percent in percents),
            seconds.std,
        )
        table.add_row(label, *(number(milliseconds(s), 2) for s in values))
    return table


def _rates(result: PointResult) -> Table:
    metrics, steady, goodput = result.metrics, result.metrics.steady, result.metrics.goodput
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("rate", no_wrap=True)
    for name in ("whole run", "± 95 %", "steady", "± 95 %"):
        table.add_column(name, justify="right", no_wrap=True)
    for label, field in (
        ("requests/s", "request_throughput"),
        ("output tok/s", "output_throughput"),
        ("total tok/s", "total_throughput"),
    ):
        whole, calm = result.intervals.get((field, "")), result.intervals.get((f"steady_{field}", ""))
        table.add_row(
            label,
            number(getattr(metrics, field), 2),
            number(whole.half_width if whole else None, 2),
            number(getattr(steady, field) if steady else None, 2),
            number(calm.half_width if calm else None, 2),
        )
    if goodput is not None:
        share = "" if goodput.share is None else f" ({100 * goodput.share:.1f} %)"
        label = escape(f"good requests/s, {goodput.objectives}")
        table.add_row(label, number(goodput.request_goodput, 2) + share, "", "", "")
    return table


def _accounting(result: PointResult) -> str:
    metrics, health = result.metrics, result.health
    kinds = ", ".join(f"{count} {kind}" for kind, count in metrics.failures.items())
    failed = f"{metrics.failed} failed" + (f" ({kinds})" if kinds else "")
    saturated = f", saturated: {saturated_word(result)}" if result.settings.open_loop else ""
    return (
        f"{metrics.planned} planned = {metrics.ok} ok + {failed} "
        f"+ {metrics.cancelled} cancelled + {metrics.unsent} unsent\n"
        f"{pacing(result)}, peak in flight {metrics.peak_concurrency}, peak queued {metrics.peak_queued}"
        f"{saturated}; client: {health.num_workers} process{'es' if health.num_workers != 1 else ''}, "
        f"{health.stamps} stamps"
    )
