"""One point as a table for people: each latency with its spread, each rate with its interval.

Owns that layout. Judges nothing.

Invariants: no figure is ever cut; it fits 80 columns.
"""

from __future__ import annotations

from rich import box
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from prefixlab.bench.ledger.ledger import verdict_words
from prefixlab.bench.metrics.distribution import Distribution, percentile_name
from prefixlab.bench.metrics.point import PointResult
from prefixlab.bench.report.figures import milliseconds, number
from prefixlab.bench.report.points.block import pacing, saturated_word, shown_notes
from prefixlab.bench.report.points.keys import may_queue
from prefixlab.bench.report.turns import turn_lines

_LATENCIES = {
    "ttft": ("TTFT", "ttft_s"),
    "tpot": ("TPOT", "tpot_s"),
    "itl": ("ITL", "itl_s"),
    "e2el": ("E2EL", "e2e_s"),
}
_FROM_SCHEDULE = (
    ("TTFT from\nschedule", "ttft_from_intent_s"),
    ("E2EL from\nschedule", "e2e_from_intent_s"),
)


def point_table(result: PointResult) -> Group:
    """Latencies, then rates, then what became of the requests, then notes."""
    said = [Text(f"note: {note}") for note in shown_notes(result)]
    turns = [Text("\n".join(lines))] if (lines := turn_lines(result.table)) else []
    return Group(_latencies(result), _rates(result), *turns, Text(_accounting(result)), *said)


def _latencies(result: PointResult) -> Table:
    """A column per latency and a row per statistic: they are few, whatever is asked for."""
    settings = result.settings
    columns = list(_FROM_SCHEDULE) if settings.open_loop else []
    columns += [_LATENCIES[name] for name in _LATENCIES if name in settings.selected]
    if result.metrics.num_reasoning_tokens:
        columns.append(("TTFT of\ncontent", "content_ttft_s"))
    table = _table("ms", [label for label, _ in columns])
    seconds: list[Distribution] = [getattr(result.metrics, field) for _, field in columns]

    def row(label: str, values: list[float | None]) -> None:
        table.add_row(label, *(_figure(milliseconds(value)) for value in values))

    row("mean", [one.mean for one in seconds])
    table.add_row("± 95%", *(_error(result, field) for _, field in columns))
    for percent in sorted({50.0, 90.0, 99.0, *settings.percentiles}, reverse=True):
        row(percentile_name(percent), [one.at(percent) for one in seconds])
    row("min", [one.min for one in seconds])
    row("max", [one.max for one in seconds])
    row("std", [one.std for one in seconds])
    return table


def _error(result: PointResult, field: str) -> str:
    interval = result.intervals.get((field, "mean"))
    if interval is None and result.has_trend(field):
        return "trend"
    return _figure(milliseconds(interval.half_width if interval else None))


def _rates(result: PointResult) -> Table:
    metrics, steady, goodput = result.metrics, result.metrics.steady, result.metrics.goodput
    table = _table("rate", ["whole run", "± 95%", "steady", "± 95%"])
    for label, field in (
        ("requests/s", "request_throughput"),
        ("output tok/s", "output_throughput"),
        ("total tok/s", "total_throughput"),
    ):
        whole, calm = result.intervals.get((field, "")), result.intervals.get((f"steady_{field}", ""))
        table.add_row(
            label,
            _figure(getattr(metrics, field)),
            _figure(whole.half_width if whole else None),
            _figure(getattr(steady, field) if steady else None),
            _figure(calm.half_width if calm else None),
        )
    if goodput is not None:
        share = "" if goodput.share is None else f" ({100 * goodput.share:.1f}%)"
        label = escape(f"good requests/s, {goodput.objectives}")
        table.add_row(label, number(goodput.request_goodput, 2) + share, "", "", "")
    return table


def _table(corner: str, columns: list[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column(corner, overflow="fold")
    for name in columns:
        # were there ever too little room, a figure goes on in the next line: "8,354.…" is no figure
        table.add_column(name, justify="right", overflow="fold")
    return table


def _figure(value: float | None) -> str:
    """As many digits as matter: 1.23, 123.45, 8,354.1, 83,541."""
    size = 0.0 if value is None else abs(value)
    return number(value, 2 if size < 1e3 else 1 if size < 1e4 else 0)


def _accounting(result: PointResult) -> str:
    metrics, health, check = result.metrics, result.health, result.check
    kinds = ", ".join(f"{count} {kind}" for kind, count in metrics.failures.items())
    failed = f"{metrics.failed} failed" + (f" ({kinds})" if kinds else "")
    saturated = f", saturated: {saturated_word(result)}" if result.settings.open_loop else ""
    queued = f", peak queued {metrics.peak_queued}" if may_queue(result) else ""
    rate = "n/a" if check.hit_rate is None else f"{100 * check.hit_rate:.2f}%"
    return (
        f"{metrics.planned} planned = {metrics.ok} ok + {failed} "
        f"+ {metrics.cancelled} cancelled + {metrics.unsent} unsent\n"
        f"{pacing(result)}, peak in flight {metrics.peak_concurrency}{queued}{saturated}\n"
        f"cache hit rate: {rate}, verdict: {verdict_words(check, result.ledger)}\n"
        f"client: {health.num_workers} process{'es' if health.num_workers != 1 else ''}, "
        f"{health.stamps} stamps"
    )
