"""A sweep at a glance: repeats pooled point by point, and the tables that show them.

Owns pooling. Latencies are pooled over the requests of all repeats, rates are totals over summed durations;
the spread shown beside them is the smallest and largest value of a repeat.

Invariant: nothing is an average of percentiles.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich import box
from rich.markup import escape
from rich.table import Table

from prefixlab.bench.ledger.check import CacheCheck, Verdict, check_cache
from prefixlab.bench.ledger.ledger import Ledger
from prefixlab.bench.metrics.summary import Metrics, summarise
from prefixlab.bench.records.table import RecordTable
from prefixlab.bench.report.figures import milliseconds, number
from prefixlab.bench.runs.warm_cache import PointRun
from prefixlab.bench.workloads.warm_cache import PointShape


@dataclass(frozen=True, slots=True)
class PooledPoint:
    """One point over all its repeats."""

    shape: PointShape
    runs: tuple[PointRun, ...]
    metrics: Metrics
    check: CacheCheck

    @property
    def notes(self) -> list[str]:
        """Each note once, in the order first seen."""
        return list(dict.fromkeys(note for run in self.runs for note in run.notes))

    @property
    def ledgers(self) -> list[Ledger]:
        """Of all repeats, the inconsistent ones first."""
        known = [run.ledger for run in self.runs if run.ledger is not None]
        return sorted(known, key=lambda ledger: ledger.is_consistent)

    @property
    def is_consistent(self) -> bool:
        """Over all repeats, from every side that can be heard."""
        pooled = self.check.verdict is Verdict.CONSISTENT
        return pooled and all(ledger.is_consistent for ledger in self.ledgers)

    @property
    def verdict_word(self) -> str:
        """Consistent; or the cause, or verdict, of the first repeat that is not."""
        return self.ledgers[0].word if self.ledgers else self.check.verdict.value

    @property
    def verdict_words(self) -> str:
        """The same, and how far it reaches."""
        return self.ledgers[0].words if self.ledgers else self.check.words

    def spread(self, value: Callable[[Metrics], float | None]) -> tuple[float, float] | None:
        """Smallest and largest of `value` over the repeats; None if no repeat measured it."""
        known = [number for run in self.runs if (number := value(run.metrics)) is not None]
        return (min(known), max(known)) if known else None


def pool_points(runs: Sequence[PointRun]) -> list[PooledPoint]:
    """The points of a sweep, by percent."""
    points = []
    for pct in sorted({run.shape.pct for run in runs}):
        same = tuple(run for run in runs if run.shape.pct == pct)
        records = [record for run in same for record in run.records]
        table = RecordTable.pool([RecordTable.of(run.records) for run in same])
        points.append(PooledPoint(same[0].shape, same, summarise(table, len(table)), check_cache(records)))
    return points


def cache_table(points: Sequence[PooledPoint]) -> Table:
    """Did the cache do it: intended, expected, measured, verdict."""
    table = _table(
        "Cached tokens: intended, page-aligned expected, measured",
        ("shared %", "prefix", "expected / prompt", "expected", "measured", "hit rate %"),
        ("verdict", "cold start"),
    )
    for point in points:
        check = point.check
        finished = point.metrics.ok
        per_prompt = (
            None if check.expected_cached_tokens is None else check.expected_cached_tokens / max(1, finished)
        )
        colour = "green" if point.is_consistent else "red"
        table.add_row(
            str(point.shape.pct),
            f"{point.shape.prefix_len:,}",
            number(per_prompt),
            number(check.expected_cached_tokens),
            number(check.cached_tokens),
            number(None if check.hit_rate is None else 100 * check.hit_rate, 2),
            f"[{colour}]{point.verdict_word}[/]",
            ", ".join(sorted({run.cold_start.coldness.value for run in point.runs})),
        )
    return table


def throughput_table(points: Sequence[PooledPoint]) -> Table:
    """How much got done, with the smallest and largest repeat of the total."""
    table = _table(
        f"Throughput{_spread_title(points)}",
        ("shared %", "requests/s", "input tok/s", "output tok/s", "total tok/s", "in flight", "failed"),
    )
    for point in points:
        metrics = point.metrics
        table.add_row(
            str(point.shape.pct),
            number(metrics.request_throughput, 2),
            number(metrics.input_throughput),
            number(metrics.output_throughput, 1),
            with_spread(metrics.total_throughput, point.spread(total_throughput), 1),
            number(metrics.concurrency, 2),
            str(metrics.failed),
        )
    return table


def latency_table(points: Sequence[PooledPoint]) -> Table:
    """How long it took, with the smallest and largest repeat of the median TTFT."""
    names = ("TTFT", "TPOT", "ITL", "E2E")
    columns = [f"{name} {statistic}" for name in names for statistic in ("p50", "p99")]
    table = _table(f"Latency, ms{_spread_title(points)}", ("shared %", *columns))
    for point in points:
        metrics = point.metrics
        cells = [with_spread(metrics.ttft_s.median, point.spread(median_ttft_s), 1e3)]
        cells.append(number(milliseconds(metrics.ttft_s.p99), 1))
        for distribution in (metrics.tpot_s, metrics.itl_s, metrics.e2e_s):
            cells += [number(milliseconds(value), 1) for value in (distribution.median, distribution.p99)]
        table.add_row(str(point.shape.pct), *cells)
    return table


def _spread_title(points: Sequence[PooledPoint]) -> str:
    repeats = max(len(point.runs) for point in points)
    return f", pooled over {repeats} repeats [smallest-largest]" if repeats > 1 else ""


def _table(title: str, numbers: Sequence[str], words: Sequence[str] = ()) -> Table:
    table = Table(title=escape(title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for name in numbers:
        # fold: where there is too little room, a figure goes on in the next line and is never cut
        table.add_column(name, justify="right", overflow="fold")
    for name in words:
        table.add_column(name, no_wrap=True)
    return table


def total_throughput(metrics: Metrics) -> float | None:
    return metrics.total_throughput


def median_ttft_s(metrics: Metrics) -> float | None:
    return metrics.ttft_s.median


def with_spread(value: float | None, spread: tuple[float, float] | None, scale: float) -> str:
    """`1,234 [1,200-1,260]`, to three significant digits or whole numbers."""
    if value is None:
        return "n/a"

    def shown(amount: float) -> str:
        scaled = amount * scale
        return f"{scaled:,.0f}" if abs(scaled) >= 100 else f"{scaled:.1f}"

    if spread is None or spread[0] == spread[1]:
        return shown(value)
    return escape(f"{shown(value)} [{shown(spread[0])}-{shown(spread[1])}]")
