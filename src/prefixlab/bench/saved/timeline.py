"""A run second by second: what the client saw and what the server said of itself, on one time axis.

    segment, time_s               stretch of the run, and where in it the step begins, in seconds
    client_in_flight              requests on their way, mean over the step
    client_requests_s             requests that succeeded, per second, where they end
    client_output_tokens_s        tokens that came, per second
    client_ttft_p50_ms            of requests whose first token came in the step
    server_running, _queued       requests in batches and before them, mean over the step
    server_cache_usage            share of the KV cache that running requests hold, 0 to 1, mean over the step
    server_hit_rate               cached ÷ prompt tokens that the server counted in the step
    server_output_tokens_s        tokens it counted, per second
    server_evicted_s              what its cache dropped, per second: pages of ours, tokens of SGLang
    server_preempted_s            running requests it sent back to the queue, per second

Owns the figures. Which metrics of a server each is made of is `server_metrics.py`'s. Of several servers
counts are sums, and shares are means.

Invariant: what was not measured, or not told, is NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from prefixlab.bench.metrics import latencies
from prefixlab.bench.records.table import RecordTable
from prefixlab.bench.saved import server_metrics as told
from prefixlab.bench.saved.saved_run import SavedRun
from prefixlab.bench.saved.server_metrics import Heard, read_heard

FloatArray = npt.NDArray[np.float64]

COLUMNS = (
    "segment",
    "time_s",
    "client_in_flight",
    "client_requests_s",
    "client_output_tokens_s",
    "client_ttft_p50_ms",
    "server_running",
    "server_queued",
    "server_cache_usage",
    "server_hit_rate",
    "server_output_tokens_s",
    "server_evicted_s",
    "server_preempted_s",
)


def timeline(run: SavedRun, step_s: float = 1.0) -> dict[str, FloatArray]:
    """The columns of COLUMNS, one row per step of every stretch in which anything was sent, shape (n,).

    Raises:
        ConfigError: a file of the run cannot be read.
    """
    table = run.table
    heard = read_heard(run.path)
    parts: list[dict[str, FloatArray]] = []
    for segment in np.unique(table.segment[np.isfinite(table.sent_s)]).tolist():
        rows = table.select(table.segment == segment)
        end_s = float(np.nanmax(rows.last_s, initial=step_s))
        edges: FloatArray = np.arange(int(np.ceil(end_s / step_s)) + 1).astype(np.float64) * step_s
        whole = np.full(len(edges) - 1, float(segment))
        own = {"segment": whole, "time_s": edges[:-1], **_of_client(rows, edges)}
        parts.append(own | _of_servers(heard.get(segment, []), edges))
    return {name: np.concatenate([part[name] for part in parts] or [np.empty(0)]) for name in COLUMNS}


# The client. ----------------------------------------------------------------------------------------------


def _of_client(table: RecordTable, edges: FloatArray) -> dict[str, FloatArray]:
    step_s = edges[1] - edges[0]

    def per_second(times_s: FloatArray, weights: npt.NDArray[np.int32] | None = None) -> FloatArray:
        counts: FloatArray = np.histogram(times_s, edges, weights=weights)[0] / step_s
        return counts

    sent = np.isfinite(table.sent_s)
    ends_s = np.where(np.isfinite(table.last_s), table.last_s, edges[-1])[sent]
    under_way_s = _area_before(edges, table.sent_s[sent]) - _area_before(edges, ends_s)
    return {
        "client_in_flight": np.diff(under_way_s) / step_s,
        "client_requests_s": per_second(table.last_s[table.ok]),
        "client_output_tokens_s": per_second(table.arrivals_s, table.counts),
        "client_ttft_p50_ms": _medians(table.first_arrival_s, latencies.ttft_s(table) * 1e3, edges),
    }


def _area_before(edges: FloatArray, times_s: FloatArray) -> FloatArray:
    """Σ (edge - time) over the times before each edge: seconds since then, of all together."""
    times_s = np.sort(times_s)
    sums = np.concatenate([[0.0], np.cumsum(times_s)])
    num = np.searchsorted(times_s, edges)
    area: FloatArray = num * edges - sums[num]
    return area


def _medians(times_s: FloatArray, values: FloatArray, edges: FloatArray) -> FloatArray:
    """Of the values whose time is in a step; NaN of none."""
    known = np.isfinite(times_s) & np.isfinite(values)
    order = np.argsort(times_s[known], kind="stable")
    values = values[known][order]
    cuts = np.searchsorted(times_s[known][order], edges)
    return np.array([np.median(values[low:high]) if high > low else np.nan for low, high in pairwise(cuts)])


# The servers. ---------------------------------------------------------------------------------------------


def _of_servers(heard: Sequence[Heard], edges: FloatArray) -> dict[str, FloatArray]:
    step_s = edges[1] - edges[0]

    def gauge(names: Sequence[str]) -> FloatArray:
        return _sum([one.gauge(names, edges) for one in heard], edges)

    def grown(names: Sequence[str]) -> FloatArray:
        return _sum([one.grown(names, edges) for one in heard], edges)

    usages = [usage for one in heard if (usage := one.usage(edges)) is not None]
    with np.errstate(invalid="ignore", divide="ignore"):
        hit_rate = np.where(grown(told.ASKED) > 0, grown(told.HITS) / grown(told.ASKED), np.nan)
    return {
        "server_running": gauge(told.RUNNING),
        "server_queued": gauge(told.QUEUED),
        "server_cache_usage": _sum(usages, edges) / max(1, len(usages)),
        "server_hit_rate": hit_rate,
        "server_output_tokens_s": grown(told.GENERATED) / step_s,
        "server_evicted_s": grown(told.EVICTED) / step_s,
        "server_preempted_s": grown(told.PREEMPTED) / step_s,
    }


def _sum(parts: Sequence[FloatArray | None], edges: FloatArray) -> FloatArray:
    known = [part for part in parts if part is not None]
    return np.sum(known, axis=0) if known else np.full(len(edges) - 1, np.nan)
