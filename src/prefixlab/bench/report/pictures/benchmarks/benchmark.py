"""A benchmark as its pictures see it: points over the concurrency, each with its figures.

Owns the words, the few figures that are drawn, and which of them can stand in one picture. Reads no files.

Invariant: a figure that was not measured is absent; where another stands in for it, `notes` say so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from prefixlab.bench.compare.run import Run
from prefixlab.bench.metrics import intervals, latencies
from prefixlab.bench.metrics.intervals import Interval
from prefixlab.bench.records.record import Outcome
from prefixlab.bench.records.table import CODE, RecordTable
from prefixlab.bench.report.pictures.provenance import Provenance

TOKENS_PER_USER = "tokens_per_s_per_user"
"""Mean over requests of output tokens ÷ E2E: what one user gets per second, waiting included."""
REQUESTS, OUTPUT = "request_throughput", "output_throughput"
TTFT_MEAN, TTFT_P99 = "mean_ttft_ms", "p99_ttft_ms"
ITL, TPOT = "itl", "tpot"
"""Pooled over all tokens; or one mean per request, which is what aiperf calls inter-token latency."""

Ends = tuple[float, float]


@dataclass(frozen=True, eq=False)
class Point:
    """One concurrency.

    Attributes:
        source: its folder or file, for people.
        runs: one per repeat.
        figures: by key of result files; milliseconds, or per second.
        ends: of 95 % intervals, by the same keys.
        planned, failed: requests; None where not told.
        num_devices: that the server used, as it was told when this was measured.
        server: what is known of it, in words.
        goodput: in words; empty without objectives.
    """

    concurrency: int
    source: str
    runs: tuple[Run, ...]
    figures: Mapping[str, float]
    ends: Mapping[str, Ends]
    planned: int | None
    failed: int | None
    provenance: Provenance
    num_devices: int | None = None
    server: str = ""
    seed: str = ""
    goodput: str = ""

    @property
    def errors(self) -> dict[str, int]:
        """What requests ran into, and how often: by HTTP status, else by the word for it."""
        found: Counter[str] = Counter()
        for run in self.runs:
            if run.table is None:
                continue
            rows = np.flatnonzero(run.table.outcome == CODE[Outcome.FAILED])
            words = run.table.failure.to_list()
            for row in rows.tolist():
                status = int(run.table.http_status[row])
                found[f"HTTP {status}" if status > 0 else str(words[row] or "unknown")] += 1
        return dict(found.most_common())


@dataclass(frozen=True, eq=False)
class Benchmark:
    """One line of every picture.

    Attributes:
        name: as it was given.
        points: by concurrency.
        has_itl: gaps between tokens are known; else only their mean per request.
        num_devices: None where nobody knows.
        devices_from: who says so.
        notes: what its reader must know, in sentences.
    """

    name: str
    points: tuple[Point, ...]
    has_itl: bool = True
    num_devices: int | None = None
    devices_from: str = ""
    notes: tuple[str, ...] = field(default=())

    @property
    def levels(self) -> list[int]:
        """Its concurrencies, each once."""
        return sorted({point.concurrency for point in self.points})

    def output_per_device(self, point: Point) -> float | None:
        output = point.figures.get(OUTPUT)
        return None if output is None or self.num_devices is None else output / self.num_devices


def per_device(benchmarks: Sequence[Benchmark]) -> bool:
    """Whether throughput can be told per device: only if every number of devices is known."""
    return all(benchmark.num_devices is not None for benchmark in benchmarks)


def itl_word(benchmarks: Sequence[Benchmark]) -> str:
    """ITL where all have it; else what all have, so that a picture shows one quantity."""
    return ITL if all(benchmark.has_itl for benchmark in benchmarks) else TPOT


def ends_of(point: Point, key: str) -> Ends | None:
    """Of the interval, under either name of a median."""
    return point.ends.get(key) or point.ends.get(key.replace("median_", "p50_"))


def tokens_per_user(tables: Sequence[RecordTable]) -> tuple[float | None, Interval | None]:
    """TOKENS_PER_USER from the records of each repeat: of all requests, and how sure that is."""
    series = [_tokens_per_s(table) for table in tables]
    values = np.concatenate(series) if series else np.empty(0)
    if not len(values):
        return None, None
    over_repeats = intervals.of_repeats([float(of.mean()) if len(of) else None for of in series])
    return float(values.mean()), over_repeats or intervals.of_mean(values)


def _tokens_per_s(table: RecordTable) -> latencies.FloatArray:
    """Of each request that brought tokens, in the order they were sent."""
    order = np.lexsort((table.sent_s, table.segment))
    e2e_s = latencies.e2e_s(table)
    order = order[(table.ok & (table.num_arrivals > 0) & (e2e_s > 0))[order]]
    values: latencies.FloatArray = table.num_output_tokens[order] / e2e_s[order]
    return values
