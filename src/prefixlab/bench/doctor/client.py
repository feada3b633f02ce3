"""The client's side: was it in time, are its stamps good, has it been held against the truth? Pure.

Owns these checks. Their thresholds are those of the notes in `client_notes.py`, so that the two never
disagree.

Invariant: without the client's own word every check of it is unknown.
"""

from __future__ import annotations

from prefixlab.bench.calibrate import store
from prefixlab.bench.doctor.client_notes import (
    FEWEST_TOGETHER,
    MAX_CLOCK_ERROR_S,
    MAX_IDLE_SHARE,
    MAX_MERGED_SHARE,
    MAX_SEND_LAG_S,
    send_lag_s,
    slot_time_s,
)
from prefixlab.bench.doctor.diagnosis import Check, Status, by_limits
from prefixlab.bench.doctor.evidence import Evidence
from prefixlab.bench.loadgen.health import ClientHealth

BAD_SEND_LAG_S = 0.05
BAD_IDLE_SHARE = 0.2
MORE_PROCESSES = "more client processes (--num-workers), or a machine of its own for the client"


def client_checks(evidence: Evidence) -> list[Check]:
    health = evidence.result.health
    if not evidence.knows_client:
        return [
            Check(
                name="client health",
                status=Status.UNKNOWN,
                figure="its word is lost",
                limit="health.json",
                distorts="whatever the client did late is in every latency",
                remedy="measure again, to the end",
            )
        ]
    if health.stamps == "target":
        return [
            Check(
                name="in-process target",
                status=Status.CAUTION,
                figure="the client shares its interpreter with the engine",
                limit="a server of its own",
                distorts="latencies and throughput are without HTTP, and with the client's own work",
                remedy="for figures of a server, measure one over HTTP",
            )
        ]
    return [
        _lag(health, open_loop=evidence.result.settings.open_loop),
        _calibration(evidence),
        _stamps(health),
        _merged(health),
        _clock(health),
        *([_machines(health)] if health.nodes else []),
    ]


def _lag(health: ClientHealth, *, open_loop: bool) -> Check:
    if open_loop:
        lag_s = health.send_lag_s.quantile(0.99) if health.send_lag_s.count else 0.0
        return Check(
            name="client lag",
            status=by_limits(send_lag_s(health), MAX_SEND_LAG_S, BAD_SEND_LAG_S),
            figure=f"{lag_s * 1e3:.2f} ms late at p99 through the client's own fault",
            limit=f"{MAX_SEND_LAG_S * 1e3:g} ms",
            distorts="latency from the schedule includes it",
            remedy=MORE_PROCESSES,
        )
    slots_s = slot_time_s(health)
    idle = health.send_lag_s.total / slots_s if slots_s else 0.0
    return Check(
        name="client lag",
        status=by_limits(idle, MAX_IDLE_SHARE, BAD_IDLE_SHARE),
        figure=f"slots stood idle for {idle:.2%} of the time through the client's own fault",
        limit=f"{MAX_IDLE_SHARE:.0%}",
        distorts="throughput is lower, and latency better, than at the concurrency asked for",
        remedy=MORE_PROCESSES,
    )


def _calibration(evidence: Evidence) -> Check:
    health, calibration = evidence.result.health, evidence.calibration
    tokens_per_s = evidence.result.metrics.output_throughput or 0.0
    if health.nodes:
        warning: str | None = None
        status, limit = Status.UNKNOWN, "calibrations are of this machine"
    else:
        warning = store.check(
            calibration,
            tokens_per_s=tokens_per_s,
            streams=health.peak_in_flight,
            num_workers=health.num_workers,
            tried=evidence.tried,
        )
        status = Status.CAUTION if warning else Status.FINE
        limit = (
            f"{store.MAX_UNCALIBRATED_TOKENS_PER_S:,} tokens/s and {store.MAX_UNCALIBRATED_STREAMS} streams, "
            "which any client holds"
        )
        if calibration is not None:
            limit = (
                f"calibrated to {calibration.tokens_per_s:,.0f} tokens/s and {calibration.streams:,} "
                f"streams, where ITL was off by {calibration.itl.p99_s * 1e3:.3f} ms at p99"
            )
    return Check(
        name="calibration",
        status=status,
        figure=f"{tokens_per_s:,.0f} tokens/s, {health.peak_in_flight:,} streams at once",
        limit=limit,
        distorts="past it the client's own error is unknown, in ITL first",
        remedy=warning or "",
    )


def _stamps(health: ClientHealth) -> Check:
    return Check(
        name="arrival stamps",
        status=Status.FINE if health.stamps == "kernel" else Status.CAUTION,
        figure=f"taken by: {health.stamps}",
        limit="kernel",
        distorts="other stamps include how late the client looked: TTFT and ITL",
        remedy="" if health.stamps == "kernel" else "a Linux client, without --no-kernel-stamps",
    )


def _merged(health: ClientHealth) -> Check:
    share = health.num_merged_reads / health.num_reads if health.num_reads else 0.0
    is_few = health.num_merged_reads < FEWEST_TOGETHER
    return Check(
        name="merged reads",
        status=Status.FINE if is_few else by_limits(share, MAX_MERGED_SHARE),
        figure=f"{health.num_merged_reads:,} of {health.num_reads:,} reads brought several pieces",
        limit=f"{MAX_MERGED_SHARE:.0%}, or {FEWEST_TOGETHER}",
        distorts="ITL is blurred: tokens of one read share its arrival time",
        remedy=f"{MORE_PROCESSES}; with a small read lag it was the server or the network",
    )


def _clock(health: ClientHealth) -> Check:
    return Check(
        name="clock steps",
        status=by_limits(health.num_clock_steps, 0),
        figure=f"the wall clock was set {health.num_clock_steps} times",
        limit="0",
        distorts="around a step arrivals are stamped by the client: TTFT and ITL",
        remedy="let the clock be slewed, not set, while measuring",
    )


def _machines(health: ClientHealth) -> Check:
    lost = [node.node for node in health.nodes if node.lost]
    error_s = max(
        max(node.uncertainty_s, abs(node.drift_s or 0.0) - node.drift_uncertainty_s) for node in health.nodes
    )
    return Check(
        name="client machines",
        status=Status.BAD if lost else by_limits(error_s, MAX_CLOCK_ERROR_S),
        figure=f"lost: {', '.join(lost)}" if lost else f"clocks known to {error_s * 1e3:.2f} ms",
        limit=f"none lost, {MAX_CLOCK_ERROR_S * 1e3:g} ms",
        distorts="requests left so far off the schedule; those of a lost machine failed",
        remedy="clocks that are kept in step; the machine's log",
    )
