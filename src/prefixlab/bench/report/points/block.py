"""One point of `bench serve` or `bench sweep` as the 50-column block that vLLM's users grep.

Owns which rows stand in it. Labels of what vLLM's client prints too are its own, letter for letter; what it
has not stands in rows and sections of ours below. In open loop latencies from the schedule come first.

Invariant: a value that was not measured is printed as n/a, never as 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from prefixlab.bench.ledger.check import PAGE_SIZE_UNKNOWN, Verdict
from prefixlab.bench.ledger.ledger import verdict_words
from prefixlab.bench.metrics.distribution import Distribution
from prefixlab.bench.metrics.point import PointResult
from prefixlab.bench.report.console import WIDTH, Row, line, section
from prefixlab.bench.report.figures import milliseconds
from prefixlab.bench.report.points.keys import may_queue, milliseconds_at
from prefixlab.bench.report.turns import turn_lines
from prefixlab.bench.traces.fidelity import Fidelity

_SECTIONS = {
    "ttft": ("Time to First Token", "TTFT", "ttft_s"),
    "tpot": ("Time per Output Token (excl. 1st token)", "TPOT", "tpot_s"),
    "itl": ("Inter-token Latency", "ITL", "itl_s"),
    "e2el": ("End-to-end Latency", "E2EL", "e2e_s"),
}
_FROM_SCHEDULE = {
    "ttft": ("Time to First Token from Schedule", "TTFT", "ttft_from_intent_s"),
    "e2el": ("End-to-end Latency from Schedule", "E2EL", "e2e_from_intent_s"),
}


def point_block(result: PointResult) -> str:
    """The block and, below it, the notes."""
    selected = result.settings.selected
    lines = [" Serving Benchmark Result ".center(WIDTH, "=")]
    lines += map(line, _head_rows(result))
    lines += map(line, _our_rows(result))
    if result.settings.open_loop:
        # how long a user waited: always there, whatever was selected
        lines += _latency_sections(result, list(_FROM_SCHEDULE.values()))
    lines += _latency_sections(result, [_SECTIONS[name] for name in _SECTIONS if name in selected])
    if result.metrics.content_ttft_s.count and result.metrics.num_reasoning_tokens:
        lines += _latency_sections(result, [("Time to First Content", "TTFC", "content_ttft_s")])
    if _tells_of_hits(result):
        lines += section("Prefix Cache", _cache_rows(result))
        lines += [] if result.ledger is None else [result.ledger.line]
    if result.fidelity is not None:
        lines += section("Fidelity", _fidelity_rows(result.fidelity))
    lines += turn_lines(result.table)
    lines += section("Client", _client_rows(result))
    lines.append("=" * WIDTH)
    lines += [f"note: {note}" for note in shown_notes(result)]
    if result.diagnosis is not None:
        lines.append(str(result.diagnosis))
    return "\n".join(lines)


def _head_rows(result: PointResult) -> list[Row]:
    """What vLLM's block begins with, in its order."""
    settings, metrics = result.settings, result.metrics
    rows: list[Row] = [
        ("Successful requests:", metrics.ok),
        ("Failed requests:", metrics.failed),
    ]
    if settings.max_concurrency is not None:
        rows.append(("Maximum request concurrency:", settings.max_concurrency))
    if math.isfinite(settings.request_rate):
        rows.append(("Request rate configured (RPS):", float(settings.request_rate)))
    rows += [
        ("Benchmark duration (s):", metrics.duration_s),
        ("Total input tokens:", metrics.num_input_tokens),
        ("Total generated tokens:", metrics.num_output_tokens),
        ("Request throughput (req/s):", metrics.request_throughput),
    ]
    if metrics.goodput is not None:
        rows.append(("Request goodput (req/s):", metrics.goodput.request_goodput))
    return [
        *rows,
        ("Output token throughput (tok/s):", metrics.output_throughput),
        ("Peak output token throughput (tok/s):", metrics.peak_output_throughput),
        ("Peak concurrent requests:", float(metrics.peak_concurrency)),
        ("Total token throughput (tok/s):", metrics.total_throughput),
    ]


def _our_rows(result: PointResult) -> list[Row]:
    settings, metrics = result.settings, result.metrics
    rows: list[Row] = [
        ("Planned requests:", metrics.planned),
        ("Cancelled requests:", metrics.cancelled),
        ("Unsent requests:", metrics.unsent),
        *((f"Failed, {kind.replace('_', ' ')}:", count) for kind, count in metrics.failures.items()),
        ("Retried attempts:", metrics.num_retries),
        ("Pacing:", pacing(result)),
        ("Mean concurrent requests:", metrics.concurrency),
    ]
    if may_queue(result):
        rows.append(("Peak queued requests:", metrics.peak_queued))
    if settings.open_loop:
        rows.append(("Saturated:", saturated_word(result)))
    steady = metrics.steady
    rows += [
        ("Steady window (s):", steady.duration_s if steady else None),
        ("Steady request throughput (req/s):", steady.request_throughput if steady else None),
        ("Steady output token throughput (tok/s):", steady.output_throughput if steady else None),
    ]
    if metrics.goodput is not None:
        share = metrics.goodput.share
        rows.append(("Good requests (%):", None if share is None else 100 * share))
    if metrics.num_reasoning_tokens is not None:
        rows.append(("Total reasoning tokens:", metrics.num_reasoning_tokens))
    if len(result.runs) > 1:
        rows.append(("Repeats:", len(result.runs)))
    if metrics.num_segments > len(result.runs):
        rows.append(("Segments of a resumed run:", metrics.num_segments))
    return rows


def pacing(result: PointResult) -> str:
    """`open loop, Poisson`, `closed loop`."""
    settings = result.settings
    if not settings.open_loop:
        return "closed loop"
    return f"open loop{', ' if settings.arrivals else ''}{settings.arrivals}"


def saturated_word(result: PointResult) -> str:
    """For open loop."""
    if result.saturation is None:
        return "cannot tell: too few requests"
    if result.saturation.untold:
        return str(result.saturation)
    return "yes" if result.saturation.saturated else "no"


def shown_notes(result: PointResult) -> list[str]:
    """The result's, and what its layout needs: why an interval is missing, how hits could be checked."""
    notes = list(result.notes)
    if result.check.detail == PAGE_SIZE_UNKNOWN:
        notes.append(result.check.note)
    if any(result.has_trend(field) for field in ("ttft_s", "tpot_s", "itl_s", "e2e_s", "e2e_from_intent_s")):
        notes.append(
            "n/a (trend): latencies drift over the whole run, so that no interval can be given for their mean"
        )
    return list(dict.fromkeys(notes))


def _latency_sections(result: PointResult, sections: Sequence[tuple[str, str, str]]) -> list[str]:
    lines: list[str] = []
    for title, name, field in sections:
        seconds: Distribution = getattr(result.metrics, field)
        interval = result.intervals.get((field, "mean"))
        rows: list[Row] = [(f"Mean {name} (ms):", milliseconds(seconds.mean))]
        if interval is not None:
            rows.append((f"Mean {name} 95% interval (ms):", f"± {interval.half_width * 1e3:.2f}"))
        elif result.has_trend(field):
            rows.append((f"Mean {name} 95% interval (ms):", "n/a (trend)"))
        rows.append((f"Median {name} (ms):", milliseconds(seconds.median)))
        rows += [
            (f"P{percent:g} {name} (ms):", milliseconds(seconds.at(percent)))
            for percent in result.settings.percentiles
        ]
        lines += section(title, rows)
    return lines


def _tells_of_hits(result: PointResult) -> bool:
    """An answer, a counter, or a cause why there is none."""
    if result.check.verdict is Verdict.NOTHING_FINISHED:
        return False
    counts = None if result.ledger is None else result.ledger.seen.counts
    counted = counts is not None and counts.cached_tokens is not None
    return counted or result.check.verdict is not Verdict.NOT_REPORTED


def _cache_rows(result: PointResult) -> list[Row]:
    check = result.check
    rate = check.hit_rate
    is_part = 0 < check.num_checked < check.num_finished
    return [
        ("Expected cached tokens:", check.expected_cached_tokens),
        *([("Measured of those checked:", check.checked_cached_tokens)] if is_part else []),
        ("Measured cached tokens:", check.cached_tokens),
        ("Measured hit rate (%):", None if rate is None else 100 * rate),
        ("Cache verdict:", verdict_words(check, result.ledger)),
    ]


def _fidelity_rows(fidelity: Fidelity) -> list[Row]:
    prompts, outputs = fidelity.prompts, fidelity.outputs
    sharing, timing = fidelity.sharing, fidelity.timing
    rows: list[Row] = [
        ("Prompts of exact length:", f"{prompts.num_exact} of {prompts.num_counted}"),
        ("Outputs of exact length:", f"{outputs.num_exact} of {outputs.num_counted}"),
        ("Prompts of exact sharing:", f"{sharing.num_exact} of {sharing.num_checked}"),
        ("Ideal hit rate, recorded (%):", 100 * sharing.recorded),
        ("Ideal hit rate, to be sent (%):", 100 * sharing.fitted),
        ("Ideal hit rate, sent (%):", 100 * sharing.sent),
    ]
    if timing is not None:
        rows += [
            ("Median arrival lag (ms):", milliseconds(timing.lag_p50_s)),
            ("P99 arrival lag (ms):", milliseconds(timing.lag_p99_s)),
            ("Max arrival lag (ms):", milliseconds(timing.lag_max_s)),
            ("Recorded duration (s):", timing.recorded_s),
            ("Scheduled duration (s):", timing.scheduled_s),
            ("Realised duration (s):", timing.realised_s),
        ]
    return rows


def _client_rows(result: PointResult) -> list[Row]:
    health, metrics = result.health, result.metrics
    rows: list[Row] = [
        ("Client processes:", health.num_workers or None),
        ("Arrival stamps:", health.stamps),
        ("P99 read lag (ms):", milliseconds_at(health.read_lag_s, 0.99)),
        ("P99 client lag (ms):", milliseconds_at(health.send_lag_s, 0.99)),
        ("Merged reads:", f"{health.num_merged_reads} of {health.num_reads}"),
        ("Connections opened / reused:", f"{health.num_connects} / {health.num_reused}"),
        ("Sent again (connection had gone):", health.num_resends or None),
        ("Mean connect time (ms):", milliseconds(metrics.connect_s.mean)),
        ("Clock steps:", health.num_clock_steps),
    ]
    if health.nodes:
        drifts = [abs(node.drift_s) for node in health.nodes if node.drift_s is not None]
        rows += [
            ("Client machines:", len({node.node for node in health.nodes})),
            ("Clock uncertainty (ms):", milliseconds(max(node.uncertainty_s for node in health.nodes))),
            ("Clock drift (ms):", milliseconds(max(drifts)) if drifts else None),
        ]
    if health.wall_s:
        rows.append(("CPU of its core (%):", 100 * health.cpu_s / health.wall_s))
    return rows
