"""A point's result as one flat dictionary: the file notebooks and gates for vLLM and SGLang already read.

Owns the keys. vLLM's are those of `vllm bench serve --save-result` (0.32), SGLang's those of its JSON lines;
ours stand beside them. Latencies are milliseconds under keys ending in `_ms`; the detailed lists are seconds,
as vLLM's are.

Invariant: every value is valid JSON; what was not measured is null; an infinite rate is the word "inf", which
vLLM writes.
"""

from __future__ import annotations

import dataclasses
import math
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from prefixlab import __version__
from prefixlab.bench.ledger.check import CacheCheck
from prefixlab.bench.ledger.ledger import Ledger, verdict_word
from prefixlab.bench.loadgen.health import ClientHealth
from prefixlab.bench.metrics import latencies
from prefixlab.bench.metrics.point import PointResult
from prefixlab.bench.metrics.summary import LATENCY_KEYS, as_result_keys
from prefixlab.bench.records.table import RecordTable
from prefixlab.bench.report.environment import machine_name
from prefixlab.bench.report.turns import turn_keys
from prefixlab.core.histogram import Histogram


def result_keys(result: PointResult, *, detailed: bool = False) -> dict[str, Any]:
    """The summary of a point. `detailed` adds one entry per request, as vLLM's --save-detailed does."""
    settings, metrics = result.settings, result.metrics
    goodput, judged = metrics.goodput, result.saturation
    keys: dict[str, Any] = {
        "date": settings.date,
        "endpoint_type": settings.backend,
        "backend": settings.backend,
        "label": settings.label,
        "model_id": settings.model,
        "tokenizer_id": settings.tokenizer,
        "num_prompts": settings.num_prompts,
        "request_rate": settings.request_rate if math.isfinite(settings.request_rate) else "inf",
        "burstiness": settings.burstiness if math.isfinite(settings.burstiness) else "inf",
        "max_concurrency": settings.max_concurrency,
        "dataset_name": settings.dataset,
        "loop": "open" if settings.open_loop else "closed",
        "arrivals": settings.arrivals or None,
        **settings.ramp,
        "swept": dict(settings.swept) or None,
        **settings.facts,
        **({} if result.fidelity is None else {"fidelity": result.fidelity.keys()}),
        "planned": metrics.planned,
        **as_result_keys(metrics),
        **({} if may_queue(result) else {"max_queued_requests": None}),
        "total_output_tokens_retokenized": None,  # tokens are counted by the server, none are made again
        "rtfx": None,  # of audio
        "failures": dict(metrics.failures),
        "request_goodput": goodput and goodput.request_goodput,
        "goodput_share": goodput and goodput.share,
        "goodput_objectives": str(goodput.objectives) if goodput else None,
        **_steady_keys(result),
        "saturated": None if judged is None or judged.untold else judged.saturated,
        "saturation": str(judged) if judged else None,
        "intervals_95": _intervals(result),
        "repeats": len(result.runs),
        "segments": metrics.num_segments,
        "interrupted": result.interrupted,
        **cache_keys(result.check, result.ledger),
        "ledger": None if result.ledger is None else result.ledger.keys(),
        **turn_keys(result.table),
        "doctor": None if result.diagnosis is None else result.diagnosis.keys(),
        "client": client_keys(result.health),
        "client_machine": machine_name(),
        "prefixlab_version": __version__,
        "notes": list(result.notes),
    }
    # The user's own words never take the place of a figure.
    named = {name if name not in keys else f"metadata_{name}": of for name, of in settings.metadata.items()}
    return keys | named | (detailed_keys(result.table) if detailed else {})


def may_queue(result: PointResult) -> bool:
    """Only a cap on an open loop makes requests wait that are due; in closed loop those not begun are not."""
    return result.settings.open_loop and result.settings.max_concurrency is not None


def cache_keys(check: CacheCheck, ledger: Ledger | None = None) -> dict[str, Any]:
    """The verdict is the ledger's, its evidence the detail where answers alone have nothing to say."""
    evidence = () if ledger is None or ledger.finding is None else ledger.finding.evidence
    return {
        "expected_cached_tokens": check.expected_cached_tokens,
        "cached_tokens": check.cached_tokens,
        "measured_hit_rate": check.hit_rate,
        "checked_requests": check.num_checked,
        "verdict": verdict_word(check, ledger),
        "verdict_detail": check.detail or "; ".join(evidence),
    }


def client_keys(health: ClientHealth) -> dict[str, Any]:
    """How far the client itself is to be believed."""
    return {
        "stamps": health.stamps,
        "workers": health.num_workers,
        "nodes": [dataclasses.asdict(node) for node in health.nodes],
        "read_lag_p50_ms": milliseconds_at(health.read_lag_s, 0.5),
        "read_lag_p99_ms": milliseconds_at(health.read_lag_s, 0.99),
        "client_lag_p50_ms": milliseconds_at(health.send_lag_s, 0.5),
        "client_lag_p99_ms": milliseconds_at(health.send_lag_s, 0.99),
        "reads": health.num_reads,
        "merged_reads": health.num_merged_reads,
        "connections_opened": health.num_connects,
        "connections_reused": health.num_reused,
        "sent_again": health.num_resends,
        "retries": health.num_retries,
        "clock_steps": health.num_clock_steps,
        "clock_drift_ppm": health.clock_drift_ppm,
        "cpu_s": health.cpu_s,
        "wall_s": health.wall_s,
    }


def detailed_keys(table: RecordTable) -> dict[str, Any]:
    """One entry per request, in the order they ended, failed ones included. Seconds. `itls` are the gaps
    between a request's chunks, as vLLM's are. Texts are not kept: `generated_texts` is null."""
    errors = [table.errors.get(row, "") for row in range(len(table))]
    arrivals, edges = table.arrivals_s, table.arrival_start.tolist()
    return {
        "request_ids": list(table.request_id),
        "input_lens": table.prompt_tokens.tolist(),
        "output_lens": table.num_output_tokens.tolist(),
        "ttfts": known(latencies.ttft_s(table)),
        "itls": [np.diff(arrivals[start:end]).tolist() for start, end in pairwise(edges)],
        "latencies": known(latencies.e2e_s(table)),
        "start_times": known(table.sent_s),
        "queue_times": known(latencies.send_lag_s(table)),
        "generated_texts": None,
        "errors": errors,
    }


def milliseconds_at(histogram: Histogram, quantile: float) -> float | None:
    return histogram.quantile(quantile) * 1e3 if histogram.count else None


def known(column: npt.NDArray[np.float64]) -> list[float | None]:
    """NaN as null."""
    return [None if math.isnan(value) else value for value in column.tolist()]


def _steady_keys(result: PointResult) -> dict[str, Any]:
    steady = result.metrics.steady
    return {
        "steady_duration": steady and steady.duration_s,
        "steady_request_throughput": steady and steady.request_throughput,
        "steady_input_throughput": steady and steady.input_throughput,
        "steady_output_throughput": steady and steady.output_throughput,
        "steady_total_token_throughput": steady and steady.total_throughput,
    }


def _intervals(result: PointResult) -> dict[str, Any]:
    """By the key of the figure they belong to: [low, high, method]."""
    keyed = {}
    for (field, statistic), interval in result.intervals.items():
        if field in LATENCY_KEYS:
            scaled, name = interval.scaled(1e3), f"{statistic}_{LATENCY_KEYS[field][-1]}_ms"
        else:
            scaled, name = interval, field
        keyed[name] = [scaled.low, scaled.high, f"{scaled.method}, {scaled.num_parts}"]
    return keyed
