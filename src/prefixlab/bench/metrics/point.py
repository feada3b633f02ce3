"""One point, judged: everything its reports show, from its records, its settings and the client's health.

Owns which figures get an interval, and how repeats come together: latencies pooled over the requests of all
of them, rates as totals over summed durations, intervals over the repeats where there are enough, else by
batch means within.

Invariant: the same records and settings give the same result; nothing here reads a clock or a file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from prefixlab.bench.doctor.client_notes import client_notes
from prefixlab.bench.doctor.diagnosis import Diagnosis
from prefixlab.bench.ledger.check import CacheCheck, check_cache
from prefixlab.bench.ledger.ledger import Ledger
from prefixlab.bench.loadgen.health import ClientHealth
from prefixlab.bench.metrics import intervals, latencies, windows
from prefixlab.bench.metrics.distribution import Distribution, FloatArray, percentile_name
from prefixlab.bench.metrics.goodput import Objectives
from prefixlab.bench.metrics.intervals import Interval
from prefixlab.bench.metrics.saturation import Saturation, saturation
from prefixlab.bench.metrics.summary import Metrics, check_complete, fold
from prefixlab.bench.records.table import RecordTable
from prefixlab.bench.traces.fidelity import Fidelity
from prefixlab.core.histogram import Histogram

LATENCIES = ("ttft", "tpot", "itl", "e2el")
"""What `--percentile-metrics` may name; a point shows those its settings select."""
ARM = "arm"
"""What `bench ab` sweeps, in `PointSettings.swept`."""


@dataclass(frozen=True, kw_only=True)
class PointSettings:
    """What was asked of a point, as reports name it.

    Attributes:
        tokenizer: None where none was used.
        open_loop: requests went at their own times; else as slots came free.
        request_rate: per second; infinite where no rate was asked for.
        arrivals: in words, such as "Poisson" or "ramp 1 to 20 req/s".
        ramp: the ramp's settings by vLLM's names; empty without one.
        selected: which of LATENCIES are shown.
        percentiles: in percent, shown of each.
        metadata: the user's own keys, which results carry as they are.
        swept: the options this point of a sweep sets, by flag or name, in the order given; empty otherwise.
        facts: what the workload adds to the results, by key.
    """

    backend: str
    model: str | None
    num_prompts: int
    open_loop: bool
    date: str
    tokenizer: str | None = None
    dataset: str = "random"
    label: str | None = None
    request_rate: float = float("inf")
    burstiness: float = 1.0
    arrivals: str = ""
    ramp: Mapping[str, Any] = field(default_factory=dict)
    max_concurrency: int | None = None
    objectives: Objectives | None = None
    selected: tuple[str, ...] = ("ttft", "tpot", "itl")
    percentiles: tuple[float, ...] = (99.0,)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    swept: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def in_turns(self) -> bool:
        """An arm of `bench ab`: its repeats are rounds, too short to stand for runs."""
        return ARM in self.swept


@dataclass(frozen=True, kw_only=True)
class PointResult:
    """See the module.

    Attributes:
        table: all repeats' rows; repeats lie in segments of their own.
        runs: the metrics of each repeat.
        intervals: by field of Metrics and statistic, as ("ttft_s", "mean") or ("ttft_s", "p99"); of rates the
            statistic is "", as ("output_throughput", "") and ("steady_output_throughput", "").
        saturation: None in closed loop, and where there is too little to tell.
        interrupted: ended before its plan was done.
        fidelity: of the replay of a trace.
        ledger: the hits, from all sides; None of a point that nobody watched.
        diagnosis: how far all this can be trusted; None where nobody asked the doctor.
    """

    settings: PointSettings
    table: RecordTable
    metrics: Metrics
    runs: tuple[Metrics, ...]
    intervals: Mapping[tuple[str, str], Interval]
    saturation: Saturation | None
    check: CacheCheck
    health: ClientHealth
    notes: tuple[str, ...] = ()
    interrupted: bool = False
    fidelity: Fidelity | None = None
    ledger: Ledger | None = None
    diagnosis: Diagnosis | None = None

    @property
    def saturated(self) -> bool:
        return self.saturation is not None and self.saturation.saturated

    def has_trend(self, name: str) -> bool:
        """Of a latency, a field of Metrics: there are enough values for an interval of its mean, but
        neighbours resemble each other over the whole run (as in a growing queue): none can be given."""
        seconds: Distribution = getattr(self.metrics, name)
        enough = self.metrics.ok >= intervals.FEWEST_VALUES and seconds.count >= intervals.FEWEST_VALUES
        return enough and (name in _SERIES or name == "itl_s") and (name, "mean") not in self.intervals


def evaluate(
    settings: PointSettings,
    runs: Sequence[RecordTable],
    health: ClientHealth,
    *,
    notes: Iterable[str] = (),
    interrupted: bool = False,
    stretches: Sequence[RecordTable] | None = None,
) -> PointResult:
    """Judge a point from one table per repeat; `notes` are the caller's, the client's own are added.

    Args:
        stretches: of repeats that were broken off and gone on with, the whole of what each stretch was sent:
            in `runs` a request that was sent twice is where it ended. None: none was broken off.

    AssertionError where a table holds a request twice.
    """
    for run in runs:
        check_complete(run, len(run))
    table = RecordTable.pool(runs)
    metrics, *folded = (
        fold(
            rows,
            open_loop=settings.open_loop,
            percentiles=settings.percentiles,
            objectives=settings.objectives,
        )
        for rows in ((table, *runs) if len(runs) > 1 else (table,))
    )
    judged = _saturation(table, stretches) if settings.open_loop else None
    warned = [str(judged)] if judged is not None and judged.saturated else []
    if metrics.num_empty:
        warned.append(
            f"{metrics.num_empty:,} of {metrics.ok:,} successful requests brought no token: they count in "
            "request throughput and have no latency"
        )
    # where nothing succeeded there are no figures that lateness could distort
    told = health if metrics.ok else replace(health, send_lag_s=Histogram())
    found = _within(table, settings) | _over_repeats(folded)
    return PointResult(
        settings=settings,
        table=table,
        metrics=metrics,
        runs=tuple(folded) or (metrics,),
        intervals={key: interval for key, interval in found.items() if interval is not None},
        saturation=judged,
        check=check_cache(table),
        health=health,
        notes=tuple(dict.fromkeys((*warned, *notes, *client_notes(told, open_loop=settings.open_loop)))),
        interrupted=interrupted,
    )


def _saturation(table: RecordTable, stretches: Sequence[RecordTable] | None) -> Saturation | None:
    if stretches is None:
        return saturation(table)
    judged = saturation(RecordTable.pool(stretches)) if stretches else None
    if judged is None or not judged.untold:
        return judged
    return replace(judged, untold=f"the run was broken off, and of its longest stretch, {judged.untold}")


_SERIES: dict[str, Callable[[RecordTable], FloatArray]] = {
    "ttft_s": latencies.ttft_s,
    "tpot_s": latencies.tpot_s,
    "e2e_s": latencies.e2e_s,
    "ttft_from_intent_s": latencies.ttft_from_intent_s,
    "e2e_from_intent_s": latencies.e2e_from_intent_s,
}
NUM_SLICES = 60
"""Of each steady window, for the interval of its throughput."""

Found = dict[tuple[str, str], Interval | None]


def _within(table: RecordTable, settings: PointSettings) -> Found:
    """From the series of one run (or of several, one after another): batch means."""
    timed = table.ok & (table.num_arrivals > 0)
    order = np.lexsort((table.sent_s, table.segment))
    order = order[timed[order]]
    found: Found = {}
    for name, series in _SERIES.items():
        values = series(table)[order]
        values = values[~np.isnan(values)]
        found[name, "mean"] = intervals.of_mean(values)
        for percent in {50.0, *settings.percentiles}:
            found[name, percentile_name(percent)] = intervals.of_percentile(values, percent)
    first_counts = table.counts[table.arrival_start[order]]
    later_tokens = (table.num_output_tokens[order] - first_counts).astype(np.float64)
    decode_s = (table.last_arrival_s - table.first_arrival_s)[order]
    some = later_tokens > 0
    found["itl_s", "mean"] = intervals.of_ratio(decode_s[some], later_tokens[some])
    return found | _steady(table, settings)


def _steady(table: RecordTable, settings: PointSettings) -> Found:
    """Of the steady throughput: its slices are a series in time. None of a few requests, however sliced."""
    requests, tokens, seconds = [np.empty(0)], [np.empty(0)], [np.empty(0)]
    for window in windows.steady_windows(table, open_loop=settings.open_loop):
        rows = table.ok & (table.segment == window.segment)
        of_each, of_tokens = np.ones(int(rows.sum())), table.num_output_tokens[rows]
        requests.append(windows.work_by_slice(table, rows, of_each, window, NUM_SLICES))
        tokens.append(windows.work_by_slice(table, rows, of_tokens, window, NUM_SLICES))
        seconds.append(np.full(NUM_SLICES, window.duration_s / NUM_SLICES))
    duration_s = np.concatenate(seconds)
    if np.sum(np.concatenate(requests)) < intervals.FEWEST_VALUES:
        return {}
    return {
        ("steady_request_throughput", ""): intervals.of_ratio(np.concatenate(requests), duration_s),
        ("steady_output_throughput", ""): intervals.of_ratio(np.concatenate(tokens), duration_s),
    }


def _over_repeats(runs: Sequence[Metrics]) -> Found:
    """Of means and of rates: from one repeat to the next everything may differ, so this is the wider truth.
    Percentiles are left to the pool: nobody averages them."""
    if len(runs) < intervals.FEWEST_REPEATS:
        return {}
    found: Found = {
        (name, "mean"): intervals.of_repeats([getattr(run, name).mean for run in runs])
        for name in (*_SERIES, "itl_s")
    }
    for name in ("request_throughput", "output_throughput", "total_throughput"):
        found[name, ""] = intervals.of_repeats([getattr(run, name) for run in runs])
    return found
