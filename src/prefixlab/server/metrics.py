"""What Prometheus is told. Counters are cumulative since the start, so any two scrapes give a true rate.

Owns the numbers and their names (`prefixlab:…`). The loop thread writes plain integers, a scrape reads them:
no lock on the path of a token. Prompt and cached tokens are counted together, at a request's first admission,
so the hit rate of an interval is Δcached / Δprompt; computed tokens also count what a retraction makes the
engine compute again.

Invariant: counters never fall; `cached_tokens_total` over all tiers never exceeds `prompt_tokens_total`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.registry import Collector

from prefixlab.cache.manager import CacheStats
from prefixlab.core.request import Request
from prefixlab.scheduler.stats import StepStats
from prefixlab.server.kv_publisher import KVPublisher

PREFIX = "prefixlab:"
CONTENT_TYPE = CONTENT_TYPE_LATEST
TIERS = ("device", "host", "storage")
# 1 ms to about 10 minutes, a factor of 1.5 to 2 apart.
LATENCY_BOUNDS_S = (
    0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75,
    1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class LoopStats:
    """The state after the last turn of the engine loop. Read by any thread, never changed."""

    cache: CacheStats
    num_waiting: int
    num_running: int
    is_idle: bool


class _Latency:
    """Counts per bucket; cheaper than the client library's, which locks."""

    def __init__(self, name: str, text: str) -> None:
        self.name, self.text = name, text
        self.counts = [0] * (len(LATENCY_BOUNDS_S) + 1)
        self.sum_s = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(LATENCY_BOUNDS_S, seconds)] += 1
        self.sum_s += seconds

    def family(self) -> HistogramMetricFamily:
        cumulative, buckets = 0, []
        for bound, count in zip((*LATENCY_BOUNDS_S, float("inf")), self.counts, strict=True):
            cumulative += count
            buckets.append(("+Inf" if bound == float("inf") else repr(bound), float(cumulative)))
        return HistogramMetricFamily(PREFIX + self.name, self.text, buckets=buckets, sum_value=self.sum_s)


class ServerMetrics(Collector):
    """Told by the loop thread, asked by `/metrics`."""

    def __init__(self) -> None:
        self._stats: Callable[[], LoopStats] | None = None
        self._publisher: KVPublisher | None = None
        self._num_prompt_tokens = 0
        self._num_cached_tokens: Counter[str] = Counter()
        self._num_computed_tokens = 0
        self._num_generated_tokens = 0
        self._num_steps = 0
        self._step_time_s = 0.0
        self._num_retractions = 0
        self._num_requests: Counter[str] = Counter()
        self._ttft = _Latency("time_to_first_token_seconds", "Arrival to first token")
        self._itl = _Latency("inter_token_latency_seconds", "Between two tokens of a request")
        self._e2e = _Latency("e2e_request_latency_seconds", "Arrival to end, for requests that succeeded")
        self._queue = _Latency("queue_time_seconds", "Arrival to first admission")
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    # The loop thread's side. ------------------------------------------------------------------------------

    def on_step(self, step: StepStats) -> None:
        """The scheduler's listener."""
        self._num_steps += 1
        self._step_time_s += step.duration_s
        self._num_computed_tokens += step.num_prefill_tokens
        self._num_retractions += step.num_retracted

    def admitted(self, request: Request) -> None:
        """`request` has its first pages: what it found in the cache is known."""
        assert request.scheduled_s is not None
        self._num_prompt_tokens += request.num_prompt_tokens
        self._num_cached_tokens.update(request.num_cached_tokens_by_tier)
        self._queue.observe(request.scheduled_s - request.arrival_s)

    def first_token(self, ttft_s: float) -> None:
        self._num_generated_tokens += 1
        self._ttft.observe(ttft_s)

    def next_token(self, interval_s: float) -> None:
        self._num_generated_tokens += 1
        self._itl.observe(interval_s)

    def ended(self, request: Request) -> None:
        assert request.finish_reason is not None and request.finished_s is not None
        self._num_requests[request.finish_reason.value] += 1
        if request.error is None:
            self._e2e.observe(request.finished_s - request.arrival_s)

    def refused(self) -> None:
        """A request was not let into the queue."""
        self._num_requests["refused"] += 1

    # The scrape's side. -----------------------------------------------------------------------------------

    def watch(self, stats: Callable[[], LoopStats], publisher: KVPublisher | None) -> None:
        """Where gauges and the publisher's counters are read from."""
        self._stats = stats
        self._publisher = publisher

    def text(self) -> bytes:
        """The exposition, as CONTENT_TYPE."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        yield _counter("prompt_tokens", "Prompt tokens of admitted requests", self._num_prompt_tokens)
        cached = CounterMetricFamily(
            PREFIX + "cached_tokens", "Prompt tokens served from a tier of the cache", labels=["tier"]
        )
        for tier in TIERS:
            cached.add_metric([tier], self._num_cached_tokens[tier])
        yield cached
        yield _counter("computed_tokens", "Prompt tokens computed", self._num_computed_tokens)
        yield _counter("generation_tokens", "Tokens generated", self._num_generated_tokens)
        requests = CounterMetricFamily(PREFIX + "requests", "Requests by how they ended", labels=["outcome"])
        for outcome in ("stop", "length", "abort", "timeout", "error", "refused"):
            requests.add_metric([outcome], self._num_requests[outcome])
        yield requests
        yield _counter("retractions", "Running requests sent back to the queue", self._num_retractions)
        yield _counter("steps", "Batches computed", self._num_steps)
        yield _counter("step_time_seconds", "Time spent computing them", self._step_time_s)
        for latency in (self._ttft, self._itl, self._e2e, self._queue):
            yield latency.family()
        if self._stats is not None:
            yield from _state(self._stats())
        if self._publisher is not None:
            yield _counter("kv_event_batches", "KV event batches sent", self._publisher.num_sent_batches)
            yield _counter("kv_events_dropped", "KV events dropped", self._publisher.num_dropped_events)


def _counter(name: str, text: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(PREFIX + name, text, value=value)


def _state(stats: LoopStats) -> Iterator[Metric]:
    cache = stats.cache
    yield GaugeMetricFamily(PREFIX + "waiting_requests", "Requests in the queue", value=stats.num_waiting)
    yield GaugeMetricFamily(PREFIX + "running_requests", "Requests that hold pages", value=stats.num_running)
    pages = GaugeMetricFamily(PREFIX + "pages", "KV pages by state", labels=["state"])
    for state, count in (
        ("free", cache.num_free_pages),
        ("evictable", cache.num_evictable_pages),
        ("protected", cache.num_protected_pages),
        ("in_use", cache.num_in_use_pages),
    ):
        pages.add_metric([state], count)
    yield pages
    yield _counter("evicted_pages", "Pages evicted from the cache", cache.num_evicted_pages_total)
    yield _counter("inserted_pages", "Pages put into the cache", cache.num_inserted_pages_total)
