"""The load: did it go as scheduled, was it steady, is there enough of it for the figures shown? Pure.

Owns these checks. Invariant: a check that does not apply to a closed (or an open) loop is not there.
"""

from __future__ import annotations

import math

import numpy as np

from prefixlab.bench.doctor.diagnosis import Check, Status, by_limits
from prefixlab.bench.doctor.evidence import Evidence
from prefixlab.bench.metrics import latencies
from prefixlab.bench.metrics.distribution import percentile_name
from prefixlab.bench.metrics.point import PointResult
from prefixlab.bench.metrics.summary import Metrics

MAX_SCHEDULE_LAG_S, MAX_SCHEDULE_LAG_SHARE = 0.005, 0.01
MAX_CONNECT_SHARE, BAD_CONNECT_SHARE = 0.1, 0.5
MIN_CONNECT_S = 0.005
"""Connections within the same house take less, a burst of them too, whatever share of a quick TTFT it is."""
MIN_STEADY_SHARE = 0.3
MAX_STEADY_GAP = 0.2
"""Of the output throughput of the steady window, by which that of the whole run may differ."""
FEWEST_BEYOND = 5
"""Values beyond a percentile, for it to be more than the luck of one."""
MAX_SPREAD, BAD_SPREAD = 0.1, 0.3


def load_checks(evidence: Evidence) -> list[Check]:
    result = evidence.result
    checks = [_schedule_lag(result), _saturation(result)] if result.settings.open_loop else []
    return [
        *checks,
        _connect_waits(result),
        _steady(evidence),
        _sample_size(result),
        _repeats(result),
    ]


def _schedule_lag(result: PointResult) -> Check:
    """Waiting for a slot under a cap included: `client lag` is the client's own part of it."""
    lag_s = result.metrics.send_lag_s.at(99) or 0.0
    e2e_s = result.metrics.e2e_s.median or 0.0
    capped = result.settings.max_concurrency is not None
    return Check(
        name="schedule lag",
        status=by_limits(lag_s, max(MAX_SCHEDULE_LAG_S, MAX_SCHEDULE_LAG_SHARE * e2e_s)),
        figure=f"requests left {lag_s * 1e3:,.2f} ms after their time at p99",
        limit=f"{MAX_SCHEDULE_LAG_S * 1e3:g} ms or {MAX_SCHEDULE_LAG_SHARE:.0%} of the median E2E",
        distorts="latency from sending hides that wait: only latency from the schedule is what users felt",
        remedy="a higher --max-concurrency, for they wait for a slot" if capped else "see client lag",
    )


def _saturation(result: PointResult) -> Check:
    judged = result.saturation
    untold = judged is None or judged.untold
    status = Status.UNKNOWN if untold else Status.BAD if result.saturated else Status.FINE
    figure = "cannot tell: too few requests" if judged is None else str(judged)
    if judged is not None and not untold and judged.refuses and not judged.behind:
        status, figure = Status.UNKNOWN, f"{figure}; see failures"  # one trouble counts once
    return Check(
        name="saturation",
        status=status,
        figure=figure if untold or result.saturated else "the server kept up",
        limit="requests end as fast as they come",
        distorts="latencies are of this length of run: twice as long, and they are twice as bad",
        remedy="a lower rate; bench sweep over rates shows up to where it keeps up",
    )


def _connect_waits(result: PointResult) -> Check:
    table = result.table
    connect_s = np.nansum(latencies.connect_s(table)[table.ok])
    ttft_s = np.nansum(latencies.ttft_s(table)[table.ok])
    mean_s = result.metrics.connect_s.mean or 0.0
    share = float(connect_s / ttft_s) if ttft_s else 0.0
    is_quick = mean_s < MIN_CONNECT_S
    return Check(
        name="connect waits",
        status=Status.FINE if is_quick else by_limits(share, MAX_CONNECT_SHARE, BAD_CONNECT_SHARE),
        figure=f"{share:.1%} of TTFT, {mean_s * 1e3:,.2f} ms for each of {result.metrics.connect_s.count:,} "
        "connections",
        limit=f"{MAX_CONNECT_SHARE:.0%}, or {MIN_CONNECT_S * 1e3:g} ms each",
        distorts="users wait for connections, and TTFT from sending does not show it; throughput is lower",
        remedy="a server or proxy that keeps connections open and takes them quickly",
    )


def _steady(evidence: Evidence) -> Check:
    metrics, trends, in_turns = evidence.result.metrics, evidence.trends, evidence.result.settings.in_turns
    steady_s = metrics.steady.duration_s if metrics.steady else 0.0
    share = steady_s / metrics.duration_s if metrics.duration_s else 0.0
    figure = f"steady for {steady_s:,.1f} of {metrics.duration_s:,.1f} s"
    if trends:
        figure += f"; {', '.join(trends)} drift over the whole run"
    apart = "" if in_turns else _rates_apart(metrics)  # of rounds no throughput of the whole is told
    return Check(
        name="steady state",
        status=Status.CAUTION if trends or apart or share < MIN_STEADY_SHARE else Status.FINE,
        figure=figure + apart,
        limit=f"{MIN_STEADY_SHARE:.0%} of the run, no drift, throughput within {MAX_STEADY_GAP:.0%}",
        distorts="means are of the ramp and the drain too, and depend on how long the run is"
        + ("; quote the steady throughput of a server that is kept busy" if apart else ""),
        remedy="longer turns (--chunk)"
        if in_turns
        else "more requests (--num-prompts): ten times the concurrency at least; less load if it drifts",
    )


def _rates_apart(metrics: Metrics) -> str:
    """The throughput of the whole run and of its steady window, where they differ by much; else empty."""
    whole, steady = metrics.output_throughput, metrics.steady.output_throughput if metrics.steady else 0.0
    if whole is None or not steady or abs(whole / steady - 1) <= MAX_STEADY_GAP:
        return ""
    return f"; {whole:,.0f} output tok/s over all of it, {steady:,.0f} while steady"


def _sample_size(result: PointResult) -> Check:
    """Of the percentiles of requests; those of tokens have more to go by."""
    highest = max(result.settings.percentiles, default=50.0)
    num = result.metrics.ttft_s.count
    beyond = num * (1 - highest / 100)
    needed = round(FEWEST_BEYOND / (1 - highest / 100))
    more = f"--num-prompts {needed}"
    if result.settings.in_turns:
        more = f"--rounds {math.ceil(needed / max(1, result.settings.num_prompts))}"
    return Check(
        name="sample size",
        status=Status.CAUTION if beyond < FEWEST_BEYOND - 1e-9 else Status.FINE,
        figure=f"{beyond:,.1f} of {num:,} requests lie beyond {percentile_name(highest)}",
        limit=f"{FEWEST_BEYOND} beyond: {needed:,} requests",
        distorts=f"{percentile_name(highest)} is the luck of a few requests",
        remedy=f"{more}, or a lower --metric-percentiles",
    )


def _repeats(result: PointResult) -> Check:
    runs = result.runs
    check_limit = f"{MAX_SPREAD:.0%}; bad above {BAD_SPREAD:.0%}"
    distorts = "a difference to another run that is smaller than this spread is none"
    if result.settings.in_turns:
        return Check(
            name="repeats",
            status=Status.UNKNOWN,
            figure="an arm's rounds are too short to be repeats",
            limit=check_limit,
            distorts=distorts,
            remedy="the A/B's own intervals, of pairs of rounds, say how sure a difference is",
        )
    if len(runs) < 2:
        return Check(
            name="repeats",
            status=Status.UNKNOWN,
            figure="measured once",
            limit=check_limit,
            distorts=distorts,
            remedy="--repeats 3 shows how far runs differ",
        )
    series = {
        "throughput": [run.output_throughput for run in runs],
        "TTFT": [run.ttft_s.mean for run in runs],
        "TPOT": [run.tpot_s.mean for run in runs],
    }
    spreads = {name: _spread(values) for name, values in series.items()}
    worst = max(spreads, key=lambda name: spreads[name])
    return Check(
        name="repeats",
        status=by_limits(spreads[worst], MAX_SPREAD, BAD_SPREAD),
        figure=f"{len(runs)} repeats differ by {spreads[worst]:.1%}, in {worst} most",
        limit=check_limit,
        distorts=distorts,
        remedy="a machine that nobody else uses; longer runs; --flush-cache before each repeat",
    )


def _spread(values: list[float | None]) -> float:
    """From the least to the most, over the mean."""
    known = np.array([value for value in values if value is not None])
    return float(np.ptp(known) / known.mean()) if len(known) and known.mean() else 0.0
