"""What `bench warm-cache` shows people: a block per point, the sweep's tables, the setting; and the plan.

Owns which figures stand where. Writes to the console it is given; judges nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from prefixlab.bench.config.warm_cache import WarmCacheOptions
from prefixlab.bench.ledger.check import first_failure
from prefixlab.bench.ledger.ledger import verdict_words
from prefixlab.bench.report.console import counted, result_block
from prefixlab.bench.report.figures import milliseconds, number
from prefixlab.bench.report.sweep import PooledPoint, cache_table, latency_table, throughput_table
from prefixlab.bench.runs.warm_cache import PointRun
from prefixlab.bench.targets.endpoint import Endpoint
from prefixlab.bench.workloads.warm_cache import shape_point


def show_sweep(
    console: Console, endpoint: Endpoint, options: WarmCacheOptions, points: Sequence[PooledPoint], place: str
) -> None:
    """Everything measured. `place` is what the figures belong to: `measured on …`, or `simulated: …`."""

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    for point in points:
        say(_block(endpoint, options, point) + "\n")
    for table in (cache_table(points), throughput_table(points), latency_table(points)):
        console.print(table)
    say(setting_line(endpoint, options))
    if options.repeats > 1:
        say("order of points: as given, then shuffled anew for each repeat")
    say(f"prompts made of {endpoint.wording.vocabulary.describe()}")
    salted = (run.cold_start.detail for point in points for run in point.runs if run.salt)
    for detail in dict.fromkeys(salted):
        say(f"prompts were salted: {detail}")
    say(place)


def _block(endpoint: Endpoint, options: WarmCacheOptions, point: PooledPoint) -> str:
    cold = ", ".join(sorted({run.cold_start.coldness.value for run in point.runs}))
    return result_block(
        [
            ("Backend:", endpoint.backend),
            ("Model:", endpoint.model),
            ("Shared prefix (%):", point.shape.pct),
            ("Prefix / suffix (tokens):", f"{point.shape.prefix_len} / {point.shape.suffix_len}"),
            ("Page size (tokens):", endpoint.page_size),
            ("Cold start:", cold),
            ("Repeats:", len(point.runs)),
            ("Traffic request rate:", "closed loop"),
            ("Max request concurrency:", options.max_concurrency),
            ("Arrival stamps:", ", ".join(sorted({run.health.stamps for run in point.runs}))),
        ],
        point.metrics,
        point.check,
        verdict=point.verdict_words,
        sides=dict.fromkeys(ledger.line for ledger in point.ledgers),
        notes=[*point.notes, *([point.check.note] if point.check.note else []), *_causes(point)],
    )


def _causes(point: PooledPoint) -> list[str]:
    """What speaks for the cause of each repeat that is not consistent."""
    wrong = (ledger for ledger in point.ledgers if ledger.finding is not None)
    return list(dict.fromkeys(note for ledger in wrong for note in ledger.notes))


def setting_line(endpoint: Endpoint, options: WarmCacheOptions) -> str:
    """What makes the figures comparable."""
    parts = [
        f"{counted(options.num_prompts, 'prompt')} of {counted(options.total_tokens, 'token')}",
        counted(options.output_len, "output token"),
        f"concurrency {options.max_concurrency}",
        "page size unknown" if endpoint.page_size is None else f"page size {endpoint.page_size}",
        counted(options.repeats, "repeat"),
        f"seed {options.seed}",
    ]
    if endpoint.expects_miss:
        parts.append(f"no hit expected ({endpoint.expects_miss})")
    return " · ".join(parts)


def progress_line(run: PointRun) -> str:
    """One point, as soon as it is measured. Failures come last: nothing after them may hide them."""
    failed = ""
    if run.metrics.failed:
        failed = f", {run.metrics.failed} of {run.metrics.planned} FAILED: {first_failure(run.records)}"
    return (
        f"{run.shape.pct:>3} % shared, repeat {run.repeat + 1}: "
        f"TTFT {number(milliseconds(run.metrics.ttft_s.median), 1)} ms, "
        f"{number(run.metrics.total_throughput)} tok/s, "
        f"cached {number(run.check.cached_tokens)} of {number(run.check.expected_cached_tokens)} expected, "
        f"{verdict_words(run.check, run.ledger)}, "
        f"cold start {run.cold_start.coldness.value}{failed}"
    )


def plan_text(options: WarmCacheOptions, page_size: int | None) -> str:
    """The points and what they cost, without asking any server."""
    lines = [f"{'shared %':>8}  {'prefix':>8}  {'suffix':>8}  {'cached/prompt':>13}  {'to compute':>12}"]
    total_compute = 0
    for pct in options.pcts:
        shape = shape_point(pct, options.total_tokens)
        cached = None if page_size is None else shape.expected_cached_tokens(page_size)
        compute = shape.prefix_len + options.num_prompts * (options.total_tokens - (cached or 0))
        total_compute += compute
        lines.append(
            f"{pct:>8}  {shape.prefix_len:>8,}  {shape.suffix_len:>8,}  "
            f"{'?' if cached is None else format(cached, ','):>13}  {compute:>12,}"
        )
    num_requests = options.repeats * len(options.pcts) * options.num_prompts
    unknown = "" if page_size is not None else " at most (give --page-size to know what the cache will serve)"
    lines.append(
        f"{counted(options.repeats, 'repeat')}: {counted(num_requests, 'request')}, "
        f"{options.repeats * total_compute:,} prompt tokens to compute{unknown}, "
        f"{counted(num_requests * options.output_len, 'output token')}; besides, one trial request, "
        "and up to 3 short probes at each point"
    )
    return "\n".join(lines)
